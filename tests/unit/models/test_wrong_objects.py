"""What people pass by mistake is refused in the constructor, by a word of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.models import build_model
from tests.support.runs import training

from ai_finetuning import (
    AdvancedMultiGPUTrainer,
    DataConfig,
    FullFinetuningTrainer,
    JapaneseModel,
    LoRAConfig,
    LoRAFinetuningTrainer,
    MultiGPUTrainingConfig,
    TrainingConfig,
)
from ai_finetuning.convert.quantize import QuantizationOptimizer
from ai_finetuning.errors import ConfigError, ModelError
from ai_finetuning.models.adapters import add_lora

MODELS: dict[str, Any] = {
    "a string": (lambda: "my-model", r"JapaneseModel\('my-model'\)"),
    "a model of transformers": (lambda: build_model(), "of transformers"),
    "a model of PEFT": (lambda: add_lora(build_model(), r=2, alpha=2), "LoRAConfig"),
    "nothing": (lambda: None, "NoneType"),
}


@pytest.mark.parametrize(("make", "words"), MODELS.values(), ids=MODELS)
def test_a22_another_model_is_refused_by_every_trainer(make: Any, words: str, tmp_path: Path):
    model, config = make(), training(tmp_path)
    for construct in (
        lambda: FullFinetuningTrainer(model, config),
        lambda: LoRAFinetuningTrainer(model, LoRAConfig(), config),
        lambda: AdvancedMultiGPUTrainer(model, config),
    ):
        with pytest.raises(ConfigError, match=words) as refusal:
            construct()
        assert "JapaneseModel(" in refusal.value.ja
        assert refusal.value.exit_code == 78


def test_a22_swapped_and_foreign_settings_are_refused(tmp_path: Path, kotoha: str):
    from peft import LoraConfig

    model, config = JapaneseModel(kotoha), training(tmp_path)
    with pytest.raises(ConfigError, match="swapped"):
        LoRAFinetuningTrainer(model, config, LoRAConfig())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"peft\.LoraConfig.*give a LoRAConfig"):
        LoRAFinetuningTrainer(model, LoraConfig(), config)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="config is LoRAConfig"):
        FullFinetuningTrainer(model, LoRAConfig())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="config is dict"):
        FullFinetuningTrainer(model, {"learning_rate": 1e-4})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="data is TrainingConfig"):
        FullFinetuningTrainer(model, config, data=TrainingConfig())  # type: ignore[arg-type]
    FullFinetuningTrainer(model, config, data=DataConfig())


@pytest.mark.skipif(torch.cuda.is_available(), reason="refused only where there is no GPU")
def test_a22_a_device_that_is_not_there_is_refused_before_anything_is_loaded(kotoha: str):
    for make in (JapaneseModel, QuantizationOptimizer):
        for device in ("cuda", torch.device("cuda", 3)):
            with pytest.raises(ConfigError, match="0 usable cuda devices"):
                make(kotoha, device=device)
    with pytest.raises(ConfigError, match="'gpu'"):
        JapaneseModel(kotoha, device="gpu")  # type: ignore[arg-type]


def test_a22_lists_and_strings_in_each_others_place_are_refused(kotoha: str):
    model = JapaneseModel(kotoha)
    with pytest.raises(ConfigError, match=r"list of 2.*generate_batch"):
        model.generate_japanese(["一", "二"])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="int"):
        model.generate_japanese(1)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"generate_japanese"):
        model.generate_batch("一")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"instructions\[1\] is of type NoneType"):
        model.generate_batch(["一", None])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="fallback_models is one string"):
        model.load_with_fallback("embedded:kotoha-tiny")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="not a model itself"):
        JapaneseModel(build_model())  # type: ignore[arg-type]
    assert model.model is None


def test_a22_a_path_is_a_name_too(tiny_model_dir: Path):
    assert JapaneseModel(tiny_model_dir).find().path == str(tiny_model_dir)  # type: ignore[arg-type]


def test_a22_a_path_is_a_name_in_settings_too(tmp_path: Path):
    for make in (TrainingConfig, MultiGPUTrainingConfig):
        assert make(output_dir=tmp_path).output_dir == str(tmp_path)
    config = TrainingConfig()
    config.output_dir = tmp_path  # type: ignore[assignment]
    assert config.output_dir == str(tmp_path)
    data: Any = {"train": [tmp_path / "a.csv", {"path": tmp_path / "b.csv", "epochs": 2}], "eval": tmp_path / "c.csv"}
    assert DataConfig(**data).train == [str(tmp_path / "a.csv"), {"path": str(tmp_path / "b.csv"), "epochs": 2}]
    assert DataConfig(**data).eval == str(tmp_path / "c.csv")
    assert LoRAConfig(adapter=tmp_path).adapter == str(tmp_path)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"data\.system_prompt is (Posix|Windows)Path"):
        DataConfig(system_prompt=Path("prompt.txt"))  # type: ignore[arg-type]


def test_an_adapter_is_not_trained_as_a_base(tmp_path: Path, tiny_model_dir: Path):
    """A LoRA trainer goes on from it; where all weights train, what to type is said before weights are read."""
    (tmp_path / "adapter_config.json").write_text(
        f'{{"base_model_name_or_path": "{tiny_model_dir}"}}', encoding="utf-8"
    )
    trainer = FullFinetuningTrainer(JapaneseModel(str(tmp_path)), training(tmp_path / "out"))
    with pytest.raises(ModelError, match="aift train --from"):
        trainer.train(["日本の首都は東京です。"])
