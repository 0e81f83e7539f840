"""What the tool prints and writes of names, rows and answers from somebody else: shown, never carried out."""

from __future__ import annotations

import ast
import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from ai_finetuning.config.model import ModelConfig
from ai_finetuning.config.run import RunConfig
from ai_finetuning.evaluation.fidelity import Agreement
from ai_finetuning.execution.model_card import literal, markdown, merge_card, model_card
from ai_finetuning.export import vllm
from ai_finetuning.messages import argument
from ai_finetuning.models.adapters import add_lora
from tests.support.models import build_model

NAMES = [
    './m\n---\nlicense: mit\n---\n# Fake\n"); import os; os.system("id") #',
    "<img src=x onerror=alert(1)>",
    "[click](https://evil.example) ![x](http://evil.example/x.png)",
    "x;touch${IFS}PWNED#",
    "`id` $(id) 'a' \"b\" \\",
    "a | b | c ```",
    "--trust-remote-code",
    "https://evil.example www.evil.example me@evil.example",
    "\x1b]0;title\x07\u202egpj.exe",
    "日本語のモデル/七番",
]


def card(base: str) -> str:
    config = RunConfig(model=ModelConfig(base))
    summary = {
        "held_out_before": None, "held_out_after": None, "train_loss_last_10_steps": 1.0, "steps": 1, "epochs": 1.0,
        "tokens": 1, "skipped_steps": 0, "seconds": 1, "tokens_per_second": 1.0, "peak_memory_gb": 1,
        "estimated_memory_gb": 1,
        "plan": {
            "device": "cpu", "precision": "fp32", "trainable": 1, "parameters": 2, "rows": 1, "eval_rows": 0,
            "warmup_steps": 0,
        },
    }  # fmt: skip
    versions = dict.fromkeys(("torch", "transformers", "peft", "python"), "1")
    machine = {"gpu": {"available": False}, "cpu": {"name": "cpu"}, "versions": versions}
    return model_card(config, summary, machine, None)


def parts(text: str) -> tuple[dict[str, object], list[str]]:
    """Front matter, and the lines below it."""
    lines = text.split("\n")
    assert lines[0] == "---"
    end = lines.index("---", 1)
    return yaml.safe_load("\n".join(lines[1:end])), lines[end + 1 :]


@pytest.mark.parametrize("name", NAMES)
def test_a_card_holds_names_as_text(name: str):
    front, body = parts(card(name))
    assert set(front) == {"language", "library_name", "base_model", "pipeline_tag", "tags"}
    assert [line for line in body if line.startswith("#")][1:] == [
        "## 測定値 / Measured",
        "## 設定 / Settings",
        "## 使い方 / Use",
    ]
    assert body.count("```python") == 1
    assert body.count("```") == 1
    code = ast.parse("\n".join(body[body.index("```python") + 1 : body.index("```")]))
    assert [type(node) for node in code.body] == [ast.ImportFrom, ast.Assign]
    call = code.body[1].value  # type: ignore[attr-defined]
    assert [argument.value for argument in call.args] == [name, "THIS_FOLDER"]


@pytest.mark.parametrize("name", NAMES)
def test_a_card_of_a_merge_holds_names_as_text(name: str):
    agreement = Agreement(*([0.0] * len(Agreement.__dataclass_fields__)))
    text = merge_card(
        name, name, bits=None, source=name, close=agreement, measured={name: agreement}, limits=(1.0, 0.5), prompts=1
    )
    front, body = parts(text)
    assert "license" not in front
    assert len([line for line in body if line.startswith("#")]) == 3
    for line in body:
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) == 4


@pytest.mark.parametrize("name", NAMES)
def test_nothing_in_a_name_is_markup(name: str):
    """Every character that could be is escaped, and what a reader of Markdown shows is the name."""
    written = markdown(name)
    assert "\n" not in written
    assert "\x1b" not in written
    plain = re.sub(r"\\[!-/:-@\[-`{-~]", "", written)
    assert not re.search(r"[`*\[\]<>&|#~]|://|www\.|@", plain)
    assert ast.literal_eval(literal(name)) == name


def test_ordinary_names_are_written_as_they_are():
    for name in ("embedded:kotoha-tiny", "llm-jp/llm-jp-3-1.8b", "org/Some_Model_v1.5", "日本語/模型"):
        assert markdown(name) == name == argument(name).strip("'")
        assert literal(name) == f'"{name}"'


@pytest.mark.parametrize("name", NAMES)
def test_printed_commands_are_one_word_a_name(name: str, tmp_path: Path, logged):
    folder = tmp_path / "a b;c"
    add_lora(build_model(), r=4, alpha=8).save_pretrained(folder)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": name}))
    vllm._say_adapter(folder)
    if "\n" in name or "\x1b" in name:
        name = ""  # shown, not to be copied
    line = logged()
    words = shlex.split(line[line.index("vllm serve") :]) if name else [line]
    expected = f"./{name}" if name.startswith("-") else name
    assert not name or words[:7] == [
        "vllm", "serve", expected, "--enable-lora", "--lora-modules", f"a b;c={folder}", "--max-lora-rank"
    ]  # fmt: skip
