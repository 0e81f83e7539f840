"""What goes to a process that encodes rows, and what it answers: a header in JSON and arrays behind it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..bad_rows import BadRows
from ..files import RowBatch
from ..pieces import Account, Headless, PieceMaker
from ..rows import Content, File, FileReport, Row
from .documents import Documents, documents_of
from .plain import from_plain, to_plain


def send(file: BinaryIO, header: Any, blobs: Sequence[bytes] = ()) -> None:
    """Writes one message."""
    text = json.dumps([header, list(map(len, blobs))], ensure_ascii=False).encode("utf-8", "surrogatepass")
    file.write(len(text).to_bytes(8, "little"))
    for part in (text, *blobs):
        file.write(part)
    file.flush()


def receive(file: BinaryIO) -> tuple[Any, list[bytes]]:
    """Reads one message.

    Raises:
        EOFError: the other side has ended.
    """
    size = int.from_bytes(_exactly(file, 8), "little")
    header, lengths = json.loads(_exactly(file, size).decode("utf-8", "surrogatepass"))
    return header, [_exactly(file, length) for length in lengths]


def _exactly(file: BinaryIO, count: int) -> bytes:
    content = file.read(count)
    if len(content) != count:
        raise EOFError
    return content


def send_batch(file: BinaryIO, batch: RowBatch, heading: Sequence[str] | None) -> None:
    """Sends rows to be encoded.

    Raises:
        TypeError, ValueError: a row holds what JSON has not, such as a date; nothing was sent.
    """
    header = {
        "name": batch.file.report.path,
        "kind": batch.file.report.kind,
        "heading": heading,
        "rows": [[row.values, row.source] for row in batch.read],
    }
    numbers = np.array([number for number, _ in batch.lines], dtype="<i8")
    text = b"\n".join(line for _, line in batch.lines)
    send(file, header, [numbers.tobytes(), text] if batch.lines else [])


def serve(maker: PieceMaker, incoming: BinaryIO, outgoing: BinaryIO) -> None:
    """Encodes batches until there are none; what went wrong is the answer to the batch."""
    while True:
        try:
            header, blobs = receive(incoming)
        except EOFError:
            return
        try:
            examples, account = maker.make(_batch(header, blobs), header["heading"])
        except Headless:
            send(outgoing, {"headless": True})
        except Exception as error:  # told by the process that asked, which encodes the batch itself
            send(outgoing, {"failed": f"{type(error).__name__}: {error}"})
        else:
            _answer(outgoing, documents_of(examples), account)


def _batch(header: dict[str, Any], blobs: list[bytes]) -> RowBatch:
    report = FileReport(header["name"], header["kind"])
    file = File(Path(report.path), Content.of(b""), report, BadRows())
    if not blobs:
        return RowBatch(file, [Row(values, source) for values, source in header["rows"]])
    numbers = np.frombuffer(blobs[0], dtype="<i8").tolist()
    return RowBatch(file, lines=list(zip(numbers, blobs[1].split(b"\n"), strict=True)))


def _answer(file: BinaryIO, documents: Documents, account: Account) -> None:
    arrays = documents.arrays
    header = {
        "account": to_plain(account),
        "names": documents.names,
        "arrays": [[name, values.dtype.str, list(values.shape)] for name, values in arrays],
    }
    send(file, header, [np.ascontiguousarray(values).tobytes() for _, values in arrays])


def receive_answer(file: BinaryIO) -> tuple[Documents, Account] | None:
    """The documents of a batch and what became of its rows; None where the process could not encode it.

    Raises:
        EOFError: the process has ended. Headless: the heading is needed.
    """
    header, blobs = receive(file)
    if header.get("headless"):
        raise Headless
    if "failed" in header:
        return None
    arrays = {
        name: np.frombuffer(blob, dtype=kind).reshape(shape)
        for (name, kind, shape), blob in zip(header["arrays"], blobs, strict=True)
    }
    return Documents(**arrays, names=header["names"]), from_plain(Account, header["account"])
