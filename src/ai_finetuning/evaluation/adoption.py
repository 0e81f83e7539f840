"""What results before and after say: task by task, of the language, and whether the model is to be taken.

`evaluation/verdict.py` is another thing: what the evaluation losses of one run say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ..errors import Reason
from .language import FAULTS, mean_share
from .likelihood import WAYS
from .paired import CEILING, LEVEL, Compared, above_chance, compare_scores, holm, items_for, non_inferior
from .results import Results, share_of_row
from .tasks import Task

Decision = Literal["adopt", "hold", "reject"]
Word = Literal["improved", "worse", "no difference", "unmeasurable", "kept", "lost", "unclear", "measured"]
# A rise of a fault that vetoes, beside its significance; in shares.
VETO_RISE = 0.02
MARGIN, MARGIN_BITS = 0.03, 0.05
EXIT_CODES: dict[Decision, int] = {"adopt": 0, "reject": 10, "hold": 11}

DECISIONS: dict[Decision, Reason] = {
    "adopt": Reason("採用", "adopt"),
    "hold": Reason("保留", "hold"),
    "reject": Reason("不採用", "reject"),
}
WORDS: dict[Word, Reason] = {
    "improved": Reason("改善", "improved"),
    "worse": Reason("悪化", "worse"),
    "no difference": Reason("差は見えません", "no difference seen"),
    "unmeasurable": Reason("測れません", "cannot be measured"),
    "kept": Reason("保たれています", "kept"),
    "lost": Reason("悪化", "lost"),
    "unclear": Reason("不明", "unclear"),
    "measured": Reason("測定のみ", "measured"),
}


@dataclass(frozen=True)
class Margins:
    """How much may be lost: of shares and other scores between 0 and 1, and of bits per character."""

    share: float = MARGIN
    bits: float = MARGIN_BITS

    def of(self, task: Task) -> float:
        """That of a task."""
        return self.bits if task.lower else self.share


@dataclass(frozen=True)
class Finding:
    """What a task says.

    Attributes:
        primary: it is tested for an improvement; others are tested for what was lost.
        compared: both sides; None where only one was measured.
        mean: of the side that was measured, where it is one.
        p: of no difference; of primaries over all of them together (Holm).
        why: why it cannot be measured or is unclear.
        others: further scores by name, (before, after).
    """

    task: Task
    primary: bool
    compared: Compared | None
    mean: float
    word: Word
    p: float | None = None
    why: Reason | None = None
    others: tuple[tuple[str, float, float], ...] = ()


@dataclass(frozen=True)
class LanguageFinding:
    """How often answers to a task have a fault, before and after.

    Attributes:
        p: of no difference, over all faults of all tasks that can veto (Holm); of others each alone.
        veto: the model is not taken for it.
    """

    task: Task
    fault: str
    before: float
    after: float
    p: float
    veto: bool


@dataclass(frozen=True)
class Adoption:
    """Whether to take the model, why, and what to do otherwise."""

    decision: Decision
    why: Reason
    advice: Reason | None = None

    @property
    def sentence(self) -> Reason:
        """One line for people."""
        word = DECISIONS[self.decision]
        advice = self.advice or Reason("", "")
        return Reason(f"{word.ja} - {self.why.ja}{advice.ja}", f"{word.en} - {self.why.en}{advice.en}")


def is_primary(task: Task, tasks: Sequence[Task]) -> bool:
    """Whether a task is what the model was trained for: the user's own questions; without them every task but prose."""
    own = any(item.name == "data" for item in tasks)
    return task.name == "data" if own else task.kind != "prose"


Rows = Mapping[str, Mapping[str, Any]]


def _scores(rows: Rows, task: Task) -> list[float]:
    return [float(rows[item.name]["score"]) for item in task.items]


def _whole(results: Results, side: str, task: Task) -> Rows | None:
    rows = results.complete(side, task)
    return rows if task.items and all(item.name in rows for item in task.items) else None


def task_findings(results: Results, tasks: Sequence[Task], margins: Margins) -> list[Finding]:
    """What each task says; one that has not been measured on both sides is only reported."""
    findings = []
    for task in tasks:
        after, before = (_whole(results, side, task) for side in ("after", "before"))
        if after is None:
            continue
        scores = _scores(after, task)
        mean = sum(scores) / len(scores)
        primary = is_primary(task, tasks)
        if before is None:
            findings.append(Finding(task, primary, None, mean, "measured"))
            continue
        groups = [item.group or item.name for item in task.items] if task.kind == "prose" else None
        compared = compare_scores(_scores(before, task), scores, groups=groups, lower=task.lower)
        others = _others(task, before, after)
        why = _floor(task, compared) or (_ceiling(task, compared) if primary else None)
        finding = Finding(task, primary, compared, mean, "measured", compared.p, why, others)
        findings.append(_kept(finding, margins) if not primary else finding)
    adjusted = holm({f.task.name: f.compared.p for f in findings if f.primary and f.compared and f.why is None})
    return [_primary(finding, adjusted) if finding.primary and finding.compared else finding for finding in findings]


def _others(task: Task, before: Rows, after: Rows) -> tuple[tuple[str, float, float], ...]:
    """Means of the scores that are not tested: further metrics of answers, and shares of right choices by other ways to
    compare likelihoods, which was fixed for the task before anything was measured.
    """
    keys = [("scores", name, name) for name in task.metrics[1:]]
    if task.kind == "choices":
        keys += [("right_by", way, f"accuracy, {way}") for way in WAYS if way != task.per]
    return tuple((title, _mean(before, task, key, name), _mean(after, task, key, name)) for key, name, title in keys)


def _mean(rows: Rows, task: Task, key: str, name: str) -> float:
    return sum(float(rows[item.name][key][name]) for item in task.items) / len(task.items)


def _floor(task: Task, compared: Compared) -> Reason | None:
    """Why a share of right answers says nothing: neither model is better than guessing."""
    if not task.is_share:
        return None
    right = [round(mean * compared.count) for mean in (compared.before, compared.after)]
    if any(above_chance(number, compared.count, task.chance) for number in right):
        return None
    chance = f"{task.chance:.0%}"
    if not task.chance:
        return Reason("どちらも 0 %", "both 0 %")
    return Reason(f"どちらも当てずっぽう {chance} と区別できない", f"both as good as guessing, {chance}")


def _ceiling(task: Task, compared: Compared) -> Reason | None:
    """Why an improvement cannot show: both models have nearly everything right."""
    if not task.is_share or min(compared.before, compared.after) < CEILING:
        return None
    return Reason(f"どちらも {CEILING:.0%} 以上", f"both at least {CEILING:.0%}")


def _primary(finding: Finding, adjusted: Mapping[str, float]) -> Finding:
    compared = finding.compared
    assert compared is not None
    if finding.why is not None:
        return replace(finding, word="unmeasurable", p=None)
    p = adjusted[finding.task.name]
    gained = (compared.after - compared.before) * (-1 if finding.task.lower else 1)
    word: Word = "no difference" if p >= LEVEL or gained == 0 else "improved" if gained > 0 else "worse"
    return replace(finding, word=word, p=p)


def _kept(finding: Finding, margins: Margins) -> Finding:
    assert finding.compared is not None
    if finding.why is not None:  # at the floor there is nothing to lose
        return replace(finding, word="unmeasurable", p=None)
    margin = margins.of(finding.task)
    kept = non_inferior(finding.compared, margin, share=finding.task.is_share)
    if kept.state != "unclear":
        return replace(finding, word="kept" if kept.state == "kept" else "lost", why=_allowed(finding.task, margin))
    needed = kept.needed
    more = (
        Reason(f"約 {needed:,} 件あれば分かります", f"about {needed:,} items would tell")
        if needed
        else Reason("件数を増やしても分かりません", "more items would not tell")
    )
    allowed = _allowed(finding.task, margin)
    return replace(finding, word="unclear", why=Reason(f"{allowed.ja}、{more.ja}", f"{allowed.en}; {more.en}"))


def _allowed(task: Task, margin: float) -> Reason:
    text = f"{margin:g}" if task.lower else f"{100 * margin:g}"
    return Reason(f"許容 {text}{'' if task.lower else ' 点'}", f"margin {text}{'' if task.lower else ' points'}")


def language_findings(results: Results, tasks: Sequence[Task]) -> list[LanguageFinding]:
    """Faults of the answers of each task that asks for some, where any side has one."""
    found: list[tuple[Task, str, Compared]] = []
    for task in tasks:
        before, after = (_whole(results, side, task) for side in ("before", "after"))
        if before is None or after is None or task.kind not in ("answers", "instructions"):
            continue
        for fault in FAULTS:
            sides = [
                [float(fault in rows[item.name].get("faults", ())) for item in task.items] for rows in (before, after)
            ]
            found.append((task, fault, compare_scores(sides[0], sides[1])))
    vetoing = {f"{task.name}/{fault}": item.p for task, fault, item in found if FAULTS[fault].veto}
    adjusted = holm(vetoing)
    findings = []
    for task, fault, item in found:
        p = adjusted.get(f"{task.name}/{fault}", item.p)
        veto = FAULTS[fault].veto and p < LEVEL and item.difference >= VETO_RISE
        if item.before or item.after:
            findings.append(LanguageFinding(task, fault, item.before, item.after, p, veto))
    return findings


def ja_shares(results: Results, task: Task) -> tuple[float | None, float]:
    """Mean share of Japanese in the answers to a task, (before, after)."""
    sides = [_whole(results, side, task) for side in ("before", "after")]
    shares = [
        None if rows is None else mean_share([share_of_row(rows[item.name]) for item in task.items]) for rows in sides
    ]
    return shares[0], shares[1] or 0.0


def decide(findings: Sequence[Finding], language: Sequence[LanguageFinding]) -> Adoption | None:
    """Whether to take the model; None where nothing was compared.

    It is taken where something that it was trained for improved, nothing vetoes, and what was there before is shown to be
    inside the margins.
    """
    compared = [finding for finding in findings if finding.compared is not None]
    if not compared:
        return None
    primary = [finding for finding in compared if finding.primary]
    kept = [finding for finding in compared if not finding.primary and finding.word != "unmeasurable"]
    better = [finding for finding in primary if finding.word == "improved"]
    worse = [finding for finding in primary if finding.word == "worse"]
    lost = [finding for finding in kept if finding.word == "lost"]
    vetoes = [finding for finding in language if finding.veto]
    learnt = Reason("課題は覚えましたが、", "it has learnt the task, but ") if better else Reason("", "")
    if vetoes:
        names = Reason.joined([FAULTS[item.fault].title for item in vetoes], ", ")
        return Adoption(
            "reject",
            Reason(
                f"{learnt.ja}答えの言葉が悪くなっています（{names.ja}）。",
                f"{learnt.en}its answers got worse in language ({names.en}).",
            ),
            Reason(
                "対処: データの答えを aift data で確かめる、num_epochs か learning_rate を下げる。",
                " Look at the answers of the data, lower num_epochs or learning_rate.",
            ),
        )
    advice = _ADVICE_PAIRS if any(finding.task.kind == "pairs" for finding in compared) else _ADVICE
    if lost:
        return Adoption("reject", _lost(learnt, lost), advice)
    if worse:
        names = Reason(", ".join(f.task.title for f in worse), ", ".join(f.task.title for f in worse))
        return Adoption("reject", Reason(f"{names.ja} が悪くなっています。", f"{names.en} got worse."), advice)
    if better and kept and all(finding.word == "kept" for finding in kept):
        return Adoption(
            "adopt",
            Reason("課題が改善し、一般の日本語は保たれています。", "the task improved, and general Japanese was kept."),
        )
    if not better:
        return Adoption(
            "hold",
            Reason("改善は確認できません。", "no improvement is seen."),
            _more(primary),
        )
    return Adoption(
        "hold",
        Reason(
            "課題は改善しましたが、ほかを忘れていないことは確かめられていません。",
            "the task improved, but it is not shown that nothing else was forgotten.",
        ),
        Reason(
            "対処: 課題か件数を増やす（--tasks auto --tasks-from）。",
            " Measure more tasks or items (--tasks auto --tasks-from).",
        ),
    )


def _lost(learnt: Reason, lost: Sequence[Finding]) -> Reason:
    if any(finding.task.kind == "prose" for finding in lost):
        return Reason(f"{learnt.ja}一般の日本語を忘れています。", f"{learnt.en}it has forgotten general Japanese.")
    names = ", ".join(finding.task.title for finding in lost)
    return Reason(f"{learnt.ja}{names} ができなくなっています。", f"{learnt.en}it has lost {names}.")


_ADVICE = Reason(
    "対処: learning_rate を下げる、num_epochs を減らす、一般の文を混ぜる（data.replay: {path: embedded:prose, share: 0.5, distill: 4}、full では distill なし）。",
    " Lower learning_rate or num_epochs, or mix general text in (data.replay: {path: embedded:prose, share: 0.5, distill: 4}; for full "
    "without distill).",
)

# Rows of an earlier training are no pairs: data.replay is refused beside them.
_ADVICE_PAIRS = Reason(
    "対処: learning_rate を下げる、num_epochs を減らす、preference.beta を上げる。",
    " Lower learning_rate or num_epochs, or raise preference.beta.",
)


def _more(primary: Sequence[Finding]) -> Reason | None:
    """How many items would show a difference like that which was obtained."""
    for finding in primary:
        compared = finding.compared
        if (
            finding.word == "no difference"
            and compared is not None
            and finding.task.is_share
            and compared.difference > 0
        ):
            needed = items_for(compared.difference)
            return Reason(
                f"この差（{100 * compared.difference:.1f} 点）を確かめるには約 {needed:,} 件が要ります。",
                f" About {needed:,} items would show a difference like this ({100 * compared.difference:.1f} points).",
            )
    return None
