"""One annotation gives a range to checks, messages, schema and help; no text of pydantic's reaches the user."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic import ValidationError

from ai_finetuning.config.data import DataConfig
from ai_finetuning.config.describe import json_schema, settings
from ai_finetuning.config.fields import field_names
from ai_finetuning.config.lora import LoRAConfig
from ai_finetuning.config.parallel import ParallelConfig
from ai_finetuning.config.run import RunConfig
from ai_finetuning.config.section import _SECTIONS
from ai_finetuning.config.sections import CheckpointConfig, OptimizerConfig, RuntimeConfig
from ai_finetuning.config.training import MultiGPUTrainingConfig, TrainingConfig
from ai_finetuning.errors import ConfigError

# Values that no setting takes, or only settings of one type.
WRONG: list[Any] = [
    *(True, "x", " ", "22", b"x", object(), None, -5, 0, 3.5, 1e9, 10**400, float("nan"), float("inf")),
    *([], ["x"], [3], (1,), (2.0, 2.0), (0.5, 0.5, 0.5), {}, {"k": 3}, {0: "22"}, {-1: "22GB"}, {"a": "22GB"}),
]
ENGLISH_SENTENCE = re.compile(r"[A-Za-z']{2,}(?: [A-Za-z']{2,}){2,}")


def refusal_of(cls: type, name: str, value: Any) -> ConfigError | None:
    try:
        cls(**{name: value})
    except ConfigError as error:
        return error
    return None


REFUSALS = [
    (name, value, refusal)
    for cls in (RunConfig, MultiGPUTrainingConfig, *_SECTIONS.values())
    for name in field_names(cls)
    for value in WRONG
    if (refusal := refusal_of(cls, name, value)) is not None
]


def test_every_refusal_of_every_setting_is_in_both_languages():
    assert len(REFUSALS) > 1000
    for name, value, refusal in REFUSALS:
        assert name in refusal.en
        rule = refusal.ja.replace(repr(value), "")
        assert not ENGLISH_SENTENCE.search(rule), refusal.ja
        assert re.search("ください|です。|もしかして|使えるキー", rule), refusal.ja
        for word in ("Input should", "Value error", "pydantic", "Unexpected"):
            assert word not in refusal.en + refusal.ja


def test_every_kind_of_complaint_of_pydantic_was_met():
    """A type of setting that brings another one belongs into the list of wrong values."""
    met = {
        problem["type"]
        for _, _, refusal in REFUSALS
        if isinstance(refusal.__context__, ValidationError)
        for problem in refusal.__context__.errors(include_url=False)
    }
    assert met - {"value_error", "int_parsing_size"} == {
        *("bool_type", "int_type", "float_type", "string_type", "list_type", "tuple_type", "dict_type"),
        *("dataclass_exact_type", "literal_error", "finite_number", "string_pattern_mismatch", "missing"),
        *("greater_than", "greater_than_equal", "less_than", "less_than_equal", "too_long", "too_short"),
    }


@pytest.mark.parametrize(
    ("make", "ja", "en"),
    [
        (
            lambda: TrainingConfig(batch_size=0),
            "training.batch_size が 0 です。1 以上にしてください。",
            "training.batch_size is 0; it must be at least 1.",
        ),
        (
            lambda: TrainingConfig(learning_rate=1.0),
            "training.learning_rate が 1.0 です。0 より大きく 1 未満にしてください。",
            "training.learning_rate is 1.0; it must be above 0 and below 1.",
        ),
        (
            lambda: TrainingConfig(batch_size="4"),
            "training.batch_size が '4' です。整数にしてください。",
            "training.batch_size is '4' (str); it must be an integer.",
        ),
        (
            lambda: TrainingConfig(fp16=1),
            "training.fp16 が 1 です。true か false にしてください。",
            "training.fp16 is 1 (int); it must be true or false.",
        ),
        (
            lambda: RunConfig(method="dora"),
            "method が 'dora' です。使えるのは full, lora, qlora, pretrain です。",
            "method is 'dora'; it must be one of full, lora, qlora, pretrain.",
        ),
        (
            lambda: RuntimeConfig(seed=2**32),
            "training.runtime.seed が 4294967296 です。0 以上 2^32 未満にしてください。",
            "training.runtime.seed is 4294967296; it must be at least 0 and below 2^32.",
        ),
        (
            lambda: TrainingConfig(max_grad_norm=float("inf")),
            "training.max_grad_norm が inf です。0 以上の有限の数にしてください。",
            "training.max_grad_norm is inf; it must be finite and at least 0.",
        ),
        (
            lambda: OptimizerConfig(betas=(0.9, 1.0)),
            "training.optimizer.betas が (0.9, 1.0) です。それぞれ 0 以上 1 未満にしてください。",
            "training.optimizer.betas is (0.9, 1.0); each must be at least 0 and below 1.",
        ),
        (
            lambda: ParallelConfig(processes=2.0),
            "parallel.processes が 2.0 です。整数または null (None) にしてください。",
            "parallel.processes is 2.0 (float); it must be an integer or null (None).",
        ),
        (
            lambda: ParallelConfig(max_memory_per_gpu={0: "22"}),
            "parallel.max_memory_per_gpu[0] が '22' です。22GB や 22GiB のように書いてください。",
            "parallel.max_memory_per_gpu[0] is '22' (str); write it like 22GB or 22GiB.",
        ),
        (
            lambda: CheckpointConfig(resume_from_checkpoint=""),
            "training.checkpoint.resume_from_checkpoint が '' です。auto、チェックポイントか実行のフォルダー、または null（None）にしてください。",
            "training.checkpoint.resume_from_checkpoint is '' (str); it must be auto, the folder of a checkpoint or of a run, or null "
            "(None).",
        ),
        (
            lambda: DataConfig(eval=1),
            "data.eval が 1 です。0 より大きく 1 未満にしてください。",
            "data.eval is 1; it must be above 0 and below 1.",
        ),
        (
            lambda: RuntimeConfig(report_to=("aim",)),
            "training.runtime.report_to が ('aim',) です。使えるのは tensorboard, wandb, mlflow です。",
            "training.runtime.report_to is ('aim',); each must be one of tensorboard, wandb, mlflow.",
        ),
    ],
)
def test_the_sentences(make: Any, ja: str, en: str):
    with pytest.raises(ConfigError) as refusal:
        make()
    assert (refusal.value.ja, refusal.value.en) == (ja, en)


def test_the_schema_shows_the_ranges():
    definitions = json_schema(japanese=False)["$defs"]
    training = definitions["TrainingConfig"]["properties"]
    assert training["batch_size"]["minimum"] == 1
    assert training["learning_rate"]["exclusiveMinimum"] == 0
    assert training["learning_rate"]["exclusiveMaximum"] == 1
    assert training["local_rank"]["minimum"] == -1
    assert definitions["CheckpointConfig"]["properties"]["save_total_limit"]["minimum"] == 2
    assert definitions["RuntimeConfig"]["properties"]["seed"]["exclusiveMaximum"] == 2**32
    assert definitions["LoRAConfig"]["properties"]["r"]["minimum"] == 1
    assert definitions["ScheduleConfig"]["properties"]["max_steps"]["anyOf"][0]["minimum"] == 1
    assert definitions["DataConfig"]["properties"]["max_length"]["minimum"] == 8
    share = next(item for item in definitions["DataConfig"]["properties"]["eval"]["anyOf"] if item["type"] == "number")
    assert (share["exclusiveMinimum"], share["exclusiveMaximum"]) == (0, 1)


def test_schema_and_help_know_the_same_ranges():
    """Every number with a bound in the schema has it in the help, and the other way round."""
    definitions = json_schema(japanese=False)
    bounded = set()

    def visit(place: dict[str, Any], prefix: str) -> None:
        for name, field in place["properties"].items():
            if not prefix and name not in field_names(RunConfig):
                continue  # a setting of a section that may stand flat
            nested = re.findall(r"#/\$defs/(\w+)", str(field))
            if nested:
                visit(definitions["$defs"][nested[0]], f"{prefix}{name}.")
            elif re.search("(?i)(minimum|maximum)'", str(field)):
                bounded.add(prefix + name)

    visit(definitions, "")
    in_help = {item.key for item in settings() if re.search("at least|above|at most|below", item.values_en)}
    assert in_help - {"parallel.max_memory_per_gpu"} == bounded  # the bound of its keys: JSON's keys are texts
    assert len(bounded) > 30


def test_more_processes_than_any_cluster_has_are_refused():
    """A plan makes room for each of them."""
    assert ParallelConfig(processes=65_536).processes == 65_536
    with pytest.raises(ConfigError, match="at most"):
        ParallelConfig(processes=100_000_000)


def test_a_name_that_is_not_utf8_is_refused_by_that():
    """As Linux hands on a name that was written on Windows in Japan."""
    name = "日本".encode("cp932").decode("utf-8", "surrogateescape")
    for make in (lambda: TrainingConfig(output_dir=name), lambda: LoRAConfig(adapter=name)):
        with pytest.raises(ConfigError, match="holds what is not UTF-8"):
            make()
