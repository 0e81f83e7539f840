"""Parquet, Arrow, Feather, and what the `datasets` library saves."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import DataError
from .rows import File, FileReport, Row


def _columns(file: File, kind: str, read: Any) -> Iterator[Row]:
    path = file.report.path
    try:
        table = read(io.BytesIO(file.raw))
        # Arrow trusts the offsets of a file: reading values beyond its end would end the process.
        table.validate(full=True)
        twice = [name for index, name in enumerate(table.column_names) if name in table.column_names[:index]]
        rows = [] if twice else table.to_pylist()
    except Exception as error:  # pyarrow raises many kinds for damaged bytes
        raise DataError(
            f"{path} を {kind} として読めません（{error}）。", f"{path} is not valid {kind} ({error})."
        ) from None
    if twice:
        raise DataError(
            f"{path}: 列 {twice[0]} が 2 つあります。片方の名前を変えてください。",
            f"{path}: two columns are called {twice[0]}; rename one of them.",
        )
    for number, values in enumerate(rows, start=1):
        yield Row(values, file.item(number))


def read_parquet(file: File) -> Iterator[Row]:
    """Rows of a Parquet file."""
    import pyarrow.parquet

    yield from _columns(file, "Parquet", pyarrow.parquet.read_table)


def read_arrow(file: File) -> Iterator[Row]:
    """Rows of an Arrow file, an Arrow stream or a Feather file."""
    import pyarrow
    from pyarrow import feather

    def read(raw: io.BytesIO) -> Any:
        for attempt in (pyarrow.ipc.open_file, pyarrow.ipc.open_stream):
            with contextlib.suppress(pyarrow.ArrowInvalid):
                raw.seek(0)
                return attempt(raw).read_all()
        raw.seek(0)
        return feather.read_table(raw)

    yield from _columns(file, "Arrow", read)


def read_saved(folder: Path) -> tuple[list[Row], FileReport]:
    """Rows of a folder that `datasets` saved.

    Raises:
        DataError: it cannot be read, or has no split `train`.
    """
    import datasets

    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:  # datasets and pyarrow raise many kinds for damaged folders
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise DataError(
            f"{folder} は datasets の save_to_disk のフォルダーとして読めません（{reason}）。",
            f"{folder} cannot be read as a folder of datasets' save_to_disk ({reason}).",
        ) from None
    return dataset_rows(loaded, str(folder))


def dataset_rows(loaded: Any, name: str) -> tuple[list[Row], FileReport]:
    """Rows of a Dataset, or of the split `train` of several; the other splits are named.

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
    rows = [Row(values, f"{name}[{number}]") for number, values in enumerate(loaded, start=1)]
    if not rows:
        raise DataError(f"{name} に行がありません。", f"{name} contains no row.")
    report.rows = len(rows)
    return rows, report
