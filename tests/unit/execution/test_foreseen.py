"""What a plan knows of a run beside its steps, of real models and rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ai_finetuning.config.load import load_config
from ai_finetuning.planner.plan import Plan
from ai_finetuning.trainers.from_config import plan_training


def planned(tmp_path: Path, *settings: str, pilot: bool = False) -> Plan:
    base = ["model=embedded:kotoha-tiny", "data.train=embedded:kotoha-qa", "data.max_samples=40", "data.eval=0.25"]
    given = [*base, f"training.output_dir={tmp_path / 'run'}", *settings]
    return plan_training(load_config(None, given), pilot=pilot).summary


def test_a_plan_counts_questions_samples_and_the_verdict(tmp_path: Path):
    asked = planned(tmp_path, "training.evaluation.generate=7").asked
    assert (asked.questions, asked.samples, asked.judged, asked.answers_a_row) == (7, 3, 10, 1)
    assert 0 < asked.token_seconds < 0.1
    without = planned(tmp_path, "training.evaluation.verdict=false", "training.runtime.report_samples=0").asked
    assert (without.questions, without.samples, without.judged) == (0, 0, None)
    alone = planned(tmp_path, "data.eval=null", "training.evaluation.generate=7").asked
    assert (alone.questions, alone.samples, alone.judged) == (0, 0, None)


def test_a_pilot_times_a_generated_token(tmp_path: Path):
    plan = planned(tmp_path, "training.evaluation.generate=7", "training.num_epochs=1", pilot=True)
    assert plan.speed is not None
    assert plan.speed.token_seconds is not None
    assert 0 < plan.speed.token_seconds < 5
    assert plan.parts is not None
    told = plan.fields()
    assert told["parts"]["total"] == told["seconds"] == pytest.approx(plan.parts.training + plan.parts.verdict)
    assert told["beside"]["questions"] == 7
    assert "sample answers" in plan.time_text() or "回答の例" in plan.time_text()


def test_few_pairs_at_a_high_rate_are_told_in_the_plan(tmp_path: Path):
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"{n} は？", "chosen": f"{n} です。", "rejected": "いいえ。"} for n in range(8)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings = ["objective=preference", f"data.train={pairs}", "data.eval=null"]
    plan = planned(tmp_path, *settings, "learning_rate=3e-3", "training.num_epochs=60")
    few, high = plan.findings
    assert "8" in few.en
    assert "0.003" in high.en
    assert [one["kind"] for one in plan.fields()["findings"]] == ["comparisons", "comparisons"]
    assert sum(few.ja in text or few.en in text for _, text in plan.table()) == 1
    assert plan.asked.answers_a_row == 2
    (alone,) = planned(tmp_path, *settings, "learning_rate=1e-4", "training.num_epochs=2").findings
    assert "8" in alone.en
