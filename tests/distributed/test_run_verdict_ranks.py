"""The verdict of a run of two processes: likelihoods of one, and why there are no answers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.support.ranks import run_ranks
from tests.support.runs import ROWS, train_full, train_lora

from ai_finetuning.config.parallel import ParallelConfig
from ai_finetuning.errors import StorageError
from ai_finetuning.evaluation import run_verdict, tasks
from ai_finetuning.evaluation.results import Results
from ai_finetuning.evaluation.spread_likelihood import SpreadLikelihoods

TRAIN = {"full": train_full, "lora": train_lora}


def train(rank: int, method: str, model: Path, folder: Path, strategy: str | None) -> None:
    changes: dict[str, Any] = {"parallel": ParallelConfig(strategy=strategy)} if strategy else {}
    extra: dict[str, Any] = {"lora": {"lora_dropout": 0.0}} if method == "lora" else {}
    TRAIN[method](model, folder, evaluate=ROWS[:5], evaluation={"verdict": True}, num_epochs=1, **changes, **extra)


def verdict_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))["verdict"]
    return content


def nats(folder: Path) -> dict[tuple[str, str], tuple[float, int]]:
    lines = (folder / "eval.jsonl").read_text(encoding="utf-8").splitlines()[1:]
    rows = [json.loads(line) for line in lines]
    return {(row["side"], row["item"]): (row["nats"], row["characters"]) for row in rows if row["task"] == "prose"}


@pytest.fixture(autouse=True)
def few_passages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three passages; the ranks inherit it."""
    whole = tasks.prose()
    monkeypatch.setattr(run_verdict, "prose", lambda: replace(whole, items=whole.items[:3]))
    monkeypatch.setitem(tasks._OWN_NEW_TOKENS, "exact", 4)


CASES = [("lora", "ddp"), ("full", "fsdp")]
SLOW = [("full", "ddp"), ("lora", "fsdp"), ("lora", "tensor"), ("full", "pipeline"), ("lora", "pipeline")]


@pytest.mark.parametrize(
    ("method", "strategy"), [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)]
)
def test_two_processes_find_what_one_finds(tiny_model_dir: Path, tmp_path: Path, method: str, strategy: str):
    train(0, method, tiny_model_dir, tmp_path / "alone", None)
    run_ranks(2, train, method, tiny_model_dir, tmp_path / "two", strategy, folder=tmp_path)
    one, two = nats(tmp_path / "alone"), nats(tmp_path / "two")
    assert one.keys() == two.keys()
    assert len(one) == 6
    for place, (value, characters) in one.items():
        # The base is the same; what was trained differs by the order of sums, as its weights do.
        assert two[place][0] == pytest.approx(value, abs=(1e-5 if place[0] == "before" else 1e-3) * characters), place
    verdict = verdict_of(tmp_path / "two")
    assert verdict["result"] in ("hold", "reject")
    assert list(verdict["tasks"]) == ["prose"]
    (reason,) = verdict["not_measured"]
    assert reason["ja"].startswith("data.eval: 測っていません")
    assert "learnt" not in verdict["why"]["en"]
    assert (tmp_path / "two" / "report.html").read_text(encoding="utf-8").count(reason["ja"]) <= 1


def refuse(*_: Any, **__: Any) -> None:
    raise StorageError("空きがありません", "there is no space")


def train_with_a_failure(rank: int, model: Path, folder: Path, where: str) -> None:
    """The main process cannot write what was measured before step 1, or no process can score."""
    with pytest.MonkeyPatch.context() as patch:
        if where == "writing" and rank == 0:
            patch.setattr(Results, "add", refuse)
        elif where == "scoring":
            patch.setattr(SpreadLikelihoods, "score", refuse)
        train(rank, "full", model, folder, "fsdp")


@pytest.mark.verdict_fails
@pytest.mark.parametrize("where", ["writing", "scoring"])
def test_no_run_is_lost_or_waits_for_its_verdict(tiny_model_dir: Path, tmp_path: Path, where: str):
    run_ranks(2, train_with_a_failure, tiny_model_dir, tmp_path / "two", where, folder=tmp_path)
    content = json.loads((tmp_path / "two" / "run.json").read_text(encoding="utf-8"))
    assert content["status"] == "completed"
    assert content["verdict"]["result"] is None
    assert "there is no space" in content["verdict"]["why"]["en"]
    assert (tmp_path / "two" / "model.safetensors").is_file()
