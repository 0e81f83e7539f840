"""What a documented trainer was given as its model: a base, or a module with an adapter that training goes on from."""

from __future__ import annotations

from typing import Any

from ..config.data import DataConfig
from ..config.lora import LoRAConfig
from ..config.model import ModelConfig
from ..config.section import explicitly_set, with_values
from ..errors import ConfigError
from ..execution.adapter_start import Start, find_start, lora_of
from ..execution.request import model_settings
from ..models.adapter_folder import is_adapter
from ..models.adapters import adapter_origin, is_as_saved
from ..models.base_model import BaseModel
from ..models.japanese_model import JapaneseModel
from ..models.wrong_objects import wrong_model


def base_and_adapter(model: Any, lora: LoRAConfig) -> tuple[BaseModel, LoRAConfig, Start | None]:
    """The base and the adapter's settings of a LoRA trainer, and what it goes on from where it does.

    Args:
        model: a base; or a module with an adapter, as load_lora_model() and train() return it; or a base's object that
            names an adapter's folder.

    Raises:
        ConfigError: a module of unknown origin, or one whose adapter was changed since it was loaded.
    """
    if isinstance(model, BaseModel):
        if not is_adapter(model.model_name):
            return model, lora, None
        start = find_start(model.model_name)
        return _base(start, start.base, model.device), lora_of(start, lora), start
    origin = adapter_origin(model)
    if origin is None:
        raise wrong_model(model)
    folder, base = origin
    if not is_as_saved(model, folder):
        raise ConfigError(
            f"アダプターの重みが {folder} から読み込んだ後に変わっています。model.save_pretrained(フォルダー) で保存し、LoRAConfig(adapter=フォルダー) "
            "を指定してください。",
            f"the adapter's weights were changed since they were loaded from {folder}; save them with "
            "model.save_pretrained(folder) and use LoRAConfig(adapter=folder).",
        )
    start = find_start(folder)
    return _base(start, base, next(model.parameters()).device), lora_of(start, lora), start


def data_of(start: Start | None, data: DataConfig) -> DataConfig:
    """The data's settings with the system prompt of the run that training goes on from, where its template has none and
    none is given.
    """
    if start is None or start.system_prompt is None or "system_prompt" in explicitly_set(data):
        return data
    return with_values(data, system_prompt=start.system_prompt)


def model_config(start: Start | None, model: BaseModel) -> ModelConfig:
    """The base's settings with the tokens that the run had added which training goes on from."""
    settings = model_settings(model)
    if start is None:
        return settings
    brought: dict[str, Any] = {"extra_tokens": start.extra_tokens, "special_tokens": start.special_tokens}
    return with_values(settings, **{key: value for key, value in brought.items() if value})


def _base(start: Start, name: str, device: Any) -> JapaneseModel:
    return JapaneseModel(name, device, chat_template=start.chat_template)
