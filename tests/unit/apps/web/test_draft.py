"""Settings that the page may set, and no others; the form and its YAML say the same."""

from __future__ import annotations

import pytest

from ai_finetuning.apps.web import draft
from ai_finetuning.apps.web.draft import Chosen, arguments_of, config_of, described, values_of_yaml, yaml_of
from ai_finetuning.config.load import load_config
from ai_finetuning.errors import ConfigError, UsageError

CHOSEN = Chosen("embedded:kotoha-tiny", "embedded:kotoha-qa")
# Every setting that no request of the page may name, with why.
REFUSED = {
    "model.name": "found by an id",
    "model.trust_remote_code": "runs a stranger's code",
    "model.special_tokens": "of a model's maker",
    "model.extra_tokens": "of a model's maker",
    "model.turn_end_tokens": "of a model's maker",
    **{
        f"model.architecture.{name}": "a new model is made by the command"
        for name in (
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "intermediate_size",
            "max_position_embeddings",
            "rope_theta",
            "tie_word_embeddings",
        )
    },
    "data.train": "found by an id",
    "data.columns": "chosen with the data",
    "data.sheet": "chosen with the data",
    "data.streaming": "for data that is too large for the page",
    "training.output_dir": "a place on the disk",
    "training.ddp": "of a launcher",
    "training.local_rank": "of a launcher",
    "training.world_size": "of a launcher",
    "training.checkpoint.resume_from_checkpoint": "a place on the disk",
    "training.checkpoint.restart": "of resuming",
    "training.checkpoint.allow_changed": "of resuming",
    "training.runtime.report_to": "sends metrics away",
    "training.runtime.progress": "of a terminal",
    "lora.use_qlora": "method says it",
    "lora.adapter": "found by an id",
    "lora.task_type": "has one value",
    "parallel.max_memory_per_gpu": "of this PC",
    "parallel.processes": "of this PC",
    "parallel.deepspeed_stage": "of a launcher",
    "parallel.timeout_seconds": "of this PC",
}


def test_every_setting_is_allowed_or_refused_with_a_reason():
    """A new field of RunConfig stays closed to the page until somebody decides."""
    names = {item.key for item in draft.leaves()}
    assert names == draft.ALLOWED | REFUSED.keys()
    assert not draft.ALLOWED & REFUSED.keys()


@pytest.mark.parametrize("key", [*REFUSED, "HF_TOKEN", "training.output_dir=/etc", "lora"])
def test_what_is_not_allowed_is_refused_by_its_name(key: str):
    with pytest.raises(ConfigError) as refused:
        config_of({key: "x"}, CHOSEN)
    assert [one.key for one in refused.value.problems] == [key]


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("data.eval", "/etc/passwd"),
        ("data.eval", "FILE.py:rows"),
        ("data.replay.path", "/etc/passwd"),
        ("data.replay.path", "[embedded:prose, /etc/passwd]"),
        ("model.chat_template", "/etc/passwd"),
        ("model.chat_template", "{{ messages }}"),
        ("method", "pretrain"),
    ],
)
def test_no_value_names_a_place_or_code(key: str, text: str):
    with pytest.raises(ConfigError) as refused:
        config_of({key: text, "data.replay.share": "0.1"} if "replay" in key else {key: text}, CHOSEN)
    assert key in [one.key for one in refused.value.problems]


def test_every_problem_stands_at_its_field():
    with pytest.raises(ConfigError) as refused:
        config_of({"training.num_epochs": "0", "training.learning_rate": "abc", "lora.r": "1.5"}, CHOSEN)
    problems = {one.key: one for one in refused.value.problems}
    assert set(problems) == {"training.num_epochs", "training.learning_rate", "lora.r"}
    assert problems["training.num_epochs"].ja == "training.num_epochs が 0 です。1 以上にしてください。"
    with pytest.raises(ConfigError) as between:  # a rule between two settings stands at the one that it names first
        config_of({"method": "full", "lora.r": "8"}, CHOSEN)
    assert [one.key for one in between.value.problems] == ["method"]


def test_a_value_that_is_no_short_text_is_refused():
    for value in (3, None, "x" * 10_001, "a\0b"):
        with pytest.raises(UsageError):
            config_of({"data.system_prompt": value}, CHOSEN)


def test_the_form_the_yaml_and_the_command_say_the_same(tmp_path):
    values = {
        "method": "qlora",
        "data.eval": "0.1",
        "data.system_prompt": "あなたは窓口の担当者です。\nはい: 丁寧に",
        "training.learning_rate": "1e-4",
        "training.optimizer.betas": "[0.9, 0.95]",
        "training.checkpoint.load_best": "true",
        "lora.target_modules": "[q_proj, v_proj]",
        "lora.r": "8",
    }
    chosen = Chosen("embedded:kotoha-tiny", str(tmp_path / "data.csv"), {"instruction": "ご質問"}, "顧客")
    config = config_of(values, chosen)
    file = tmp_path / "run.yaml"
    file.write_text(yaml_of(config), encoding="utf-8")
    assert load_config(file) == config
    assert load_config(None, arguments_of(config)) == config
    taken, left = values_of_yaml(yaml_of(config), chosen)
    assert not left
    assert taken.keys() == values.keys()
    assert config_of(taken, chosen) == config


def test_a_foreign_yaml_gives_what_the_page_takes_and_names_the_rest():
    text = "model: /other/model\ndata: {train: /other/data.csv, max_length: 256}\nlearning_rate: 1e-4\noutput_dir: /x\n"
    taken, left = values_of_yaml(text, CHOSEN)
    assert taken == {"data.max_length": "256", "training.learning_rate": "0.0001"}
    assert left == ["model.name", "data.train", "training.output_dir"]
    with pytest.raises(ConfigError, match="YAML"):
        values_of_yaml("training:\n  num_epochs: 0\n", CHOSEN)
    with pytest.raises(ConfigError, match="trust_remote_code"):
        values_of_yaml("model: {name: x, trust_remote_code: true}", CHOSEN)


def test_a_divided_file_and_a_share_are_two_evaluations():
    divided = Chosen("embedded:kotoha-tiny", "train.jsonl", eval="eval.jsonl")
    assert config_of({}, divided).data.eval == "eval.jsonl"
    with pytest.raises(ConfigError) as refused:
        config_of({"data.eval": "0.1"}, divided)
    assert [one.key for one in refused.value.problems] == ["data.eval"]


def test_the_form_shows_twelve_fields_first_with_texts_in_both_languages():
    fields = described()
    assert [field["key"] for field in fields if field["visible"]] == list(draft.VISIBLE)
    assert len(draft.VISIBLE) == 12
    assert {field["key"] for field in fields} == draft.ALLOWED
    assert all(field["ja"] and field["en"] for field in fields)
    kinds = {field["key"]: field["kind"] for field in fields}
    assert kinds["training.checkpoint.load_best"] == "bool"
    assert kinds["training.learning_rate"] == kinds["data.eval"] == "number"
    choices = {field["key"]: field["choices"] for field in fields}
    assert choices["method"] == ["full", "lora", "qlora"]
    assert choices["preference.loss"][0] == "sigmoid"
