"""What the doctor says: for a terminal in the user's language, and as JSON with the stable keys of the rules.

Lines for a terminal hold beginnings of texts, escaped as everything from outside; the JSON holds places only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from ...errors import localized
from ...messages import excerpt, on_one_line
from .examination import Examination, Hit
from .passages import Passage
from .repair import Repaired, Wanted, repair
from .rules import BY_KEY, RULES, Rule

# Hits that --show prints, and characters before and behind what was found.
SHOWN, AROUND = 50, 30
_EXAMPLE = 20
_WIDTH = 30


def _group(found: Examination, rule: Rule) -> str:
    """The words that a line begins with."""
    severity = found.severity(rule)
    if severity == "error":
        return localized("エラー", "error")
    if rule.fix is not None and rule.safe:
        return localized("直せる（安全）", "fixable (safe)")
    return localized("要確認", "to check") if severity != "note" else localized("情報", "for information")


_ORDER = ("エラー", "error", "直せる（安全）", "fixable (safe)", "要確認", "to check", "情報", "for information")


def lines(found: Examination, done: Repaired | None = None) -> list[str]:
    """The report, a line each.

    Args:
        found: the examination.
        done: what `--fix` and `--mask` changed; None where nothing was asked for.
    """
    obtained = [on_one_line(line) for line in found.report.lines()]
    total = max(1, len(found.samples))
    shown = []
    for rule in found.rules:
        rows = found.rows(rule.key)
        if rows:
            group = _group(found, rule)
            name = f"{localized(rule.ja, rule.en)} ({rule.key})"
            count = localized(f"{rows:,} 行", f"{rows:,} rows")
            shown.append(
                (
                    _ORDER.index(group),
                    f" {group}  {name}  {count} ({rows / total:.1%})  {_example(found, rule)}".rstrip(),
                )
            )
    obtained += [line for _, line in sorted(shown, key=lambda pair: pair[0])]
    obtained += [f"   {on_one_line(line)}" for line in _unreadable(found)]
    obtained += _gauge_lines(found)
    obtained += _leakage_lines(found)
    clean = [
        localized(rule.ja, rule.en) for rule in found.rules if not found.rows(rule.key) and _was_looked_for(found, rule)
    ]
    if clean:
        obtained.append(localized(" 見つからない  " + "、".join(clean), " not found  " + "; ".join(clean)))
    return [*obtained, *(_closing(found) if done is None else repaired_lines(found, done))]


def _was_looked_for(found: Examination, rule: Rule) -> bool:
    if rule.key.startswith("leak_"):
        return found.leakage is not None
    return rule.key != "special_token" or "special_token" in found.hits


def _unreadable(found: Examination) -> list[str]:
    if not len(found.bad) or not any(rule.key == "unreadable" for rule in found.rules):
        return []
    return [localized(ja, en) for ja, en in found.bad.listed()]


def _passage(found: Examination, hit: Hit) -> Passage | None:
    sample = found.samples[hit.number - 1]
    return next((item for item in sample.passages if item.place == hit.place), None) if hit.place else None


def _example(found: Examination, rule: Rule) -> str:
    """The first hit: the row, what stands there, and what a repair makes of it."""
    hits = found.hits.get(rule.key)
    if not hits:
        return ""
    hit = hits[0]
    head = localized("例 ", "e.g. ") + on_one_line(hit.source)
    item = _passage(found, hit)
    if item is None or rule.mask:  # what is to be masked is not shown without being asked for
        return f"{head} ← {on_one_line(hit.others[0])}" if hit.others else head
    start = max(0, hit.spans[0][0] - _EXAMPLE // 2)
    before = excerpt(item.text[start:])
    if not callable(rule.fix):
        return f"{head}  {before}"
    after = rule.fix(item)
    return f"{head}  {before}" if after == item.text else f"{head}  {before} → {excerpt(after[start:])}"


def _gauge_lines(found: Examination) -> list[str]:
    gauges = found.gauges
    if not gauges:
        return []
    polite, plain = gauges["polite_sentences"], gauges["plain_sentences"]
    both = max(1, polite + plain)
    head = localized(" 情報", " for information")
    obtained = [
        localized(
            f"{head}  回答 {gauges['answers']:,}、文末 敬体 {polite / both:.0%}・常体 {plain / both:.0%}、日本語の文字 "
            f"{gauges['ja_share']:.0%}、断る回答 {gauges['refusal_share']:.1%}、「あなた」{gauges['anata_share']:.1%}"
            f"（人手の日本語では 2 % ほど、機械翻訳では 20 % ほど）、長さの中央値 {gauges['median_length']} 字",
            f"{head}  {gauges['answers']:,} answers; sentences 敬体 {polite / both:.0%}, 常体 {plain / both:.0%}; Japanese "
            f"characters {gauges['ja_share']:.0%}; refusals {gauges['refusal_share']:.1%}; あなた {gauges['anata_share']:.1%} "
            f"(about 2 % where people write, 20 % in machine translation); median length {gauges['median_length']}",
        )
    ]
    marks = "  ".join(f"{mark} {count:,}" for mark, count in gauges["punctuation"].items() if count)
    wide, narrow = gauges["full_width_digits"], gauges["half_width_digits"]
    obtained.append(
        localized(
            f"{head}  句読点 {marks}、数字 全角 {wide:,}・半角 {narrow:,}",
            f"{head}  punctuation {marks}; digits full-width {wide:,}, half-width {narrow:,}",
        )
    )
    if "class_shares" in gauges:
        shares = ", ".join(f"{share:.1%}" for share in gauges["class_shares"])
        obtained.append(
            localized(f"{head}  回答の種類の割合 {shares}", f"{head}  shares of the kinds of answers {shares}")
        )
    if found.common:
        listed = ", ".join(f"{excerpt(text)} {count}" for text, count in found.common)
        obtained.append(localized(f"{head}  よくある回答: {listed}", f"{head}  most frequent answers: {listed}"))
    return obtained


def _leakage_lines(found: Examination) -> list[str]:
    leakage = found.leakage
    if leakage is None:
        return []
    obtained = []
    if found.evaluated_bad:
        obtained.append(
            localized(
                f" 要確認  評価データの {found.evaluated_bad:,} 行は学習や評価に使えない行です（評価データのファイルも aift data doctor で確かめてください）",
                f" to check  {found.evaluated_bad:,} rows of the evaluation data cannot be used (examine that file as well)",
            )
        )
    if not leakage.sampled:
        return obtained
    ours, theirs = leakage.looked_at
    return [
        *obtained,
        localized(
            f" 情報  ほぼ同じ行と 9 割を含む行は、学習 {leakage.rows[0]:,} 行のうち {ours:,} 行、評価 {leakage.rows[1]:,} 行のうち {theirs:,} "
            "行の標本で調べました",
            f" for information  near duplicates and coverage were looked for in a sample: {ours:,} of {leakage.rows[0]:,} "
            f"training rows and {theirs:,} of {leakage.rows[1]:,} evaluation rows",
        ),
    ]


def _closing(found: Examination) -> list[str]:
    hit = {hit.number for rule in found.rules if rule.safe for hit in found.hits.get(rule.key, ())}
    wanted = Wanted(fix="safe", rules=found.rules, columns=found.columns, objective=found.objective)
    tried = repair([sample for sample in found.samples if sample.number in hit], wanted)
    places, drops = sum(tried.changed.values()), sum(tried.dropped.values())
    checks = [
        rule.key for rule in found.rules if found.rows(rule.key) and found.severity(rule) != "note" and not rule.safe
    ]
    obtained = []
    if places or drops:
        obtained.append(
            localized(
                f"--fix safe --out FILE で {places:,} か所を直し、{drops:,} 行を除きます。",
                f"--fix safe --out FILE repairs {places:,} places and leaves {drops:,} rows out.",
            )
        )
    if checks:
        obtained.append(
            localized(
                f"--show {checks[0]} のように書くと、見つかった所を表示します。",
                f"--show {checks[0]} shows what was found.",
            )
        )
    return obtained


def repaired_lines(found: Examination, done: Repaired) -> list[str]:
    """What was changed, by rule."""
    changed = ", ".join(f"{key} {count:,}" for key, count in done.changed.items())
    dropped = ", ".join(f"{key} {count:,}" for key, count in done.dropped.items())
    places, rows = sum(done.changed.values()), sum(done.dropped.values())
    return [
        localized(
            f"直した所: {places:,}" + (f"（{changed}）" if changed else "") + f"、除いた行: {rows:,}" + (f"（{dropped}）" if dropped else "")
            + f"、残り {len(done.rows):,} / {len(found.samples):,} 行",
            f"repaired places: {places:,}" + (f" ({changed})" if changed else "") + f"; rows left out: {rows:,}"
            + (f" ({dropped})" if dropped else "") + f"; {len(done.rows):,} of {len(found.samples):,} rows remain",
        )
    ]  # fmt: skip


def shown(found: Examination, key: str) -> Iterator[str]:
    """The hits of a rule, with what stands around them."""
    rule = BY_KEY[key]
    if key == "unreadable":
        yield from (on_one_line(localized(ja, en)) for ja, en in found.bad.listed(excerpts=True))
        return
    hits = found.hits.get(key, [])
    for hit in hits[:SHOWN]:
        item = _passage(found, hit)
        if item is None:
            yield f"{on_one_line(hit.source)}  ← {on_one_line(', '.join(hit.others))}"
            continue
        start, stop = hit.spans[0]
        before, behind = item.text[max(0, start - AROUND) : start], item.text[stop : stop + AROUND]
        middle = item.text[start : min(stop, start + 2 * AROUND)]
        line = f"{on_one_line(hit.source)} [{item.role}]  {on_one_line(before)}⟨{on_one_line(middle)}⟩{on_one_line(behind)}"
        yield line + (
            localized(f"（ほか {len(hit.spans) - 1} か所）", f" (and {len(hit.spans) - 1} more)")
            if hit.spans[1:]
            else ""
        )
        if callable(rule.fix):
            yield f"    → {on_one_line(rule.fix(item)[max(0, start - AROUND) : stop + AROUND])}"
    if len(hits) > SHOWN:
        yield localized(f"ほか {len(hits) - SHOWN} か所", f"and {len(hits) - SHOWN} more")


def as_json(found: Examination, done: Repaired | None = None) -> dict[str, Any]:
    """The report for programs: keys do not change, places are named, no text of a row stands in it."""
    rules = {
        rule.key: {
            "severity": found.severity(rule),
            "safe": rule.safe,
            "rows": found.rows(rule.key),
            "hits": [
                {
                    "row": hit.number,
                    "source": hit.source,
                    "place": list(hit.place),
                    "spans": [list(span) for span in hit.spans],
                    "others": list(hit.others),
                }
                for hit in _hits(found, rule.key)
            ],
        }
        for rule in RULES
        if rule in found.rules
    }
    report: dict[str, Any] = {
        "file": found.report.path,
        "rows": len(found.samples),
        "rules": rules,
        "unreadable": [en for _, en in found.bad.listed()],
        "gauges": found.gauges,
        "errors": found.has_errors,
    }
    if found.leakage is not None:
        leakage = found.leakage
        report["leakage"] = {
            "evaluated": leakage.evaluated,
            "looked_at": list(leakage.looked_at),
            "of": list(leakage.rows),
            "unusable": found.evaluated_bad,
        }
    if done is not None:
        report["repaired"] = {"changed": dict(done.changed), "dropped": dict(done.dropped), "rows": len(done.rows)}
    return report


def _hits(found: Examination, key: str) -> list[Hit]:
    """What a rule found, by rows; of the rows that cannot be used those that could be read as rows."""
    if key != "unreadable":
        return found.hits.get(key, [])
    return [Hit(number, found.samples[number - 1].source) for number in found.refused]


def json_text(found: Examination, done: Repaired | None = None) -> str:
    """`as_json` as text."""
    return json.dumps(as_json(found, done), ensure_ascii=False, indent=1) + "\n"
