"""The configuration in a run's folder: given values, derived ones as comments, paths that hold anywhere."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ai_finetuning.config.data import DataConfig
from ai_finetuning.config.load import load_config
from ai_finetuning.config.lora import LoRAConfig
from ai_finetuning.config.model import ModelConfig
from ai_finetuning.config.plain import plain_run, to_plain
from ai_finetuning.config.run import RunConfig
from ai_finetuning.config.run_yaml import absolute_paths, describe_run
from ai_finetuning.config.training import TrainingConfig
from ai_finetuning.execution.sources import config_source

EXPECTED = """\
model:
  name: a/b
method: qlora
data:
  train: rows.jsonl
# derived: data.loss_on: "assistant"
training:
  learning_rate: 0.0003
  runtime:
    seed: 42
# derived: training.warmup_steps: 15
# derived: training.runtime.precision: "fp32"
# derived: lora.target_modules: ["q_proj", "v_proj"]
parallel:
  strategy: ddp
"""


def given(run: RunConfig) -> dict[str, object]:
    return to_plain(run, given_only=True)


def test_what_was_given_is_written_and_what_was_derived_beside_it(tmp_path: Path):
    run = load_config(
        None,
        [
            "model=a/b",
            "method=qlora",
            "data.train=rows.jsonl",
            "learning_rate=3e-4",
            "seed=42",
            "strategy=ddp",
        ],
    )
    derived = {
        "training.warmup_steps": 15,
        "training.runtime.precision": "fp32",
        "lora.target_modules": ["q_proj", "v_proj"],
        "data.loss_on": "assistant",
    }
    text = describe_run(run, derived)
    assert text == EXPECTED
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    again = load_config(path)
    assert again == run
    assert given(again) == given(run)


@pytest.mark.parametrize(
    "value", ["{{ bos }}\n{% for x in y %}\r\n", "\u2028日本語\x85\u2029", "\x7f\x00", "\ud800", "🗻"]
)
def test_a_derived_text_stays_on_its_comment_line(tmp_path: Path, value: str):
    text = describe_run(RunConfig(), {"model.chat_template": value})
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    assert load_config(path) == RunConfig()
    assert sum(line.startswith("# derived: model.chat_template: ") for line in text.splitlines()) == 1
    assert len(text.splitlines()) == 4


@pytest.mark.parametrize(
    "run",
    [
        RunConfig(),
        RunConfig(method="full", training=TrainingConfig(2e-5, save_steps=500)),
        RunConfig(method="qlora"),
        RunConfig(lora=LoRAConfig(use_qlora=True, target_modules=["1e3"])),
        RunConfig(data=DataConfig(train=["a", "on"], eval=0.1, columns={"output": "答え"}), model=ModelConfig("1e3")),
    ],
    ids=["nothing", "full", "qlora", "use_qlora", "data"],
)
def test_every_method_reads_back(tmp_path: Path, run: RunConfig):
    path = tmp_path / "config.yaml"
    path.write_text(describe_run(run, {}), encoding="utf-8")
    again = load_config(path)
    assert plain_run(again) == plain_run(run)
    assert again.effective_method == run.effective_method
    always = {"model": {"name": run.model.name}, "method": run.effective_method}
    expected = given(run)
    expected["model"] = always["model"] | expected.get("model", {})
    assert given(again) == expected | {"method": always["method"]}


def test_paths_that_were_given_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("base", "rows"):
        (tmp_path / name).mkdir()
    for name in ("train.jsonl", "eval.jsonl", "chat.jinja"):
        (tmp_path / name).write_text("x", encoding="utf-8")
    run = load_config(
        None,
        [
            *("model=base", "model.chat_template=chat.jinja", "data.train=train.jsonl,rows,user/set"),
            *("data.eval=eval.jsonl", "output_dir=out/run", "resume=out/old"),
        ],
    )
    changed = absolute_paths(run, tmp_path)
    assert run.model.name == "base"
    assert changed.model.name == str(tmp_path / "base")
    assert changed.model.chat_template == str(tmp_path / "chat.jinja")
    assert changed.data.train == [str(tmp_path / "train.jsonl"), str(tmp_path / "rows"), "user/set"]
    assert changed.data.eval == str(tmp_path / "eval.jsonl")
    assert changed.training.output_dir == str(tmp_path / "out/run")
    assert changed.training.checkpoint.resume_from_checkpoint == str(tmp_path / "out/old")
    # The same from anywhere, and again.
    (tmp_path / "config.yaml").write_text(describe_run(changed, {}), encoding="utf-8")
    monkeypatch.chdir(os.sep)
    assert load_config(tmp_path / "config.yaml") == changed
    assert absolute_paths(changed, Path("/elsewhere")) == changed


def test_patterns_of_data_mean_the_same_files_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Also where the folder's own name looks like a pattern."""
    folder = tmp_path / "runs [1]"
    (folder / "corpus" / "deep").mkdir(parents=True)
    for name in ("a.jsonl", "b.jsonl", "deep/c.jsonl", "old.jsonl"):
        (folder / "corpus" / name).touch()
    files = ("a.jsonl", "b.jsonl", "deep/c.jsonl")
    train = ["corpus/[ab].jsonl", {"path": "corpus/**/c.jsonl", "epochs": 2}]
    settings = {"train": train, "eval": "corpus/o*.jsonl", "replay.path": ["./corpus/o*.jsonl"], "replay.share": 0.1}
    run = load_config(
        None,
        [f"data.{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in settings.items()],
    )
    changed = absolute_paths(run, folder)
    monkeypatch.chdir(os.sep)
    read = config_source(changed.data.train)
    assert [Path(path) for path in read.paths] == [folder / "corpus" / name for name in files]
    for value in (changed.data.eval, changed.data.replay.path):
        assert config_source(value) == [folder / "corpus" / "old.jsonl"]
    assert absolute_paths(changed, Path("/elsewhere")) == changed
    unmatched = load_config(None, ["data.train=none/*.jsonl"])
    assert absolute_paths(unmatched, folder) == unmatched


def test_what_is_no_path_stays(tmp_path: Path):
    run = load_config(
        None,
        ["model=embedded:kotoha-tiny", "chat_template={{ x }}", "data.train=user/set", "data.eval=0.1", "resume=auto"],
    )
    assert absolute_paths(run, tmp_path) == run
    assert given(absolute_paths(run, tmp_path)) == given(run)


def test_defaults_stay_defaults(tmp_path: Path):
    (tmp_path / "embedded:kotoha-tiny").mkdir()
    changed = absolute_paths(RunConfig(), tmp_path)
    assert changed == RunConfig()
    assert given(changed) == {}
