"""An adapter's folder, before anything of it is loaded. Needs neither torch nor transformers."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.run_folder import BASE, RUN
from ..errors import InputNotFoundError, ModelError, refusing
from ..runs.folder import recorded_settings
from ..system.files import read_bounded

# What `--base` of a merge may be instead of a model's name.
ORIGINAL, DEQUANTIZED, AUTO = "original", "dequantized", "auto"
# Folders above an adapter in which a base is looked for that was noted as it was typed.
_ABOVE = 4
# Bytes of its JSON files.
_LARGEST = 4 << 20
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Starts of an adapter that leave the base's weights as they are; others, such as PiSSA's, take their part out of them.
STARTS = (True, False, None, "gaussian", "orthogonal", "eva")


def is_adapter(folder: str | Path) -> bool:
    """Whether a name is the folder of a LoRA adapter."""
    return (Path(folder) / CONFIG).is_file()


def unreadable(folder: str | Path) -> contextlib.AbstractContextManager[None]:
    """Refuses an adapter's configuration that whoever reads it fails over.

    Raises:
        ModelError: with the reason.
    """
    return refusing(
        ModelError,
        f"{folder} の {CONFIG} を読めません（{{reason}}）。アダプターを保存し直してください。",
        f"the {CONFIG} of {folder} cannot be read ({{reason}}); save the adapter again.",
    )


def recorded_config(folder: str | Path) -> dict[str, Any]:
    """The adapter_config.json of a folder that has one.

    Raises:
        ModelError: it is damaged.
    """
    with unreadable(folder):
        values = json.loads(read_bounded(Path(folder) / CONFIG, _LARGEST))
        if not isinstance(values, dict):
            raise TypeError(f"it holds a {type(values).__name__}, not an object")
        base, tokens = values.get("base_model_name_or_path"), values.get("trainable_token_indices")
        if base is not None and not isinstance(base, str):
            raise TypeError(f"base_model_name_or_path: {str(base)[:20]}")
        if tokens is not None and not all(map(_are_ids, tokens.values() if isinstance(tokens, dict) else [tokens])):
            raise TypeError(f"trainable_token_indices: {str(tokens)[:20]}")
        return values


def _are_ids(values: object) -> bool:
    return isinstance(values, list) and bool(values) and all(type(number) is int for number in values)


def adapter_config(folder: str | Path) -> dict[str, Any]:
    """The adapter_config.json of a folder that an adapter can be loaded from.

    Raises:
        InputNotFoundError: no such folder, or no adapter in it. ModelError: weights only as a pickle.
    """
    path = Path(folder)
    if not is_adapter(path):
        raise InputNotFoundError(
            f"{path} に LoRA アダプターがありません（{CONFIG} が必要です）。",
            f"{path} holds no LoRA adapter (no {CONFIG}).",
        )
    if not (path / WEIGHTS).is_file():
        raise ModelError(
            f"{path} に {WEIGHTS} がありません。安全のため .bin は読み込みません。",
            f"{path} has no {WEIGHTS}; for safety .bin files are not read.",
        )
    return recorded_config(path)


def base_name(config: Mapping[str, Any]) -> str:
    """The model that an adapter was trained on, as its configuration says; `?` where it does not."""
    return str(config.get("base_model_name_or_path") or "?")


def note_base(config: Any, name: str) -> None:
    """Makes PEFT's configuration say that the adapter belongs to this model."""
    config.base_model_name_or_path = name


@dataclass(frozen=True)
class RecordedBase:
    """What an adapter was trained on, as its folder says.

    Attributes:
        name: hub id, `embedded:NAME` or the folder that it was then.
        bits: 4 or 8 where the base was quantized on loading; None for 16 and 32, and where it is quantized on disk.
        relative: from the folder where the adapter was saved to the base's; None for other bases.
    """

    name: str
    bits: int | None = None
    relative: str | None = None


def recorded_base(folder: str | Path) -> RecordedBase:
    """What an adapter was trained on: base.json, or, of earlier versions and other tools, what else says it.

    Raises:
        ModelError: adapter_config.json is damaged.
    """
    path = Path(folder)
    name = base_name(recorded_config(path))
    stored = _json(path / BASE)
    run = _json(path / RUN)
    bits = stored.get("bits") if stored else run.get("base_bits")
    relative = stored.get("relative")
    return RecordedBase(name, bits if bits in (4, 8) else None, relative if isinstance(relative, str) else None)


def note_training_base(place: Path, home: Path, name: str, bits: int | None) -> None:
    """Writes base.json into an adapter's folder.

    Args:
        place: where it is written.
        home: the folder that this will be.
        name: the base as adapter_config.json has it.
        bits: of a base that was quantized on loading.
    """
    relative = _relative(name, home) if os.path.isdir(name) else None
    content = {"name": name, "bits": bits, "relative": relative}
    text = json.dumps(content, ensure_ascii=False, indent=1)
    (place / BASE).write_text(text, encoding="utf-8", errors="backslashreplace")


def move_base(place: Path, home: Path, name: str) -> None:
    """Makes an adapter's folder, which will be `home`, name another place of its base."""
    bits = recorded_base(place).bits
    settings = recorded_config(place) | {"base_model_name_or_path": name}
    text = json.dumps(settings, ensure_ascii=False, indent=2)
    (place / CONFIG).write_text(text, encoding="utf-8", errors="backslashreplace")
    note_training_base(place, home, name, bits)


def _relative(name: str, home: Path) -> str | None:
    try:
        return os.path.relpath(os.path.realpath(name), os.path.realpath(home))
    except ValueError:  # on another drive
        return None


def places_of_base(folder: str | Path, origin: str | Path | None = None) -> list[Path]:
    """Folders where a base may be that is not where its adapter says; the likeliest first.

    Args:
        folder: the adapter's.
        origin: where the adapter was saved; None for `folder` itself.
    """
    path, home = Path(folder), Path(origin if origin is not None else folder)
    recorded = recorded_base(path)
    found = [home / recorded.relative] if recorded.relative else []
    told = _told_by_run(home)
    if told is not None and (os.path.isabs(told) or recorded.name == told):
        found.append(Path(told))
    typed = os.path.expanduser(recorded.name)
    looks_like_path = typed.startswith((".", "/", "~")) or (told is not None and os.path.isabs(told))
    if not os.path.isabs(typed) and (looks_like_path or "\\" in typed):
        # As it was typed, by an earlier version, in a folder that was not noted: the run's, or one above it.
        found += [place / typed for place in (home, *list(home.absolute().parents)[:_ABOVE])]
    return [place for place in found if (place / "config.json").is_file()]


def was_folder(home: str | Path) -> bool:
    """Whether the run that saved an adapter says that its base was a folder."""
    return os.path.isabs(_told_by_run(Path(home)) or "")


def _told_by_run(home: Path) -> str | None:
    """The model in a run's config.yaml, which has whole paths."""
    model = recorded_settings(home).get("model")
    name = model.get("name") if isinstance(model, dict) else None
    return name if isinstance(name, str) else None


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_bounded(file, _LARGEST))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
