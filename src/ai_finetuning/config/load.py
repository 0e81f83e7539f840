"""YAML and `key=value` to RunConfig, strictly."""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from ..errors import ConfigError, InputNotFoundError, UsageError
from .fields import fields_of, options_of, section_class
from .run import RunConfig
from .section import build, validate_keys
from .synonyms import SYNONYMS
from .yaml_text import parse_yaml

# Flags that stand for a field, as users type them.
FLAGS = {
    "resume": "training.checkpoint.resume_from_checkpoint",
    "restart": "training.checkpoint.restart",
    "allow_changed": "training.checkpoint.allow_changed",
}


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration of a run.

    Args:
        path: a YAML file, or None for overrides alone.
        overrides: `key=value`, `--key value`, `--key=value`; a key may be bare where one section has it.

    Raises:
        InputNotFoundError: no such file. ConfigError: an unknown key or a value that cannot be. UsageError: an override
            that is no `key=value`.
    """
    values: dict[str, Any] = {}
    if path is not None:
        values = _read(Path(path))
    for key, text in parse_overrides(overrides):
        path_of_key, hint = resolve_key(key)
        # `--resume` alone means the newest checkpoint.
        _put(values, path_of_key, "auto" if (key, text) == ("resume", "true") else _value(text, hint, key))
    return build(RunConfig, _with_model_section(values))


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputNotFoundError(
            f"設定ファイル {path} がありません。", f"there is no configuration file {path}."
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"設定ファイル {path} を UTF-8 として読めません（{error.start + 1} バイト目）。UTF-8 で保存し直してください。",
            f"configuration file {path} cannot be read as UTF-8 (byte {error.start + 1}); save it as UTF-8.",
        ) from None
    except OSError as error:
        raise ConfigError(
            f"設定ファイル {path} を開けません（{type(error).__name__}）。ファイルの名前と権限を確認してください。",
            f"configuration file {path} cannot be opened ({error}); check its name and permissions.",
        ) from None
    values = parse_yaml(text, str(path))
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path} の一番外側はキーと値の組にしてください（model:, data:, training: など）。",
            f"{path}: the outermost level must be keys and values (model:, data:, training:, ...).",
        )
    return _with_model_section(values)


def _with_model_section(values: dict[str, Any]) -> dict[str, Any]:
    """`model: NAME` means `model: {name: NAME}`."""
    return values | {"model": {"name": values["model"]}} if isinstance(values.get("model"), str) else values


def parse_overrides(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """(key, text of the value) of every override; a flag without a value is `true`.

    Raises:
        UsageError: an argument that is neither.
    """
    obtained: list[tuple[str, str]] = []
    items = list(arguments)
    while items:
        item = items.pop(0)
        if item.startswith("--") and "=" not in item:
            value = items.pop(0) if items and not items[0].startswith("--") and not _is_override(items[0]) else "true"
            obtained.append((_plain_key(item), value))
        elif _is_override(item.removeprefix("--")):
            key, _, value = item.partition("=")
            obtained.append((_plain_key(key), value))
        else:
            raise UsageError(
                f"引数 {item!r} を解釈できません。key=value か --key value で書いてください（例: training.learning_rate=1e-4）。",
                f"argument {item!r} cannot be understood; write key=value or --key value "
                "(training.learning_rate=1e-4).",
            )
    return obtained


def _is_override(item: str) -> bool:
    return re.match(r"^[A-Za-z][\w.\-]*=", item) is not None


def _plain_key(key: str) -> str:
    return key.removeprefix("--").replace("-", "_")


def resolve_key(key: str) -> tuple[tuple[str, ...], Any]:
    """The path of a dotted or bare key, and its type.

    Raises:
        ConfigError: no section has it, or several have.
    """
    fields = fields_of(RunConfig)
    expected = tuple(FLAGS.get(key, key).split("."))
    if expected == ("model",):
        expected = ("model", "name")
    if expected in fields and section_class(fields[expected]) is None:
        return expected, fields[expected]
    # Parts of the path may be left out: learning_rate, schedule.name, training.resume_from_checkpoint.
    matches = [path for path in fields if _abbreviates(expected, path) and section_class(fields[path]) is None]
    if len(matches) == 1:
        return matches[0], fields[matches[0]]
    if len(matches) > 1:
        names = ", ".join(".".join(path) for path in matches)
        raise ConfigError(
            f"キー {key} は {names} のどれか決められません。セクション名を付けてください。",
            f"key {key} could be {names}; write the section's name with it.",
        )
    if len(expected) == 2 and (expected[0],) in fields:
        section = section_class(fields[(expected[0],)])
        if section is not None:
            validate_keys(section, [expected[1]])
    keys = [".".join(path) for path in fields if section_class(fields[path]) is None]
    meant = SYNONYMS.get(expected[-1])
    last = {name.split(".")[-1]: name for name in keys}
    near = [meant] if meant else [last[name] for name in difflib.get_close_matches(expected[-1], last, n=2, cutoff=0.6)]
    hint_ja = f"もしかして: {', '.join(near)}" if near else "aift train --help で一覧を見られます。"
    hint_en = f"did you mean {', '.join(near)}?" if near else "aift train --help lists them."
    raise ConfigError(f"{key} というキーはありません。{hint_ja}", f"{key} is not a known key; {hint_en}")


def _abbreviates(expected: tuple[str, ...], path: tuple[str, ...]) -> bool:
    """Whether a key is a path with some of its sections left out."""
    rest = iter(path)
    return expected[-1] == path[-1] and all(part in rest for part in expected)


def _value(text: str, hint: Any, name: str) -> Any:
    """An override's text in the type of its field."""
    options = options_of(hint)
    kinds = [typing.get_origin(option) for option in options]
    many = list in kinds or tuple in kinds
    only_text = str in options and not many and dict not in kinds
    words = [word for option in options if typing.get_origin(option) is Literal for word in typing.get_args(option)]
    if text in words:
        return text
    try:
        plain = parse_yaml(text, name) if text.strip() else text
    except ConfigError:
        if only_text:  # a template, for one
            return text
        raise
    if plain is None and type(None) in options:
        return None
    if many and isinstance(plain, str) and "," in plain:
        return [part.strip() for part in plain.split(",")]
    if str in options and (only_text or not isinstance(plain, list | dict)):
        return plain if isinstance(plain, float) and float in options else text
    return [plain] if many and isinstance(plain, str) else plain


def _put(values: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for part in path[:-1]:
        inner = values.setdefault(part, {})
        if isinstance(inner, str) and part == "model":
            inner = values[part] = {"name": inner}
        values = inner
    values[path[-1]] = value
