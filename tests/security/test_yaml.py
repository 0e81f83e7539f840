"""Settings from somebody else: no file of any size or form hangs a command, and none switches on foreign code."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from ai_finetuning.apps.cli.main import run
from ai_finetuning.config.foreign.convert import convert
from ai_finetuning.config.load import load_config
from ai_finetuning.config.shortened import cut, shortened
from ai_finetuning.config.yaml_text import MAX_BYTES, MAX_NODES, parse_yaml
from ai_finetuning.errors import ConfigError
from ai_finetuning.models import source

# Nine levels of nine aliases: 9^9 values in some 400 bytes.
LEVELS = "".join(f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 9) if n else 'a'}]\n" for n in range(9))


def bomb(end: str, indent: str = "") -> str:
    return "".join(indent + line + "\n" for line in (LEVELS + end).splitlines())


ATTACKS = {
    "data.columns": "data:\n  columns:\n" + bomb("text: *x8", "    "),
    "a section": "training:\n" + bomb("", "  "),
    "a list of files": "lora:\n  r: 8\n" + bomb("data: {train: *x8}"),
    "a value": bomb("learning_rate: *x8"),
    "merge keys": "a0: &a0 {k: 1}\n"
    + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 9)),
    "a long text, repeated": f"a: &a '{'x' * 100_000}'\ndata:\n  train: [{', '.join(['*a'] * 5000)}]\n",
    "brackets": "data: {train: " + "[" * 20_000,
    "closed brackets": "data: {train: " + "[" * 20_000 + "]" * 20_000 + "}",
    "block levels": "".join(" " * n + "a:\n" for n in range(1000)),
    "levels by aliases": "".join(f"a{n}: &a{n} [[[[{f'*a{n - 1}' if n else ''}]]]]\n" for n in range(100)),
    "cyclic": "data:\n  columns: &a {text: *a}\n",
    "too many values": "data:\n  train: [" + "a, " * (MAX_NODES + 1) + "]\n",
    "too large": "# " + "x" * MAX_BYTES,
}


@pytest.mark.parametrize("text", ATTACKS.values(), ids=ATTACKS)
@pytest.mark.parametrize("read", [load_config, convert])
def test_what_a_yaml_becomes_is_bounded_before_it_is_built(tmp_path, text: str, read):
    file = tmp_path / "received.yaml"
    file.write_text(text)
    before = time.monotonic()
    with pytest.raises(ConfigError) as refusal:
        read(file)
    assert time.monotonic() - before < 15
    assert max(len(refusal.value.ja), len(refusal.value.en)) < 2000


def test_an_override_is_bounded_too():
    with pytest.raises(ConfigError):
        load_config(None, ["data.columns=" + "{a: " * 20_000])


def test_json_of_another_tool_is_bounded(tmp_path):
    file = tmp_path / "received.json"
    for text in ('{"a": ' + "[" * 60 + "]" * 60 + "}", '{"a": ' + "[" * 20_000 + "]" * 20_000 + "}"):
        file.write_text(text)
        with pytest.raises(ConfigError):
            convert(file)


LONG = {
    "a key": "x" * 500_000 + ": 1",
    "a key of a section": "training:\n  " + "x" * 900 + ": 1",
    "a value": "method: " + "x" * 500_000,
    "a list": "training: [" + "aaaaaaaaa, " * 5000 + "]",
    "a mapping": "learning_rate: {" + ", ".join(f"k{n}: {n}" for n in range(3000)) + "}",
    "a key twice": f"? {'x' * 5000}\n: 1\n? {'x' * 5000}\n: 2",
    "a tag": "a: !" + "x" * 5000 + " 1",
    "a number": "learning_rate: " + "9" * 5000,
}


@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
def test_messages_are_cut_before_values_are_written_out(tmp_path, capsys, text: str):
    file = tmp_path / "received.yaml"
    file.write_text(text + "\n")
    assert run(["train", str(file)]) == 78
    assert len(capsys.readouterr().err) < 3000


def test_what_people_write_with_anchors_is_read():
    text = "a: &a {x: 1, y: [1, 2]}\nb: {z: *a}\nc: [*a, *a]\n"
    shared = {"x": 1, "y": [1, 2]}
    assert parse_yaml(text, "run.yaml") == {"a": shared, "b": {"z": shared}, "c": [shared, shared]}
    assert len(parse_yaml("a: [" + "1, " * 9000 + "]", "run.yaml")["a"]) == 9000
    assert parse_yaml("a: '" + "x" * 500_000 + "'", "run.yaml")["a"] == "x" * 500_000


def test_values_in_messages_are_as_repr_writes_them_until_they_are_long():
    for value in (None, 3e-4, "はい", [1, "a"], {"b": 1, "a": [True]}):
        assert shortened(value) == repr(value)
    for value in ("x" * 10**6, list(range(10**6)), {n: n for n in range(10**5)}, [[[[[[[1]]]]]]]):
        assert len(shortened(value)) < 300
        assert "..." in shortened(value)
    assert cut("k" * 500) == "k" * 100 + "..."
    assert cut("k") == "k"


CODE = """
open({marker!r}, "w")
from transformers import LlamaConfig, LlamaForCausalLM
class Config(LlamaConfig):
    model_type = "received"
class Model(LlamaForCausalLM):
    config_class = Config
"""


@pytest.fixture
def foreign(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A model's folder with code of its own, which makes a file `ran`, and data to train on."""
    folder = tmp_path / "foreign"
    shutil.copytree(tiny_model_dir, folder)
    config = json.loads((folder / "config.json").read_text()) | {
        "model_type": "received",
        "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(CODE.format(marker=str(tmp_path / "ran")))
    (tmp_path / "rows.jsonl").write_text('{"instruction": "首都は？", "output": "東京です。"}\n' * 8, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    "setting",
    ["model:\n  name: {0}\n  trust_remote_code: true", "model: {{name: {0}}}\ntrust_remote_code: true"],
    ids=["in its section", "at the top"],
)
def test_a_yaml_cannot_allow_the_code_of_a_model(foreign: Path, tmp_path: Path, capsys, setting: str):
    file = tmp_path / "received.yaml"
    file.write_text(setting.format(foreign) + f"\ndata: {{train: {tmp_path / 'rows.jsonl'}}}\n")
    assert run(["train", str(file), "--dry-run"]) == 78
    said = capsys.readouterr().err
    assert "aift train ... model.trust_remote_code=true" in said
    assert "line " in said
    assert not (tmp_path / "ran").exists()
    assert load_config(file, ["model.trust_remote_code=true"]).model.trust_remote_code
    assert not load_config(file, ["model.trust_remote_code=false"]).model.trust_remote_code


def test_the_command_line_can_and_is_warned_before_the_code_runs(
    foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    ran_at_warning = []
    monkeypatch.setattr(source, "warn", lambda ja, en: ran_at_warning.append((en, (tmp_path / "ran").exists())))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    arguments = [f"model={foreign}", f"data.train={tmp_path / 'rows.jsonl'}", "method=lora", "--dry-run"]
    run(["train", *arguments, "model.trust_remote_code=true"])
    assert (tmp_path / "ran").exists()
    assert ran_at_warning[0] == (f"Running code from the repository of {foreign} (trust_remote_code).", False)


def test_false_in_a_yaml_is_read(tmp_path: Path):
    file = tmp_path / "run.yaml"
    file.write_text("model: {name: a/b, trust_remote_code: false}\n")
    assert not load_config(file).model.trust_remote_code
