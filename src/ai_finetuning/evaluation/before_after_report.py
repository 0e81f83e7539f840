"""What a comparison says: a plan before it, tables in a terminal, report.md and report.json beside eval.jsonl."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import Reason, StorageError, localized
from ..messages import argument, on_one_line
from .adoption import WORDS, Adoption, Finding, LanguageFinding, Margins, is_primary, ja_shares
from .before_after import Plan
from .language import FAULTS
from .paired import DISCORDANT, LEVEL, least_difference, least_items, least_mean_difference
from .results import FILE, Results
from .tasks import Task

REPORT, NUMBERS = "report.md", "report.json"
# Spread of paired differences that is assumed where no results say it: of answers compared by character bigrams (24 models
# on ELYZA-tasks-100), of bits per character (48 works before and after training).
_SPREAD_ANSWERS, _SPREAD_BITS = 0.146, 0.281
# Items from which on the share of differing ones is taken from results, and a number of items that is often within reach.
_PILOT, _MORE = 100, 300
_TITLES = {
    "prose": Reason("日本語の文章 (bits/字)", "Japanese prose (bits/char)"),
    "instructions": Reason("指示に従った割合", "instructions followed"),
}
_EXAMPLES, _LONGEST = 5, 200


@dataclass(frozen=True)
class Outcome:
    """What a command has found."""

    planned: Plan
    findings: tuple[Finding, ...]
    language: tuple[LanguageFinding, ...]
    adoption: Adoption | None
    margins: Margins


def title_of(task: Task) -> str:
    """What a table calls a task; a file's name may hold anything."""
    return str(_TITLES[task.name]) if task.name in _TITLES else on_one_line(task.title)


def plan_lines(planned: Plan, results: Results, seconds: float | None) -> list[str]:
    """What will be measured, what it costs, and which differences will be seen."""
    took = "" if seconds is None else localized(f"、約 {_time(seconds)}/モデル", f", about {_time(seconds)} a model")
    lines = [
        localized(
            f"測る前に: モデル {len(planned.sides)}、課題 {len(planned.tasks)}、それぞれ 生成 {planned.answers:,} 件、順伝播 約 {planned.tokens:,} トークン{took}",
            f"before measuring: {len(planned.sides)} models, {len(planned.tasks)} tasks, for each {planned.answers:,} answers "
            f"and about {planned.tokens:,} tokens forwarded{took}",
        )
    ]
    if len(planned.sides) > 1:
        lines += [f"  {_visible(task, results)}" for task in planned.tasks]
    lines += [f"  {on_one_line(str(reason).strip())}" for reason in planned.left_out]
    return lines


def _time(seconds: float) -> str:
    if seconds < 90:
        return localized(f"{max(1, round(seconds))} 秒", f"{max(1, round(seconds))} s")
    return localized(f"{round(seconds / 60)} 分", f"{round(seconds / 60)} min")


def discordance(task: Task, results: Results) -> float:
    """Share of items on which the models differ: of the first 100 where both have results, else what is assumed."""
    before, after = results.of("before", task.name), results.of("after", task.name)
    both = [item.name for item in task.items if item.name in before and item.name in after][:_PILOT]
    if len(both) < _PILOT:
        return DISCORDANT
    differing = [name for name in both if before[name]["score"] != after[name]["score"]]
    return len(differing) / len(both)


def _visible(task: Task, results: Results) -> str:
    title = title_of(task)
    count = len({item.group for item in task.items}) if task.kind == "prose" else len(task.items)
    if task.kind == "prose":
        least = least_mean_difference(count, _SPREAD_BITS)
        return localized(
            f"{title} {count} 作品: {least:.2f} より小さい差は見えません（検出力 80 %）",
            f"{title}, {count} works: a difference below {least:.2f} will not be seen (power 80 %)",
        )
    if not task.is_share and task.kind == "answers":
        least = 100 * least_mean_difference(count, _SPREAD_ANSWERS)
        return localized(
            f"{title} {count:,} 件: {least:.1f} 点より小さい差は見えません（検出力 80 %）",
            f"{title}, {count:,} items: a difference below {least:.1f} points will not be seen (power 80 %)",
        )
    share = discordance(task, results)
    if count < least_items():
        return localized(
            f"{title} {count:,} 件: 少なすぎて、どんな差も見えません（{least_items()} 件以上にしてください）",
            f"{title}, {count:,} items: too few to see any difference (give at least {least_items()})",
        )
    least = 100 * least_difference(count, share)
    text = localized(
        f"{title} {count:,} 件: {least:.1f} 点より小さい差は見えません（食い違い {share:.0%}、検出力 80 %）",
        f"{title}, {count:,} items: a difference below {least:.1f} points will not be seen ({share:.0%} differ, power 80 %)",
    )
    if count < _MORE and share:
        more = 100 * least_difference(_MORE, share)
        text += localized(f" → {_MORE} 件あれば {more:.1f} 点", f" -> with {_MORE} items: {more:.1f} points")
    return text


def _figure(task: Task, value: float) -> str:
    return f"{value:.3f}" if task.lower else f"{100 * value:.1f} %"


def _difference(finding: Finding) -> str:
    compared = finding.compared
    if compared is None:
        return "-"
    low, high = compared.interval
    if finding.task.lower:
        return f"{compared.difference:+.3f} [{-high:+.3f}, {-low:+.3f}]"
    return f"{100 * compared.difference:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def _p(value: float | None) -> str:
    if value is None:
        return "-"
    return "<1e-9" if value < 1e-9 else f"{value:.1e}" if value < 0.001 else f"{value:.3f}"


def _word(finding: Finding) -> str:
    word, why = WORDS[finding.word], finding.why
    return str(word) if why is None else localized(f"{word.ja}（{why.ja}）", f"{word.en} ({why.en})")


def result_rows(outcome: Outcome) -> list[list[str]]:
    """The table of tasks with its heading."""
    heading = [
        localized(ja, en)
        for ja, en in (
            ("課題", "task"),
            ("件数", "items"),
            ("前", "before"),
            ("後", "after"),
            ("差 [95 %]", "difference [95 %]"),
            ("p", "p"),
            ("判定", "finding"),
        )
    ]
    rows = [heading]
    for finding in outcome.findings:
        task, compared = finding.task, finding.compared
        rows.append(
            [
                title_of(task),
                f"{len(task.items):,}",
                "-" if compared is None else _figure(task, compared.before),
                _figure(task, finding.mean if compared is None else compared.after),
                _difference(finding),
                _p(finding.p),
                _word(finding),
            ]
        )
        for name, before, after in finding.others:
            rows.append(
                [f"  {name}", "", _figure(task, before), _figure(task, after), f"{100 * (after - before):+.1f}", "", ""]
            )
    return rows


def language_rows(outcome: Outcome, results: Results) -> list[list[str]]:
    """The table of languages with its heading; empty where no answer was written."""
    rows: list[list[str]] = []
    for task in outcome.planned.tasks:
        if task.kind not in ("answers", "instructions"):
            continue
        before, after = ja_shares(results, task)
        shown = "-" if before is None else f"{before:.0%}"
        rows.append([title_of(task), localized("日本語の文字", "Japanese characters"), shown, f"{after:.0%}", "", ""])
        for item in outcome.language:
            if item.task.name == task.name:
                word = localized("不採用の理由", "veto") if item.veto else ""
                title = str(FAULTS[item.fault].title)
                rows.append(["", title, f"{100 * item.before:.1f} %", f"{100 * item.after:.1f} %", _p(item.p), word])
    if not rows:
        return []
    names = (
        ("課題", "task"),
        ("答えの言葉", "language of answers"),
        ("前", "before"),
        ("後", "after"),
        ("p", "p"),
        ("", ""),
    )
    return [[localized(ja, en) for ja, en in names], *rows]


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(character) in "WFA" else 1 for character in text)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """A table for a terminal, whose wide characters take two columns."""
    widths = [max(_width(row[place]) for row in rows) for place in range(len(rows[0]))] if rows else []
    return [
        "  ".join(cell + " " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def result_lines(outcome: Outcome, results: Results) -> list[str]:
    """What a terminal shows at the end."""
    lines = aligned(result_rows(outcome))
    language = language_rows(outcome, results)
    if language:
        lines += ["", *aligned(language)]
    if outcome.adoption is not None:
        lines += ["", localized(f"全体: {outcome.adoption.sentence.ja}", f"overall: {outcome.adoption.sentence.en}")]
    return lines


def _markdown_table(rows: Sequence[Sequence[str]]) -> list[str]:
    clean = [[_cell(cell) for cell in row] for row in rows]
    return [
        f"| {' | '.join(clean[0])} |",
        "|" + "---|" * len(clean[0]),
        *(f"| {' | '.join(row)} |" for row in clean[1:]),
    ]


def _cell(text: str) -> str:
    return on_one_line(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "\\`")


def markdown(outcome: Outcome, results: Results) -> str:
    """report.md, in the user's language."""
    planned = outcome.planned
    lines = [localized("# 学習の前と後", "# Before and after training"), ""]
    if outcome.adoption is not None:
        lines += [f"**{_cell(str(outcome.adoption.sentence))}**", ""]
    for side in planned.sides:
        label = localized({"before": "前", "after": "後"}[side.key], side.key)
        off = "" if side.adapter else localized("（アダプターなし）", " (without its adapter)")
        lines.append(f"- {label}: {_cell(side.name)}{off}")
    lines += ["", *_markdown_table(result_rows(outcome)), ""]
    language = language_rows(outcome, results)
    if language:
        lines += [localized("## 答えの言葉", "## Language of the answers"), "", *_markdown_table(language), ""]
    lines += _changed(outcome, results)
    lines += [localized("## 読み方", "## How to read it"), ""]
    lines += [f"- {_cell(line.strip())}" for line in plan_lines(planned, results, None)]
    share, bits = 100 * outcome.margins.share, outcome.margins.bits
    lines += [
        localized(
            f"- p は「差がない」ときに、これ以上の差が出る確率です（主な課題をまとめて Holm で補正、{LEVEL:g} 未満を差とみなします）。許容する低下は {share:g} 点、{bits:g} bits/字です。",
            f"- p: how often a difference like this comes without any (Holm over the main tasks; below {LEVEL:g} is one). "
            f"Allowed to be lost: {share:g} points, {bits:g} bits per character.",
        ),
        localized(f"- 1 問ごとの結果: {FILE}", f"- every item's result: {FILE}"),
        "",
    ]
    return "\n".join(lines)


def _changed(outcome: Outcome, results: Results) -> list[str]:
    """A few answers that changed, worst first."""
    lines: list[str] = []
    for task in outcome.planned.tasks:
        before, after = results.complete("before", task), results.complete("after", task)
        if task.kind not in ("answers", "instructions") or not before or not is_primary(task, outcome.planned.tasks):
            continue
        changed = [item for item in task.items if before[item.name]["answer"] != after[item.name]["answer"]]
        changed.sort(key=lambda item: after[item.name]["score"] - before[item.name]["score"])
        picked = [*changed[:_EXAMPLES], *changed[_EXAMPLES:][-_EXAMPLES:]]
        if not picked:
            continue
        heading = [
            localized(ja, en)
            for ja, en in (("質問", "question"), ("正解", "expected"), ("前", "before"), ("後", "after"))
        ]
        rows = [heading]
        for item in picked:
            texts = (item.text, " / ".join(item.accepted), before[item.name]["answer"], after[item.name]["answer"])
            rows.append([text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…" for text in texts])
        lines += [localized(f"## 変わった答え: {title_of(task)}", f"## Answers that changed: {title_of(task)}"), ""]
        lines += [*_markdown_table(rows), ""]
    return lines


def numbers(outcome: Outcome) -> dict[str, Any]:
    """report.json, for programs."""
    tasks: dict[str, Any] = {}
    for finding in outcome.findings:
        compared = finding.compared
        tasks[finding.task.name] = {
            "items": len(finding.task.items),
            "metric": finding.task.primary_metric,
            "primary": finding.primary,
            "finding": finding.word,
            "why": None if finding.why is None else finding.why.en,
            "after": finding.mean,
            "p": finding.p,
            "others": {name: {"before": before, "after": after} for name, before, after in finding.others},
        }
        if compared is not None:
            tasks[finding.task.name] |= {
                "before": compared.before,
                "after": compared.after,
                "gain_interval": list(compared.interval),
                "p_alone": compared.p,
            }
    return {
        "decision": None if outcome.adoption is None else outcome.adoption.decision,
        "why": None if outcome.adoption is None else outcome.adoption.why.en,
        "models": {side.key: {"name": side.name, "adapter": side.adapter} for side in outcome.planned.sides},
        "tasks": tasks,
        "language": [
            {"task": i.task.name, "fault": i.fault, "before": i.before, "after": i.after, "p": i.p, "veto": i.veto}
            for i in outcome.language
        ],
        "left_out": [reason.en.strip() for reason in outcome.planned.left_out],
    }


def write_report(outcome: Outcome, results: Results, folder: Path) -> Path:
    """report.md and report.json; returns the first.

    Raises:
        StorageError: they cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(numbers(outcome), ensure_ascii=False, indent=1)
        (folder / NUMBERS).write_text(f"{text}\n", encoding="utf-8")
        (folder / REPORT).write_text(markdown(outcome, results), encoding="utf-8")
    except OSError as error:
        raise StorageError(
            f"{argument(folder)} に書き込めませんでした（{error.strerror or error}）。書き込める場所を指定してください。",
            f"{argument(folder)} could not be written ({error.strerror or error}); choose a writable folder.",
        ) from error
    return folder / REPORT
