"""The configuration classes: documented values, strictness, messages, what the user gave."""

from __future__ import annotations

import pytest

from ai_finetuning.config.data import DataConfig
from ai_finetuning.config.lora import LoRAConfig
from ai_finetuning.config.run import RunConfig
from ai_finetuning.config.section import build, explicitly_set, with_values
from ai_finetuning.config.sections import CheckpointConfig, OptimizerConfig
from ai_finetuning.config.training import MultiGPUTrainingConfig, TrainingConfig
from ai_finetuning.errors import ConfigError

REFUSED = [
    (lambda: TrainingConfig(batch_size=True), "training.batch_size is True (bool)"),
    (lambda: TrainingConfig(batch_size=0), "training.batch_size is 0; it must be at least 1."),
    (lambda: TrainingConfig(batch_size=10**400), "it must be below 2^53."),
    (lambda: TrainingConfig(batch_size=2.0), "training.batch_size is 2.0"),
    (lambda: TrainingConfig(learning_rate="3e-4"), "training.learning_rate is '3e-4' (str)"),
    (lambda: TrainingConfig(learning_rate=float("nan")), "training.learning_rate is nan"),
    (lambda: TrainingConfig(learning_rte=1e-4), "did you mean learning_rate?"),
    (lambda: TrainingConfig(per_device_train_batch_size=4), "did you mean training.batch_size?"),
    (lambda: TrainingConfig(max_grad_norm=-1.0), "training.max_grad_norm is -1.0"),
    (lambda: TrainingConfig(output_dir=" "), "training.output_dir is ' '"),
    (
        lambda: TrainingConfig(optimizer={"nam": "adamw"}),
        "training.optimizer.nam is not a known key; did you mean name?",
    ),
    (lambda: OptimizerConfig(betas=(0.9, 1.0)), "training.optimizer.betas is (0.9, 1.0)"),
    (lambda: CheckpointConfig(save_total_limit=1), "training.checkpoint.save_total_limit is 1; it must be at least 2"),
    (lambda: LoRAConfig(r=0), "lora.r is 0"),
    (lambda: LoRAConfig(target_modules=[]), "lora.target_modules is []"),
    (lambda: LoRAConfig(lora_dropout=1.0), "lora.lora_dropout is 1.0"),
    (lambda: LoRAConfig(task_type="SEQ_CLS"), "only CAUSAL_LM"),
    (lambda: DataConfig(cutoff_len=512), "did you mean data.max_length?"),
    (lambda: DataConfig(eval=1.5), "data.eval is 1.5"),
    (lambda: MultiGPUTrainingConfig(strategy="zero"), "parallel.strategy is 'zero'"),
    (lambda: MultiGPUTrainingConfig(max_memory_per_gpu={0: "22"}), "write it like 22GB or 22GiB"),
    (lambda: MultiGPUTrainingConfig(batch_siz=4), "did you mean batch_size?"),
    (lambda: build(RunConfig, {"method": "full", "lora": {"use_qlora": True}}), "use method: qlora"),
    (lambda: build(RunConfig, {"method": "full", "lora": {"r": 8}}), "lora settings (r) have no effect"),
    (lambda: build(RunConfig, {"method": "qlora", "lora": {"use_qlora": False}}), "set both to the same method"),
    (lambda: build(RunConfig, {"training": 3}), "training is 3; it must be a mapping"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_refusals_name_value_rule_and_way_out(make, message: str):
    with pytest.raises(ConfigError) as caught:
        make()
    assert message in str(caught.value)
    assert caught.value.ja
    assert caught.value.exit_code == 78


def test_positional_arguments_in_documented_order():
    config = TrainingConfig(3e-4, 8, 2, 5)
    assert (config.learning_rate, config.batch_size, config.gradient_accumulation_steps, config.num_epochs) == (
        3e-4,
        8,
        2,
        5,
    )
    parallel = MultiGPUTrainingConfig("model_parallel", {0: "22GB", 1: "22GiB"}, fp16=True)
    assert isinstance(parallel, TrainingConfig)
    assert parallel.strategy == "model_parallel"
    assert parallel.max_memory_per_gpu == {0: "22GB", 1: "22GiB"}


def test_what_the_user_gave_is_remembered():
    """warmup_steps=100 that somebody wrote is not the untouched default of 100: rules differ for the two."""
    assert explicitly_set(TrainingConfig(3e-4, warmup_steps=100)) == {"learning_rate", "warmup_steps"}
    assert explicitly_set(TrainingConfig()) == frozenset()
    changed = with_values(TrainingConfig(warmup_steps=100), batch_size=2)
    assert changed.batch_size == 2
    assert explicitly_set(changed) == {"warmup_steps", "batch_size"}


def test_sections_from_plain_values():
    run = build(
        RunConfig,
        {
            "model": {"name": "some/model"},
            "method": "qlora",
            "data": {"train": "a.csv", "eval": 0.1},
            "training": {"learning_rate": 1e-4, "optimizer": {"betas": [0.9, 0.95]}},
        },
    )
    assert run.training.optimizer.betas == (0.9, 0.95)
    assert run.training.learning_rate == 1e-4


def test_muon_is_for_training_all_weights():
    training = TrainingConfig(optimizer=OptimizerConfig(name="muon"))
    with pytest.raises(ConfigError, match="muon"):
        RunConfig(method="lora", training=training)
    assert RunConfig(method="full", training=training).training.optimizer.name == "muon"
