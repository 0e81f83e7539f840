"""report.html: a run on one page, to be read by people who did not make it; one file, offline, no script.

The page is in the user's language and is written again while the run is at work. Texts of rows stand in it among the
sample answers only.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from ..config.describe import settings
from ..errors import Reason, localized, prefers_japanese
from ..messages import printable
from .before_after_report import Outcome, language_rows, result_rows
from .curves import Curve, curve_of, legend, more_curves, svg
from .figures import figures_of
from .results import Results
from .samples import Sample
from .verdict import WORDS, Verdict, figure, verdict

State = Literal["running", "stopped", "completed"]
# Characters of a sample's text that are shown.
LONGEST_TEXT = 600
# Nothing is loaded from anywhere, and nothing runs, whatever a text may hold.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_STYLE = """
:root{color-scheme:light dark;--text:#1f2328;--soft:#59636e;--line:#d1d9e0;--back:#fff;--box:#f6f8fa;--raw:#9ecae1;--smooth:#08519c;
--evaluation:#c2410c;--good:#1a7f37;--bad:#b42318;--plain:#59636e}
@media (prefers-color-scheme:dark){:root{--text:#e6edf3;--soft:#9198a1;--line:#3d444d;--back:#0d1117;--box:#151b23;--raw:#31587a;
--smooth:#79c0ff;--evaluation:#ffa657;--good:#56d364;--bad:#ff7b72;--plain:#9198a1}}
*{box-sizing:border-box}
body{font-family:system-ui,"Hiragino Sans","Yu Gothic UI","Noto Sans JP","Noto Sans CJK JP",sans-serif;line-height:1.6;max-width:60rem;margin:0 auto;
padding:1.5rem 1rem 3rem;color:var(--text);background:var(--back);overflow-wrap:anywhere}
h1{font-size:1.5rem;line-height:1.3;margin:0}h2{font-size:1.15rem;margin:2rem 0 .5rem}
p{margin:.4rem 0}.soft{color:var(--soft);font-size:.9rem}
.verdict{border-left:.35rem solid var(--plain);background:var(--box);padding:.7rem 1rem;margin:1rem 0}
.verdict b{display:block;font-size:1.1rem}.verdict.good{border-color:var(--good)}.verdict.bad{border-color:var(--bad)}
.note{border:1px solid var(--line);border-radius:.4rem;padding:.5rem .8rem}
.box{overflow-x:auto;max-width:100%}
table{border-collapse:collapse;margin:.3rem 0}
td,th{border-bottom:1px solid var(--line);padding:.3rem .7rem .3rem 0;text-align:left;vertical-align:top}
th{font-weight:600}td.number{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
.facts th{color:var(--soft);font-weight:400;white-space:nowrap}
.curve{width:100%;max-width:42rem;height:auto;display:block}
.curve text{fill:var(--text);font-size:13px}.curve .grid{stroke:var(--line)}.curve polyline{fill:none}
.raw{stroke:var(--raw)}.smooth{stroke:var(--smooth);stroke-width:2}.evaluation{stroke:var(--evaluation);stroke-width:2}
.curve .point{fill:var(--evaluation)}.best{fill:none;stroke:var(--evaluation);stroke-width:2}.curve .mark{font-weight:600}
.legend{display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;padding:0;margin:.3rem 0;list-style:none;font-size:.9rem}
.legend svg{width:1.6rem;height:.9rem;vertical-align:middle;margin-right:.3rem}
.sample{border:1px solid var(--line);border-radius:.4rem;padding:.3rem .9rem .6rem;margin:.6rem 0}
.sample dt{color:var(--soft);font-size:.85rem;margin-top:.4rem}.sample dd{margin:0;white-space:pre-wrap}
pre{background:var(--box);padding:.6rem .8rem;border-radius:.4rem;overflow-x:auto;margin:.4rem 0}
details{margin:1rem 0}summary{cursor:pointer;font-weight:600}code{font-size:.85rem;color:var(--soft)}pre code{color:var(--text)}
"""


# Around what the verdict puts into a page that is there already; every other text is escaped.
_MARKS = ("<!--verdict-->", "<!--/verdict-->")


@dataclass(frozen=True)
class DataSummary:
    """What was trained on, without a word of it.

    Attributes:
        train, evaluation: names of the files without their folders, or what else the data is.
        rows, eval_rows: after what was left out; rows is None where they are streamed, and not counted.
        tokens, label_tokens: of the training rows, in one epoch.
        left_out: rows by reason (Japanese, English).
    """

    train: Sequence[str]
    evaluation: Sequence[str]
    rows: int | None
    eval_rows: int
    tokens: int
    label_tokens: int
    left_out: Sequence[tuple[Reason, int]] = ()


@dataclass(frozen=True)
class Report:
    """Everything that the page shows.

    Attributes:
        model: its name for people; without the folders of a path.
        method: full, lora, qlora or pretrain.
        when: the moment of this page.
        state: of the run.
        step, total_steps: how far it is.
        history: rows of metrics.jsonl.
        data: what was trained on.
        samples: questions with answers; why there are none, if so.
        facts: (label, value) of what the run took.
        environment: (label, value) of where it ran.
        commands: (label, command) to copy.
        settings: values by dotted key.
        notes: what a reader should know, such as that some steps were skipped.
        few: that the steps are few, until a verdict says otherwise (`with_verdict`).
        saved_step: whose weights are saved.
    """

    model: str
    method: str
    when: datetime
    state: State
    step: int
    total_steps: int
    history: Sequence[dict[str, Any]]
    data: DataSummary
    samples: Sequence[Sample] | Reason
    facts: Sequence[tuple[Reason, str]] = ()
    environment: Sequence[tuple[Reason, str]] = ()
    commands: Sequence[tuple[Reason, str]] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    notes: Sequence[Reason] = ()
    few: Reason | None = None
    saved_step: int | None = None


def render_report(report: Report) -> str:
    """The page, in the user's language; every text in it is escaped."""
    found = verdict(report.history, report.saved_step)
    title = localized(f"学習レポート: {report.model}", f"Training report: {report.model}")
    parts = [
        "<!doctype html>",
        f'<html lang="{localized("ja", "en")}"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head><body>",
        f"<header><h1>{_text(title)}</h1>{_head(report)}</header>",
        "<main>",
        _verdict(report, found),
        *(_MARKS[0], _note(report.few), _MARKS[1]),
        _curve(report),
        _evaluations(report),
        _samples(report.samples),
        _section(Reason("学習データ", "Data"), _facts(_data(report.data))),
        _section(Reason("時間とメモリー", "Time and memory"), _facts(report.facts)) if report.facts else "",
        _section(Reason("環境", "Environment"), _facts(report.environment)) if report.environment else "",
        _commands(report.commands),
        _settings(report.settings),
        "</main></body></html>\n",
    ]
    return "".join(parts)


def _text(value: object) -> str:
    """A text as HTML that shows just its characters: controls too, and no half characters."""
    text = printable(str(value)).encode("utf-8", "replace").decode("utf-8")
    return html.escape(text)


def _section(title: Reason, content: str) -> str:
    return f"<section><h2>{_text(title)}</h2>{content}</section>"


def _facts(rows: Iterable[tuple[Reason, str]]) -> str:
    """(label, value) as a table that scrolls in a box of its own."""
    cells = "".join(f'<tr><th scope="row">{_text(label)}</th><td>{_text(value)}</td></tr>' for label, value in rows)
    return f'<div class="box"><table class="facts">{cells}</table></div>'


def _head(report: Report) -> str:
    step, total = f"{report.step:,}", f"{report.total_steps:,}"
    state = {
        "running": Reason(f"学習中: {step}/{total} ステップ", f"training: step {step} of {total}"),
        "stopped": Reason(f"中断: {step}/{total} ステップ", f"stopped at step {step} of {total}"),
        "completed": Reason(f"完了: {step} ステップ", f"completed: {step} steps"),
    }[report.state]
    when = f"{report.when:%Y-%m-%d %H:%M}"
    return (
        f'<p class="soft">{_text(report.method)} · <time>{when}</time> · <span class="state">{_text(state)}</span></p>'
    )


def _verdict(report: Report, found: Verdict) -> str:
    kind = {"better": " good", "overfitted": " bad", "worse": " bad", "diverged": " bad"}.get(found.kind, "")
    so_far = "" if report.state == "completed" else localized("（ここまで）", " (so far)")
    box = (
        f'<div class="verdict{kind}"><b>{_text(WORDS[found.kind])}{so_far}</b>'
        f"<p>{_text(found.sentence)}</p>{_best(found)}</div>"
    )
    return box + "".join(map(_note, report.notes))


def _note(note: Reason | None) -> str:
    return "" if note is None else f'<p class="note">{_text(note)}</p>'


def with_verdict(page: str, outcome: Outcome, results: Results, few: Reason | None = None) -> str:
    """A page with the verdict of the run in its place, below that of its evaluation losses; put there again, it replaces
    the former one.

    Args:
        few: that the steps are few, where that is still to be said.
    """
    before, mark, rest = page.partition(_MARKS[0])
    _, end, behind = rest.partition(_MARKS[1])
    if not mark or not end:
        return page
    return before + mark + _adoption(outcome, results) + _note(few) + end + behind


def _adoption(outcome: Outcome, results: Results) -> str:
    adoption = outcome.adoption
    kind = {"adopt": " good", "reject": " bad"}.get(adoption.decision, "") if adoption is not None else ""
    said = "" if adoption is None else f'<div class="verdict{kind}"><p>{_text(adoption.sentence)}</p></div>'
    tables = [result_rows(outcome), language_rows(outcome, results)]
    left = "".join(f'<p class="soft">{_text(str(reason).strip())}</p>' for reason in outcome.planned.left_out)
    return _section(Reason("学習の前と後", "Before and after training"), said + "".join(map(_table, tables)) + left)


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Rows below a heading; empty without any."""
    if not rows:
        return ""
    head = "".join(f'<th scope="col">{_text(cell)}</th>' for cell in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows[1:])
    return f'<div class="box"><table><tr>{head}</tr>{body}</table></div>'


def _best(found: Verdict) -> str:
    if found.best is None:
        return ""
    line = localized(
        f"最良のステップ: {found.best.step:,}（評価損失 {figure(found.best.loss)}）",
        f"best step: {found.best.step:,} (evaluation loss {figure(found.best.loss)})",
    )
    return f"<p>{_text(line)}</p>"


def _curve(report: Report) -> str:
    drawing = _drawing(curve_of(report.history), report.total_steps)
    if not drawing:
        return ""
    more = "".join(
        f"<h3>{_text(title)}</h3>{_drawing(curve, report.total_steps)}" for title, curve in more_curves(report.history)
    )
    return _section(Reason("損失の曲線", "Loss curve"), drawing + more)


def _drawing(curve: Curve, total_steps: int) -> str:
    drawing = svg(curve, total_steps)
    marks = "".join(f"<li>{_sign(kind)}{_text(name)}</li>" for kind, name in legend(curve))
    return f'<figure style="margin:0">{drawing}<ul class="legend">{marks}</ul></figure>' if drawing else ""


def _sign(kind: str) -> str:
    """What stands in front of a name in the legend."""
    shape = (
        '<circle class="best" cx="12" cy="7" r="5"/>'
        if kind == "best"
        else f'<line class="{kind}" x1="0" x2="24" y1="7" y2="7"/>'
    )
    return f'<svg viewBox="0 0 24 14" aria-hidden="true">{shape}</svg>'


def _evaluations(report: Report) -> str:
    scored = [row for row in report.history if row.get("eval_loss") is not None]
    if not scored:
        return ""
    figures = figures_of(scored)
    keys = [key for _, key in figures]
    head = "".join(f'<th scope="col">{_text(item)}</th>' for item in (_STEP, *(title for title, _ in figures)))
    rows = "".join(
        f'<tr><td class="number">{row["step"]:,}</td>'
        + "".join(f'<td class="number">{_text(figure(row.get(key)))}</td>' for key in keys)
        + "</tr>"
        for row in scored
    )
    title = localized(f"評価（{len(scored)} 回）", f"Evaluations ({len(scored)})")
    return f'<details><summary>{_text(title)}</summary><div class="box"><table><tr>{head}</tr>{rows}</table></div></details>'


_STEP = Reason("ステップ", "step")


def _samples(samples: Sequence[Sample] | Reason) -> str:
    title = Reason("回答の例", "Sample answers")
    if isinstance(samples, Reason):
        return _section(title, f'<p class="soft">{_text(samples)}</p>')
    if not samples:
        return ""
    note = Reason(
        "評価データから選んだ行への回答です。最も確からしい語を順に選んで作っています（同じモデルなら毎回同じ回答になります）。",
        "Answers to rows of the evaluation data, taking the likeliest token each time (one model gives one answer).",
    )
    labels = (
        Reason("質問", "question"),
        Reason("データの回答", "answer in the data"),
        Reason("学習前", "before training"),
        Reason("学習後", "after training"),
    )
    blocks = []
    for sample in samples:
        values = (sample.question, sample.expected, sample.before, sample.after)
        pairs = "".join(
            f"<dt>{_text(label)}</dt><dd>{_answer(value)}</dd>" for label, value in zip(labels, values, strict=True)
        )
        blocks.append(f'<dl class="sample">{pairs}</dl>')
    return _section(title, f'<p class="soft">{_text(note)}</p>' + "".join(blocks))


def _answer(value: str | None) -> str:
    if value is None:
        return f'<span class="soft">{_text(localized("（まだありません）", "(none yet)"))}</span>'
    if not value:
        return f'<span class="soft">{_text(localized("（空の回答）", "(an empty answer)"))}</span>'
    return _text(value if len(value) <= LONGEST_TEXT else value[:LONGEST_TEXT] + "…")


def _data(data: DataSummary) -> list[tuple[Reason, str]]:
    between = localized("、", ", ")
    left = sum(count for _, count in data.left_out)
    reasons = [f"{reason}: {count:,}" for reason, count in data.left_out]
    rows = [
        (Reason("学習データ", "training data"), between.join(data.train)),
        (Reason("評価データ", "evaluation data"), between.join(data.evaluation) or localized("なし", "none")),
        (
            Reason("行", "rows"),
            localized(
                f"学習 {'ストリーミング（数えません）' if data.rows is None else f'{data.rows:,}'}、評価 {data.eval_rows:,}",
                f"{'streamed' if data.rows is None else f'{data.rows:,}'} for training{' (not counted)' * (data.rows is None)}, "
                f"{data.eval_rows:,} for evaluation",
            ),
        ),
    ]
    if data.rows is not None:
        rows.append(
            (
                Reason("学習対象トークン", "label tokens"),
                localized(
                    f"{data.label_tokens:,}（1 エポック、全 {data.tokens:,} トークン中）",
                    f"{data.label_tokens:,} of {data.tokens:,} tokens, in one epoch",
                ),
            )
        )
    if left:
        rows.append((Reason("除いた行", "rows left out"), f"{left:,}"))
        rows += [(Reason("", ""), reason) for reason in reasons]
    return rows


def _commands(commands: Sequence[tuple[Reason, str]]) -> str:
    if not commands:
        return ""
    blocks = "".join(f"<p>{_text(label)}</p><pre><code>{_text(command)}</code></pre>" for label, command in commands)
    return _section(Reason("コマンド", "Commands"), blocks)


def _settings(values: dict[str, Any]) -> str:
    """Every setting by what it means, folded; its key beside it for whoever wants to change it."""
    if not values:
        return ""
    japanese = prefers_japanese()
    rows = []
    for item in settings():
        if item.is_section or item.key not in values:
            continue
        meaning = (item.ja if japanese else item.en).split("。" if japanese else ". ")[0].rstrip(".")
        rows.append(
            f'<tr><th scope="row">{_text(meaning)}<br><code>{_text(item.key)}</code></th>'
            f"<td>{_text(_shown(values[item.key]))}</td></tr>"
        )
    title = localized("すべての設定", "All settings")
    return f'<details class="settings"><summary>{_text(title)}</summary><div class="box"><table>{"".join(rows)}</table></div></details>'


def _shown(value: Any) -> str:
    """A setting's value for people."""
    if value is None or value == [] or value == "":
        return localized("指定なし", "not set")
    if isinstance(value, bool):
        return localized("はい", "yes") if value else localized("いいえ", "no")
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(_shown(item) for item in value)
    return str(value)
