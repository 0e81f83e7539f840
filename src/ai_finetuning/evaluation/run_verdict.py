"""The verdict at the end of a run: which of its evaluation rows are asked, within a time, and what came of it.

The tasks, scores and statistics are those of `aift eval`; the rows are those that the run evaluates on, as tokens.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..data.example import Example
from ..errors import Reason
from ..messages import on_one_line
from ..models.parts import positions_of
from ..models.tokenizers import prompt_style
from ..planner.length import MOST_JUDGED
from .adoption import DECISIONS, WORDS, Adoption, Margins, decide, language_findings, task_findings
from .before_after import Loaded, Plan, Side, measure
from .before_after_report import Outcome, numbers
from .likelihood import Scored, encode_pairs
from .pairs import ANSWERS, scored_row
from .results import Results
from .samples import last_question
from .tasks import Item, Task, own_questions, pairs_task, prose

# Items that are measured first, to tell what one costs; and at a time behind them.
PILOT = 2
_TOGETHER = {"answers": 16, "pairs": 8, "prose": 4}

# What reports call the evaluation rows, in any language: the setting that names them.
TITLE = "data.eval"

Tasks = tuple[Task, ...]


def run_tasks(rows: Sequence[Example], tokenizer: Any, config: Any, system: str | None = None) -> tuple[Tasks, int]:
    """The evaluation rows as a task, general prose as another; and how many rows are asked at most.

    Rows stand in an order that only what they hold decides, so that a limit of time takes the same ones each time. Rows
    with an answer are asked their last question; of plain texts alone it is the bits per character. Of pairs it is which
    answer the model finds likelier; they are asked their question as well, for the language of the answers.

    Args:
        rows: as the run evaluates on them.
        config: the model's, for the number of its positions.
        system: the system text of the rows; it is not shown.
    """
    # By their places: rows out of a store are made anew each time that they are asked for.
    digests = [hashlib.sha256(row.input_ids.tobytes()).digest() for row in rows]
    order = sorted(range(len(rows)), key=lambda place: digests[place])[:MOST_JUDGED]
    numbered = [(place + 1, rows[place]) for place in order if rows[place].mark >= 0]  # a bad answer is none to expect
    asked, plain = _asked(numbered, tokenizer, config, system)
    general = prose()
    general = replace(general, items=tuple(sorted(general.items, key=lambda item: _digest(item.name))))
    pairs = _pairs(numbered, config)
    if pairs:
        answers = replace(own_questions(f"{TITLE} ({ANSWERS})", asked), name=ANSWERS) if asked else None
        return (pairs_task(TITLE, pairs), *([answers] if answers is not None else []), general), len(pairs)
    if asked:
        return (own_questions(TITLE, asked), general), len(asked)
    if plain:
        return (Task("data", TITLE, "prose", tuple(plain)), general), len(plain)
    return (general,), 0


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _asked(
    rows: Sequence[tuple[int, Example]], tokenizer: Any, config: Any, system: str | None
) -> tuple[list[Item], list[Item]]:
    """Rows, each behind its number, as questions, and plain texts as what is scored; those that leave no room for an answer
    are left out.
    """
    style, positions = prompt_style(tokenizer), positions_of(config)
    asked, plain = [], []
    for number, row in rows:
        name = f"data-{number}"
        question = last_question(row, tokenizer, style, system)
        if question is None:
            text = str(tokenizer.decode(row.input_ids.tolist(), skip_special_tokens=True))
            if len(row) > 1 and text:
                plain.append(Item(name, text, ids=tuple(row.input_ids.tolist())))
        elif question.expected.strip() and (positions is None or len(question.row) < positions):
            asked.append(Item(name, question.text, accepted=(question.expected,), ids=tuple(question.row)))
    return asked, plain


def _pairs(rows: Sequence[tuple[int, Example]], config: Any) -> list[Item]:
    """Rows of two answers; those that the model does not take whole are left out."""
    positions, found = positions_of(config), []
    for number, row in rows:
        both = scored_row(row) if row.fork else ()
        if both and (positions is None or max(len(one.ids) for one in both) <= positions):
            found.append(Item(f"data-{number}", "", scored=both))
    return found


def made_by(tasks: Tasks, run: Mapping[str, Any]) -> dict[str, Any]:
    """What the rows of a run's eval.jsonl depend on.

    Args:
        run: of its fingerprint, what says which base it has.
    """
    asked = {
        task.name: [task.kind, task.metrics, task.max_new_tokens, [vars(item) for item in task.items]] for task in tasks
    }
    digests = {name: hashlib.sha256(repr(content).encode()).hexdigest()[:16] for name, content in asked.items()}
    return {"run": dict(run), "tasks": digests}


@dataclass
class Clock:
    """How long a measurement may still take, and whether somebody wants it to end.

    Attributes:
        end: by `now`.
        stops: whether a signal asks to stop.
    """

    end: float
    now: Callable[[], float] = time.monotonic
    stops: Callable[[], bool] = lambda: False

    @classmethod
    def of(cls, seconds: float, **options: Any) -> Clock:
        """One that ends in so many seconds."""
        clock = cls(0.0, **options)
        clock.end = clock.now() + seconds
        return clock


def measure_within(
    sides: Sequence[Side],
    tasks: Tasks,
    results: Results,
    loaded: Loaded,
    clock: Clock,
    say: Callable[[Mapping[str, int], float], None] = lambda counts, seconds: None,
) -> None:
    """Measures as many items as the time allows, in their order; of every task alike, and never fewer than a pilot's.

    Args:
        say: is told once how many items of each task are expected, and the seconds that are left: behind the first part of
            the usual size, since answers that are written together cost less than a pilot's.
    """
    waiting = {task.name: _parts(task) for task in tasks}
    by_name = {task.name: task for task in tasks}
    done, cost = dict.fromkeys(by_name, 0), dict.fromkeys(by_name, 0.0)
    said = False
    while any(waiting.values()) and not clock.stops():
        name = min(
            (name for name, parts in waiting.items() if parts), key=lambda key: done[key] / len(by_name[key].items)
        )
        part = waiting[name][0]
        if not said and all(done[key] > PILOT or (done[key] and len(waiting[key]) < 2) for key in done):
            say(*_expected(by_name, waiting, done, cost, clock))
            said = True
        if done[name]:
            # What does not fit is made smaller: a pilot of two costs more an item than answers that are made together, and
            # on a machine that was busy for a moment much more.
            fits = int((clock.end - clock.now()) / cost[name]) if cost[name] else len(part)
            if fits < 1:
                waiting[name] = []
                continue
            waiting[name][:1] = [part[:fits], *([part[fits:]] if part[fits:] else [])]
            part = waiting[name][0]
        del waiting[name][0]
        began = clock.now()
        new = _measure(sides, replace(by_name[name], items=part), results, loaded)
        done[name] += len(part)
        if new:
            cost[name] = (clock.now() - began) * len(sides) / new


def _measure(sides: Sequence[Side], task: Task, results: Results, loaded: Loaded) -> int:
    """Measures what the results lack of a few items, and writes it at once; how many rows it was."""
    there = {(side.key, task.name): results.complete(side.key, task) for side in sides}
    names = [item.name for item in task.items]
    part = Results(None, {place: {name: rows[name] for name in names if name in rows} for place, rows in there.items()})
    measure(Plan(tuple(sides), (task,), ()), part, loaded)
    new = [row for place, rows in part.rows.items() for name, row in rows.items() if name not in there[place]]
    if new:
        results.add(new)
    return len(new)


def _parts(task: Task) -> list[tuple[Item, ...]]:
    """The items of a pilot, then those that are measured together."""
    size = _TOGETHER.get(task.kind, PILOT)
    starts = [0, *range(PILOT, len(task.items), size)]
    return [task.items[start:stop] for start, stop in zip(starts, [*starts[1:], len(task.items)], strict=True)]


def _expected(
    tasks: Mapping[str, Task],
    waiting: Mapping[str, list[tuple[Item, ...]]],
    done: Mapping[str, int],
    cost: Mapping[str, float],
    clock: Clock,
) -> tuple[dict[str, int], float]:
    """Items of each task, and seconds that are left for them."""
    left = {name: sum(map(len, parts)) for name, parts in waiting.items()}
    needed, room = sum(cost[name] * count for name, count in left.items()), clock.end - clock.now()
    share = min(1.0, max(0.0, room) / needed) if needed else 1.0
    return {name: done[name] + int(share * left[name]) for name in tasks}, needed * share


def measured_on(sides: Sequence[str], tasks: Tasks, results: Results) -> Tasks:
    """The tasks with the items that all sides have been asked; none without any."""
    kept = []
    for task in tasks:
        items = [item for item in task.items if all(item.name in results.complete(side, task) for side in sides)]
        kept += [replace(task, items=tuple(items))] if items else []
    return tuple(kept)


def scored_texts(task: Task, tokenizer: Any, positions: int | None) -> list[list[Scored]]:
    """Each item of prose as what is scored: in parts where a model does not take all of it (likelihood.score_texts)."""
    whole = []
    for item in task.items:
        coded = [Scored(item.ids, 1, len(item.text))] if item.ids else encode_pairs(tokenizer, [("", item.text)])
        (one,) = coded
        size = min(positions or len(one.ids), len(one.ids))
        parts = [one.ids[start : start + size] for start in range(0, len(one.ids), size)]
        whole.append([Scored(part, 1, one.characters) for part in parts if len(part) > 1])
    return whole


def outcome_of(sides: Sequence[Side], tasks: Tasks, results: Results, left: Sequence[Reason] = ()) -> Outcome:
    """What the results of both sides say.

    Args:
        left: what was not measured, and why.
    """
    margins = Margins()
    findings = task_findings(results, [task for task in tasks if task.name != ANSWERS], margins)
    language = language_findings(results, tasks)
    adoption = decide(findings, language)
    if adoption is not None and adoption.decision == "hold" and not any(item.primary for item in findings):
        unknown = Reason(
            "評価データの答えを測っていないので、改善したかは分かりません。",
            "no answers to the evaluation data were measured, so it is not known whether they improved.",
        )
        adoption = Adoption("hold", unknown)
    return Outcome(Plan(tuple(sides), tasks, (), tuple(left)), tuple(findings), tuple(language), adoption, margins)


def has_improved(outcome: Outcome) -> bool:
    """Whether something that the run was made for got better."""
    return any(finding.primary and finding.word == "improved" for finding in outcome.findings)


def plain_verdict(outcome: Outcome, step: int, seconds: float, rows: int) -> dict[str, Any]:
    """run.json's `verdict`: `result` (adopt, hold, reject), why, and by task what was measured and how it differs.

    Args:
        step: of the weights that were measured.
        rows: evaluation rows that the run has.
    """
    told, adoption = numbers(outcome), outcome.adoption
    differences = {
        finding.task.name: {
            "difference": finding.compared.difference,
            "gain_interval": list(finding.compared.interval),
            "lower_is_better": finding.task.lower,
        }
        for finding in outcome.findings
        if finding.compared is not None
    }
    return {
        "result": told["decision"],
        "why": None if adoption is None else {"ja": adoption.why.ja, "en": adoption.why.en},
        "advice": None
        if adoption is None or adoption.advice is None
        else {"ja": adoption.advice.ja, "en": adoption.advice.en.strip()},
        "step": step,
        "seconds": round(seconds, 1),
        "eval_rows": rows,
        "tasks": told["tasks"],
        "differences": differences,
        "language": told["language"],
        "not_measured": [{"ja": reason.ja.strip(), "en": reason.en.strip()} for reason in outcome.planned.left_out],
    }


_TITLES = {
    "data": Reason("評価データ", "evaluation data"),
    "prose": Reason("日本語の文章（bits/字）", "Japanese prose (bits per character)"),
}


def card_section(outcome: Outcome) -> Reason:
    """The verdict as a section of the model card, in Markdown; no row stands in it."""
    adoption = outcome.adoption
    sides = ([], []) if adoption is None else ([f"**{adoption.sentence.ja}**", ""], [f"**{adoption.sentence.en}**", ""])
    ja, en = (
        [title, "", *told, head, "|---|---|---|---|---|"]
        for title, told, head in (
            ("## 判定", sides[0], "| | 件数 | 学習前 | 学習後 | |"),
            ("## Verdict", sides[1], "| | items | before | after | |"),
        )
    )
    for finding in outcome.findings:
        if finding.compared is None:
            continue
        task, word = finding.task, WORDS[finding.word]
        values = [_figure(task, value) for value in (finding.compared.before, finding.compared.after)]
        count, metric = f"{len(task.items):,}", "" if task.name == "prose" else f" ({task.primary_metric})"
        title = _TITLES.get(task.name, Reason(task.title, task.title))
        ja.append(f"| {title.ja}{metric} | {count} | {values[0]} | {values[1]} | {word.ja} |")
        en.append(f"| {title.en}{metric} | {count} | {values[0]} | {values[1]} | {word.en} |")
    for reason in outcome.planned.left_out:
        ja += ["", f"- {on_one_line(reason.ja.strip())}"]
        en += ["", f"- {on_one_line(reason.en.strip())}"]
    return Reason("\n".join([*ja, "", ""]), "\n".join([*en, "", ""]))


def _figure(task: Task, value: float) -> str:
    return f"{value:.3f}" if task.lower else f"{100 * value:.1f} %"


def metrics_row(outcome: Outcome, step: int) -> dict[str, Any]:
    """A line for metrics.jsonl: the decision, and of each task the means before and after."""
    row: dict[str, Any] = {"step": step, "verdict": None if outcome.adoption is None else outcome.adoption.decision}
    for finding in outcome.findings:
        if finding.compared is not None:
            row[f"verdict_{finding.task.name}_before"] = finding.compared.before
            row[f"verdict_{finding.task.name}_after"] = finding.compared.after
    return row


def decision_line(verdict: Mapping[str, Any]) -> Reason | None:
    """The verdict of a run.json as one line; None where there is none."""
    result, why, advice = (verdict.get(name) for name in ("result", "why", "advice"))
    if result not in DECISIONS or not isinstance(why, Mapping):
        return None
    word, more = DECISIONS[result], advice or {"ja": "", "en": ""}
    return Reason(f"{word.ja} - {why['ja']}{more['ja']}", f"{word.en} - {why['en']} {more['en']}".strip())
