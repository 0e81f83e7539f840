"""Parquet, Arrow, Feather, and what the `datasets` library saves."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import DataError
from ..messages import excerpt
from .compression import limit_of, too_big
from .rows import File, FileReport, Row, parsing

# Rows that are decoded at a time.
_BATCH = 4096


def _columns(file: File, kind: str, read: Callable[[BinaryIO], Iterator[Any]]) -> Iterator[Row]:
    """Rows of a file that is read where it lies, some at a time; one that is unpacked first is in memory."""
    path, local = file.report.path, file.content.local
    length = local.stat().st_size if local is not None else len(file.raw)
    limit = limit_of(length)
    number = size = 0
    with parsing(path, kind), local.open("rb") if local is not None else io.BytesIO(file.raw) as raw:
        for batch in _allocated(read(raw), path, length):
            names = batch.schema.names
            twice = [name for index, name in enumerate(names) if name in names[:index]]
            if twice:
                raise DataError(
                    f"{path}: 列 {excerpt(twice[0])} が 2 つあります。片方の名前を変えてください。",
                    f"{path}: two columns are called {excerpt(twice[0])}; rename one of them.",
                )
            # Arrow trusts the offsets of a file: reading values beyond its end would end the process.
            batch.validate(full=True)
            size += sum(map(_written_out, batch.columns))
            if size > limit:
                raise too_big(path, length)
            for values in batch.to_pylist():
                number += 1
                yield Row(values, file.item(number))


def _allocated(batches: Iterator[Any], path: str, size: int) -> Iterator[Any]:
    """The batches; a size in a file that no memory could hold is the file's fault."""
    import pyarrow

    try:
        yield from batches
    except pyarrow.ArrowMemoryError:
        raise too_big(path, size) from None


def _written_out(column: Any) -> int:
    """Bytes of a column with every value written out: a dictionary's entry may stand in millions of rows."""
    import pyarrow

    return int((column.dictionary_decode() if pyarrow.types.is_dictionary(column.type) else column).nbytes)


def read_parquet(file: File) -> Iterator[Row]:
    """Rows of a Parquet file."""
    import pyarrow.parquet

    yield from _columns(file, "Parquet", lambda raw: pyarrow.parquet.ParquetFile(raw).iter_batches(_BATCH))


def read_arrow(file: File) -> Iterator[Row]:
    """Rows of an Arrow file, an Arrow stream or a Feather file."""
    yield from _columns(file, "Arrow", _record_batches)


def _record_batches(raw: BinaryIO) -> Iterator[Any]:
    import pyarrow
    from pyarrow import feather

    try:
        source = pyarrow.ipc.open_file(raw)
    except pyarrow.ArrowInvalid:
        raw.seek(0)
        try:
            yield from pyarrow.ipc.open_stream(raw)
        except pyarrow.ArrowInvalid:
            raw.seek(0)
            yield from feather.read_table(raw).to_batches(_BATCH)
        return
    for index in range(source.num_record_batches):
        yield source.get_batch(index)


def read_saved(folder: Path) -> tuple[Iterator[Row], FileReport]:
    """Rows of a folder that `datasets` saved, read one after another.

    Raises:
        DataError: it cannot be read, or has no split `train`.
    """
    import datasets

    _check_names(folder)
    with parsing(str(folder), "datasets (save_to_disk)"):
        loaded = datasets.load_from_disk(str(folder))
    return dataset_rows(loaded, str(folder))


def _check_names(folder: Path) -> None:
    """Refuses a folder whose files are named as lying elsewhere.

    Raises:
        DataError: a path, an address or a damaged list of files.
    """
    for state in (*folder.glob("state.json"), *folder.glob("*/state.json")):
        try:
            files = [str(item["filename"]) for item in json.loads(state.read_bytes())["_data_files"]]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(f"{state} が壊れています（{error}）。", f"{state} is damaged ({error}).") from None
        odd = next((name for name in files if Path(name).name != name or "\\" in name or ":" in name), None)
        if odd is not None:
            raise DataError(
                f"{state} がフォルダーの外のファイル {odd[:80]!r} を指しています。読みません。",
                f"{state} names {odd[:80]!r}, which is not a file of its folder; not read.",
            )


def dataset_rows(loaded: Any, name: str) -> tuple[Iterator[Row], FileReport]:
    """Rows of a Dataset, or of the split `train` of several, read one after another; the other splits are named.

    Raises:
        DataError: no split `train`, or no row.
    """
    report = FileReport(name, "datasets")
    if isinstance(loaded, dict):
        splits = {split: getattr(rows, "num_rows", None) for split, rows in loaded.items()}
        if "train" not in loaded:
            example = f"{name}/{next(iter(splits), 'test')}"
            raise DataError(
                f"{name} に train がありません（あるのは {', '.join(splits)}）。フォルダーなら {example} のように指定できます。",
                f"{name} has no split `train` (found {', '.join(splits)}); for a folder name one, such as {example}.",
            )
        for split, count in splits.items():
            if split != "train":
                report.notes.append((f"読まない分割: {split}（{count} 行）", f"split not read: {split} ({count} rows)"))
        loaded = loaded["train"]
    # As Arrow, so that nothing is decoded: an image or sound is a path or an address that a stranger wrote.
    batches = loaded.with_format("arrow").iter(batch_size=_BATCH)
    values = (value for batch in batches for value in batch.to_pylist())
    first = next(values, None)
    if first is None:
        raise DataError(f"{name} に行がありません。", f"{name} contains no row.")
    return (Row(value, f"{name}[{number}]") for number, value in enumerate(chain([first], values), start=1)), report
