"""What a run's evaluation losses say, in one sentence: the same in the report, the model card and the last lines of a
run.

The losses are compared, not the texts: a verdict says whether the model predicts the evaluation data better than
before, not whether its answers are good.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import Reason

# Two evaluation losses differ where they are apart by this share of the larger one, and by this many nats per token. The
# evaluation data is the same every time, so that what is left is the noise of the last batches.
LEAST_SHARE, LEAST_NATS = 0.01, 0.005

Kind = Literal["better", "unchanged", "overfitted", "worse", "diverged", "unknown"]


@dataclass(frozen=True)
class Point:
    """An evaluation: the step after which it was made, and the loss in nats per token."""

    step: int
    loss: float


@dataclass(frozen=True)
class Verdict:
    """What the evaluation losses of a run say.

    Attributes:
        kind: `better`, `unchanged`, `worse`; `overfitted`: better at first, and worse again since; `diverged`: the saved
            weights have a loss that is no number; `unknown`: fewer than two evaluations to compare.
        before: the first evaluation, of the model as it was.
        best, last: the lowest, and the last one that is a number.
        saved: that of the weights that are saved; the last one while the run is at work.
        margin: of the rewards, where a lower loss hides that the worse answers lead.
    """

    kind: Kind
    before: Point | None = None
    best: Point | None = None
    last: Point | None = None
    saved: Point | None = None
    margin: float | None = None

    @property
    def sentence(self) -> Reason:
        """One or two sentences for people who read a report."""
        before, best, last, saved = self.before, self.best, self.last, self.saved
        if before is None or best is None or last is None or saved is None:
            return Reason(
                "判定できません。比べられる評価が 2 回ありません（評価データは data.eval で指定します）。",
                "No verdict: there are no two evaluations to compare (data.eval names evaluation data).",
            )
        change = f"{figure(before.loss)} → {figure(saved.loss)}"
        if self.kind == "overfitted":
            kept = (
                Reason(
                    f"保存したのは最良のステップ {best.step:,} の重みです。",
                    f"The weights of step {best.step:,}, the best ones, were saved.",
                )
                if saved.step == best.step
                else Reason("重みは最後のものです。", "The weights are the last ones.")
            )
            return Reason(
                f"過学習しています。評価損失は {figure(before.loss)} からステップ {best.step:,} の {figure(best.loss)} まで下がった後、ステップ "
                f"{last.step:,} では {figure(last.loss)} に上がりました。{kept.ja}",
                f"Overfitted: the evaluation loss fell from {figure(before.loss)} to {figure(best.loss)} at step "
                f"{best.step:,}, and has risen to {figure(last.loss)} at step {last.step:,} since. {kept.en}",
            )
        if self.margin is not None:
            return Reason(
                f"悪化しました。評価損失は {change} ですが、悪い回答の報酬のほうが高くなりました（報酬の差 {self.margin:.3g}）。学習率か preference.sft_weight を下げるか、データを確かめてください。",
                f"Worse: the evaluation loss went {change}, but the worse answers now have the higher reward (margin "
                f"{self.margin:.3g}). Lower the learning rate or preference.sft_weight, or look at the data.",
            )
        return {
            "better": Reason(
                f"改善しました。評価損失は {change} です（ステップ {before.step:,} → {saved.step:,}）。",
                f"Better: the evaluation loss went {change} (step {before.step:,} → {saved.step:,}).",
            ),
            "worse": Reason(
                f"悪化しました。評価損失は {change} です（ステップ {before.step:,} → {saved.step:,}）。学習率を下げるか、データを確かめてください。",
                f"Worse: the evaluation loss went {change} (step {before.step:,} → {saved.step:,}). Lower the learning rate, "
                "or look at the data.",
            ),
            "diverged": Reason(
                "発散しました。最後の評価損失が数値になりません。学習率を下げてください。",
                "Diverged: the last evaluation loss is not a number. Lower the learning rate.",
            ),
        }.get(
            self.kind,
            Reason(
                f"変化は確認できません。評価損失は {change} です（差が {LEAST_SHARE:.0%} 未満）。",
                f"Unchanged: the evaluation loss went {change}, which is less than {LEAST_SHARE:.0%}.",
            ),
        )

    @property
    def short(self) -> Reason:
        """The same in a line for a terminal."""
        before, best, last, saved = self.before, self.best, self.last, self.saved
        if before is None or best is None or last is None or saved is None:
            return Reason(
                "判定: なし（比べられる評価がありません）", "verdict: none (there are no evaluations to compare)"
            )
        word = WORDS[self.kind]
        if self.kind == "overfitted":
            return Reason(
                f"判定: {word.ja}（評価損失: 学習前 {figure(before.loss)}、最良 {figure(best.loss)}（ステップ {best.step:,}）、最後 "
                f"{figure(last.loss)}）",
                f"verdict: {word.en} (evaluation loss: {figure(before.loss)} before, {figure(best.loss)} at best (step "
                f"{best.step:,}), {figure(last.loss)} at last)",
            )
        if self.kind == "diverged":
            return Reason(f"判定: {word.ja}", f"verdict: {word.en}")
        change = f"{figure(before.loss)} → {figure(saved.loss)}"
        lead = "" if self.margin is None else f"{self.margin:.3g}"
        ja, en = (f"、報酬の差 {lead}", f", margin of the rewards {lead}") if lead else ("", "")
        return Reason(f"判定: {word.ja}（評価損失 {change}{ja}）", f"verdict: {word.en} (evaluation loss {change}{en})")


WORDS: dict[Kind, Reason] = {
    "better": Reason("改善", "better"),
    "unchanged": Reason("変化なし", "unchanged"),
    "overfitted": Reason("過学習", "overfitted"),
    "worse": Reason("悪化", "worse"),
    "diverged": Reason("発散", "diverged"),
    "unknown": Reason("判定なし", "no verdict"),
}


def figure(value: float | None) -> str:
    """A number as people read it: three digits that count, no exponent; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    places = 2 - math.floor(math.log10(abs(value)))
    return f"{value:,.{min(max(places, 0), 6)}f}"


def differ(first: float, second: float) -> bool:
    """Whether two evaluation losses are further apart than noise."""
    return abs(first - second) >= max(LEAST_NATS, LEAST_SHARE * max(first, second))


def verdict(history: Sequence[dict[str, Any]], saved_step: int | None = None) -> Verdict:
    """What the evaluations among the rows of metrics.jsonl say.

    Better, unchanged and worse compare the first evaluation with that of the saved weights. A run has overfitted where its
    best evaluation differs from the first one, and the last one has risen from the best by as much (`differ`). A lower loss
    over pairs, which may have the likelihood of the better answers in it too (orpo), is no gain where the
    worse answers have come to lead.

    Args:
        history: rows in order; the first evaluation is that before training.
        saved_step: whose weights are saved; None: the last ones.
    """
    rows = [row for row in history if "eval_loss" in row]
    points = [Point(row["step"], row["eval_loss"]) for row in rows if _is_number(row["eval_loss"])]
    if len({point.step for point in points}) < 2:
        return Verdict("unknown")
    before, last = points[0], points[-1]
    best = min(points, key=lambda point: point.loss)
    saved = next((point for point in reversed(points) if point.step == saved_step), last)
    gained, risen = differ(before.loss, best.loss), differ(best.loss, last.loss)
    kind: Kind = "unchanged"
    if saved is last and not _is_number(rows[-1]["eval_loss"]):
        kind = "diverged"
    elif gained and risen:
        kind = "overfitted"
    elif differ(before.loss, saved.loss):
        kind = "better" if saved.loss < before.loss else "worse"
    margins = {row["step"]: row.get("eval_rewards/margins", 0.0) for row in rows}
    behind = kind == "better" and margins[saved.step] < min(0.0, margins[before.step])
    return Verdict("worse" if behind else kind, before, best, last, saved, margins[saved.step] if behind else None)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def closing_lines(found: Verdict, report: Path) -> list[Reason]:
    """The last lines of a run in a terminal: the verdict, and where the report lies."""
    return [found.short, Reason(f"レポート: {report}", f"report: {report}")]
