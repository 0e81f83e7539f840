"""Whatever the user hands in, to samples: texts, rows, conversations, frames, a Dataset, files."""

from __future__ import annotations

import functools
import io
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config.preference import Objective
from ..errors import DataError, Reason, localized
from ..japanese.classes import LONG, all_kinds, kinds_of, table_of
from ..japanese.language import find_loop, find_template_token
from ..japanese.mojibake import find_mojibake, kinds_table
from ..japanese.normalize import NEVER_COMPOSED
from ..japanese.normalize import normalize as normalize_text
from ..messages import excerpt
from .bad_rows import BadRow, BadRows
from .columnar import dataset_rows
from .columns import check_columns, listed
from .conversations import conversation
from .data_report import DataReport
from .doctor.rules import validate_keys
from .encoding import UNREADABLE
from .files import read_rows
from .formats import build, find_format, is_refused_mark, is_unmarked, no_format
from .judgements import is_scored_against, winner_of
from .messages import Comparison, Conversation, Judged, Message, PlainText, Sample, messages_of, words_beside
from .row_format import Format, Shape
from .rows import Row

_PRIVATE_USE = re.compile("[\ue000-\uf8ff]")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_C1 = re.compile("[\x80-\x9f]")
_SURROGATE = re.compile("[\ud800-\udfff]")
# Kinds of characters that a text is searched for where it holds any of them; normalizing adds none. Below them stand those by
# which mojibake is found.
_HALVES, _PRIVATE, _CONTROLS, _HALF_KANA, _COMPOSED = 1 << 8, 1 << 9, 1 << 10, 1 << 11, 1 << 12
_ANY = (1 << 13) - 1
# Rows by whose columns a file without a format is explained.
_EXPLAINED = 100
# Where only the choice of characters speaks of mojibake, so many rows and this share of a file make it certain.
LIKELY_ROWS, LIKELY_SHARE = 3, 0.01


def load_samples(
    source: Any,
    *,
    columns: Mapping[str, str] | None = None,
    system_prompt: str | None = None,
    skip_bad_rows: bool = False,
    normalize: Mapping[str, bool] | None = None,
    sheet: str | None = None,
    bad: BadRows | None = None,
    ignore: Sequence[str] = (),
) -> tuple[list[Sample], DataReport]:
    """Samples from texts, rows (dicts), conversations (lists of messages), a data frame, a `datasets.Dataset`, a path or
    a list of paths.

    A list of strings is a list of plain texts; a single string or Path is a path.

    Args:
        source: what to read.
        columns: roles of columns, given by the user.
        system_prompt: system message for conversations that have none.
        skip_bad_rows: leave bad rows out and count them, instead of refusing the data.
        normalize: switches of japanese.normalize.
        sheet: which sheet of a workbook.
        bad: receives the bad rows instead; then they are not refused here.
        ignore: keys of rules of the data doctor that are not applied (data.doctor.ignore).

    Raises:
        ConfigError: `ignore` names no rule.
        DataError: nothing usable, or bad rows; the message names them all, with file, line and reason.
    """
    how = RowReading(columns, system_prompt, sheet=sheet, normalize=normalize or {}, ignore=tuple(ignore))
    if bad is not None:
        return read_source(source, how, bad, shared=True)
    return read_source(source, how, BadRows(skip_bad_rows), shared=False)


@dataclass(frozen=True)
class RowReading:
    """How rows become samples.

    Attributes:
        columns, system_prompt, normalize, sheet, ignore: see load_samples.
        objective: what is learnt from; rows of another one are bad rows.
    """

    columns: Mapping[str, str] | None = None
    system_prompt: str | None = None
    objective: Objective = "sft"
    sheet: str | None = None
    normalize: Mapping[str, bool] = field(default_factory=dict)
    ignore: tuple[str, ...] = ()


def read_source(source: Any, how: RowReading, bad: BadRows, *, shared: bool) -> tuple[list[Sample], DataReport]:
    """Samples of whatever `load_samples` reads, with what was found.

    Args:
        bad: receives the bad rows.
        shared: whether these are of other sources as well, and refused by whoever collects them.

    Raises:
        ConfigError, DataError: see load_samples. DataError too: bad rows are left out, and of a file's answers
            some are marked (refuse_half_marked).
    """
    validate_keys(how.ignore, "data.doctor.ignore")
    report = DataReport(bad, shared)
    samples: list[Sample] = []
    for rows in _row_groups(source, report, how.columns, how.sheet):
        samples += _samples(rows, report, how)
    cleaned, likely = clean(samples, how.normalize, report, how.ignore)
    certain = certain_mojibake(files_of(samples), files_of(likely))
    cleaned = without_likely(cleaned, likely, certain, report)
    for sample in cleaned:
        note_what_is_odd(sample, report, how.ignore)
    if not shared:
        report.bad.refuse()
    if bad.skip:  # else the marked rows are refused
        refuse_half_marked(report)
    if not cleaned and not (shared and len(bad) and not bad.skip):
        raise nothing_left(report.bad, report.ties, report.unlearnt)
    report.samples = len(cleaned)
    return cleaned, report


def nothing_left(bad: BadRows, ties: int, unlearnt: int) -> DataError:
    """The refusal of data without a usable row.

    Args:
        ties: pairs of answers that were left out since neither is better.
        unlearnt: rows that say of themselves that they are not to be learnt.
    """
    if unlearnt and not ties and not len(bad):
        return DataError(
            f"{unlearnt} 行すべてに、学習しないこと（weight: 0、train: false など）が書かれています。学習する行の値を直すか、その列を除いてください。",
            f"all {unlearnt} rows say not to learn them (weight: 0, train: false and the like); change that where they are to be "
            "learnt, or remove it.",
        )
    if not ties or len(bad):
        return bad.empty(localized("学習データ", "the data"))
    return DataError(
        f"{ties} 組の回答はすべて引き分けで、どちらが良いかを学べません。良し悪しの付いた組を加えてください。",
        f"all {ties} pairs of answers are ties, which tell nothing to learn; add pairs one answer of which is better.",
    )


_Item = Row | Sample


def _row_groups(
    source: Any, report: DataReport, columns: Mapping[str, str] | None, sheet: str | None
) -> Iterable[list[_Item]]:
    """The source's rows, a list for each file."""
    source = _container(source, report)
    if isinstance(source, str | Path):
        rows, obtained = read_rows(source, columns=columns, sheet=sheet, bad=report.bad)
        report.files.append(obtained)
        yield list(rows)
    elif isinstance(source, Sequence) and source and all(isinstance(item, Path) for item in source):
        for item in source:
            yield from _row_groups(item, report, columns, sheet)
    else:
        yield [_item(item, number) for number, item in enumerate(source, start=1)]


def _records(frame: Any) -> list[dict[str, Any]]:
    """The rows of a pandas frame, None where nothing is.

    Raises:
        DataError: two columns of one name.
    """
    if not frame.columns.is_unique:
        twice = listed(list(dict.fromkeys(frame.columns[frame.columns.duplicated()])))
        raise DataError(
            f"DataFrame に同じ名前の列が 2 つ以上あります（{twice}）。片方の名前を変えてください。",
            f"two columns of the DataFrame have one name ({twice}); rename one of them.",
        )
    columns = [str(name) for name in frame.columns]
    frame = frame.astype(object).where(frame.notna(), None)
    frame.columns = columns
    return frame.to_dict("records")  # type: ignore[no-any-return]


def _container(source: Any, report: DataReport) -> Any:
    """What holds rows, as a path, a list of paths or an iterable of rows; frames and tables become rows.

    Raises:
        DataError: a container whose items are not its rows.
    """
    kind = type(source)
    library = kind.__module__.split(".")[0]
    if library == "pandas" and kind.__name__ == "DataFrame":
        return _records(source)
    if library == "pandas" and kind.__name__ in ("Series", "Index"):
        return source.tolist()
    if library == "polars" and kind.__name__ == "DataFrame":
        return source.to_dicts()
    if library == "pyarrow" and kind.__name__ in ("Table", "RecordBatch"):
        return source.to_pylist()
    if library == "numpy" and kind.__name__ == "ndarray":
        return source.tolist()
    if isinstance(source, Mapping):
        if library == "datasets":  # a DatasetDict
            found, obtained = dataset_rows(dict(source), "DatasetDict")
            rows = list(found)
            obtained.rows = len(rows)
            report.files.append(obtained)
            return rows
        values = list(source.values())
        if (
            values
            and all(isinstance(value, list | tuple | np.ndarray) for value in values)
            and len(set(map(len, values))) == 1
        ):
            return [dict(zip(source, row, strict=True)) for row in zip(*values, strict=True)]
    refused = isinstance(source, Mapping | set | frozenset | bytes | bytearray | io.IOBase) or hasattr(
        source, "readline"
    )
    if refused or not isinstance(source, str | Path | Iterable):
        raise DataError(
            f"学習データが {kind.__name__} です。文字列・行・会話のリスト、DataFrame、Dataset、ファイルのパスのいずれかにしてください。",
            f"the data is a {kind.__name__}; give a list of texts, rows or conversations, a DataFrame, a Dataset or a path.",
        )
    return source


def _value(value: Any) -> Any:
    """A value with Python's own types for those of numpy, which frames and Parquet files in pandas are made of."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list):
        return [_value(item) for item in value]
    return {key: _value(item) for key, item in value.items()} if isinstance(value, dict) else value


def _item(item: Any, number: int) -> _Item:
    source = f"[{number}]"
    if isinstance(item, Sample | Row):
        return item
    if isinstance(item, str):
        return Row({"text": str(item)}, source)
    if isinstance(item, np.ndarray):
        item = item.tolist()
    if isinstance(item, Mapping):
        return Row({key: _value(value) for key, value in item.items()}, source)
    if isinstance(item, list | tuple):
        return Row({"messages": list(item)}, source)
    kind = type(item).__name__
    raise DataError(
        f"学習データの {number} 番目が {kind} です（{excerpt(item)}）。文字列、辞書、メッセージのリストのいずれかにしてください。",
        f"item {number} of the data is a {kind} ({excerpt(item)}); it must be a text, a dict or a list of messages.",
        Reason(f"学習データの {number} 番目が {kind} です。", f"item {number} of the data is a {kind}."),
    )


def _samples(rows: list[_Item], report: DataReport, how: RowReading) -> list[Sample]:
    """The samples of one file.

    Raises:
        DataError: none of its rows has a format.
    """
    tables = [row for row in rows if isinstance(row, Row)]
    if tables:
        check_columns(how.columns, list(dict.fromkeys(str(key) for row in tables for key in row.values)))
    return samples_of(rows, report, how, lambda: heading_of(tables, how.columns, how.objective))


def heading_of(rows: Iterable[Row], columns: Mapping[str, str] | None, objective: Objective = "sft") -> list[str]:
    """The columns of the first row of a file that has a format.

    Raises:
        DataError: none has one, or a column that the user named is nowhere.
    """
    first: list[Row] = []
    names: dict[str, None] = {}
    for row in rows:
        if find_format(row.values, columns, objective)[0] is not None:
            return list(row.values)
        names |= dict.fromkeys(map(str, row.values))
        first += [row] if len(first) < _EXPLAINED else []
    check_columns(columns, list(names))
    raise _no_format(first, objective)


def samples_of(
    rows: Iterable[_Item],
    report: DataReport,
    how: RowReading,
    heading: Callable[[], Sequence[str]],
) -> list[Sample]:
    """The samples of some rows of a file.

    Args:
        heading: gives the columns of the file's first row with a format; a row without one is read as a row of those,
            with what it lacks left empty.
    """
    samples: list[Sample] = []
    for row in rows:
        try:
            if isinstance(row, Row):
                obtained, shape = find_format(row.values, how.columns, how.objective)
                if obtained is None:
                    whole = {**dict.fromkeys(heading()), **row.values}
                    obtained, shape = find_format(whole, how.columns, how.objective)
                samples += _row_sample(row, obtained, shape, report, how.system_prompt)
                continue
            _check_objective(row, how.objective)
            if isinstance(row, Conversation):
                samples.append(conversation(row.messages, row.source, how.system_prompt, row.tools))
            else:
                samples.append(row)
        except BadRow as error:
            report.bad.add(error, row.source)
    return samples


def _check_objective(sample: Sample, objective: Objective) -> None:
    """Refuses a sample that the objective does not learn from."""
    own: Objective = "preference" if isinstance(sample, Comparison) else "kto" if isinstance(sample, Judged) else "sft"
    if own != objective:
        raise BadRow(
            f"objective: {own} のデータですが、この実行は objective: {objective} です",
            f"it is data for objective: {own}, and this run has objective: {objective}",
        )


def _no_format(rows: list[Row], objective: Objective) -> DataError:
    """The refusal of a file none of whose rows has a format."""
    name = _PLACE.sub("", rows[0].source)
    words = [word for row in rows[:20] for pair in row.values.items() for word in map(str, pair)]
    broken = next(filter(None, map(find_mojibake, words)), None)
    if broken is not None:
        ja, en = (
            f"文字化けしています（{broken.kind}）。元のファイルから作り直してください",
            (f"the text is mojibake ({broken.kind}); recreate it from the original file"),
        )
    else:
        ja, en = no_format([row.values for row in rows], objective)
    place = f"{name}: " if name else ""
    # What stands for the columns may be a row, where a table has no heading.
    written = Reason(f"{place}列から学習データを作れません。", f"{place}the columns make no training sample.")
    return DataError(f"{place}{ja}。", f"{place}{en}.", written if broken is None else None)


def _row_sample(
    row: Row, obtained: Format | None, shape: Shape, report: DataReport, system_prompt: str | None
) -> Iterator[Sample]:
    if obtained is None:
        names = ", ".join(map(str, row.values))
        raise BadRow("列から学習データを作れません", "the columns make no training sample", names)
    if is_refused_mark(obtained):
        report.marked[_file_of(row.source)] += 1
    made = build(shape.values, obtained, shape, row.source, system_prompt)
    report.formats[obtained.key] += 1
    report.unused_keys.update(made.keys)
    report.roles |= {
        column: role for role, column in shape.roles.items() if column in made.used and column != role != "messages"
    }
    report.unused_columns.update(
        str(key) for key, value in row.values.items() if key not in made.used and value not in (None, "", [], {})
    )
    if made.tied:
        report.ties += 1
        return
    if isinstance(made.sample, Comparison) and (column := winner_of(shape)):
        report.winners[column] += 1
    if isinstance(made.sample, Comparison) and is_scored_against(shape):
        report.against.note(row.source)
    if made.sample is None:
        report.unlearnt += 1
        return
    if isinstance(made.sample, Conversation) and not any(
        message.learn for message in made.sample.messages if message.role == "assistant"
    ):
        report.unlearnt += 1
        return
    if is_unmarked(obtained, shape):
        report.unmarked[_file_of(row.source)] += 1
    yield made.sample


_PLACE = re.compile(r"(?::\d+|\[\d+\])$")


def _file_of(source: str) -> str:
    """The file that a row is of; empty where it is of none."""
    return _PLACE.sub("", source)


def files_of(samples: Iterable[Sample]) -> Counter[str]:
    """How many of some samples are of each file."""
    return Counter(_file_of(sample.source) for sample in samples)


def refuse_half_marked(report: DataReport) -> None:
    """Refuses files some of whose answers are marked as good or bad, and others not in a way that is known: where the first
    are left out, the others would be trained as plain answers, whatever their mark means.

    Raises:
        DataError: with the first such file.
    """
    file = next((name for name in report.unmarked if name in report.marked), None)
    if file is None:
        return
    marked, unmarked, name = report.marked[file], report.unmarked[file], file or localized("学習データ", "the data")
    raise DataError(
        f"{name}: 良し悪しの印が付いた回答が {marked} 行あり、同じ列が空か、知らない印の行が {unmarked} 行あります。後者だけをふつうの回答として学習することはしません。"
        "印から学ぶなら objective: kto にして印を true か false に直し、印に関係なく学習するならその列を除いてください。",
        f"{name}: the answers of {marked} rows are marked as good or bad, and {unmarked} rows have nothing, or no known mark, in that "
        "column; these are not trained as plain answers by themselves. To learn from marks use objective: kto with true or "
        "false in every row; to learn the answers whatever their marks remove that column.",
    )


def certain_mojibake(samples: Mapping[str, int], likely: Mapping[str, int]) -> set[str]:
    """The files with so many rows that are perhaps mojibake that they are.

    Args:
        samples, likely: all samples, and such ones, by file.
    """
    return {file for file, count in likely.items() if count >= LIKELY_ROWS and count >= LIKELY_SHARE * samples[file]}


def clean(
    samples: Iterable[Sample], normalize: Mapping[str, bool], report: DataReport, ignore: Collection[str] = ()
) -> tuple[list[Sample], list[Sample]]:
    """(samples with texts in one form, those of them that are perhaps mojibake); others are noted as bad rows.

    Args:
        ignore: keys of rules of the data doctor that are not applied.
    """
    cleaned: list[Sample] = []
    likely: list[Sample] = []
    for sample in samples:
        try:
            cleaned.append(_clean(sample, normalize, report, likely, ignore))
        except BadRow as error:
            report.bad.add(error, sample.source)
    return cleaned, likely


def without_likely(
    cleaned: list[Sample], likely: Sequence[Sample], certain: Collection[str], report: DataReport
) -> list[Sample]:
    """The samples without those that are mojibake by their characters alone, where their file has enough of them."""
    if not likely:
        return cleaned
    bad = {sample.source for sample in likely if _PLACE.sub("", sample.source) in certain}
    for sample in likely:
        if sample.source in bad:
            report.bad.add(_mojibake("a wrong encoding"), sample.source)
        else:
            report.likely_rows.note(sample.source)
    return [sample for sample in cleaned if sample.source not in bad]


def _mojibake(kind: str) -> BadRow:
    return BadRow(
        f"文字化けしています（{kind}）。元のファイルから作り直してください",
        f"the text is mojibake ({kind}); recreate it from the original file",
    )


def note_what_is_odd(sample: Sample, report: DataReport, ignore: Collection[str] = ()) -> None:
    """Notes loops and template tokens in a conversation; it is trained all the same."""
    if isinstance(sample, PlainText):
        return
    messages = sample.sides[0].messages if isinstance(sample, Comparison) else messages_of(sample)
    # A worse answer may end in a loop: that is what it teaches against.
    good = not isinstance(sample, Judged) or sample.good
    answers = [item.content for item in messages if item.role == "assistant"] if good else []
    others = [item.content for item in messages if item.role != "assistant"]
    others += [item.input for item in messages]
    if "loop" not in ignore and any(map(find_loop, answers)):
        report.loop_rows.note(sample.source)
    looked_at = (("template_token", answers), ("template_token_asked", others))
    if any(find_template_token(text) for key, texts in looked_at if key not in ignore for text in texts):
        report.template_rows.note(sample.source)


@functools.cache
def _kinds() -> NDArray[np.uint16]:
    controls = [code for code in range(0xA0) if _CONTROL.match(chr(code)) or _C1.match(chr(code))]
    searched = table_of(range(0xD800, 0xE000), range(0xE000, 0xF900), frozenset(controls), range(0xFF61, 0xFFA0))
    table = kinds_table().astype(np.uint16)
    table |= searched.astype(np.uint16) << np.uint16(8)
    table |= np.uint16(_COMPOSED)
    for kept in NEVER_COMPOSED:
        table[kept.start : kept.stop] &= np.uint16(_ANY & ~_COMPOSED)
    return table


def _refuse_unreadable(text: str) -> None:
    """Refuses what no encoding gives.

    Raises:
        BadRow: bytes that could not be decoded, half a character.
    """
    if UNREADABLE.search(text):
        raise BadRow(
            "ファイルの文字コードにないバイトがあります",
            "it holds bytes that the encoding of the file does not have",
        )
    if _SURROGATE.search(text):
        raise BadRow(
            "壊れた文字（単独のサロゲート）があります", "the text contains a lone surrogate (half a character)"
        )


def _refuse_mojibake(text: str, kinds: NDArray[Any] | None, ignore: Collection[str]) -> bool:
    """Whether a text's characters alone speak of mojibake.

    Args:
        kinds: see find_mojibake.

    Raises:
        BadRow: its bytes prove it, or it holds U+FFFD.
    """
    broken = find_mojibake(text, kinds)
    if broken is not None and broken.proven:
        key = "replacement" if broken.kind == "U+FFFD" else "mojibake"
        if key not in ignore:
            raise _mojibake(broken.kind)
    if "\ufffd" in text and "replacement" not in ignore:
        raise _mojibake("U+FFFD")
    return broken is not None and not broken.proven and "mojibake_likely" not in ignore


def _clean(
    sample: Sample, switches: Mapping[str, bool], report: DataReport, likely: list[Sample], ignore: Collection[str]
) -> Sample:
    """Normalises a sample's texts, counts what changed, notes private-use and control characters, and adds a sample to
    `likely` whose characters alone speak of mojibake.

    Raises:
        BadRow: mojibake, a lone surrogate, or control characters that are not to be stripped.
    """

    def clean(text: str) -> str:
        if not text:
            return text
        by_character = kinds_of(text, _kinds()) if len(text) >= LONG else None
        kinds = _ANY if by_character is None else all_kinds(by_character)
        if kinds & _HALVES:
            _refuse_unreadable(text)
        if _refuse_mojibake(text, by_character, ignore) and (not likely or likely[-1] is not sample):
            likely.append(sample)
        if kinds & _PRIVATE and _PRIVATE_USE.search(text):
            report.private_use_rows.note(sample.source)
        off = {name: False for name, kind in (("widen_kana", _HALF_KANA), ("compose", _COMPOSED)) if not kinds & kind}
        text, counts = normalize_text(text, **{**switches, **off})
        control = _CONTROL.search(text) if kinds & _CONTROLS else None
        if control is not None:
            code = f"U+{ord(control.group()):04X}"
            raise BadRow(
                f"制御文字 {code} があります（data.normalize.strip_control=true で取り除けます）",
                f"the text contains the control character {code} (data.normalize.strip_control=true removes it)",
            )
        if kinds & _CONTROLS and _C1.search(text):
            report.control_rows.note(sample.source)
        report.normalized.update(counts)
        return text

    if isinstance(sample, PlainText):
        return PlainText(clean(sample.text), sample.source)
    for words in words_beside(sample):
        _refuse_unreadable(words)
    return _with_texts(sample, clean)


def _with_texts(sample: Conversation | Comparison | Judged, change: Callable[[str], str]) -> Sample:
    """A sample with every text of its messages changed."""

    def changed(messages: tuple[Message, ...]) -> tuple[Message, ...]:
        return tuple(
            replace(item, content=change(item.content), input=change(item.input), reasoning=change(item.reasoning))
            for item in messages
        )

    if isinstance(sample, Comparison):
        prompt, chosen = changed(sample.prompt), changed(sample.chosen)
        return replace(sample, prompt=prompt, chosen=chosen, rejected=changed(sample.rejected))
    if isinstance(sample, Judged):
        whole = sample.conversation
        return replace(sample, conversation=replace(whole, messages=changed(whole.messages)))
    return replace(sample, messages=changed(sample.messages))
