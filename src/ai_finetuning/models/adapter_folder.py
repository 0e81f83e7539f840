"""An adapter's folder, before anything of it is loaded. Needs neither torch nor transformers."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputNotFoundError, ModelError, refusing

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


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
        values = json.loads((Path(folder) / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise TypeError(f"it holds a {type(values).__name__}, not an object")
        return values


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
