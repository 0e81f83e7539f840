"""kotoha-qa: the files are what the program makes, every row is right, and they train by name."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from recipes.kotoha.corpus import corpus
from recipes.kotoha.questions import dataset, facts, kanji_number
from tests.support.commands import call
from tests.support.runs import ROWS, losses, train_lora, weights_digest

from ai_finetuning import DataConfig, embedded
from ai_finetuning.config.data import ReplayConfig
from ai_finetuning.errors import InputNotFoundError
from ai_finetuning.inference.session import open_model

FOLDER = Path(embedded.__file__).parent / "kotoha-qa"
RECIPE = Path(__file__).parents[2] / "recipes" / "kotoha-qa" / "check.py"


@pytest.fixture(scope="module")
def check():
    spec = importlib.util.spec_from_file_location("kotoha_qa_check", RECIPE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_files_are_what_the_program_makes():
    for part, rows in dataset().items():
        lines = (FOLDER / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line) for line in lines] == rows
        assert f"| `{part}.jsonl` | {len(rows):,} |" in (FOLDER / "README.md").read_text(encoding="utf-8")


def test_the_text_that_ships_is_what_the_program_makes():
    """The benchmark of quantization measures on it, a text for each row."""
    lines = (FOLDER.parent / "kotoha-text" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["text"] for line in lines] == embedded.texts() == corpus(1024)


def test_questions_are_those_of_the_files():
    for part in ("held_out_phrasings", "held_out_facts"):
        rows = [row["messages"] for row in dataset()[part]]
        assert embedded.questions(part) == [(talk[0]["content"], talk[1]["content"]) for talk in rows]


def test_there_are_enough_rows_of_enough_kinds():
    rows = dataset()["train"]
    assert len(rows) >= 2000
    kinds = {str(row["kind"]) for row in rows}
    assert {"seat", "region", "unit", "days", "counter", "polite", "choose"} <= kinds
    assert sum(kind.startswith("multi_turn/") for kind in kinds) >= 10
    known = [fact for fact in facts() if not fact.held_out]
    assert 0.05 < 1 - len(known) / len(facts()) < 0.15


def test_every_row_is_right(check):
    assert check.problems(FOLDER) == []


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        ("unit", "です。", "0です。"),
        ("numeral", "です。", "一です。"),
        ("days", "日です。", "0日です。"),
        ("next", "です。", "年です。"),
        ("era", "年です。", "0年です。"),
        ("katakana", "」です。", "ア」です。"),
        ("length", "文字です。", "0文字です。"),
        ("seat", "市です。", "西市です。"),
        ("polite", "ます。", "ましょう。"),
    ],
)
def test_the_check_finds_a_wrong_answer(check, tmp_path: Path, kind: str, old: str, new: str):
    shutil.copytree(FOLDER, tmp_path / "copy")
    path = tmp_path / "copy" / "train.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    row = next(row for row in rows if row["kind"] == kind and old in row["messages"][1]["content"])
    row["messages"][1]["content"] = row["messages"][1]["content"].replace(old, new)
    path.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in rows), encoding="utf-8")
    assert any(row["messages"][0]["content"] in problem for problem in check.problems(tmp_path / "copy"))


def test_a_held_out_question_in_training_is_found(check, tmp_path: Path):
    shutil.copytree(FOLDER, tmp_path / "copy")
    first = (FOLDER / "held_out_phrasings.jsonl").read_text(encoding="utf-8").splitlines()[0]
    with (tmp_path / "copy" / "train.jsonl").open("a", encoding="utf-8") as file:
        file.write(first + "\n")
    assert any("asked in training too" in problem for problem in check.problems(tmp_path / "copy"))


@pytest.mark.parametrize(
    ("number", "text"), [(10, "十"), (11, "十一"), (20, "二十"), (110, "百十"), (301, "三百一"), (1999, "千九百九十九")]
)
def test_kanji_numbers(number: int, text: str):
    assert kanji_number(number) == text


def test_the_data_set_trains_by_name(tiny_model_dir: Path, tmp_path: Path, logged):
    code = call(
        "train",
        f"model={tiny_model_dir}",
        "method=lora",
        "data.train=embedded:kotoha-qa",
        "data.eval=embedded:kotoha-qa/held_out_facts",
        "training.evaluation.verdict=false",
        "data.max_length=256",
        f"training.output_dir={tmp_path / 'out'}",
        "max_steps=2",
        "progress=false",
    )
    assert code == 0
    assert "2417 rows" in logged()


def test_the_prose_that_ships_is_old_rows_by_name(
    tiny_model_dir: Path, tmp_path: Path, logged, monkeypatch: pytest.MonkeyPatch
):
    """In a YAML, on the command line, in Python and in `aift plan`; a stopped run goes on to the same bits."""
    rows = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    (tmp_path / "new.jsonl").write_text(rows, encoding="utf-8")
    settings = [
        f"model={tiny_model_dir}",
        f"data.train={tmp_path / 'new.jsonl'}",
        "data.max_length=64",
        "on_long=split",
    ]
    settings += [
        "fp16=false",
        "batch_size=2",
        "gradient_accumulation_steps=2",
        "save_steps=2",
        "progress=false",
        "report_samples=0",
    ]
    replay = ["--replay", "0.6", "embedded:prose"]
    assert call("plan", *settings, *replay) == 0
    assert "old rows an epoch" in logged()

    def run(name: str, *more: str) -> int:
        return call("train", *settings, "max_steps=6", f"output_dir={tmp_path / name}", *replay, *more)

    assert run("whole") == 0
    with monkeypatch.context() as patch:
        patch.setenv("AIFT_FAULT", "step:term@3")
        assert run("stopped") == 75
    assert run("stopped", "--resume") == 0
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    assert weights_digest(tmp_path / "stopped") == weights_digest(tmp_path / "whole")

    config = yaml.safe_load((tmp_path / "whole" / "config.yaml").read_text(encoding="utf-8"))
    assert config["data"]["replay"] == {"path": "embedded:prose", "share": 0.6}
    config["training"]["output_dir"] = str(tmp_path / "yaml")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    assert call("train", str(tmp_path / "run.yaml")) == 0
    assert losses(tmp_path / "yaml") == losses(tmp_path / "whole")

    data = DataConfig(max_length=64, on_long="split", replay=ReplayConfig("embedded:prose", 0.6))
    train_lora(tiny_model_dir, tmp_path / "python", rows=ROWS, data=data)
    for name in ("whole", "python"):
        plan = json.loads((tmp_path / name / "run.json").read_text(encoding="utf-8"))["result"]["plan"]
        assert plan["replay"]["share"] == pytest.approx(0.6, abs=0.1)  # rows of 63 label tokens among 101


def test_old_rows_can_keep_the_predictions_of_the_base(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Nearer to the base than without, where both learn the new rows; a stopped run goes on to the same bits."""
    text = [{"text": f"昔々、{n}人の旅人が山を越えて海の見える村に着きました。"} for n in range(30)]
    rows = {"new.jsonl": ROWS, "old.jsonl": text}
    for name, items in rows.items():
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in items), encoding="utf-8")
    settings = [f"model={tiny_model_dir}", f"data.train={tmp_path / 'new.jsonl'}", "fp16=false", "progress=false"]
    settings += ["batch_size=2", "gradient_accumulation_steps=2", "save_steps=4", "learning_rate=2e-2", "max_steps=16"]
    settings += ["report_samples=0", "lora.lora_dropout=0", "--replay", "0.7", str(tmp_path / "old.jsonl")]

    def run(name: str, *more: str) -> int:
        return call("train", *settings, f"output_dir={tmp_path / name}", *more)

    assert run("text") == 0
    assert run("base", "data.replay.distill=1000") == 0
    with monkeypatch.context() as patch:
        patch.setenv("AIFT_FAULT", "step:term@6")
        assert run("stopped", "data.replay.distill=1000") == 75
    assert run("stopped", "data.replay.distill=1000", "--resume") == 0
    assert losses(tmp_path / "stopped") == losses(tmp_path / "base")
    assert weights_digest(tmp_path / "stopped") == weights_digest(tmp_path / "base")
    assert divergence(tmp_path / "base", text[0]["text"]) < divergence(tmp_path / "text", text[0]["text"]) / 2


def divergence(folder: Path, text: str) -> float:
    """KL(base || trained), in nats per token of a text."""
    chat = open_model(str(folder))
    ids = torch.tensor([chat.tokenizer(text)["input_ids"]])
    with torch.no_grad():
        trained = chat.model(input_ids=ids).logits.float().log_softmax(dim=-1)
        with chat.adapter(False):
            base = chat.model(input_ids=ids).logits.float().log_softmax(dim=-1)
    return float((base.exp() * (base - trained)).sum(dim=-1).mean())


@pytest.mark.parametrize(
    ("more", "word"),
    [
        (["method=full"], "method: lora"),
        (["parallel.strategy=fsdp", "parallel.processes=2"], "fsdp"),
        (["lora.adapter=somewhere"], "lora.adapter"),
        (["data.replay.path=null", "data.replay.share=null"], "data.replay.path"),
        (["data.replay.distill=0"], "above 0"),
    ],
)
def test_where_there_is_no_base_to_keep_to_it_is_refused(more: list[str], word: str, tiny_model_dir: Path, logged):
    replay = ["data.replay.path=embedded:prose", "data.replay.share=0.5", "data.replay.distill=4"]
    assert call("plan", f"model={tiny_model_dir}", "data.train=embedded:kotoha-qa", *replay, *more) == 78
    text = logged().replace("\n", " ")
    assert "data.replay.distill" in text
    assert word in text


def test_the_prose_that_ships_trains_like_any_data(tiny_model_dir: Path, logged):
    assert call("plan", f"model={tiny_model_dir}", "method=lora", "data.train=embedded:prose", "on_long=split") == 0
    assert "456 rows" in logged()


@pytest.mark.parametrize("key", ["data.train", "data.replay.path"])
def test_unknown_names_list_those_that_there_are(key: str, tiny_model_dir: Path, logged):
    with pytest.raises(InputNotFoundError, match="embedded:kotoha-qa/held_out_facts"):
        embedded.data_file("embedded:kotoha")
    named = ["data.train=embedded:kotoha-qa"] if key != "data.train" else []
    share = ["data.replay.share=0.1"] if key != "data.train" else []
    assert call("train", f"model={tiny_model_dir}", *named, *share, f"{key}=embedded:poetry", "--dry-run") == 66
    text = logged().replace("\n", "")
    assert "embedded:poetry" in text
    assert "embedded:prose/train" in text
