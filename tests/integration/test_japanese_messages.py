"""Under AIFT_LANG=ja no line of the command line holds an English sentence."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from tests.support.patience import patience

from ai_finetuning.apps.cli.main import app_of

# Three or more words of letters in a row that belong to no path, key, value or option.
SENTENCE = re.compile(r"(?<![\w./=:\[-])[A-Za-z][A-Za-z']+(?: [A-Za-z']+){2,}(?![\w/=-])")
# Titles that JSON Schema makes of keys, commands to type, and names.
NAMES = re.compile(
    r'"title": ".*"|'
    r"`?aift [a-z]+(?: (?:--?[a-z-]+|<[a-z ]+>|[a-z]+(?= --)))*|AI Fine-tuning Toolkit|Llama Community License"
)

# Runs every command line of stdin in one process; the locale is read when help texts are made.
DRIVER = """
import contextlib, io, json, sys
from ai_finetuning.apps.cli.main import run
obtained = []
for arguments in json.load(sys.stdin):
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        code = run(arguments)
    obtained.append([code, text.getvalue()])
json.dump(obtained, sys.stdout)
"""


def english(text: str) -> list[str]:
    """The English sentences of a text."""
    return [match.group() for line in text.splitlines() for match in SENTENCE.finditer(NAMES.sub("…", line))]


def outputs(commands: list[list[str]], folder: Path) -> list[tuple[int, str]]:
    """Exit code and text of every command, under AIFT_LANG=ja."""
    environment = os.environ | {"AIFT_LANG": "ja", "PYTHONWARNINGS": "ignore", "COLUMNS": "120"}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        env=environment,
        cwd=folder,
        timeout=patience(300),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [(code, text) for code, text in json.loads(done.stdout)]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Twelve rows of questions."""
    lines = [{"instruction": f"{number} の次の数は？", "output": f"{number + 1} です。"} for number in range(12)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines), encoding="utf-8")
    return path


def check(commands: list[list[str]], folder: Path, codes: set[int]) -> None:
    """Runs the commands and looks at their codes and texts."""
    for command, (code, text) in zip(commands, outputs(commands, folder), strict=True):
        assert code in codes, (command, text)
        assert text.strip(), command
        assert english(text) == [], (command, text)


def test_the_search_finds_english_sentences_only():
    assert english("エラー: No such option: --zz") == ["No such option"]
    assert english("アテンション: sdpa (flash_attention_2: needs a GPU, not cpu)") == ["needs a GPU"]
    assert english("計算方法: portable (the processor has no bf16 instructions)") == ["the processor has no"]
    assert english("manifest.json cannot be read") == ["cannot be read"]
    assert english("  aift merge outputs/x --out y\n設定: model.name は DPO Hugging です") == []


def verbs(command: object, name: tuple[str, ...] = ()) -> Iterator[list[str]]:
    """Every verb, and the groups that hold some."""
    yield [*name]
    for key, part in getattr(command, "commands", {}).items():
        yield from verbs(part, (*name, key))


def test_help_of_every_verb(tmp_path: Path):
    every = list(verbs(typer.main.get_command(app_of())))
    assert ["gpu", "self-check"] in every
    check([[*verb, "--help"] for verb in every], tmp_path, {0})


def test_tables_plan_and_a_run(tmp_path: Path, tiny_model_dir: Path, rows: Path):
    train = [
        "train",
        f"model={tiny_model_dir}",
        f"data.train={rows}",
        "data.eval=0.2",
        "data.max_length=64",
        "training.num_epochs=1",
        "training.batch_size=2",
        "training.gradient_accumulation_steps=1",
        "training.logging_steps=1",
        "training.eval_steps=2",
        "training.save_steps=2",
        f"training.output_dir={tmp_path / 'out'}",
    ]
    commands = [
        ["env"],
        [],
        ["models", "qwen"],
        ["models", "llm-jp/llm-jp-3-1.8b-instruct3"],
        ["init", "--out", "init.yaml"],
        ["start", str(rows), "--yes", "--preset", "quick", "--config", "start.yaml"],
        ["schema"],
        [*train, "--dry-run", "--pilot"],
        train,
        [*train, "method=full", "data.packing=true", f"training.output_dir={tmp_path / 'full'}"],
        ["data", "stats", str(rows), "--model", str(tiny_model_dir)],
        ["data", "show", str(rows), "--model", str(tiny_model_dir)],
    ]
    check(commands, tmp_path, {0})
    checkpoint = max((tmp_path / "out" / "checkpoints").glob("checkpoint-*"), key=lambda path: path.stat().st_mtime)
    (checkpoint / "state.json").write_text("{}", encoding="utf-8")
    check([[*train, f"resume_from_checkpoint={checkpoint}"]], tmp_path, {65})


def test_refusals(tmp_path: Path, tiny_model_dir: Path, rows: Path):
    yaml = tmp_path / "run.yaml"
    yaml.write_text("training:\n\tbatch_size: 2\n", encoding="utf-8")
    model, data = f"model={tiny_model_dir}", f"data.train={rows}"
    out = f"training.output_dir={tmp_path / 'out'}"
    commands = [
        ["nope"],
        ["models", "--zz"],
        ["generate"],
        ["models", "--method"],
        ["merge", "a", "--out", "b", "--bits", "four"],
        ["merge", "a", "b", "--out", "c"],
        ["train", "--gpus=-1"],
        ["chat", "--compare=yes", "x"],
        ["train", str(yaml)],
        ["train", "missing.yaml"],
        ["train", "training.lerning_rate=1"],
        ["train", "training.batch_size=0"],
        ["train", "method=dpo"],
        ["train"],
        ["train", model, "data.train=missing.jsonl", out],
        ["train", "model=no/such-model-anywhere", data, out],
        ["train", model, data, out, "parallel.strategy=tensor", "parallel.tensor_parallel_size=2"],
        ["train", model, data, out, "data.on_long=error", "data.max_length=16"],
        ["merge", str(tmp_path), "--out", str(tmp_path / "merged")],
        ["generate", str(tmp_path / "none"), "質問"],
        ["quantize", str(tiny_model_dir), "--method", "int3", "--out", str(tmp_path / "q")],
        ["models", "--method", "nope"],
        ["models", "no-such-model"],
        ["start", "missing.csv", "--yes", "--preset", "fast"],
        ["init", "missing.csv"],
    ]
    check(commands, tmp_path, {64, 65, 66, 69, 78})
