"""Whatever the user hands in, to samples: texts, rows, conversations, a Dataset, files."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import DataError, localized
from ..japanese.normalize import normalize as normalize_text
from .bad_rows import BadRow, LeftOut
from .files import FileReport, Row, read_rows
from .formats import conversation, map_columns, to_sample
from .messages import Conversation, Message, PlainText, Sample

_PRIVATE_USE = re.compile("[\ue000-\uf8ff]")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass
class DataReport(LeftOut):
    """What was read, left out and changed."""

    files: list[FileReport] = field(default_factory=list)
    samples: int = 0
    normalized: Counter[str] = field(default_factory=Counter)
    private_use_rows: list[str] = field(default_factory=list)
    ignored_columns: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The report for the user, in the locale's language."""
        lines = [
            localized(
                f"{item.path}: {item.kind}{f'、{item.encoding}' if item.encoding else ''}、{item.rows} 行",
                f"{item.path}: {item.kind}{f', {item.encoding}' if item.encoding else ''}, {item.rows} rows",
            )
            for item in self.files
        ]
        skipped = self.skipped + sum(item.skipped for item in self.files)
        if skipped:
            reasons = [reason for item in self.files for reason in item.reasons] + self.reasons
            lines.append(
                localized(
                    f"読み飛ばした行: {skipped}（{reasons[0]} など）",
                    f"rows skipped: {skipped} (such as {reasons[0]})",
                )
            )
        if self.normalized:
            counts = ", ".join(f"{name} {count}" for name, count in self.normalized.items())
            lines.append(localized(f"文字の正規化: {counts}", f"characters normalised: {counts}"))
        if self.private_use_rows:
            where = ", ".join(self.private_use_rows[:5])
            lines.append(
                localized(
                    f"外字（私用領域）のある行: {len(self.private_use_rows)}（{where}）",
                    f"rows with private-use characters: {len(self.private_use_rows)} ({where})",
                )
            )
        if self.ignored_columns:
            lines.append(
                localized(
                    f"使わない列: {', '.join(self.ignored_columns)}",
                    f"columns not used: {', '.join(self.ignored_columns)}",
                )
            )
        return lines


def load_samples(
    source: Any,
    *,
    columns: Mapping[str, str] | None = None,
    system_prompt: str | None = None,
    skip_bad_rows: bool = False,
    normalize: Mapping[str, bool] | None = None,
) -> tuple[list[Sample], DataReport]:
    """Samples from texts, rows (dicts), conversations (lists of messages), a `datasets.Dataset`, a path or a list of
    paths.

    A list of strings is a list of plain texts; a single string or Path is a path.

    Args:
        source: what to read.
        columns: roles of columns, given by the user.
        system_prompt: system message for conversations that have none.
        skip_bad_rows: leave bad rows out and count them, instead of refusing the data.
        normalize: switches of japanese.normalize.

    Raises:
        DataError: nothing usable, or a bad row; the message names file, line and reason.
    """
    report = DataReport()
    samples: list[Sample] = []
    for rows in _row_groups(source, report, skip_bad_rows):
        samples += _samples(rows, report, columns, system_prompt, skip_bad_rows)
    if not samples:
        raise DataError("学習データに使える行がありません。", "the data contains no usable row.")
    cleaned: list[Sample] = []
    for sample in samples:
        try:
            cleaned.append(_clean(sample, normalize or {}, report))
        except BadRow as error:
            report.leave_out(error, sample.source, skip_bad_rows)
    if not cleaned:
        raise DataError("学習データに使える行がありません。", "the data contains no usable row.")
    report.samples = len(cleaned)
    return cleaned, report


_Item = Row | Sample


def _row_groups(source: Any, report: DataReport, skip: bool) -> Iterable[list[_Item]]:
    """The source's rows, a list for each file."""
    if isinstance(source, str | Path):
        rows, obtained = read_rows(source, skip_bad_rows=skip)
        report.files.append(obtained)
        yield list(rows)
    elif isinstance(source, Sequence) and source and all(isinstance(item, Path) for item in source):
        for item in source:
            yield from _row_groups(item, report, skip)
    elif isinstance(source, Iterable):
        yield [_item(item, number, report, skip) for number, item in enumerate(source, start=1)]
    else:
        raise DataError(
            f"学習データが {type(source).__name__} です。文字列・行・会話のリスト、Dataset、ファイルのパスのいずれかにしてください。",
            f"the data is a {type(source).__name__}; give a list of texts, rows or conversations, a Dataset or a path.",
        )


def _item(item: Any, number: int, report: DataReport, skip: bool) -> _Item:
    source = f"[{number}]"
    if isinstance(item, Conversation | PlainText | Row):
        return item
    if isinstance(item, str):
        return Row({"text": item}, source)
    if isinstance(item, Mapping):
        return Row(dict(item), source)
    if isinstance(item, list | tuple):
        return Row({"messages": list(item)}, source)
    raise DataError(
        f"学習データの {number} 番目が {type(item).__name__} の {item!r} です。文字列、辞書、メッセージのリストのいずれかにしてください。",
        f"item {number} of the data is {item!r}, a {type(item).__name__}; it must be a text, a dict or a list of "
        "messages.",
    )


def _samples(
    rows: list[_Item], report: DataReport, columns: Mapping[str, str] | None, system_prompt: str | None, skip: bool
) -> list[Sample]:
    names = list(dict.fromkeys(key for row in rows if isinstance(row, Row) for key in row.values))
    roles = map_columns(names, columns) if names else {}
    report.ignored_columns += [name for name in names if name not in roles.values()]
    samples: list[Sample] = []
    for row in rows:
        try:
            samples.append(_sample(row, roles, system_prompt))
        except BadRow as error:
            report.leave_out(error, row.source, skip)
    return samples


def _sample(row: _Item, roles: Mapping[str, str], system_prompt: str | None) -> Sample:
    if isinstance(row, PlainText):
        return row
    if isinstance(row, Conversation):
        return conversation(list(row.messages), row.source, system_prompt)
    return to_sample(row.values, roles, row.source, system_prompt)


def _clean(sample: Sample, switches: Mapping[str, bool], report: DataReport) -> Sample:
    """Normalises a sample's texts, counts what changed, notes private-use characters.

    Raises:
        BadRow: a lone surrogate, or control characters that are not to be stripped.
    """

    def clean(text: str) -> str:
        if not text:
            return text
        if _SURROGATE.search(text):
            raise BadRow(
                "壊れた文字（単独のサロゲート）があります", "the text contains a lone surrogate (half a character)"
            )
        if _PRIVATE_USE.search(text) and sample.source not in report.private_use_rows[-1:]:
            report.private_use_rows.append(sample.source)
        text, counts = normalize_text(text, **switches)
        control = _CONTROL.search(text)
        if control is not None:
            code = f"U+{ord(control.group()):04X}"
            raise BadRow(
                f"制御文字 {code} があります（data.normalize.strip_control=true で取り除けます）",
                f"the text contains the control character {code} (data.normalize.strip_control=true removes it)",
            )
        report.normalized.update(counts)
        return text

    if isinstance(sample, PlainText):
        return PlainText(clean(sample.text), sample.source)
    cleaned = (Message(item.role, clean(item.content), clean(item.input)) for item in sample.messages)
    return Conversation(tuple(cleaned), sample.source)
