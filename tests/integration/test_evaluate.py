"""aift eval: a model before and after on the same questions, as a user meets it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from tests.support.commands import call
from tests.support.models import save_tiny_model
from tests.support.runs import train_full

from ai_finetuning.errors import ConfigError
from ai_finetuning.evaluation.adoption import Margins, decide, language_findings, task_findings
from ai_finetuning.evaluation.before_after import Loaded, measure, plan, sides_of
from ai_finetuning.evaluation.before_after_report import Outcome, aligned, markdown, numbers, result_lines
from ai_finetuning.evaluation.lm_eval_export import export
from ai_finetuning.evaluation.results import Results
from ai_finetuning.evaluation.tasks import Asked, find_tasks, public_task
from ai_finetuning.inference.session import open_model
from ai_finetuning.models.adapters import add_lora
from ai_finetuning.models.tokenizers import load_tokenizer

SETS = Path(__file__).resolve().parents[1] / "fixtures" / "eval" / "published"
SHARED = Path(os.environ.get("AIFT_SHARED", Path(__file__).resolve().parents[3] / "shared")) / "data" / "eval"
TINY = ("--limit", "2", "--tasks", "data,prose,jcommonsenseqa", "--tasks-from", str(SETS))


@pytest.fixture(scope="module")
def adapter(kotoha: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that changes a little, made without a training."""
    folder = tmp_path_factory.mktemp("eval") / "adapter"
    wrapped = add_lora(open_model(kotoha).model, r=2, alpha=4, dropout=0.0)
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.02, generator=torch.Generator().manual_seed(1))
    wrapped.save_pretrained(str(folder), safe_serialization=True)
    return folder


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("questions") / "test.csv"
    path.write_text("質問,回答\n3の次の数は何ですか？,4です。\n5の次の数は何ですか？,6です。\n", encoding="cp932")
    return path


@pytest.fixture(scope="module")
def measured(adapter: Path, questions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one command has written."""
    out = tmp_path_factory.mktemp("measured") / "eval"
    assert call("eval", str(adapter), "--data", str(questions), *TINY, "--out", str(out)) == 0
    return out


def rows_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "eval.jsonl").read_text(encoding="utf-8").splitlines()[1:]]


def test_one_command_compares_the_adapter_with_its_base(measured: Path, adapter: Path):
    rows = rows_of(measured)
    assert {row["side"] for row in rows} == {"before", "after"}
    assert {row["task"] for row in rows} == {"data", "prose", "jcommonsenseqa"}
    assert len(rows) == 2 * (2 + 2 + 2)
    prose = {(row["side"], row["item"]): row["score"] for row in rows if row["task"] == "prose"}
    assert all(prose["before", item] != prose["after", item] for side, item in prose if side == "before")
    assert all(3 < score < 5 for score in prose.values())
    found = json.loads((measured / "report.json").read_text(encoding="utf-8"))
    assert found["decision"] in ("adopt", "hold", "reject")
    assert found["models"]["before"] == {"name": str(adapter), "adapter": False}
    assert set(found["tasks"]) == {"data", "prose", "jcommonsenseqa"}
    assert found["tasks"]["data"]["primary"]
    assert (measured / "report.md").read_text(encoding="utf-8").startswith("# Before and after training")
    assert not (measured / "eval.lock").exists()


@pytest.mark.parametrize(("asked", "known"), [(3, 2), (2, 2), (1, 0)])
def test_questions_that_were_trained_on_are_told(
    adapter: Path, kotoha: str, tmp_path: Path, logged: Any, asked: int, known: int
):
    """By the settings of the run that made the model; an equal question of another width and file counts."""
    folder = tmp_path / "outputs"
    shutil.copytree(adapter, folder)
    train, data = tmp_path / "faq.csv", tmp_path / "test.csv"
    train.write_text("質問,回答\n送料はいくらですか？,500 円です。\n返品できますか？,できます。\n", encoding="cp932")
    rows = ["定休日はいつですか？,水曜です。", "送料はいくらですか?,500 円です。", "返品できますか？,はい。"]
    data.write_text("\n".join(["質問,回答", *(rows[:1] if asked == 1 else rows[3 - asked :])]), encoding="utf-8")
    settings = f"model: {{name: {kotoha}}}\nmethod: lora\ndata: {{train: {train}}}\n"
    (folder / "config.yaml").write_text(settings, encoding="utf-8")
    (folder / "run.json").write_text(json.dumps({"status": "completed"}), encoding="utf-8")
    assert call("eval", str(folder), "--data", str(data), "--tasks", "data", "--dry-run") == 0
    told = logged()
    assert (f"of {asked} rows of {data} {known} have a question of the data" in told) == bool(known), told
    train.unlink()  # and where it is gone nothing can be said
    assert call("eval", str(folder), "--data", str(data), "--tasks", "data", "--dry-run") == 0
    assert logged().count("have a question of the data") == bool(known)


def test_statistics_can_be_redone_from_the_file(measured: Path, adapter: Path, questions: Path):
    tasks, _ = find_tasks(Asked(str(questions), ("data", "prose", "jcommonsenseqa"), SETS, limit=2))
    planned = plan(sides_of(str(adapter), None), tasks)
    results = Results.open(measured / "eval.jsonl", planned.made_by())
    findings = task_findings(results, planned.tasks, Margins())
    language = language_findings(results, planned.tasks)
    outcome = Outcome(planned, tuple(findings), tuple(language), decide(findings, language), Margins())
    assert json.loads(json.dumps(numbers(outcome))) == json.loads(
        (measured / "report.json").read_text(encoding="utf-8")
    )


def test_how_far_a_measurement_is(kotoha: str, tmp_path: Path):
    """What a bar shows: what is there already counts from the beginning."""
    tasks, _ = find_tasks(Asked(tasks=("prose",), limit=3))
    planned = plan(sides_of(kotoha, None), tasks)
    results = Results.open(tmp_path / "eval.jsonl", planned.made_by())
    for first, begins in ((2, 0), (3, 2)):
        seen: list[tuple[int, int]] = []
        asked = replace(planned, tasks=tuple(replace(task, items=task.items[:first]) for task in planned.tasks))
        measure(asked, results, Loaded(), lambda *far: seen.append(far))  # noqa: B023  # called at once
        assert (seen[0], seen[-1]) == ((begins, first), (first, first))
        assert seen == sorted(set(seen))


def test_a_stopped_command_goes_on_and_ends_with_the_same_scores(
    measured: Path, adapter: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "eval"
    out.mkdir()
    lines = (measured / "eval.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (out / "eval.jsonl").write_text("".join(lines[:5]) + lines[5][: len(lines[5]) // 2], encoding="utf-8")
    assert call("eval", str(adapter), "--data", str(questions), *TINY, "--out", str(out)) == 0
    key = {(row["side"], row["task"], row["item"]): row["score"] for row in rows_of(measured)}
    again = {(row["side"], row["task"], row["item"]): row["score"] for row in rows_of(out)}
    assert again.keys() == key.keys()
    assert all(again[name] == pytest.approx(score, abs=1e-6) for name, score in key.items())
    # Complete: nothing is measured again, and the verdict can be asked for.
    before = (out / "eval.jsonl").read_bytes()
    decision = json.loads((out / "report.json").read_text(encoding="utf-8"))["decision"]
    code = call("eval", str(adapter), "--data", str(questions), *TINY, "--out", str(out), "--gate")
    assert code == {"adopt": 0, "reject": 10, "hold": 11}[decision]
    assert (out / "eval.jsonl").read_bytes() == before


@pytest.mark.slow
def test_a_killed_command_goes_on(kotoha: str, tmp_path: Path):
    """kill -9 while it measures: no lock is left in the way, and no result is measured twice."""
    out = tmp_path / "eval"
    command = [sys.executable, "-m", "ai_finetuning", "eval", kotoha, "--tasks", "prose", "--out", str(out)]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    file = out / "eval.jsonl"
    while running.poll() is None and (not file.exists() or file.read_bytes().count(b"\n") < 4):
        time.sleep(0.05)
    running.kill()
    running.wait()
    before = file.read_bytes()
    assert 4 <= before.count(b"\n") < 49
    assert call(*command[3:]) == 0
    assert file.read_bytes().startswith(before[: before.rindex(b"\n") + 1])
    assert len({row["item"] for row in rows_of(out)}) == len(rows_of(out)) == 48


def test_results_of_another_command_are_not_mixed_in(
    measured: Path, adapter: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "eval"
    shutil.copytree(measured, out)
    assert call("eval", str(adapter), "--tasks", "prose", "--limit", "1", "--out", str(out)) == 78
    assert "different: tasks" in capsys.readouterr().err
    assert call("eval", str(adapter), "--tasks", "prose", "--limit", "1", "--out", str(out), "--restart") == 0
    assert {row["task"] for row in rows_of(out)} == {"prose"}
    with FileLock(str(out / "eval.lock")):
        assert call("eval", str(adapter), "--tasks", "prose", "--limit", "1", "--out", str(out)) == 75
    (out / "eval.jsonl").write_text("{}\n", encoding="utf-8")
    assert call("eval", str(adapter), "--tasks", "prose", "--limit", "1", "--out", str(out)) == 78


@pytest.mark.parametrize(
    "row",
    [
        '{"side": "after", "task": "prose", "item": "a", "score": "1"}',
        '{"side": "after", "task": "prose", "item": "a", "score": NaN}',
        '{"side": "after", "task": "prose", "item": "a", "score": 1, "faults": [1]}',
        '{"side": "after", "task": "prose", "item": "a", "score": 1, "scores": {"exact": null}}',
        '{"side": "after", "task": 1, "item": "a", "score": 1}',
        "[]",
        "[" * 100_000,
    ],
)
def test_results_that_are_none_are_refused(row: str, tmp_path: Path):
    path = tmp_path / "eval.jsonl"
    path.write_text(f'{{"format": 1, "made_by": {{}}}}\n{row}\n', encoding="utf-8")
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="cannot be read"):
        Results.open(path, {})


def test_a_row_without_what_is_read_is_measured_again():
    (task,) = find_tasks(Asked(tasks=("instructions",), limit=1))[0]
    results = Results(None, {})
    results.add([{"side": "after", "task": "instructions", "item": task.items[0].name, "score": 1}])
    assert results.of("after", "instructions")
    assert results.complete("after", task) == {}


def test_a_model_against_itself_shows_no_difference(kotoha: str, tmp_path: Path):
    out = tmp_path / "eval"
    code = call(
        "eval", kotoha, "--before", kotoha, "--tasks", "prose,jcommonsenseqa", "--tasks-from", str(SETS),
        "--limit", "2", "--out", str(out), "--gate",
    )  # fmt: skip
    assert code == 11
    found = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert found["decision"] == "hold"
    assert all(task["before"] == task["after"] for task in found["tasks"].values())
    assert not any(task["finding"] == "improved" for task in found["tasks"].values())


def test_a_dry_run_says_what_it_costs_and_what_it_will_show(
    adapter: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "eval"
    assert call("eval", str(adapter), "--data", str(questions), *TINY, "--out", str(out), "--dry-run") == 0
    said = capsys.readouterr().out
    assert "2 models, 3 tasks, for each 2 answers and about" in said
    assert "a model" in said.splitlines()[0]
    assert "will not be seen" in said
    assert not out.exists()


def test_one_model_alone_is_measured_without_a_verdict(kotoha: str, tmp_path: Path):
    out = tmp_path / "eval"
    assert call("eval", kotoha, "--tasks", "prose", "--limit", "1", "--out", str(out), "--gate") == 0
    found = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert found["decision"] is None
    assert found["tasks"]["prose"]["finding"] == "measured"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--tasks", "jglue"), 78, "--tasks names jglue"),
        (("--prompts", "mine"), 78, "--prompts is mine"),
        (("--data", "no.csv"), 66, "no.csv"),
        (("--tasks", "jnli", "--tasks-from", "no"), 66, "does not exist"),
        (("--tasks", "jnli"), 78, "--tasks-from"),
        (("--before", "base", "--tasks", "prose"), 66, "--before"),
        (("--before", "./no-model", "--tasks", "prose"), 66, "no-model"),
        (("--tasks", "data"), 78, "there is no --data"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_loaded(
    arguments: tuple[str, ...], code: int, said: str, kotoha: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert call("eval", kotoha, *arguments, "--out", str(tmp_path / "eval")) == code
    assert said in capsys.readouterr().err
    assert not (tmp_path / "eval").exists()


def test_questions_that_a_small_model_cannot_take_are_asked_with_fewer_examples(tmp_path: Path):
    folder = save_tiny_model(tmp_path / "tiny")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["max_position_embeddings"] = 200
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    task = public_task("jcommonsenseqa", SETS, "stability")
    planned = plan(sides_of(str(folder), None), [task])
    assert len(planned.tasks[0].shots) < 3
    assert len(planned.tasks[0].items) == 3
    assert "instead of 3" in planned.left_out[0].en


def test_what_a_name_is_compared_with(adapter: Path, kotoha: str, tiny_model_dir: Path, tmp_path: Path):
    before, after = sides_of(str(adapter), None)
    assert (before.adapter, after.adapter) == (False, True)
    assert before.shares_weights(after)
    before, after = sides_of(str(adapter), str(tiny_model_dir))
    assert (before.name, before.adapter, after.adapter) == (str(tiny_model_dir), True, True)
    assert not before.shares_weights(after)
    train_full(tiny_model_dir, tmp_path / "full", num_epochs=1, save_steps=100)
    before, after = sides_of(str(tmp_path / "full"), None)
    assert Path(before.name).samefile(tiny_model_dir)
    assert [side.key for side in sides_of(kotoha, None)] == ["after"]


def test_a_processor_computes_in_single_precision_and_both_sides_alike(kotoha: str, tiny_model_dir: Path):
    loaded = Loaded()
    before, after = sides_of(str(tiny_model_dir), kotoha)
    assert loaded.get(before).model.dtype == torch.float32  # it ships in bf16
    assert loaded.get(after).model.dtype == torch.float32
    assert loaded.get(after) is loaded.get(after)


def test_texts_of_a_model_move_no_cursor_and_break_no_table(tmp_path: Path):
    tasks, _ = find_tasks(Asked(tasks=("instructions",), limit=1))
    folder = save_tiny_model(tmp_path / "tiny")
    planned = plan(sides_of(str(folder), str(folder)), tasks)
    results = Results(None, {})
    item = planned.tasks[0].items[0]
    for side, answer in (("before", "はい"), ("after", "\x1b[2J|`<b>\u202e")):
        results.add(
            [{"side": side, "task": "instructions", "item": item.name, "score": 0, "answer": answer, "faults": []}]
        )
    findings = task_findings(results, planned.tasks, Margins())
    outcome = Outcome(planned, tuple(findings), (), decide(findings, []), Margins())
    text = markdown(outcome, results)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "<b>" not in text
    assert "\\x1b[2J\\|" in text.replace("\\\\", "\\")
    assert all("\x1b" not in line for line in result_lines(outcome, results))
    assert aligned([["課題", "a"], ["x", "b"]]) == ["課題  a", "x     b"]


def test_what_is_exported_for_lm_evaluation_harness(kotoha: str, tmp_path: Path):
    out = tmp_path / "tasks"
    assert call("eval", kotoha, "--tasks-from", str(SETS), "--export-lm-eval", str(out)) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        f"aift_{name}.{kind}" for name in ("jcommonsenseqa", "jmmlu", "jnli") for kind in ("jsonl", "yaml")
    ]
    (row, *_) = [
        json.loads(line) for line in (out / "aift_jcommonsenseqa.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert row["prompt"].endswith("回答：")
    assert row["choices"][row["right"]] == "雨"
    assert call("eval", kotoha, "--tasks", "prose", "--export-lm-eval", str(out)) == 78


def test_lm_evaluation_harness_finds_the_same(kotoha: str, tmp_path: Path):
    """100 items of the real set where it is there, else our own, within 1e-3; where it is installed."""
    evaluator = pytest.importorskip("lm_eval")
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    folder = SHARED if SHARED.is_dir() else SETS
    tasks, _ = find_tasks(Asked(tasks=("jcommonsenseqa",), folder=folder, limit=100))
    planned = plan(sides_of(kotoha, None), tasks)
    tokenizer = load_tokenizer(kotoha)
    export(planned.tasks, tokenizer, tmp_path / "tasks")
    loaded, results = Loaded(), Results(None, {})
    measure(planned, results, loaded)
    model = HFLM(pretrained=loaded.get(planned.sides[0]).model, tokenizer=tokenizer, batch_size=1)
    manager = TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False)
    found = evaluator.simple_evaluate(model, tasks=["aift_jcommonsenseqa"], task_manager=manager, log_samples=True)
    samples = {str(sample["doc"]["id"]): sample for sample in found["samples"]["aift_jcommonsenseqa"]}
    for name, row in results.of("after", "jcommonsenseqa").items():
        theirs = [float(response[0][0]) for response in samples[name]["resps"]]
        assert row["nats"] == pytest.approx(theirs, abs=1e-3)
