"""Rows of a metrics file that somebody else may have written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ai_finetuning.engine.metrics import read_metrics
from ai_finetuning.evaluation.curves import curve_of


@pytest.mark.parametrize("figure", ["loss", "label_tokens", "eval_loss", "epoch"])
@pytest.mark.parametrize("value", ["5", [], {}, 10**400])
def test_a_row_with_a_figure_that_is_none_is_left_out(tmp_path: Path, figure: str, value: object):
    rows = [{"step": 1, "loss": 1.0, "label_tokens": 3}, {"step": 2, "loss": 1.0, "label_tokens": 3, figure: value}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1]


def test_a_row_without_its_tokens_still_draws(tmp_path: Path):
    assert len(curve_of([{"step": 1, "loss": 2.0, "label_tokens": None}, {"step": 2, "loss": 1.0}]).smooth) == 2
