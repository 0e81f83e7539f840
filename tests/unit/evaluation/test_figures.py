"""What a report and a card show of a run over pairs: accuracies and margins, and no perplexity."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from tests.unit.evaluation.test_report import HISTORY, report

from ai_finetuning.config.load import load_config
from ai_finetuning.evaluation.curves import curve_of, more_curves
from ai_finetuning.evaluation.figures import OF_TEXTS, compares_answers, figures_of
from ai_finetuning.evaluation.report import render_report
from ai_finetuning.execution.model_card import _objective


def answers(step: int, *, prefix: str = "") -> dict[str, Any]:
    return {
        f"{prefix}rewards/accuracies": min(1.0, 0.5 + step / 100),
        f"{prefix}rewards/margins": 0.02 * step,
        f"{prefix}logps/chosen": -4.0 - 0.01 * step,
        f"{prefix}logps/rejected": -20.0 - 0.1 * step,
    }


PAIRS = [
    {"step": 0, "eval_loss": 0.693, **answers(0, prefix="eval_")},
    *({"step": step, "loss": 0.69 - 0.01 * step, **answers(step)} for step in range(1, 41)),
    {"step": 40, "eval_loss": 0.31, **answers(40, prefix="eval_")},
]


@pytest.fixture(autouse=True)
def english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIFT_LANG", "en")


def test_a_run_over_pairs_has_other_figures_than_one_over_texts():
    assert figures_of(HISTORY) == OF_TEXTS
    keys = [key for _, key in figures_of(PAIRS)]
    assert keys == [
        "eval_loss",
        "eval_rewards/accuracies",
        "eval_rewards/margins",
        "eval_logps/chosen",
        "eval_logps/rejected",
    ]
    assert compares_answers(PAIRS)
    assert not compares_answers(HISTORY)


def test_the_curves_of_accuracy_and_margin_have_the_evaluations_and_no_best():
    titles = [title.en for title, _ in more_curves(PAIRS)]
    assert titles[:2] == ["Pairs whose better answer has the higher reward", "Margin of the rewards (better - worse)"]
    curve = more_curves(PAIRS)[0][1]
    assert [point.loss for point in curve.evaluations] == [0.5, 0.9]
    assert curve.best is None
    assert curve_of(PAIRS).best is not None
    assert more_curves(HISTORY) == []


def test_the_page_of_a_run_over_pairs_draws_them_and_shows_no_perplexity():
    page = render_report(dataclasses.replace(report(), history=PAIRS))
    assert page.count('<svg class="curve"') == 4
    assert "perplexity" not in page
    assert "loss (nats per token)" not in page
    assert "share of pairs whose better answer has the higher reward" in page
    identities = [part.split('"')[0] for part in page.split('id="')[1:]]
    assert len(identities) == len(set(identities))
    assert "perplexity" in render_report(report())


def test_a_card_names_the_loss_its_numbers_and_the_reference():
    config = load_config(None, ["objective=preference", "preference.sft_weight=1"])
    assert (
        "preference, sigmoid (beta 0.1, sft_weight 1); reference: the model before training" in _objective(config)[0].en
    )
    simpo = load_config(None, ["objective=preference", "preference.loss=simpo", "margin=0.5"])
    assert "preference, simpo (beta 2, margin 0.5); no reference" in _objective(simpo)[0].en
    assert _objective(load_config(None, [])) == []
