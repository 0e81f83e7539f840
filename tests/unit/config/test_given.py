"""What the user gave survives every way to change or copy a configuration, and every change is checked."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
import subprocess
import sys
from collections.abc import Callable

import pytest

from ai_finetuning.config.data import DataConfig
from ai_finetuning.config.load import load_config
from ai_finetuning.config.lora import LoRAConfig
from ai_finetuning.config.model import ArchitectureConfig, ModelConfig
from ai_finetuning.config.parallel import ParallelConfig
from ai_finetuning.config.plain import plain_run, to_plain
from ai_finetuning.config.run import RunConfig
from ai_finetuning.config.section import build, explicitly_set
from ai_finetuning.config.sections import OptimizerConfig, ScheduleConfig
from ai_finetuning.config.training import MultiGPUTrainingConfig, TrainingConfig
from ai_finetuning.config.yaml_text import dump_yaml, parse_yaml
from ai_finetuning.errors import ConfigError


def test_replace_keeps_the_strategy_and_knows_what_was_given():
    changed = dataclasses.replace(MultiGPUTrainingConfig(strategy="fsdp"), batch_size=2)
    assert changed.strategy == changed.parallel.strategy == "fsdp"
    assert changed.batch_size == 2
    assert explicitly_set(changed) == {"strategy", "batch_size"}
    assert explicitly_set(changed.parallel) == {"strategy"}
    again = dataclasses.replace(changed, strategy="tensor", tensor_parallel_size=2)
    assert (again.parallel.strategy, again.parallel.tensor_parallel_size, again.batch_size) == ("tensor", 2, 2)
    assert explicitly_set(again) == {"strategy", "batch_size", "tensor_parallel_size"}


def test_replace_counts_a_value_that_equals_the_default_and_nothing_else():
    config = TrainingConfig(warmup_steps=100)
    assert explicitly_set(dataclasses.replace(config)) == {"warmup_steps"}
    assert explicitly_set(dataclasses.replace(config, batch_size=4)) == {"warmup_steps", "batch_size"}
    assert explicitly_set(dataclasses.replace(TrainingConfig(), gradient_checkpointing=True)) == {
        "gradient_checkpointing"
    }


def test_replace_checks():
    with pytest.raises(ConfigError, match=r"training\.batch_size is 0; it must be at least 1\."):
        dataclasses.replace(TrainingConfig(), batch_size=0)
    with pytest.raises(ConfigError, match=r"did you mean learning_rate\?"):
        dataclasses.replace(TrainingConfig(), learning_rte=1e-4)


COPIES: dict[str, Callable[[TrainingConfig], TrainingConfig]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda config: pickle.loads(pickle.dumps(config)),  # noqa: S301
    "replace": dataclasses.replace,
}


@pytest.mark.parametrize("way", COPIES)
def test_copies_keep_what_was_given_and_go_their_own_way(way: str):
    config = MultiGPUTrainingConfig("fsdp", warmup_steps=100)
    config.parallel.processes = 2
    other = COPIES[way](config)
    assert isinstance(other, MultiGPUTrainingConfig)
    assert other == config
    assert explicitly_set(other) == {"strategy", "warmup_steps"}
    assert explicitly_set(other.parallel) == {"strategy", "processes"}
    other.strategy, other.batch_size = "tensor", 1
    assert (config.strategy, config.batch_size) == ("fsdp", 4)
    plain = COPIES[way](TrainingConfig(save_steps=500))
    assert explicitly_set(plain) == {"save_steps"}
    assert plain == TrainingConfig()


def test_an_assigned_strategy_is_the_one_that_trains():
    config = MultiGPUTrainingConfig()
    held = config.parallel
    config.strategy = "fsdp"
    assert config.parallel is held
    assert held.strategy == config.strategy == "fsdp"
    assert explicitly_set(config) == {"strategy"}
    config.parallel.strategy = "ddp"
    config.deepspeed_stage = 3
    assert (config.strategy, held.deepspeed_stage) == ("ddp", 3)
    config.parallel = ParallelConfig(strategy="pipeline", pipeline_parallel_size=2)
    assert (config.strategy, config.pipeline_parallel_size) == ("pipeline", 2)
    assert config != MultiGPUTrainingConfig()
    assert "pipeline" in repr(config)


def test_assigned_values_count_as_given():
    config = TrainingConfig()
    config.warmup_steps = 100
    config.gradient_checkpointing = True
    assert explicitly_set(config) == {"warmup_steps", "gradient_checkpointing"}


def test_assignment_into_nested_sections():
    run = RunConfig()
    run.training.warmup_steps = 5
    run.parallel.processes = 2
    run.training.optimizer = {"betas": (0.8, 0.9)}  # as in the constructor
    run.training.optimizer.eps = 1e-7
    assert explicitly_set(run.training) >= {"warmup_steps"}
    assert explicitly_set(run.training.optimizer) == {"betas", "eps"}
    assert to_plain(run, given_only=True) == {
        "training": {"warmup_steps": 5, "optimizer": {"betas": [0.8, 0.9], "eps": 1e-7}},
        "parallel": {"processes": 2},
    }
    with pytest.raises(ConfigError, match=r"parallel\.processes is 0; it must be at least 1 and at most"):
        run.parallel.processes = 0
    with pytest.raises(ConfigError, match=r"training\.optimizer\.nam is not a known key; did you mean name\?"):
        run.training.optimizer.nam = "muon"


REFUSED = [
    ("learning_rte", 1, "training.learning_rte is not a known key; did you mean learning_rate?"),
    ("per_device_train_batch_size", 1, "did you mean training.batch_size?"),
    ("max_length", 1, "did you mean data.max_length?"),
    ("batch_size", -3, "training.batch_size is -3; it must be at least 1."),
    ("batch_size", True, "training.batch_size is True (bool); it must be an integer."),
    ("optimizer", 3, "training.optimizer is 3"),
    ("strategy", "zero", "parallel.strategy is 'zero'; it must be one of ddp, "),
    ("strateg", "ddp", "did you mean strategy?"),
    ("max_memory_per_gpu", {0: "22"}, "parallel.max_memory_per_gpu[0] is '22'"),
    ("deepspeed_stage", 3, "it requires strategy: ddp"),
    ("parallel", 3, "parallel is 3; it must be a mapping"),
]


@pytest.mark.parametrize(("name", "value", "message"), REFUSED, ids=[f"{name}={value}" for name, value, _ in REFUSED])
def test_a_refused_assignment_leaves_the_old_value(name: str, value: object, message: str):
    config = MultiGPUTrainingConfig("fsdp", batch_size=2)
    before = copy.deepcopy(config)
    with pytest.raises(ConfigError) as refusal:
        setattr(config, name, value)
    assert message in refusal.value.en
    assert config == before
    assert explicitly_set(config) == explicitly_set(before)
    assert not hasattr(config, name) or getattr(config, name) == getattr(before, name)
    with pytest.raises(ConfigError) as in_constructor:
        MultiGPUTrainingConfig(**{"strategy": "fsdp"} | {name: value})
    assert in_constructor.value.ja == refusal.value.ja


def test_a_training_config_has_no_parallel_attributes():
    with pytest.raises(ConfigError, match=r"training\.parallel is not a known key"):
        TrainingConfig().parallel = ParallelConfig()


def test_the_yaml_round_trip_keeps_values_and_what_was_given():
    run = load_config(None, ["model=a/b", "warmup_steps=100", "schedule.name=linear", "strategy=fsdp", "seed=42"])
    again = build(RunConfig, parse_yaml(dump_yaml(to_plain(run, given_only=True)), "x"))
    assert again == run
    for one, other in (
        (again, run),
        (again.training, run.training),
        (again.training.schedule, run.training.schedule),
        (again.training.runtime, run.training.runtime),
        (again.parallel, run.parallel),
    ):
        assert explicitly_set(one) == explicitly_set(other)
    assert explicitly_set(again.training) == {"warmup_steps", "schedule", "runtime"}


def test_an_empty_section_that_says_something_stays():
    run = RunConfig(method="pretrain", model=ModelConfig(architecture=ArchitectureConfig()))
    plain = to_plain(run, given_only=True)
    assert plain["model"] == {"architecture": {}}
    assert build(RunConfig, plain) == run


def test_fields_signature_and_asdict_show_settings_only():
    config = MultiGPUTrainingConfig("fsdp")
    names = [field.name for field in dataclasses.fields(config)]
    assert names == list(inspect.signature(TrainingConfig).parameters)
    assert set(dataclasses.asdict(config)) == set(names)
    assert "_given" not in repr(config)
    assert inspect.signature(TrainingConfig).parameters["batch_size"].annotation is int


def test_both_ways_to_say_qlora_train_the_same():
    """method and lora stay as they were written; what trains is derived from the two."""
    by_method = RunConfig(method="qlora")
    by_lora = RunConfig(lora=LoRAConfig(use_qlora=True))
    assert (by_method.method, by_method.lora.use_qlora) == ("qlora", False)
    assert (by_lora.method, by_lora.lora.use_qlora) == ("lora", True)
    for run in (by_method, by_lora):
        assert run.uses_qlora
        assert run.effective_method == "qlora"
        assert plain_run(run)["method"] == "qlora"
        assert plain_run(run)["lora"]["use_qlora"] is True
        assert not run.trains_all
    assert RunConfig().effective_method == "lora"
    assert not RunConfig(method="full").uses_qlora
    assert explicitly_set(by_method.lora) == frozenset()


def test_rules_between_sections_are_checked_again_on_request():
    run = RunConfig(method="lora")
    run.training.optimizer = OptimizerConfig(name="muon")
    with pytest.raises(ConfigError, match="muon"):
        run.validate()
    with pytest.raises(ConfigError, match="lora settings"):
        RunConfig(lora=LoRAConfig(r=8)).method = "full"


def test_a_strategy_in_training_alone_is_not_lost_silently():
    config = MultiGPUTrainingConfig("fsdp")
    with pytest.raises(ConfigError, match="strategy of training would have no effect"):
        RunConfig(training=config)
    assert RunConfig(training=config, parallel=config.parallel).parallel.strategy == "fsdp"
    assert RunConfig(training=MultiGPUTrainingConfig()).parallel.strategy == "ddp"


def test_arguments_that_do_not_fit_the_signature():
    with pytest.raises(
        ConfigError, match=r"training: invalid arguments \(at most 15 can be positional; there are 17\)"
    ):
        TrainingConfig(*range(17))
    with pytest.raises(ConfigError, match=r"invalid arguments \(learning_rate is given twice\)"):
        TrainingConfig(1e-4, learning_rate=1e-4)
    with pytest.raises(ConfigError, match=r"invalid arguments \(strategy is given twice\)"):
        MultiGPUTrainingConfig("ddp", strategy="ddp")


def test_a_setting_of_another_section_is_named_though_nobody_imported_it():
    code = (
        "from ai_finetuning import TrainingConfig, ToolkitError\n"
        "try:\n    TrainingConfig(max_length=8)\nexcept ToolkitError as error:\n    print(error.en)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "training.max_length is not a known key; did you mean data.max_length?"


def test_the_everyday_settings_survive_every_way_to_copy_them():
    """Those that hold mappings and lists too, in YAML, pickles and replace()."""
    run = RunConfig(
        model=ModelConfig(special_tokens={"eos_token": "</s>"}, extra_tokens=["<a>"], turn_end_tokens=["</s>", "<a>"]),
        data=DataConfig(max_samples=3),
        training=TrainingConfig(
            saves_per_epoch=2, evals_per_epoch=1, save_only_model=True, schedule=ScheduleConfig(warmup_ratio=0.03)
        ),
        lora=LoRAConfig(adapter="somewhere"),
    )
    again = build(RunConfig, parse_yaml(dump_yaml(to_plain(run, given_only=True)), "x"))
    for other in (again, pickle.loads(pickle.dumps(run)), copy.deepcopy(run), dataclasses.replace(run)):  # noqa: S301
        assert other == run
        assert plain_run(other, given_only=True) == plain_run(run, given_only=True)
        for one, another in ((other.training, run.training), (other.model, run.model), (other.lora, run.lora)):
            assert explicitly_set(one) == explicitly_set(another)
