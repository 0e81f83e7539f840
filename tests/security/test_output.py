"""What the tool prints and writes of names, rows and answers from somebody else: shown, never carried out."""

from __future__ import annotations

import ast
import contextlib
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from ai_finetuning.apps.cli import chat
from ai_finetuning.apps.cli.main import run
from ai_finetuning.config.model import ModelConfig
from ai_finetuning.config.run import RunConfig
from ai_finetuning.embedded import MODEL
from ai_finetuning.evaluation.fidelity import Agreement
from ai_finetuning.evaluation.verdict import verdict
from ai_finetuning.execution.model_card import Base, literal, markdown, merge_card, model_card
from ai_finetuning.export import vllm
from ai_finetuning.messages import argument, notice, printable, warn
from ai_finetuning.models import catalog, generation
from ai_finetuning.models.adapters import add_lora
from ai_finetuning.models.source import ModelSource
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


def card(base: str, known: Base | None = None, answer: str = "はい。") -> str:
    config = RunConfig(model=ModelConfig(base))
    names = {"train": [[base, base]], "eval": [], "left_out": 0}
    summary = {
        "saved_step": 1, "data": names, "verdict": asdict(verdict([])),
        "held_out_before": None, "held_out_after": None, "train_loss_last_10_steps": 1.0, "steps": 1, "epochs": 1.0,
        "tokens": 1, "skipped_steps": 0, "seconds": 1, "tokens_per_second": 1.0, "peak_memory_gb": 1,
        "estimated_memory_gb": 1,
        "plan": {
            "device": "cpu", "precision": "fp32", "trainable": 1, "parameters": 2, "rows": 1, "eval_rows": 0,
            "warmup_steps": 0, "label_tokens": 1, "batch_size": 4, "gradient_accumulation_steps": 4,
        },
    }  # fmt: skip
    versions = dict.fromkeys(("torch", "transformers", "peft", "python"), "1")
    machine = {"gpu": {"available": False}, "cpu": {"name": "cpu"}, "versions": versions}
    return model_card(config, summary, machine, known or Base.named(base), [("質問？", answer)])


def parts(text: str) -> tuple[dict[str, object], list[str]]:
    """Front matter, and the lines below it."""
    lines = text.split("\n")
    assert lines[0] == "---"
    end = lines.index("---", 1)
    return yaml.safe_load("\n".join(lines[1:end])), lines[end + 1 :]


@pytest.mark.parametrize("name", NAMES)
def test_a_card_holds_names_as_text(name: str):
    """As a folder, and as what a hub might be told to call a model; in an answer too."""
    for base in (Base.named(name), Base(name, hub_id=name)):
        front, body = parts(card(name, base, answer=name))
        known = {"base_model"} if base.hub_id is not None else set()
        assert set(front) == {"language", "library_name", "pipeline_tag", "tags"} | known
        assert [line for line in body if line.startswith("#")][1:] == [
            "## 結果",
            "## 学習データ",
            "## 設定",
            "## 回答の例",
            "## Results",
            "## Data",
            "## Settings",
            "## 使い方 · Use",
        ]
        assert body.count("```python") == 1
        assert body.count("```sh") == 1
        assert body.count("```") == 2
        code = ast.parse("\n".join(body[body.index("```python") + 1 : body.index("```")]))
        calls = [node for node in ast.walk(code) if isinstance(node, ast.Call)]
        names = [call.args[0].value for call in calls if call.args and isinstance(call.args[0], ast.Constant)]
        assert (base.hub_id or "BASE_MODEL") in names
        assert {type(node) for node in code.body} == {ast.ImportFrom, ast.Assign, ast.Expr}


def test_a_card_names_no_folder_of_this_machine(tmp_path: Path):
    """`base_model` is an id that a hub knows, or is left out; of a folder its last part is shown."""
    (tmp_path / "私のモデル").mkdir()
    for name, expected in (
        (str(tmp_path / "私のモデル"), None),
        ("../my-model", None),
        ("embedded:kotoha-tiny", None),
        ("org/model", "org/model"),
    ):
        front, body = parts(card(name, Base.named(name)))
        assert front.get("base_model") == expected
        assert str(tmp_path) not in "\n".join(line for line in body if not line.startswith("- "))
        assert body[1] == f"# {Path(name).name if expected is None else name} (lora)"


def test_a_card_has_the_id_and_the_licence_of_a_known_base():
    """By its published id where an alias was asked for; what ships in the package is on no hub."""
    row = catalog.lookup("cyberagent/calm3-DeepSeek-R1-Distill-Qwen-32B")
    assert row is not None
    base = Base.of(
        ModelSource(
            "cyberagent/calm3-DeepSeek-R1-Distill-Qwen-32B",
            "cyberagent/calm3-DeepSeek-R1-Distill-Qwen-32B",
            True,
            {},
            row,
        )
    )
    front, body = parts(card("cyberagent/calm3-DeepSeek-R1-Distill-Qwen-32B", base))
    assert front["base_model"] == row.id
    assert f"- ベースのライセンス: {row.licence}" in body
    assert f"- licence of the base: {row.licence}" in body
    shipped = ModelSource(MODEL, "/somewhere", True, {}, catalog.lookup(MODEL))
    assert (Base.of(shipped).hub_id, Base.of(shipped).embedded) == (None, MODEL)


@pytest.mark.parametrize("name", NAMES)
def test_a_card_of_a_merge_holds_names_as_text(name: str):
    agreement = Agreement(*([0.0] * len(Agreement.__dataclass_fields__)))
    text = merge_card(
        name, name, bits=None, source=name, close=agreement, measured={name: agreement}, limits=(1.0, 0.5), prompts=1
    )
    front, body = parts(text)
    assert "license" not in front
    assert len([line for line in body if line.startswith("#")]) == 4
    assert front.get("base_model") in (None, name)
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


HOSTILE = "\x1b]0;t\x07\x1b[2J\x08\x0d\x7f\x9b31m\u202eabc\u2066\u200f\u2028x"
SHOWN = r"\x1b]0;t\x07\x1b[2J\x08\x0d\x7f\x9b31m\u202eabc\u2066\u200f\u2028x"
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def test_controls_are_shown_and_texts_stay():
    assert printable(HOSTILE) == SHOWN
    for text in (
        "日本語、ｶﾀｶﾅ、葛\U000e0100城、辻\ufe00",
        "👨\u200d👩\u200d👧 ❤\ufe0f 🏴\U000e0067\U000e0062\U000e007f",
        "a\tb\nc\u3000\xa0\ufeff",
        "עברית العربية",
    ):
        assert printable(text) == text


def test_notices_and_warnings(logged):
    notice(HOSTILE, HOSTILE)
    warn(HOSTILE, HOSTILE)
    assert logged().count(SHOWN) == 2
    assert not RAW.search(logged())


@pytest.fixture
def places(tmp_path: Path) -> dict[str, list[str]]:
    """Commands by what is hostile in them; each ends with a message that shows it."""
    config = {"model_type": HOSTILE, "architectures": [HOSTILE]}
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    (tmp_path / "model" / "model.safetensors").touch()
    (tmp_path / "broken.jsonl").write_text('{"text": "' + HOSTILE + "\n" + '{"text"' + HOSTILE + "\n", encoding="utf-8")
    (tmp_path / "columns.jsonl").write_text(json.dumps({HOSTILE: "a", "b": "c"}) + "\n", encoding="utf-8")
    (tmp_path / "run.yaml").write_text(f'"{SHOWN}": 1\ntraining: {{"{SHOWN}": 1}}\nmethod: "{SHOWN}"\n')
    data = "data.train=" + str(tmp_path / "columns.jsonl")
    tiny = "embedded:kotoha-tiny"
    return {
        "a path": ["generate", str(tmp_path / HOSTILE), "q"],
        "a file": ["data", "stats", str(tmp_path / (HOSTILE + ".jsonl")), "--model", tiny],
        "a line": ["data", "stats", str(tmp_path / "broken.jsonl"), "--model", tiny],
        "a column": ["data", "stats", str(tmp_path / "columns.jsonl"), "--model", tiny],
        "a model_type": ["generate", str(tmp_path / "model"), "q"],
        "keys of a YAML": ["train", str(tmp_path / "run.yaml")],
        "a key": ["train", HOSTILE + "=1", data],
        "an option": ["generate", "--" + HOSTILE],
        "a command": [HOSTILE],
        "a search": ["models", HOSTILE],
    }


@pytest.mark.parametrize("language", ["en", "ja"])
def test_no_place_prints_a_control_of_its_input(places, capsys, monkeypatch: pytest.MonkeyPatch, language: str):
    monkeypatch.setenv("AIFT_LANG", language)
    for place, command in places.items():
        run(command)
        said = "".join(capsys.readouterr())
        assert said, place
        assert not RAW.search(said), (place, said)


def test_rows_are_shown_with_their_controls(tmp_path: Path, capsys):
    file = tmp_path / "rows.jsonl"
    row = {"instruction": "首都\u202eは？", "output": "東京\u2066です。👨\u200d👩"}
    file.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    run(["data", "show", str(file), "--model", "embedded:kotoha-tiny"])
    said = "".join(capsys.readouterr())
    assert "東" in said
    assert not RAW.search(said)


class Talk:
    """A conversation whose model answers with controls."""

    class opened:
        has_adapter = True

        @staticmethod
        def adapter(on: bool) -> contextlib.AbstractContextManager[None]:
            return contextlib.nullcontext()

    ends = ()

    def stream(self, line: str, **options: object) -> Iterator[str]:
        yield from ["東京", *HOSTILE]

    def compare(self, line: str, **options: object) -> tuple[str, str]:
        return HOSTILE, "東京"


def test_answers_are_printed_with_their_controls_shown(capsys):
    chat._answer("q", chat.Session(Talk(), {"max_new_tokens": 9}))
    assert capsys.readouterr().out == "東京" + SHOWN + "\n"
    chat._answer("q", chat.Session(Talk(), {"max_new_tokens": 9}, compare=True))
    assert not RAW.search(capsys.readouterr().out)


def test_generated_answers_are_printed_so_too(capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(generation, "generate_answers", lambda *a, **k: [generation.Answer(HOSTILE)])
    assert run(["generate", "embedded:kotoha-tiny", "q"]) == 0
    assert capsys.readouterr().out == SHOWN + "\n"
