"""The verdict at the end of a run: said everywhere, measured within its time, and without a trace in what is trained."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.support.commands import call, write_run
from tests.support.models import save_tiny_model
from tests.support.pages import Page
from tests.support.runs import ROWS, losses, train_full, train_lora, training, weights_digest
from transformers import TrainerCallback

from ai_finetuning import DataConfig, FullFinetuningTrainer, JapaneseModel, LoRAConfig, LoRAFinetuningTrainer
from ai_finetuning.engine import rng
from ai_finetuning.engine.metrics import read_metrics
from ai_finetuning.errors import PreemptedError
from ai_finetuning.evaluation import tasks
from ai_finetuning.evaluation.likelihood import score_texts

ASKED = ROWS[:5]
TEXTS = ["むかしむかし、あるところに、おじいさんがいました。", "日本の首都は東京です。", "今日は良い天気ですね。"] * 4
SHORT = DataConfig(max_length=128)
ON = {"verdict": True}


@pytest.fixture(autouse=True)
def short_answers(few_passages: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model that knows nothing and does not end them."""
    monkeypatch.setitem(tasks._OWN_NEW_TOKENS, "exact", 8)
    monkeypatch.setenv("AIFT_LANG", "en")


def run_json(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return content


def rows_of(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "eval.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[1:]]


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Any:
    caplog.set_level("INFO", logger="ai_finetuning")
    return lambda: "\n".join(record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_run_gives_the_same_bits_with_and_without(tiny_model_dir: Path, tmp_path: Path, method: str):
    """Weights, checkpoints with their random states, losses; and the model that comes back, in mode, flags and type."""
    train = {"lora": train_lora, "full": train_full}[method]
    found = []
    for name, evaluation in (("without", {}), ("with", {"verdict": True, "generate": 2})):
        trainer = train(
            tiny_model_dir, tmp_path / name, evaluate=ASKED, evaluation=evaluation, num_epochs=1, eval_steps=3
        )
        folder, model = tmp_path / name, trainer.result.model
        saved = json.loads((folder / "checkpoints" / "checkpoint-3" / "state.json").read_text(encoding="utf-8"))
        flags = [(key, weight.requires_grad, weight.dtype) for key, weight in model.named_parameters()]
        state = (weights_digest(folder), losses(folder), saved["rng"], saved["train"], flags, model.training)
        numpy_state = np.random.get_state(legacy=False)["state"]["key"].tolist()
        found.append((*state, rng.capture()["torch"], random.getstate(), numpy_state))
    assert found[0] == found[1]
    assert run_json(tmp_path / "without")["verdict"]["result"] is None
    assert not (tmp_path / "without" / "eval.jsonl").exists()
    assert run_json(tmp_path / "with")["verdict"]["result"] in ("adopt", "hold", "reject")


@pytest.mark.parametrize("held_out", ["file", "share", "csv", "in memory"])
def test_rows_of_files_are_asked_whatever_holds_them(tiny_model_dir: Path, tmp_path: Path, held_out: str):
    """Through the command: rows out of a store are other objects each time; their numbers are those in the data."""
    config = write_run(tmp_path, tiny_model_dir, num_epochs=1, eval_steps=100)
    more = ["training.evaluation.verdict=true", "training.runtime.report_samples=1"]
    if held_out == "share":
        more.append("data.eval=0.3")
    elif held_out == "in memory":
        more.append("data.cache=false")
    elif held_out == "csv":
        lines = ["instruction,output", *(f"{row['instruction']},{row['output']}" for row in ROWS[:4])]
        (tmp_path / "held_out.csv").write_text("\n".join(lines), encoding="cp932")
        more.append(f"data.eval={tmp_path / 'held_out.csv'}")
    assert call("train", str(config), *more) == 0
    verdict = run_json(tmp_path / "out")["verdict"]
    assert verdict["result"] in ("adopt", "hold", "reject")
    count = verdict["eval_rows"]
    assert verdict["tasks"]["data"]["items"] == count > 1
    asked = {row["item"]: row["question"] for row in rows_of(tmp_path / "out") if row["task"] == "data"}
    assert set(asked) == {f"data-{number}" for number in range(1, count + 1)}
    if held_out != "share":
        assert [asked[f"data-{number}"] for number in range(1, count + 1)] == [row["instruction"] for row in ROWS[:4]]


def test_it_is_said_everywhere(tiny_model_dir: Path, tmp_path: Path, logged: Any):
    folder = tmp_path / "out"
    runtime = {"report_samples": 1}
    train_lora(tiny_model_dir, folder, evaluate=ASKED, evaluation=ON, runtime=runtime, num_epochs=1)
    verdict, rows = run_json(folder)["verdict"], rows_of(folder)
    assert verdict["result"] in ("adopt", "hold", "reject")
    assert verdict["tasks"]["data"]["items"] == 5
    assert verdict["tasks"]["prose"]["items"] == 6
    prose = verdict["tasks"]["prose"]
    assert verdict["differences"]["prose"]["difference"] == pytest.approx(prose["after"] - prose["before"])
    assert verdict["step"] == 6
    assert {(row["side"], row["task"]) for row in rows} == {
        (side, task) for side in ("before", "after") for task in ("data", "prose")
    }
    assert len(rows) == 22
    answers = {row["item"]: row for row in rows if row["task"] == "data"}
    assert answers["data-2"]["question"] == ASKED[1]["instruction"]
    assert answers["data-2"]["accepted"] == [ASKED[1]["output"]]
    (line,) = [row for row in read_metrics(folder / "metrics.jsonl") if "verdict" in row]
    assert line["verdict"] == verdict["result"]
    assert line["verdict_prose_after"] == pytest.approx(prose["after"])
    page = Page((folder / "report.html").read_text(encoding="utf-8")).text
    card = (folder / "README.md").read_text(encoding="utf-8")
    figure = f"{prose['after']:.3f}"
    for text in (page, card, logged()):
        assert verdict["why"]["en"] in text
        assert figure in text
    assert "## 判定" in card
    assert verdict["why"]["ja"] in card
    assert not any(row["instruction"] in card for row in ASKED)
    assert "comparing with the model before training (data.eval 5/5, prose 6/6 items" in logged()


def test_all_weights_are_measured_before_the_first_step(tiny_model_dir: Path, tmp_path: Path):
    """The base's figures are those of the base, also where a run was stopped and resumed behind its first steps."""

    class Stops(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 4:
                os.kill(os.getpid(), signal.SIGTERM)

    def run(folder: Path, resume: str | None, *callbacks: Any) -> None:
        config = training(folder, learning_rate=1e-3, num_epochs=1, evaluation=ON)
        trainer = FullFinetuningTrainer(JapaneseModel(str(tiny_model_dir)), config, data=SHORT, callbacks=callbacks)
        trainer.train(ROWS, ASKED, resume_from_checkpoint=resume)

    with pytest.raises(PreemptedError):
        run(tmp_path / "out", None, Stops())
    before = rows_of(tmp_path / "out")
    assert {row["side"] for row in before} == {"before"}
    assert len(before) == 11
    base = JapaneseModel(str(tiny_model_dir), torch_dtype=torch.float32)
    module, tokenizer = base.ensure_model(), base.ensure_tokenizer()
    for item in tasks.prose().items[:6]:
        (wanted,) = score_texts(module, tokenizer, [item.text])
        (row,) = [row for row in before if row["item"] == item.name]
        assert row["nats"] == pytest.approx(wanted.nats, abs=1e-3)
    run(tmp_path / "out", "auto")
    run(tmp_path / "whole", None)
    assert rows_of(tmp_path / "out")[: len(before)] == before
    assert weights_digest(tmp_path / "out") == weights_digest(tmp_path / "whole")
    resumed, whole = (run_json(tmp_path / name)["verdict"] for name in ("out", "whole"))
    assert resumed["tasks"] == whole["tasks"]
    assert resumed["result"] == whole["result"]


@pytest.mark.parametrize(
    ("method", "fault"),
    [
        ("lora", "verdict:kill@6#3"),
        ("full", "verdict:kill@6#3"),
        ("lora", "verdict:int@6#3"),  # Ctrl-C: the run itself is as good as done
        pytest.param("lora", "verdict:kill@6#1", marks=pytest.mark.faults),  # before the first rows
    ],
)
def test_a_run_that_is_stopped_in_its_verdict_has_its_model_and_finishes_it(
    tiny_model_dir: Path, tmp_path: Path, method: str, fault: str
):
    folder = tmp_path / "out"

    def train(resume: str | None) -> None:
        run = {"lora": train_lora, "full": train_full}[method]
        run(tiny_model_dir, folder, evaluate=ASKED, evaluation=ON, num_epochs=1, resume=resume)

    child = os.fork()
    if child == 0:
        os.environ["AIFT_FAULT"] = fault
        with contextlib.suppress(BaseException):
            train(None)
            os._exit(0)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == (-signal.SIGKILL if "kill" in fault else 0)
    content = run_json(folder)
    assert content["status"] == "completed"
    assert content["verdict"] == {"result": None, "pending": True, "step": 6}
    saved, measured = weights_digest(folder), rows_of(folder) if "#3" in fault else []
    assert bool(measured) == ("#3" in fault)
    train("auto")
    assert weights_digest(folder) == saved
    assert rows_of(folder)[: len(measured)] == measured
    assert len(rows_of(folder)) == 22
    verdict = run_json(folder)["verdict"]
    assert verdict["result"] in ("adopt", "hold", "reject")
    assert "pending" not in verdict
    card, page = ((folder / name).read_text(encoding="utf-8") for name in ("README.md", "report.html"))
    train("auto")  # nothing is left to do
    assert (folder / "README.md").read_text(encoding="utf-8") == card
    assert card.count("## 判定\n") == card.count("## Verdict\n") == 1
    assert page.count(verdict["why"]["en"]) == 1
    assert sum("verdict" in row for row in read_metrics(folder / "metrics.jsonl")) == 1


def test_a_longer_run_is_measured_again(tiny_model_dir: Path, tmp_path: Path):
    folder = tmp_path / "out"
    train_lora(tiny_model_dir, folder, evaluate=ASKED, evaluation=ON, num_epochs=1)
    first = run_json(folder)["verdict"]
    train_lora(tiny_model_dir, folder, evaluate=ASKED, evaluation=ON, num_epochs=2, resume="auto")
    second = run_json(folder)["verdict"]
    assert (first["step"], second["step"]) == (6, 12)
    assert first["tasks"]["prose"]["before"] == second["tasks"]["prose"]["before"]
    assert first["tasks"]["prose"]["after"] != second["tasks"]["prose"]["after"]
    assert len(rows_of(folder)) == 22


def test_the_base_has_its_own_biases(tmp_path: Path):
    """An adapter trains them in place; what is measured as the base is the model of before."""
    name = save_tiny_model(tmp_path / "qwen2", "qwen2")
    train_lora(name, tmp_path / "out", evaluate=ASKED, evaluation=ON, lora={"bias": "all"}, num_epochs=2)
    base = JapaneseModel(str(name), torch_dtype=torch.float32)
    module, tokenizer = base.ensure_model(), base.ensure_tokenizer()
    found = {row["item"]: row["nats"] for row in rows_of(tmp_path / "out") if row["side"] == "before" and "nats" in row}
    assert len(found) == 6
    for item in tasks.prose().items[:6]:
        (wanted,) = score_texts(module, tokenizer, [item.text])
        assert found[item.name] == pytest.approx(wanted.nats, abs=1e-3)


def test_plain_texts_are_scored_in_bits_only(tiny_model_dir: Path, tmp_path: Path):
    folder = tmp_path / "out"
    train_lora(
        tiny_model_dir, folder, rows=TEXTS, evaluate=TEXTS[:3], data=SHORT, evaluation=ON, num_epochs=1, warmup_steps=1
    )
    verdict = run_json(folder)["verdict"]
    assert verdict["tasks"]["data"]["metric"] == "bits_per_character"
    assert verdict["tasks"]["data"]["primary"]
    assert verdict["language"] == []
    scored = [row["eval_bits_per_character"] for row in read_metrics(folder / "metrics.jsonl") if "eval_loss" in row]
    assert verdict["tasks"]["data"]["after"] < verdict["tasks"]["data"]["before"]
    assert verdict["tasks"]["data"]["before"] == pytest.approx(scored[0], rel=0.1)


def test_what_has_no_verdict_says_why(tiny_model_dir: Path, tmp_path: Path):
    train_lora(tiny_model_dir, tmp_path / "none", evaluation=ON, num_epochs=1)
    assert run_json(tmp_path / "none")["verdict"]["why"]["en"] == "there is no evaluation data."
    train_lora(tiny_model_dir, tmp_path / "off", evaluate=ASKED, evaluation={"verdict": False}, num_epochs=1)
    assert "verdict=false" in run_json(tmp_path / "off")["verdict"]["why"]["en"]
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in TEXTS), encoding="utf-8")
    options = (f"data.train={texts}", f"data.eval={texts}", "data.max_length=64", "max_steps=2", "batch_size=2")
    out = tmp_path / "made"
    assert call("train", f"model={tiny_model_dir}", "method=pretrain", f"training.output_dir={out}", *options) == 0
    assert "pretraining" in run_json(out)["verdict"]["why"]["en"]
    assert not any((tmp_path / name / "eval.jsonl").exists() for name in ("none", "off", "made"))


def test_fixed_questions_are_answered_at_each_evaluation(tiny_model_dir: Path, tmp_path: Path):
    folder = tmp_path / "out"

    class Stops(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 4:
                os.kill(os.getpid(), signal.SIGTERM)

    def run(resume: str | None, *callbacks: Any) -> None:
        config = training(folder, num_epochs=1, eval_steps=2, save_steps=3, evaluation={"generate": 2})
        trainer = LoRAFinetuningTrainer(
            JapaneseModel(str(tiny_model_dir)), LoRAConfig(r=2), config, data=SHORT, callbacks=callbacks
        )
        trainer.train(ROWS, ASKED, resume_from_checkpoint=resume)

    with pytest.raises(PreemptedError):
        run(None, Stops())
    run("auto")
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["step"] for row in rows] == [0, 0, 2, 2, 4, 4, 6, 6]
    assert {row["question"] for row in rows} < {row["instruction"] for row in ASKED}
    assert {row["expected"] for row in rows} < {row["output"] for row in ASKED}
    assert all(isinstance(row["answer"], str) for row in rows)
    assert (folder / "samples.jsonl").stat().st_mode & 0o077 == 0


def test_no_text_of_a_row_is_written_where_the_samples_are_off(tiny_model_dir: Path, tmp_path: Path):
    """And a run that was killed then asks again what it has not."""
    folder = tmp_path / "out"
    train_lora(tiny_model_dir, folder, evaluate=ASKED, evaluation=ON, num_epochs=1)
    text = (folder / "eval.jsonl").read_text(encoding="utf-8")
    assert not any(row["instruction"] in text or row["output"] in text for row in ASKED)
    assert all("answer" not in row for row in rows_of(folder))
    assert "Japanese characters" in Page((folder / "report.html").read_text(encoding="utf-8")).text


def test_few_steps_are_not_said_after_an_improvement(tiny_model_dir: Path, tmp_path: Path, logged: Any):
    """Evaluation losses that fell, or a verdict, say more than a rule of thumb; a run that did not learn is told it."""
    said = "Raise training.num_epochs to 9 or more"
    train_lora(tiny_model_dir, tmp_path / "better", evaluate=ASKED, evaluation=ON, num_epochs=1)
    assert run_json(tmp_path / "better")["result"]["verdict"]["kind"] == "better"
    assert logged().count(said) == 1  # before the first step
    assert "steps teach little" not in (tmp_path / "better" / "report.html").read_text(encoding="utf-8")
    train_lora(tiny_model_dir, tmp_path / "same", evaluate=ASKED, evaluation=ON, num_epochs=1, learning_rate=1e-7)
    assert run_json(tmp_path / "same")["result"]["verdict"]["kind"] == "unchanged"
    assert logged().count(said) == 3
    assert "steps teach little" in (tmp_path / "same" / "report.html").read_text(encoding="utf-8")


def test_the_plan_says_what_it_will_cost(tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = str(write_run(tmp_path, tiny_model_dir, evaluation={"verdict": True}))
    assert call("train", config, "--dry-run") == 0
    assert (
        "compared with its base at the end (4 evaluation rows and general prose, 2 min at most"
        in capsys.readouterr().out
    )
    cut = ["parallel.strategy=fsdp", "parallel.processes=2"]
    assert call("train", config, "--dry-run", *cut) == 0
    assert "compared with its base" in capsys.readouterr().out
    for without in (["training.evaluation.verdict=false"], [*cut, "lora.bias=all"]):
        assert call("train", config, "--dry-run", *without) == 0
        assert "compared with its base" not in capsys.readouterr().out
