"""What an adapter's folder says before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ai_finetuning.errors import InputNotFoundError, ModelError
from ai_finetuning.models.adapter_folder import adapter_config, base_name, is_adapter


def test_an_adapter_names_its_base_and_needs_its_weights(tmp_path: Path):
    assert not is_adapter(tmp_path)
    with pytest.raises(InputNotFoundError, match="no adapter_config"):
        adapter_config(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "a/b"}', encoding="utf-8")
    assert is_adapter(str(tmp_path))
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"no adapter_model\.safetensors"):
        adapter_config(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    assert base_name(adapter_config(tmp_path)) == "a/b"
    assert base_name({"base_model_name_or_path": None}) == "?"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("base_model_name_or_path", {"a": 1}),
        ("base_model_name_or_path", 3),
        ("trainable_token_indices", [0.5]),
        ("trainable_token_indices", {"embed_tokens": [None]}),
        ("trainable_token_indices", {"embed_tokens": []}),
        ("trainable_token_indices", []),  # peft fails over it in the first forward pass
        ("trainable_token_indices", "1"),
    ],
)
def test_a_configuration_of_other_types_is_refused_before_a_base_is_loaded(tmp_path: Path, key: str, value: object):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", key: value}), encoding="utf-8")
    (tmp_path / "adapter_model.safetensors").touch()
    with pytest.raises(ModelError, match=key):
        adapter_config(tmp_path)
