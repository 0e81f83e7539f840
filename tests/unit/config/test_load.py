"""One YAML and key=value overrides, strictly read; schema and help come from the same classes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from ai_finetuning.config.load import load_config
from ai_finetuning.config.plain import plain_run
from ai_finetuning.config.yaml_text import dump_yaml, parse_yaml
from ai_finetuning.errors import ConfigError, InputNotFoundError, UsageError

YAML = """
model: tiny/model
method: qlora
data:
  train: [a.jsonl, b.csv]
  eval: 0.1
  max_length: 256
training:
  learning_rate: 3e-4
  num_epochs: 2
  output_dir: ./out
  schedule: {name: cosine}
lora:
  r: 8
  target_modules: [q_proj, v_proj]
parallel:
  strategy: ddp
"""


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(YAML, encoding="utf-8")
    return path


def test_a_yaml_becomes_the_documented_classes(config_file: Path):
    config = load_config(config_file)
    assert config.model.name == "tiny/model"
    assert config.method == "qlora"
    assert config.uses_qlora is True
    assert config.data.train == ["a.jsonl", "b.csv"]
    assert config.training.learning_rate == 3e-4  # plain PyYAML reads a string here
    assert config.training.schedule.name == "cosine"
    assert config.training.gradient_accumulation_steps == 4


@pytest.mark.parametrize(
    "overrides",
    [
        ["training.learning_rate=1e-4", "lora.r=4", "training.schedule.max_steps=7", "data.packing=true"],
        ["--training.learning_rate", "1e-4", "--lora.r", "4", "--max-steps", "7", "--packing"],
        ["learning_rate=1e-4", "r=4", "max_steps=7", "packing=true"],
        ["--learning-rate=1e-4", "--r=4", "training.max_steps=7", "--data.packing=true"],
    ],
)
def test_overrides_are_written_as_people_write_them(config_file: Path, overrides: list[str]):
    config = load_config(config_file, overrides)
    assert config.training.learning_rate == 1e-4
    assert config.lora.r == 4
    assert config.training.schedule.max_steps == 7
    assert config.data.packing is True


def test_overrides_alone_are_enough():
    config = load_config(
        None,
        [
            "model=/some/path",
            "method=lora",
            "data.train=a.csv",
            "training.output_dir=out",
            "training.resume_from_checkpoint=auto",
        ],
    )
    assert config.model.name == "/some/path"
    assert config.data.train == "a.csv"
    assert config.training.checkpoint.resume_from_checkpoint == "auto"
    for words in (["--resume"], ["--resume", "auto"], ["--resume=auto"], ["resume=auto"], ["--resume", "--restart"]):
        assert load_config(None, words).training.checkpoint.resume_from_checkpoint == "auto"
    assert load_config(None, ["data.train=a.csv,b.csv", "target_modules=q_proj,v_proj"]).lora.target_modules == [
        "q_proj",
        "v_proj",
    ]


def test_a_written_configuration_is_read_back_the_same(config_file: Path, tmp_path: Path):
    config = load_config(config_file)
    again = tmp_path / "again.yaml"
    again.write_text(dump_yaml(plain_run(config)), encoding="utf-8")
    assert plain_run(load_config(again)) == plain_run(config)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: {learning_rte: 1e-4}", "did you mean learning_rate?"),
        ("training: {per_device_train_batch_size: 1}", "did you mean training.batch_size?"),
        ("data: {cutoff_len: 1}", "did you mean data.max_length?"),
        ("training: {max_length: 1}", "data.max_length"),
        ("training: {learning_rate: 'fast'}", "training.learning_rate is 'fast'"),
        ("training: {batch_size: true}", "training.batch_size is True"),
        ("training: {fp16: yes}", "training.fp16 is 'yes'"),
        ("trainin: {}", "did you mean training?"),
        ("method: dora", "method is 'dora'"),
        ("training: {batch_size: 1, batch_size: 2}", "appears twice (lines 1 and 1)"),
        ("a: [", "line 1"),
        ("- 1", "outermost level"),
        ("model: !!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_bad_yaml_is_refused_with_the_way_out(tmp_path: Path, text: str, message: str):
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as refusal:
        load_config(path)
    assert message in refusal.value.en


@pytest.mark.parametrize(
    ("override", "error", "message"),
    [
        ("lr=1", ConfigError, "did you mean training.learning_rate?"),
        ("name=x", ConfigError, "write the section's name"),
        ("learning_rate", UsageError, "key=value"),
        ("method：lora", UsageError, "with a plain =, not ："),
        ("learning_rate＝1e-4", UsageError, "with a plain =, not ＝"),
        ("patience=2", ConfigError, "did you mean training.runtime.early_stopping_patience?"),
        ("training.batch_size=many", ConfigError, "batch_size is 'many'"),
        ("batch_size=3.5", ConfigError, "batch_size is 3.5"),
    ],
)
def test_bad_overrides_are_refused(override: str, error: type[Exception], message: str):
    with pytest.raises(error, match=message.replace("?", r"\?")):
        load_config(None, [override])


def test_missing_and_misencoded_files(tmp_path: Path):
    with pytest.raises(InputNotFoundError):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "sjis.yaml").write_bytes("model: 日本語".encode("cp932"))
    with pytest.raises(ConfigError, match="UTF-8"):
        load_config(tmp_path / "sjis.yaml")
    (tmp_path / "bom.yaml").write_bytes("\ufeffmodel: 日本語".encode())
    assert load_config(tmp_path / "bom.yaml").model.name == "日本語"


@pytest.mark.parametrize(
    ("name", "meant"),
    [("rnu.yaml", "run.yaml"), ("faq.cvs", "faq.csv"), ("fqa.csv.yaml", "faq.csv"), ("－－dry-run", "begins with --")],
)
def test_what_was_meant_by_a_file_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, meant: str
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").touch()
    (tmp_path / "faq.csv").touch()
    with pytest.raises(InputNotFoundError) as refusal:
        load_config(name)
    assert meant in refusal.value.en


def test_yaml_values_that_surprise_people_are_read_as_they_look():
    assert parse_yaml("{a: 1e3, b: 1.5e-4, c: on, d: no, e: 012, f: 2026-01-01}", "x") | {"e": 0} == {
        "a": 1000.0,
        "b": 1.5e-4,
        "c": "on",
        "d": "no",
        "e": 0,
        "f": "2026-01-01",
    }


def test_the_schema_knows_every_key_and_refuses_others():
    from ai_finetuning.config.describe import json_schema, table
    from ai_finetuning.config.fields import fields_of, section_class
    from ai_finetuning.config.run import RunConfig

    schema = json_schema()
    text = json.dumps(schema, ensure_ascii=False)
    fields = fields_of(RunConfig)
    for path in fields:
        assert f'"{path[-1]}"' in text
    assert '"additionalProperties": false' in text
    keys = {key for key, _, _ in table()}
    assert keys == {".".join(path) for path, hint in fields.items() if section_class(hint) is None}


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[3] / "configs").glob("*.yaml")), ids=lambda path: path.name
)
def test_the_ready_made_configurations_load(path: Path):
    config = load_config(path)
    assert config.data.train is not None
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["method"] == config.method


# --- flat keys, and every problem at once


def refused(folder: Path, text: str, *overrides: str) -> ConfigError:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as refusal:
        load_config(path, overrides)
    return refusal.value


def test_flat_keys_at_the_top_of_a_yaml_are_those_of_the_command_line(tmp_path: Path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "model: a/b\nlearning_rate: 1e-4\nbatch_size: 2\nr: 8\ntrain: [a.jsonl]\nlora.lora_alpha: 16\nresume: true\n"
        "schedule.name: cosine\ntraining: {num_epochs: 2}\ntarget_modules: [q_proj]\n",
        encoding="utf-8",
    )
    flat = load_config(path, ["batch_size=4"])
    nested = load_config(
        None,
        [
            *("model=a/b", "learning_rate=1e-4", "batch_size=4", "r=8", "data.train=[a.jsonl]", "lora_alpha=16"),
            *("resume=true", "schedule.name=cosine", "num_epochs=2", "target_modules=q_proj"),
        ],
    )
    assert flat == nested
    assert plain_run(flat, given_only=True) == plain_run(nested, given_only=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rate: 1e-4\ntraining:\n  learning_rate: 2e-4\n", "(line 3, and learning_rate on line 1)"),
        ("r: 8\nlora.r: 8\n", "lora.r is given twice (line 1, and lora.r on line 2)"),
        ("model: a\nmodel.name: b\n", "model.name is given twice (line 1, and model.name on line 2)"),
        ("name: x\n", "line 1: key name could be model.name"),
        ("training: 3\nbatch_size: 4\n", "line 1: training is 3; it must be a mapping"),
        ("training:\n  eval_steps:\n", "line 2: training.eval_steps is None"),
        ("training:\n", "line 1: training is None"),
        ("lora_r:\n", "line 1: lora_r is not a known key; did you mean lora.r?"),
        ("data:\n  columns:\n    a: 3\n", "line 2: data.columns[a] is 3"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, text: str, message: str):
    refusal = refused(tmp_path, text)
    assert message in refusal.en
    assert refusal.en.startswith(str(tmp_path / "run.yaml"))
    assert "行目" in refusal.ja


def test_all_problems_of_file_and_command_line_come_at_once(tmp_path: Path):
    refusal = refused(
        tmp_path,
        "model: x\nmethod: dora\nbatch_size: many\ntraining:\n  learning_rte: 1\n  optimizer: {eps: -1, nme: adamw}\n"
        "dta: {}\ndata:\n  max_length: 3\n  pakcing: true\n",
        *("sead=3", "lora.r=0", "max_length=64"),
    )
    lines = refusal.en.splitlines()
    assert lines[0] == "9 problems with the settings:"
    name = str(tmp_path / "run.yaml")
    assert [line.strip().removeprefix(f"{name}, ") for line in lines[1:]] == [
        "line 2: method is 'dora'; it must be one of full, lora, qlora, pretrain.",
        "line 3: training.batch_size is 'many' (str); it must be an integer.",
        "line 5: training.learning_rte is not a known key; did you mean learning_rate?",
        "line 6: training.optimizer.nme is not a known key; did you mean name?",
        "line 6: training.optimizer.eps is -1; it must be above 0.",
        "line 7: dta is not a known key; did you mean data?",
        "line 10: data.pakcing is not a known key; did you mean packing?",
        "sead is not a known key; did you mean training.runtime.seed?",
        "lora.r is 0; it must be at least 1.",
    ]
    assert len(refusal.ja.splitlines()) == 10


def test_rules_between_settings_come_once_each_setting_is_right(tmp_path: Path):
    both = "method: full\nlora: {r: 8}\n"
    assert "lora settings (r) have no effect" in refused(tmp_path, both).en
    assert "have no effect" not in refused(tmp_path, both + "batch_size: 0\n").en


@pytest.mark.parametrize(
    "key", ["do_train", "model_type", "sequence_parallel", "ref_model", "plugins", "dataset_text_field"]
)
def test_another_tools_key_gets_no_wrong_hint_but_the_command_that_reads_its_file(tmp_path: Path, key: str):
    refusal = refused(tmp_path, f"{key}: 1\n")
    assert "did you mean" not in refusal.en
    assert "もしかして" not in refusal.ja
    assert f"aift import {tmp_path / 'run.yaml'}" in refusal.en
    assert "aift import" in refusal.ja


def test_a_name_that_only_looks_alike_is_no_hint():
    for key in ("remodel_it", "methodology", "streets"):
        with pytest.raises(ConfigError) as refusal:
            load_config(None, [f"{key}=1"])
        assert "did you mean" not in refusal.value.en, refusal.value.en


def test_other_tools_names_are_none_of_ours():
    from ai_finetuning.config.fields import fields_of
    from ai_finetuning.config.other_tools import OTHER_TOOLS
    from ai_finetuning.config.run import RunConfig

    assert not OTHER_TOOLS & {path[-1] for path in fields_of(RunConfig)}
