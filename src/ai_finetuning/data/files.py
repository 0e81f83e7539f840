"""Files and folders to rows, by the ending of their names; hub ids too."""

from __future__ import annotations

import difflib
import glob
import os
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from .. import embedded
from ..errors import DataError, HubError, InputNotFoundError, localized
from ..system.network import endpoint, head, offline
from .bad_rows import BadRows
from .columnar import dataset_rows, read_arrow, read_parquet, read_saved
from .compression import UNPACK, kind_of, some_of, unpacked
from .rows import Content, File, FileReport, Reader, Row, reading
from .spreadsheet import read_workbook
from .tables import read_delimited
from .texts import Line, characters_of, jsonl_lines, parse_lines, read_json, read_jsonl, read_text, read_whole

_T = TypeVar("_T")
READERS: dict[str, Reader] = {
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_json,
    ".csv": read_delimited,
    ".tsv": read_delimited,
    ".xlsx": read_workbook,
    ".xlsm": read_workbook,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
    ".feather": read_arrow,
    ".txt": read_text,
}
_SAVED = ("dataset_info.json", "state.json", "dataset_dict.json")  # of them one is in a folder of `datasets`
TOKENS = "tokens.json"  # the manifest of prepared data
_UNFINISHED = ("tokens.bin", "ends.bin")  # arrays of prepared data, which are there before the manifest
_HIDDEN = (".", "~$")  # names that start so are nobody's data; the second is what Excel keeps beside an open workbook
_LINES = (".jsonl", ".ndjson")  # kinds whose rows can be parsed apart from each other
# What each ending means, for `aift data formats`.
KINDS: dict[str, tuple[str, str]] = {
    ".jsonl .ndjson": ("1 行に 1 つのオブジェクト", "one object on each line"),
    ".json": (
        "オブジェクトの配列、それを持つオブジェクト、pandas の to_json、JSONL",
        "an array of objects, an object that holds one, pandas' to_json, or JSONL",
    ),
    ".csv .tsv": (
        "列の意味が分かる最初の行が見出し。区切りは , タブ ; | から選びます",
        "the first row whose cells are headings; the delimiter is chosen among , tab ; |",
    ),
    ".xlsx .xlsm": (
        "見出しの合う最初の表示シート（data.sheet で指定可）。数値と日付は Excel の表示どおり",
        "the first visible sheet whose heading fits (or data.sheet); numbers and dates as Excel shows them",
    ),
    ".parquet .arrow .feather": ("その列", "its columns"),
    ".txt": (
        "空行で区切った文書。空行がなければ 1 行に 1 文書",
        "documents that blank lines separate, else one document on each line",
    ),
    ".gz .bz2 .xz .zst .zip": (
        "上のどれかを圧縮したもの（zip は 1 つだけ）",
        "any of these, compressed (one file in a zip)",
    ),
}
_TRAIN = re.compile(r"(?:^|[^a-z])train(?:ing)?(?:[^a-z]|$)")
# Texts about the files of a folder.
_ABOUT = re.compile(
    r"(?:readme|licen[cs]e|notice|requirements|changelog)\b|(?:はじめに|最初に|必ず)?お読み", re.IGNORECASE
)
_OTHER_SPLIT = re.compile(r"(?:^|[^a-z])(?:test|eval|evaluation|dev|valid|validation|val)(?:[^a-z]|$)")


# Rows that are handed on together: enough to encode at a time, few enough to hold.
_TOGETHER, _CHARACTERS = 4096, 2**20


@dataclass(frozen=True)
class RowBatch:
    """Some rows of a file, in order.

    Attributes:
        file: which they are of; rows that cannot be used are noted there.
        read: the rows; empty where `lines` has them.
        lines: of JSON Lines, not parsed yet.
    """

    file: File
    read: list[Row] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.read) or len(self.lines)

    @property
    def characters(self) -> int:
        """Characters of the texts in them; of lines, all of theirs."""
        return sum(map(_text_of, self.read)) + sum(map(characters_of, self.lines))

    def rows(self) -> list[Row]:
        """The rows, parsed."""
        return self.read or list(parse_lines(self.lines, self.file))


def read_rows(
    path: str | Path,
    *,
    skip_bad_rows: bool = False,
    columns: Mapping[str, str] | None = None,
    sheet: str | None = None,
    bad: BadRows | None = None,
) -> tuple[list[Row], FileReport]:
    """All rows of a file, a folder of files, an embedded data set, a `datasets` folder or a hub id, and what was found.

    Args:
        path: what to read.
        skip_bad_rows: leave bad rows out and count them.
        columns: roles of columns, given by the user; they tell which row of a table is its heading.
        sheet: which sheet of a workbook.
        bad: receives the bad rows instead; then they are not refused here.

    Raises:
        InputNotFoundError: no such file. DataError: a kind, encoding or row that cannot be used. HubError: no such data
            set.
    """
    obtained = BadRows(skip_bad_rows) if bad is None else bad
    report, batches = open_data(path, obtained, columns=columns, sheet=sheet)
    rows = [row for batch in batches for row in batch.rows()]
    report.rows = len(rows)
    if bad is None:
        obtained.refuse()
    if not rows and (bad is None or not len(obtained)):
        raise obtained.empty(str(path))
    return rows, report


def open_data(
    path: str | Path,
    bad: BadRows,
    *,
    columns: Mapping[str, str] | None = None,
    sheet: str | None = None,
    hashed: bool = False,
    beginning: bool = False,
) -> tuple[FileReport, Iterator[RowBatch]]:
    """What read_rows reads, some rows at a time: (report, batches). The report is complete, but for the number of rows,
    when the last batch is read.

    Args:
        bad: receives the rows that cannot be used.
        hashed: whether the files' hashes are wanted (Content.sha256).
        beginning: whether the beginning of a file alone tells its encoding (File.beginning).
        path, columns, sheet: see read_rows.

    Raises:
        InputNotFoundError, DataError, HubError: see read_rows.
    """
    with reading(path):
        report, batches = _opened(path, bad, columns, sheet, hashed=hashed, beginning=beginning)
    return report, _guarded(path, batches)


def _guarded(path: str | Path, batches: Iterator[RowBatch]) -> Iterator[RowBatch]:
    with reading(path):
        yield from batches


def check_rows_there(path: str | Path) -> None:
    """Refuses what has no rows at the first look, for those who come to read it much later.

    Raises:
        InputNotFoundError, DataError: see open_data.
    """
    with reading(path):
        found = find_data(path)
        if found is not None and found.is_dir():
            _refuse_tokens(path, found)
        elif found is not None and not found.stat().st_size:
            raise BadRows().empty(str(path))


def _refuse_tokens(path: str | Path, folder: Path) -> None:
    """Refuses a folder of prepared data, finished or not.

    Raises:
        DataError: with the way out.
    """
    if (folder / TOKENS).is_file():
        raise DataError(
            f"{path} は `aift data prepare` で用意したトークンのフォルダーで、元の行はありません。元のファイルを指定してください。",
            f"{path} is a folder of tokens that `aift data prepare` has made, without the rows themselves; name the files that "
            "it was made from.",
        )
    if all((folder / name).is_file() for name in _UNFINISHED):
        raise DataError(
            f"{path} は、`aift data prepare` が終わっていないか、コピーが途中のフォルダーです（{TOKENS} がありません）。同じコマンドをもう一度実行して"
            "続きから用意するか、全部コピーし直してください。",
            f"{path} is prepared data that is not complete: {TOKENS} is missing. Run the same `aift data prepare` again, which goes "
            "on from where it was, or copy all of the folder again.",
        )


def _opened(
    path: str | Path,
    bad: BadRows,
    columns: Mapping[str, str] | None,
    sheet: str | None,
    *,
    hashed: bool,
    beginning: bool,
) -> tuple[FileReport, Iterator[RowBatch]]:
    folder = find_data(path)
    if folder is None:
        return _batches_of(*_read_hub(str(path)), bad)
    if not folder.is_dir():
        opened = _open_file(folder, str(path), bad, columns, sheet, hashed=hashed, beginning=beginning)
        if sheet is not None and READERS[f".{opened[0].kind}"] is not read_workbook:
            ja, en = (
                f"Excel のファイルではないので、シート {sheet} の指定は使いません",
                f"no workbook: sheet {sheet} has no effect",
            )
            opened[0].notes.append((ja, en))
        return opened
    if any((folder / marker).is_file() for marker in _SAVED):
        return _batches_of(*read_saved(folder), bad)
    _refuse_tokens(path, folder)
    report = FileReport(str(path), "folder")
    return report, _open_folder(folder, report, bad, columns, sheet, hashed=hashed, beginning=beginning)


def _batches_of(rows: Iterator[Row], report: FileReport, bad: BadRows) -> tuple[FileReport, Iterator[RowBatch]]:
    return report, _in_batches(rows, File(Path(report.path), Content.of(b""), report, bad))


def _in_batches(rows: Iterator[Row], file: File) -> Iterator[RowBatch]:
    for some in together(rows, _text_of):
        yield RowBatch(file, some)


def _text_of(row: Row) -> int:
    return sum(len(value) for value in row.values.values() if isinstance(value, str))


def together(items: Iterable[_T], characters: Callable[[_T], int]) -> Iterator[list[_T]]:
    """Lists of at most _TOGETHER items, and of about _CHARACTERS; where they end depends on the items alone."""
    some: list[_T] = []
    size = 0
    for item in items:
        some.append(item)
        size += characters(item)
        if len(some) == _TOGETHER or size >= _CHARACTERS:
            yield some
            some, size = [], 0
    if some:
        yield some


def _open_file(
    path: Path,
    name: str,
    bad: BadRows,
    columns: Mapping[str, str] | None,
    sheet: str | None,
    *,
    hashed: bool = False,
    beginning: bool = False,
) -> tuple[FileReport, Iterator[RowBatch]]:
    content, kind, notes = unpacked(path, set(READERS), hashed=hashed)
    # Rows are named by the whole path, as files in two folders may share a name.
    report = FileReport(name, kind.removeprefix("."), notes=notes)
    file = File(path, content, report, bad, columns, sheet, beginning)
    return report, _batches_of_lines(file) if kind in _LINES else _in_batches(READERS[kind](file), file)


def _batches_of_lines(file: File) -> Iterator[RowBatch]:
    lines = jsonl_lines(file)
    if lines is None:
        yield from _in_batches(read_whole(file), file)
        return
    for some in together(lines, characters_of):
        yield RowBatch(file, lines=some)


def _open_folder(
    folder: Path,
    report: FileReport,
    bad: BadRows,
    columns: Mapping[str, str] | None,
    sheet: str | None,
    *,
    hashed: bool = False,
    beginning: bool = False,
) -> Iterator[RowBatch]:
    """Batches of all data files of a folder; files of other splits are named, not read."""
    entries, files = _entries(folder)
    if not files:
        raise DataError(
            f"{report.path} に読めるファイルがありません（{' '.join(READERS)} とその圧縮、または datasets の save_to_disk のフォルダー）。",
            f"{report.path} holds no file that can be read ({' '.join(READERS)}, compressed ones, or a folder of datasets' "
            "save_to_disk).",
        )
    if any(_TRAIN.search(entry.name.lower()) for entry in files):
        aside = [entry for entry in files if _OTHER_SPLIT.search(entry.name.lower())]
    else:
        aside = []
    empty: list[str] = []
    for entry in files:
        if entry in aside and beginning:  # nobody counts the rows of streamed data
            report.notes.append(
                (f"読まないファイル（別の分割）: {entry.name}", f"file of another split, not read: {entry.name}")
            )
            continue
        if entry in aside:
            _, batches = _open_file(entry, str(entry), BadRows(True), columns, sheet)
            count = sum(len(batch.rows()) for batch in batches)
            report.notes.append(
                (
                    f"読まないファイル（別の分割）: {entry.name}（{count} 行）",
                    f"file of another split, not read: {entry.name} ({count} rows)",
                )
            )
            continue
        part, batches = _open_file(entry, str(entry), bad, columns, sheet, hashed=hashed, beginning=beginning)
        refused, rows = len(bad), False
        for batch in batches:
            rows = True
            yield batch
        if not rows and len(bad) == refused:
            empty.append(entry.name)
        report.notes += [(f"{entry.name}: {ja}", f"{entry.name}: {en}") for ja, en in part.notes]
    if empty:
        report.notes.append((f"行のないファイル: {some_of(empty)}", f"files without a row: {some_of(empty)}"))
    others = [entry.name for entry in entries if entry not in files]
    if others:
        report.notes.append((f"読まないもの: {some_of(others)}", f"not read: {some_of(others)}"))
    report.encoding = f"{len(files) - len(aside)} files"


def data_files(path: str | Path) -> list[Path]:
    """The files that are read for a path, in order; none for a data set of the hub.

    Raises:
        InputNotFoundError, DataError: see find_data.
    """
    found = find_data(path)
    if found is None:
        return []
    if not found.is_dir():
        return [found]
    with reading(path):
        if any((found / marker).is_file() for marker in _SAVED):
            return sorted(entry for entry in found.rglob("*") if entry.is_file())
        return _entries(found)[1]


def lines_of_twice(source: object) -> list[str]:
    """What is said of files that some paths name more than once, by links too, in the locale's language.

    Args:
        source: a path or a list of paths; nothing is said of anything else.
    """
    items: list[Any] = source if isinstance(source, list) else [source]
    if not items or not all(isinstance(item, str | Path) for item in items):
        return []
    if isinstance(source, list) and not all(isinstance(item, Path) for item in items):
        return []  # a list of texts
    seen: dict[str, Path] = {}
    again: list[str] = []
    for file in (file for item in items for file in data_files(item)):
        first = seen.setdefault(os.path.realpath(file), file)
        if first is not file:
            again.append(str(file) if file == first else f"{file} = {first}")
    if not again:
        return []
    some = ", ".join(again[:3])
    return [
        localized(
            f"同じファイルが 2 回以上指定されています（{some}）。その行は、指定した回数だけ使います",
            f"a file is named more than once ({some}): its rows are taken for each of its names",
        )
    ]


def _entries(folder: Path) -> tuple[list[Path], list[Path]]:
    """(what is in a folder or its `data`, those of it that are data files)."""
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith(_HIDDEN))
    if not any(_is_data(entry) for entry in entries) and (folder / "data").is_dir():
        entries = sorted(entry for entry in (folder / "data").iterdir() if not entry.name.startswith(_HIDDEN))
    return entries, [entry for entry in entries if _is_data(entry)]


def matching(path: str) -> list[str]:
    """The paths that a pattern such as `corpus/*.jsonl.gz` means, sorted; a path that is there is itself.

    Raises:
        InputNotFoundError: none.
    """
    if not glob.has_magic(path) or Path(path).exists():
        return [path]
    found = sorted(glob.glob(path, recursive=True))
    if not found:
        raise InputNotFoundError(
            f"{path} に当てはまるファイルがありません（現在のフォルダー: {Path.cwd()}）。",
            f"no file matches {path} (current folder: {Path.cwd()}).",
        )
    return found


def _is_data(path: Path) -> bool:
    names = ("dataset_info.json", "dataset_infos.json", "state.json", "metadata.json", "config.json")
    kind = kind_of(path)
    about = kind == ".txt" and _ABOUT.match(path.name) is not None
    return path.is_file() and path.name not in names and not about and (kind in READERS or kind == ".zip")


def find_data(path: str | Path, *, other_than: Collection[object] = ()) -> Path | None:
    """The file or folder that a name means; None for a hub id. Nothing is read.

    Args:
        other_than: files that are named already, as other data; they are not suggested.

    Raises:
        InputNotFoundError: no such file, answered with near names; or an empty name, which is not the current folder.
            DataError: a kind of file that cannot be read.
    """
    name = str(path)
    if not name.strip():
        raise InputNotFoundError(
            f"データの名前が空（{name!r}）です。ファイルかフォルダーを指定してください（現在のフォルダーは「.」です）。",
            f"the name of the data is empty ({name!r}); name a file or a folder (the current folder is .).",
        )
    folder = embedded.data_file(name) if embedded.is_embedded(name) else Path(path)
    if name.startswith("~") and not folder.exists():
        folder = Path(os.path.expanduser(name))
    if folder.is_dir():
        return folder
    if folder.exists():
        kind = kind_of(folder)
        if kind not in READERS and kind != ".zip":
            known = " ".join([*READERS, *UNPACK, ".zip"])
            hint = _HINTS.get(kind, ("", ""))
            raise DataError(
                f"{path} の種類 {kind or '（拡張子なし）'} は読めません。使えるのは {known} です。{hint[0]}",
                f"{path}: files of kind {kind or '(no extension)'} cannot be read; known: {known}.{hint[1]}",
            )
        if not folder.is_file():
            raise DataError(
                f"{path} はふつうのファイルではありません（パイプや装置）。何度も読むため、ファイルに保存してから指定してください。",
                f"{path} is no regular file but a pipe or a device. Data is read more than once: save it to a file first.",
            )
        return folder
    if name.count("/") == 1 and not folder.suffix and not folder.parent.is_dir() and not name.startswith((".", "/")):
        return None
    if folder.is_symlink():
        raise InputNotFoundError(
            f"データファイル {name} はリンクで、その先の {os.readlink(folder)} がありません。",
            f"data file {name} is a link to {os.readlink(folder)}, which does not exist.",
        )
    taken = {os.path.abspath(str(other)) for other in other_than}
    entries = folder.parent.iterdir() if folder.parent.is_dir() else ()
    names = [entry.name for entry in entries if os.path.abspath(entry) not in taken]
    same = next((name for name in names if _composed(name) == _composed(folder.name)), None)
    if same is not None:
        raise InputNotFoundError(
            f"データファイル {name} がありません。見た目の同じ名前のファイルはありますが、濁点などの文字コードが違います（macOS で作ったファイルに多い形です）。"
            f"ファイルの名前を付け直すか、フォルダー {folder.parent} を指定してください。",
            f"data file {name} does not exist. A file whose name looks the same is there, written with other Unicode characters "
            f"(decomposed, as macOS does); rename it, or name its folder {folder.parent}.",
        )
    near = [str(folder.parent / name) for name in difflib.get_close_matches(folder.name, names, n=3, cutoff=0.5)]
    raise InputNotFoundError(
        f"データファイル {name} がありません。"
        + (f"もしかして: {', '.join(near)}" if near else f"（現在のフォルダー: {Path.cwd()}）"),
        f"data file {name} does not exist"
        + (f"; did you mean {', '.join(near)}?" if near else f" (current folder: {Path.cwd()})."),
    )


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


# The way out for kinds that people have and that are not read.
_HINTS: dict[str, tuple[str, str]] = {
    **dict.fromkeys(
        (".xls", ".ods", ".numbers"),
        ("Excel で .xlsx に保存してください。", " Save it as .xlsx with a spreadsheet program."),
    ),
    **dict.fromkeys(
        (".docx", ".doc", ".pdf", ".html", ".htm", ".md"), ("文を .txt に保存してください。", " Save its text as .txt.")
    ),
    **dict.fromkeys((".pkl", ".pickle", ".npy", ".pt"), ("pickle は開きません。", " Pickles are not opened.")),
    **dict.fromkeys((".yaml", ".yml"), ("JSON に直してください。", " Convert it to JSON.")),
}


def _read_hub(name: str) -> tuple[Iterator[Row], FileReport]:
    import datasets

    # The client's own retries would take minutes where the hub does not answer; offline it looks into its cache only.
    answer = None if offline() else head(f"{endpoint()}/api/datasets/{name}")
    if answer is not None and answer.status is None:
        raise HubError(
            f"データセット {name} を取りに行きましたが、{endpoint()} が応答しません（{answer.reason.ja}）。ファイルなら拡張子まで書き、ハブならネットワークか "
            "HF_ENDPOINT を確認してください。",
            f"data set {name} cannot be loaded: {endpoint()} does not answer ({answer.reason.en}). A file needs its "
            "extension; for a hub id check the network or HF_ENDPOINT.",
        )
    try:
        loaded = datasets.load_dataset(name)
    except Exception as error:  # datasets raises many kinds here; all of them mean: no such data, or no hub
        raise HubError(
            f"データセット {name} を取得できません（{str(error).splitlines()[0][:150]}）。ファイルなら拡張子まで書き、ハブならネットワークと名前を確認してください。",
            f"data set {name} cannot be loaded ({str(error).splitlines()[0][:150]}). A file needs its extension; for "
            "a hub id check name and network.",
        ) from None
    return dataset_rows(loaded, name)
