"""Runs over several sources: the plan, the bits of a resumed run, what a resumed run refuses, and two processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.commands import call
from tests.support.ranks import run_ranks
from tests.support.runs import ROWS, losses, training, weights_digest

from ai_finetuning import DataConfig, JapaneseModel, LoRAConfig, LoRAFinetuningTrainer
from ai_finetuning.config.parallel import ParallelConfig
from ai_finetuning.config.run_folder import METRICS
from ai_finetuning.engine.metrics import read_metrics


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """22 and 30 short conversations."""
    other = [{"instruction": f"{n}番の都市は？", "output": f"都市{n}です。"} for n in range(30)]
    paths = {"a": tmp_path / "a.jsonl", "b": tmp_path / "b.jsonl"}
    for path, rows in zip(paths.values(), (ROWS, other), strict=True):
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return paths


def settings(model: Path, files: dict[str, Path], train: str) -> list[str]:
    entries = train.format(**files)
    return [
        f"model={model}",
        f"data.train={entries}",
        *("fp16=false", "progress=false", "batch_size=2", "gradient_accumulation_steps=2", "save_steps=3"),
        *("learning_rate=1e-2", "num_epochs=2", "report_samples=0", "training.evaluation.verdict=false"),
    ]


MIXED = "[{{path: {a}, epochs: 2, max_samples: 9}}, {{path: {b}, weight: 0.4}}]"


def test_the_plan_has_rows_and_passes_of_each_source(
    tiny_model_dir: Path, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = [*settings(tiny_model_dir, files, MIXED), f"output_dir={tmp_path / 'out'}"]
    assert call("plan", *run) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "18 rows per epoch of 9 (2.00 passes)" in shown or "9 行のうち 18 行分（2.00 回）" in shown
    assert "12 rows per epoch of 30 (0.40 passes)" in shown or "30 行のうち 12 行分（0.40 回）" in shown
    assert call("plan", *run, "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert [(source["name"], source["there"], source["rows"]) for source in plan["sources"]] == [
        ("a.jsonl", 9, 18),
        ("b.jsonl", 30, 12),
    ]
    assert plan["total_steps"] == 16  # 30 rows an epoch, 4 a step


def test_a_stopped_run_goes_on_to_the_same_bits_and_refuses_another_mixture(
    tiny_model_dir: Path,
    files: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    run = settings(tiny_model_dir, files, MIXED)
    assert call("train", *run, f"output_dir={tmp_path / 'whole'}") == 0
    with monkeypatch.context() as patch:
        patch.setenv("AIFT_FAULT", "step:term@10")  # in the second epoch
        assert call("train", *run, f"output_dir={tmp_path / 'stopped'}") == 75
    other = settings(tiny_model_dir, files, MIXED.replace("0.4", "0.41"))
    capsys.readouterr()
    assert call("train", *other, f"output_dir={tmp_path / 'stopped'}", "--resume") == 78
    assert "mixture" in capsys.readouterr().err
    assert call("train", *run, f"output_dir={tmp_path / 'stopped'}", "--resume") == 0
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    assert weights_digest(tmp_path / "stopped") == weights_digest(tmp_path / "whole")
    noted = json.loads((tmp_path / "whole" / "run.json").read_text(encoding="utf-8"))
    assert [source["name"] for source in noted["result"]["plan"]["sources"]] == ["a.jsonl", "b.jsonl"]


def test_old_rows_beside_entries_are_the_bits_of_one_more_entry(
    tiny_model_dir: Path, files: dict[str, Path], tmp_path: Path
):
    entries = ["[{{path: {a}, epochs: 2, max_samples: 9}}, {{path: {b}, weight: 0.4, by: tokens}}]"]
    entries += ["[{{path: {a}, epochs: 2, max_samples: 9}}]"]
    for name, of, more in (
        ("entry", entries[0], ()),
        ("replay", entries[1], (f"data.replay={{path: {files['b']}, share: 0.4}}",)),
    ):
        run = settings(tiny_model_dir, files, of)
        assert call("train", *run, *more, f"output_dir={tmp_path / name}", "training.schedule.max_steps=6") == 0
    assert losses(tmp_path / "replay") == losses(tmp_path / "entry")
    assert weights_digest(tmp_path / "replay") == weights_digest(tmp_path / "entry")
    notes = [json.loads((tmp_path / name / "run.json").read_text(encoding="utf-8")) for name in ("replay", "entry")]
    plans = [note["result"]["plan"]["sources"] for note in notes]
    assert plans[0] == plans[1]
    assert plans[0][1]["share"] == pytest.approx(0.4, abs=0.05)
    marks = [note["fingerprint"]["mixture"] for note in notes]
    assert marks[0] == marks[1]


def test_a_run_with_many_old_rows_keeps_the_order_that_it_began_with(
    tiny_model_dir: Path,
    files: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """One of a version that held the order whole holds it whole; one whose order is made by parts makes it by parts, on the
    bits of the same entry, and says of the old rows what is said of few.
    """
    from ai_finetuning.data import mixture

    run = settings(tiny_model_dir, files, "{a}")
    old = [f"data.replay={{path: {files['b']}, share: 0.4}}"]

    def stopped(name: str) -> None:
        with monkeypatch.context() as patch:
            patch.setenv("AIFT_FAULT", "step:term@10")  # in the second epoch
            assert call("train", *run, *old, f"output_dir={tmp_path / name}") == 75

    def note(name: str) -> dict[str, Any]:
        noted: dict[str, Any] = json.loads((tmp_path / name / "run.json").read_text(encoding="utf-8"))
        return noted

    assert call("train", *run, *old, f"output_dir={tmp_path / 'held'}") == 0
    stopped("held and stopped")
    monkeypatch.setattr(mixture, "WHOLE", 25)  # 22 new rows and more than 3 old ones an epoch
    stopped("parts and stopped")
    assert call("train", *run, *old, f"output_dir={tmp_path / 'parts'}") == 0
    entry = settings(tiny_model_dir, files, "[{{path: {a}}}, {{path: {b}, weight: 0.4, by: tokens}}]")
    assert call("train", *entry, f"output_dir={tmp_path / 'entry'}") == 0
    for name in ("held", "parts"):
        assert call("train", *run, *old, f"output_dir={tmp_path / f'{name} and stopped'}", "--resume") == 0
        assert losses(tmp_path / f"{name} and stopped") == losses(tmp_path / name)
        assert weights_digest(tmp_path / f"{name} and stopped") == weights_digest(tmp_path / name)
    assert losses(tmp_path / "parts") == losses(tmp_path / "entry") != losses(tmp_path / "held")
    derived = {
        name: note(name)["derived"]["replay"] for name in ("held", "parts", "held and stopped", "parts and stopped")
    }
    assert derived == {"held": None, "held and stopped": None, "parts": "parts", "parts and stopped": "parts"}
    parts, of_entry = (note(name)["result"]["plan"] for name in ("parts", "entry"))
    assert parts["replay"]["rows"] == of_entry["sources"][1]["rows"]
    assert parts["replay"]["share"] == pytest.approx(0.4, abs=0.05)
    assert parts["sources"] == []


def train(rank: int, model: Path, files: dict[str, Path], folder: Path, alone: bool = False) -> None:
    data = DataConfig(
        train=[{"path": str(files["a"]), "epochs": 1}, {"path": str(files["b"]), "weight": 0.3, "by": "tokens"}],
        max_length=64,
    )
    extra = {} if alone else {"parallel": ParallelConfig(strategy="ddp")}
    trainer = LoRAFinetuningTrainer(
        JapaneseModel(str(model)), LoRAConfig(r=4, lora_dropout=0.0), training(folder, **extra), data=data
    )
    trainer.train()


def test_two_processes_take_the_rows_of_one(tiny_model_dir: Path, files: dict[str, Path], tmp_path: Path):
    train(0, tiny_model_dir, files, tmp_path / "alone", alone=True)
    run_ranks(2, train, tiny_model_dir, files, tmp_path / "two", folder=tmp_path)
    obtained, expected = ([float.fromhex(loss) for loss in losses(tmp_path / name)] for name in ("two", "alone"))
    assert obtained == pytest.approx(expected, abs=1e-4)
    plans = [
        json.loads((tmp_path / name / "run.json").read_text(encoding="utf-8"))["result"]["plan"]["sources"]
        for name in ("two", "alone")
    ]
    assert plans[0] == plans[1]
    assert plans[0][1]["share"] == pytest.approx(0.3, abs=0.05)


def test_evaluation_rows_are_taken_out_of_every_source(
    tiny_model_dir: Path, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = settings(tiny_model_dir, files, "[{a}, {{path: {b}, weight: 0.5}}]")
    assert call("plan", *run, "data.eval=0.25", f"output_dir={tmp_path / 'out'}", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["eval_rows"] == 13
    assert sum(source["there"] for source in plan["sources"]) == plan["rows"] == 39
    assert all(source["share"] == 0.5 for source in plan["sources"])


@pytest.mark.parametrize("objective", ["preference", "kto"])
def test_pairs_and_marked_answers_of_several_sources_keep_their_references(
    objective: str, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Rows that come in the order of a mixture, some twice and some not at all, are compared with their own
    log-probabilities; KTO's other answers with theirs. A stopped run goes on to the same bits.
    """
    monkeypatch.setenv("AIFT_CACHE", str(tmp_path / "cache"))
    files = {"a": tmp_path / "a.jsonl", "b": tmp_path / "b.jsonl"}
    for number, path in enumerate(files.values()):
        path.write_text("".join(json.dumps(row) + "\n" for row in answers(objective, 22 + number)), encoding="utf-8")
    by_tokens = "[{{path: {a}, weight: 2, by: tokens}}, {{path: {b}, weight: 1, by: tokens}}]"
    for name, mixture in (("rows", MIXED), ("tokens", by_tokens)):
        run = [*settings(tiny_model_dir, files, mixture), f"objective={objective}", "data.eval=0.1"]
        standing = [*run, "learning_rate=1e-30", "num_epochs=1", f"output_dir={tmp_path / name}"]
        assert call("train", *standing) == 0
        steps = [row for row in read_metrics(tmp_path / name / METRICS) if "loss" in row]
        assert len(steps) > 4
        for step in steps:
            found = [step[key] for key in ("rewards/chosen", "rewards/rejected", "kl") if key in step]
            assert found
            assert max(map(abs, found)) < 1e-4
    run = [*settings(tiny_model_dir, files, MIXED), f"objective={objective}"]
    assert call("train", *run, f"output_dir={tmp_path / 'whole'}") == 0
    with monkeypatch.context() as patch:
        patch.setenv("AIFT_FAULT", "step:term@10")
        assert call("train", *run, f"output_dir={tmp_path / 'stopped'}") == 75
    assert call("train", *run, f"output_dir={tmp_path / 'stopped'}", "--resume") == 0
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    assert weights_digest(tmp_path / "stopped") == weights_digest(tmp_path / "whole")


def answers(objective: str, count: int) -> list[dict[str, object]]:
    """Pairs, or marked answers, of lengths that are all their own."""
    rows: list[dict[str, object]] = []
    for number in range(count):
        prompt, good, bad = (
            f"{number}の次は？" + "何" * (number % 7),
            f"{number + 1}です。",
            "知りません" * (1 + number % 5),
        )
        if objective == "preference":
            rows.append({"prompt": prompt, "chosen": good, "rejected": bad})
        else:
            rows.append({"prompt": prompt, "completion": good if number % 2 else bad, "label": bool(number % 2)})
    return rows
