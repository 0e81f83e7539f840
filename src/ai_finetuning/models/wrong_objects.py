"""Refusals of objects of another kind than a function of the Python interface takes, before anything is done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import ConfigError


def require_text(name: str, value: Any, *, several: str = "") -> None:
    """Refuses anything but one text.

    Args:
        name: of the argument.
        several: the function that takes a list of them.

    Raises:
        ConfigError: with what was given.
    """
    if isinstance(value, str):
        return
    if several and isinstance(value, Sequence):
        raise ConfigError(
            f"{name} がリスト（{type(value).__name__}、{len(value)} 件）です。1 つの文字列にするか、複数なら {several}(…) を使ってください。",
            f"{name} is a {type(value).__name__} of {len(value)}; give one string, or use {several}(...) for several.",
        )
    raise ConfigError(
        f"{name} が {type(value).__name__} です。文字列にしてください。",
        f"{name} is of type {type(value).__name__}; it must be a string.",
    )


def require_texts(name: str, value: Any, one: str = "") -> None:
    """Refuses anything but a list of texts; `one` is the function for a single one.

    Raises:
        ConfigError: with what was given.
    """
    if isinstance(value, str):
        ja = f"[…] のリストにするか、{one}(…) を使ってください。" if one else "[…] のリストにしてください。"
        en = f"give a list, [...], or use {one}(...)." if one else "give a list, [...]."
        raise ConfigError(f"{name} が 1 つの文字列です。{ja}", f"{name} is one string; {en}")
    for index, item in enumerate(value):
        require_text(f"{name}[{index}]", item)


def require_kind(name: str, value: Any, expected: type, *, why: str = "") -> None:
    """Refuses an object of another class than a settings object's.

    Args:
        name: of the argument.
        expected: its class, or one that it descends from.
        why: the argument that takes the class which was given, where two were swapped.

    Raises:
        ConfigError: with both classes.
    """
    if isinstance(value, expected):
        return
    given, wanted = _kind(value, expected), expected.__name__
    ja, en = (f"（{why} と順番が逆です）", f" ({why} and {name} are swapped)") if why else ("", "")
    raise ConfigError(
        f"{name} が {given} です{ja}。ai_finetuning の {wanted} を指定してください。",
        f"{name} is {given}{en}; give a {wanted} of ai_finetuning.",
    )


def _kind(value: Any, expected: type) -> str:
    """A class by its name; with its package where the names are alike (peft has a LoraConfig)."""
    kind = type(value)
    alike = kind.__name__.lower() == expected.__name__.lower()
    return f"{kind.__module__.split('.')[0]}.{kind.__name__}" if alike else kind.__name__


def wrong_model(value: Any) -> ConfigError:
    """The refusal of what is given in place of a model of this toolkit, with what to write."""
    if isinstance(value, str):
        return ConfigError(
            f"model が文字列 {value!r} です。JapaneseModel({value!r}) を渡してください。",
            f"model is the string {value!r}; pass JapaneseModel({value!r}).",
        )
    kind = type(value).__name__
    name = getattr(value, "name_or_path", None) or "MODEL"
    if hasattr(value, "peft_config"):
        return ConfigError(
            f"model が PEFT のモデル（{kind}）です。アダプターの続きから学習するには、save_pretrained で保存し、JapaneseModel(ベース) と "
            'LoRAConfig(adapter="そのフォルダー") を渡してください。',
            f"model is a model of PEFT ({kind}). To train its adapter on, save it with save_pretrained and pass "
            'JapaneseModel(BASE) with LoRAConfig(adapter="THAT_FOLDER").',
        )
    if hasattr(value, "save_pretrained"):
        return ConfigError(
            f"model が transformers の {kind} です。JapaneseModel({name!r}) を渡してください（重みを変えたモデルは save_pretrained で保存し、そのフォルダーを指定します）。",
            f"model is a {kind} of transformers; pass JapaneseModel({name!r}) (save changed weights with save_pretrained and "
            "name that folder).",
        )
    return ConfigError(
        f"model が {kind} です。JapaneseModel(名前またはフォルダー) を渡してください。",
        f"model is of type {kind}; pass JapaneseModel(NAME_OR_FOLDER).",
    )
