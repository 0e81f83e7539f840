"""What the evaluation losses of a run are called, and in which words."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from ai_finetuning.evaluation.verdict import Verdict, closing_lines, differ, figure, verdict
from ai_finetuning.execution.model_card import verdict_of


def rows(*losses: float | None) -> list[dict[str, Any]]:
    """An evaluation every ten steps, with training steps between them."""
    history: list[dict[str, Any]] = []
    for place, loss in enumerate(losses):
        history.append({"step": 10 * place, "eval_loss": loss})
        history.append({"step": 10 * place + 1, "loss": 9.0})
    return history


@pytest.mark.parametrize(
    ("losses", "kind"),
    [
        ((4.74, 4.03, 4.01), "better"),
        ((4.04, 4.03, 4.01), "unchanged"),  # 12 steps of the README's first command: less than 1 %
        ((4.74, 4.03, 4.79), "overfitted"),  # 30 epochs on 18 rows
        ((4.74, 4.03, 4.20), "overfitted"),  # still better than before, and worse than it was
        ((4.74, 4.03, 4.05), "better"),  # within the noise of the best
        ((4.00, 4.20, 4.50), "worse"),
        ((4.00, 3.98, 4.50), "worse"),  # it never got better by more than noise
        ((4.00, 4.00), "unchanged"),
        ((0.004, 0.001), "unchanged"),  # nothing left to win: less than half a hundredth of a nat
        ((4.74, 4.03, None), "diverged"),
        ((4.74, math.nan), "unknown"),
        ((4.74,), "unknown"),
        ((), "unknown"),
    ],
)
def test_the_kinds(losses: tuple[float, ...], kind: str):
    assert verdict(rows(*losses)).kind == kind


def test_the_saved_weights_decide_what_is_compared_with_before():
    """With the best weights put back the same run is still one that overfitted, and the sentence says what was saved."""
    history = rows(4.74, 4.03, 4.79)
    last, best = verdict(history), verdict(history, saved_step=10)
    assert (last.kind, best.kind) == ("overfitted", "overfitted")
    assert last.saved is not None
    assert last.saved.loss == 4.79
    assert best.saved is not None
    assert best.saved.loss == 4.03
    assert "保存したのは最良のステップ 10 の重み" in best.sentence.ja
    assert "最後のもの" in last.sentence.ja
    assert verdict(rows(4.74, 4.03, 4.05), saved_step=10).kind == "better"


def test_only_two_evaluations_of_different_steps_are_compared():
    """A callback may evaluate twice at one step."""
    assert verdict([{"step": 5, "eval_loss": 3.0}, {"step": 5, "eval_loss": 3.0}]).kind == "unknown"


@pytest.mark.parametrize("losses", [(4.74, 4.03), (4.04, 4.03), (4.74, 4.03, 4.79), (4.0, 5.0), (4.7, 4.0, None), ()])
def test_every_kind_has_words_with_its_numbers_in_both_languages(losses: tuple[float, ...]):
    found = verdict(rows(*losses))
    for text in (found.sentence, found.short):
        assert text.ja
        assert text.en
        assert "None" not in text.ja + text.en
    if found.kind in ("better", "overfitted", "worse", "unchanged"):
        for number in (found.before, found.saved):
            assert number is not None
            assert figure(number.loss) in found.sentence.ja
            assert figure(number.loss) in found.short.en
    assert "\n" not in found.short.ja


def test_the_last_lines_name_the_verdict_and_the_report():
    lines = closing_lines(verdict(rows(4.74, 4.03, 4.79)), Path("outputs/faq/report.html"))
    assert [line.ja for line in lines] == [
        "判定: 過学習（評価損失: 学習前 4.74、最良 4.03（ステップ 10）、最後 4.79）",
        "レポート: outputs/faq/report.html",
    ]
    assert "outputs/faq/report.html" in lines[1].en


def test_losses_differ_by_share_and_by_size():
    assert differ(4.0, 3.9)
    assert not differ(4.0, 3.97)
    assert not differ(0.010, 0.006)
    assert differ(0.10, 0.09)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (57.06724393416113, "57.1"),
        (4.0321, "4.03"),
        (0.11661, "0.117"),
        (0.000123456, "0.000123"),
        (1234567.8, "1,234,568"),
        (0.0, "0"),
        (math.nan, "–"),
        (math.inf, "–"),
        (None, "–"),
    ],
)
def test_figures_have_three_digits(value: float | None, text: str):
    assert figure(value) == text


def test_a_lower_loss_is_no_gain_where_the_worse_answers_lead():
    def of(before: float, after: float, last_loss: float = 2.17) -> Verdict:
        first = {"step": 0, "eval_loss": 5.86, "eval_rewards/margins": before}
        return verdict([first, {"step": 8, "eval_loss": last_loss, "eval_rewards/margins": after}])

    assert of(0.0, 0.02).kind == of(-0.5, -0.1).kind == "better"  # a loss without a reference may begin behind
    assert of(0.0, 0.02).margin is None
    behind = of(0.0, -0.0223)
    assert behind.kind == "worse"
    assert "the worse answers now have the higher reward (margin -0.0223)" in behind.sentence.en
    assert "悪い回答の報酬のほうが高く" in behind.sentence.ja
    assert "-0.0223" in behind.short.ja
    assert "-0.0223" in behind.short.en
    assert verdict_of({"verdict": asdict(behind)}) == behind
    assert of(0.0, -0.02, 5.86).kind == "unchanged"
