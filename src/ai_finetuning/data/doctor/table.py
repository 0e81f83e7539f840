"""A file examined and written as a folder that is read a page at a time (data/paged.py)."""

from __future__ import annotations

import json
import re
from array import array
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...errors import DataError
from ..formats import find_format
from ..judgements import is_marked_bad
from ..paged import FORMAT, FOUND, ROWS, STARTS, SUMMARY
from ..row_format import blank
from .examination import Examination, Hit, examine
from .passages import JUDGED, Sample
from .rules import BY_KEY

# A row longer than this many characters is likely cut at the default data.max_length of 512 tokens: one token is about 1.5
# characters of Japanese. Only an estimate for a filter; the tokens of a row are counted by the model's own tokenizer.
LONG_CHARACTERS = 768
_SPANS = 5  # places of one finding in one text that a page marks
_COLUMNS = 200  # headings that are told
_LINE = re.compile(r"(\d+)\]?$")
# The columns that a person can choose, by the role of the text in them, for plain rows and for pairs.
_ROLES = {"question": "instruction", "material": "input", "answer": "output"}
_PAIR = {"question": "instruction", "answer": "chosen", "rejected": "rejected"}


def write_table(
    path: str | Path, folder: Path, *, columns: Mapping[str, str] | None = None, sheet: str | None = None
) -> dict[str, Any]:
    """Examines a file, as `aift data doctor` does, and writes its rows with what was found. Gives what SUMMARY holds:

    `rows`; `unread` (lines that are no rows) and `unreadable` (their and other rows' reasons, [ja, en]); `kind`, `encoding`,
    `sheet`, `sheets` ([name, rows, whether a heading fits]), `notes` ([ja, en]); `columns` (headings) and `roles` (role ->
    heading) where a row has columns to choose; `form` (`conversation`, `pair`, `marked`, `text` or `unknown`); `filters`
    (key, ja, en, severity, rows, first); `gauges`, as in the doctor's report.

    Args:
        path: the file.
        folder: an empty folder.
        columns, sheet: as in the settings of data.

    Raises:
        InputNotFoundError, DataError: see files.read_rows. OSError: the folder cannot be written.
    """
    found = examine(path, columns=columns, sheet=sheet)
    marks = {sample.number: _mark(sample, columns) for sample in found.samples}
    by_row = _found_by_row(found)
    groups: dict[str, list[int]] = defaultdict(list)
    starts = array("Q", [0])
    with (folder / ROWS).open("wb") as file:
        for sample in found.samples:
            hits = by_row.get(sample.number, {})
            for key in _filters_of(sample, hits, found):
                groups[key].append(sample.number)
            line = _line(sample, hits, marks[sample.number], found.refused.get(sample.number))
            starts.append(starts[-1] + file.write(line))
    (folder / STARTS).write_bytes(starts.tobytes())
    summary = _summary(found, groups, marks)
    (folder / FOUND).write_bytes(array("I", [number for key in groups for number in groups[key]]).tobytes())
    (folder / SUMMARY).write_text(json.dumps(summary, ensure_ascii=True), encoding="utf-8")
    return summary


_Hits = dict[str, list[tuple[Any, tuple[tuple[int, int], ...]]]]


def _found_by_row(found: Examination) -> dict[int, _Hits]:
    """Of each row what was found: by the rule's key (place of the text, spans in it)."""
    rows: dict[int, _Hits] = defaultdict(lambda: defaultdict(list))
    for key, hits in found.hits.items():
        mask = BY_KEY[key].mask
        for hit in hits:
            spans = hit.spans if not mask else _unmasked(found.samples[hit.number - 1], hit, mask)
            if spans or not hit.spans:
                rows[hit.number][key].append((hit.place, spans[:_SPANS]))
    return rows


def _unmasked(sample: Sample, hit: Hit, mask: str) -> tuple[tuple[int, int], ...]:
    """The spans of a hit without those that hold what `--mask` puts there, which looks like the number that it hides."""
    text = next((item.text for item in sample.passages if item.place == hit.place), "")
    return tuple((start, stop) for start, stop in hit.spans if text[start:stop] != mask)


def _filters_of(sample: Sample, hits: _Hits, found: Examination) -> Iterator[str]:
    """The filters that a row is in: groups of rules that people ask for by one word, else the rule itself."""
    if sample.number in found.refused:
        yield "empty" if _has_gap(sample) else "unreadable"
    if sum(len(item.text) for item in sample.passages) > LONG_CHARACTERS:
        yield "long"
    masked = {rule.key for rule in found.rules if rule.mask}
    if masked & hits.keys():
        yield "personal"
    yield from (key for key in hits if key not in masked)


def _has_gap(sample: Sample) -> bool:
    """Whether a row misses its question or an answer."""
    said = {item.role for item in sample.passages if not blank(item.text)}
    answered = {"answer", "rejected"} <= said if sample.pair else bool({"answer", "rejected"} & said)
    return sample.learnt and "text" not in said and not (answered and "question" in said)


def _mark(sample: Sample, columns: Mapping[str, str] | None) -> str:
    """`pair`, `good` or `bad` of answers that people compare or judge; else empty."""
    try:
        obtained, shape = find_format(sample.values, columns)
    except DataError:
        return ""
    key = obtained.key if obtained is not None else ""
    if key not in JUDGED:
        return ""
    return "pair" if JUDGED[key] == "preference" else "bad" if is_marked_bad(shape) else "good"


def _line(sample: Sample, hits: _Hits, mark: str, refused: tuple[str, str] | None) -> bytes:
    """A row of ROWS: `number`, `line` (in the file), `values` (as read), `texts` ([role, text, spans]), `mark`, `found`
    (keys), and `refused` ([ja, en]) where training would refuse it.
    """
    spans: dict[Any, list[tuple[int, int]]] = defaultdict(list)
    for places in hits.values():
        for place, some in places:
            spans[place] += some
    row = {
        "number": sample.number,
        "line": number.group(1) if (number := _LINE.search(sample.source)) is not None else "",
        "values": sample.values,
        "texts": [[item.role, item.text, _apart(spans.get(item.place, []))] for item in sample.passages],
        "mark": mark,
        "found": sorted(hits),
        "refused": refused,
    }
    return json.dumps(row, ensure_ascii=True, default=str).encode("ascii") + b"\n"


def _apart(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans in order, without those that begin inside another one."""
    obtained: list[tuple[int, int]] = []
    for start, stop in sorted(spans):
        if not obtained or start >= obtained[-1][1]:
            obtained.append((start, stop))
    return obtained


def _summary(found: Examination, groups: Mapping[str, list[int]], marks: Mapping[int, str]) -> dict[str, Any]:
    names = list(dict.fromkeys(str(key) for sample in found.samples[:100] for key in sample.values))
    first, filters = 0, []
    for key, numbers in groups.items():
        rule = BY_KEY.get(key)
        filters.append(
            {
                "key": key,
                "ja": rule.ja if rule is not None else "",
                "en": rule.en if rule is not None else "",
                "severity": found.severity(rule) if rule is not None else _SEVERITY[key],
                "rows": len(numbers),
                "first": first,
            }
        )
        first += len(numbers)
    report = found.report
    return {
        "format": FORMAT,
        "rows": len(found.samples),
        "unread": found.unread,
        "unreadable": [list(pair) for pair in found.bad.listed()],
        "kind": report.kind,
        "encoding": report.encoding if report.sheet is None else None,
        "sheet": report.sheet,
        "sheets": [
            [name, len(found.samples) if name == report.sheet else count - fits, fits]
            for name, count, fits in report.sheets
        ],
        "notes": [list(note) for note in report.notes],
        "columns": names[:_COLUMNS],
        "roles": _roles(found),
        "form": _form(found, marks),
        "filters": filters,
        "gauges": found.gauges,
    }


_SEVERITY = {"empty": "error", "long": "note", "personal": "check"}


def _roles(found: Examination) -> dict[str, str]:
    """Role -> heading of the columns that hold the question and the answers, each in a column of its own."""
    for sample in found.samples[:100]:
        own = _PAIR if sample.pair else _ROLES
        roles = {own[item.role]: str(item.place[0]) for item in sample.passages if item.role in own}
        if {"instruction", "output"} <= roles.keys() or {"chosen", "rejected"} <= roles.keys():
            return roles if len(set(roles.values())) == len(roles) else {}
    return {}


def _form(found: Examination, marks: Mapping[int, str]) -> str:
    kinds = set(marks.values())
    if "pair" in kinds:
        return "pair"
    if kinds & {"good", "bad"}:
        return "marked"
    learnt = [sample for sample in found.samples if sample.learnt]
    if not learnt:
        return "unknown"
    return "text" if all(item.role == "text" for item in learnt[0].passages) else "conversation"
