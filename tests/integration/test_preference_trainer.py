"""PreferenceTrainer: the objective that its loss makes, what it asks for, what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.runs import training
from transformers import TrainerCallback

from ai_finetuning import FullFinetuningTrainer, JapaneseModel, LoRAConfig, PreferenceConfig, PreferenceTrainer
from ai_finetuning.errors import ConfigError

BASE = "embedded:kotoha-tiny"


class Counts(TrainerCallback):
    steps = 0


def test_the_loss_makes_the_objective_and_the_adapter_the_method(tmp_path: Path):
    model = JapaneseModel(BASE)
    for loss, objective in ((None, "preference"), ("orpo", "preference"), ("kto", "kto"), ("apo_zero_unpaired", "kto")):
        trainer = PreferenceTrainer(model, training(tmp_path), preference=PreferenceConfig(loss=loss))
        assert trainer.objective == objective
        assert trainer._request([], None).config.objective == objective
    full = PreferenceTrainer(model, training(tmp_path))._request([], None).config
    assert full.method == "full"
    lora = PreferenceTrainer(model, training(tmp_path), LoRAConfig(r=4), callbacks=[Counts])
    request = lora._request([], None)
    assert (request.config.method, request.config.lora.r) == ("lora", 4)
    assert isinstance(request.hooks.callbacks[0], Counts)


def test_wrong_arguments_are_named(tmp_path: Path):
    model = JapaneseModel(BASE)
    with pytest.raises(ConfigError, match="training_config"):
        PreferenceTrainer(model, LoRAConfig(), training(tmp_path))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="preference"):
        PreferenceTrainer(model, training(tmp_path), preference="dpo")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"evaluate\(\) scores texts"):
        PreferenceTrainer(model, training(tmp_path)).evaluate([{"prompt": "a", "chosen": "b", "rejected": "c"}])


def test_the_paths_of_a_clone_give_the_same_objects():
    from src.training import PreferenceConfig as config_of_clone
    from src.training import PreferenceTrainer as trainer_of_clone

    assert trainer_of_clone is PreferenceTrainer
    assert config_of_clone is PreferenceConfig
    assert issubclass(PreferenceTrainer, FullFinetuningTrainer.__mro__[1])
