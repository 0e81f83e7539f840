"""Rows repaired, masked or left out, every change in a journal, and the way back.

The journal (`doctor.jsonl`) has one change a line: what stood in a place of a row and what stands there now, or the whole row
that was left out. Undone from the last line to the first, it gives every row as it was read.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...config.preference import Objective
from ...errors import DataError
from ...japanese.style import Style, styles
from ...system.files import read_bounded, replacing, write_in_place
from ..rows import Row
from .examination import near_groups, pair_of, refusal_of
from .passages import Passage, Sample, replaced, sample_of, text_at
from .personal import masked
from .rules import DROP, RULES, Rule, find

JOURNAL = "doctor.jsonl"
_FORMAT = 1
_MOST_BYTES = 1 << 31
_ROUNDS = 8  # over a row, far more than repairs uncover one after another


@dataclass
class Repaired:
    """What became of the rows.

    Attributes:
        rows: those that are left, as they are now.
        journal: every change, in order.
        changed: changes by rule.
        dropped: rows left out by rule.
    """

    rows: list[Sample] = field(default_factory=list)
    journal: list[dict[str, Any]] = field(default_factory=list)
    changed: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Wanted:
    """What is to be done.

    Attributes:
        fix: `safe`, `all`, or None for nothing but masks.
        mask: whether personal data and secrets are masked.
        style: the style that answers have to have; rows of another one, or of both, are left out.
        rules: the rules that may change anything.
        columns: roles of columns, as the file was read with.
        objective: what is learnt from the rows.
    """

    fix: str | None = None
    mask: bool = False
    rules: tuple[Rule, ...] = RULES
    columns: Mapping[str, str] | None = None
    style: Style | None = None
    objective: Objective = "sft"

    def makes(self, rule: Rule) -> bool:
        """Whether a rule's fix is made."""
        return rule.fix is not None and (self.fix == "all" or (self.fix == "safe" and rule.safe))


def repair(samples: Sequence[Sample], wanted: Wanted) -> Repaired:
    """The rows with all wanted repairs; a pure function."""
    done = Repaired()
    for sample in samples:
        now = _texts_repaired(sample, wanted, done)
        reason = _leave_out(now, wanted)
        if reason is not None:
            _drop(now, reason, done)
        else:
            done.rows.append(now)
    duplicates = next((rule for rule in wanted.rules if rule.key == "near_duplicate"), None)
    if duplicates is not None and wanted.makes(duplicates):
        again = near_groups(done.rows, [pair_of(item) for item in done.rows])
        chosen = {index for group in again for index in group[1:]}
        for index in sorted(chosen):
            _drop(done.rows[index], duplicates.key, done)
        done.rows = [item for index, item in enumerate(done.rows) if index not in chosen]
    if wanted.mask:
        done.rows = [_masked(item, wanted, done) for item in done.rows]
    return done


def _drop(sample: Sample, key: str, done: Repaired) -> None:
    done.dropped[key] += 1
    done.journal.append({"row": sample.number, "source": sample.source, "rule": key, "dropped": dict(sample.values)})


def _texts_repaired(sample: Sample, wanted: Wanted, done: Repaired) -> Sample:
    """Until nothing is left to repair: what one rule takes away may have stood between what another one joins."""
    for _ in range(_ROUNDS):
        before = done.changed.total()
        for rule in wanted.rules:
            if not wanted.makes(rule) or rule.fix == DROP:
                continue
            for item in sample.passages:
                if find(rule, item) and callable(rule.fix):
                    sample = _with_text(sample, item, rule.fix(item), rule.key, wanted, done)
        if done.changed.total() == before:
            break
    return sample


def _with_text(sample: Sample, item: Passage, text: str, key: str, wanted: Wanted, done: Repaired) -> Sample:
    """A sample with another text in a passage's place, noted in the journal; the same one where nothing changed."""
    if text == item.text:
        return sample
    done.changed[key] += 1
    done.journal.append(
        {
            "row": sample.number,
            "source": sample.source,
            "rule": key,
            "place": list(item.place),
            "before": item.text,
            "after": text,
        }
    )
    row = Row(replaced(sample.values, item.place, text), sample.source)
    return sample_of(row, sample.number, wanted.columns)


def _leave_out(sample: Sample, wanted: Wanted) -> str | None:
    """The rule by which a row is left out, after its repairs; None where it stays."""
    for rule in wanted.rules:
        if not wanted.makes(rule):
            continue
        # What could not be repaired is left out, but only where every fix is wanted.
        if rule.fix != DROP and not (rule.key in ("mojibake", "template_token") and wanted.fix == "all"):
            continue
        if any(find(rule, item) for item in sample.passages):
            return rule.key
    if wanted.style is not None and any(_has_other_style(item, wanted.style) for item in sample.passages):
        return "style_mixed"
    unreadable = next((rule for rule in wanted.rules if rule.key == "unreadable" and wanted.makes(rule)), None)
    if unreadable is not None and _is_refused(sample, wanted):
        return unreadable.key
    emptied = wanted.fix == "all" and any(item.role == "answer" and not item.text.strip() for item in sample.passages)
    return "template_token" if emptied else None


def _is_refused(sample: Sample, wanted: Wanted) -> bool:
    return refusal_of(Row(dict(sample.values), sample.source), wanted.columns, wanted.objective) is not None


def _has_other_style(item: Passage, wanted: Style) -> bool:
    """Whether an answer mixes both styles, or has more sentences of the other one."""
    found = styles(item.text) if item.role == "answer" else None
    if found is None:
        return False
    own, other = (found.polite, found.plain) if wanted == "polite" else (found.plain, found.polite)
    return found.mixed or other > own


def _masked(sample: Sample, wanted: Wanted, done: Repaired) -> Sample:
    for rule in wanted.rules:
        if not rule.mask:
            continue
        for item in sample.passages:
            spans = [(start, stop) for start, stop in find(rule, item) if item.text[start:stop] != rule.mask]
            if spans:
                sample = _with_text(sample, item, masked(item.text, spans, rule.mask), rule.key, wanted, done)
    return sample


def _lines(values: Iterable[Mapping[str, Any]]) -> bytes:
    return "".join(_line(item) for item in values).encode("utf-8")


def _line(values: Mapping[str, Any]) -> str:
    text = json.dumps(values, ensure_ascii=False, default=str)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # a lone surrogate is written as its escape
        text = json.dumps(values, default=str)
    return text + "\n"


def write(done: Repaired, samples: Sequence[Sample], out: Path) -> Path:
    """Writes the rows as JSON Lines and the journal beside them, which only its owner can read: it holds what was masked.
    Gives the journal's path.

    Raises:
        OSError: they cannot be written.
    """
    head = {"doctor": _FORMAT, "rows": len(samples), "kept": len(done.rows)}
    journal = out.with_name(JOURNAL)
    with replacing(journal, mode=0o600) as file:
        file.write(_lines([head, *done.journal]))
    write_in_place(out, _lines(item.values for item in done.rows))
    return journal


def undo(rows: Sequence[Mapping[str, Any]], journal: Path) -> list[dict[str, Any]]:
    """The rows as they were before the changes of a journal.

    Args:
        rows: those that the doctor wrote.
        journal: its doctor.jsonl.

    Raises:
        DataError: no such journal, or it is not of these rows.
    """
    name = str(journal)
    try:
        lines = [
            json.loads(line) for line in read_bounded(journal, _MOST_BYTES).decode("utf-8").split("\n") if line.strip()
        ]
        head, changes = lines[0], lines[1:]
        dropped = {int(item["row"]) for item in changes if "dropped" in item}
        total = int(head["rows"])
        if head["doctor"] != _FORMAT or total > len(rows) + len(changes):
            raise ValueError("rows")
        kept = [number for number in range(1, total + 1) if number not in dropped]
        if len(kept) != len(rows):
            raise ValueError("rows")
        now: dict[int, Any] = dict(zip(kept, rows, strict=True))
        for item in reversed(changes):
            number = int(item["row"])
            if "dropped" in item:
                now[number] = item["dropped"]
            elif text_at(now[number], item["place"]) != item["after"]:
                raise ValueError("after")
            else:
                now[number] = replaced(now[number], item["place"], str(item["before"]))
    except (OSError, ValueError, KeyError, IndexError, TypeError, RecursionError):
        raise DataError(
            f"{name} は、この行の記録ではありません。`--fix` が書き出したファイルと、そのとき隣に書かれた {JOURNAL} を、書き換えずに指定してください。",
            f"{name} is no journal of these rows; give the file that `--fix` wrote and the {JOURNAL} beside it, both "
            "as they were written.",
        ) from None
    return [dict(now[number]) for number in sorted(now)]


def write_rows(rows: Iterable[Mapping[str, Any]], out: Path) -> None:
    """Writes rows as JSON Lines.

    Raises:
        OSError: the file cannot be written.
    """
    write_in_place(out, _lines(rows))
