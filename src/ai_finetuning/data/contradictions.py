"""Rows that judge the same answer one way here and the other way there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .encode_report import EncodeReport
from .example import Example
from .store.documents import documents_of, joined

_NAMED = 5
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_Keys = NDArray[np.uint64]


def _of_two(first: NDArray[np.uint64], second: NDArray[np.uint64]) -> _Keys:
    """One number for two, which tells their order."""
    return (first * _FACTOR) ^ second


def contradictions(sides: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(places of pairs that stand the other way round elsewhere, places of other pairs one answer of which is the better in one
    row and the worse in another).

    Args:
        sides: [pairs, 2], digests of the whole chosen and rejected conversations, so that the question is part of both.
    """
    chosen, rejected = np.asarray(sides[:, 0]), np.asarray(sides[:, 1])
    swapped = np.isin(_of_two(chosen, rejected), _of_two(rejected, chosen))
    both = np.isin(chosen, rejected) | np.isin(rejected, chosen)
    return np.flatnonzero(swapped), np.flatnonzero(both & ~swapped)


def judged_twice(contents: NDArray[np.uint64], marks: NDArray[Any]) -> NDArray[np.int64]:
    """The places of answers that are good in one row and bad in another.

    Args:
        contents: [rows, 2], digests of the rows' tokens.
        marks: [rows], 1 or 2, by which they differ.
    """
    keys = _of_two(np.asarray(contents[:, 0]), np.asarray(contents[:, 1]))
    kinds = [np.unique(keys[np.asarray(marks) == mark]) for mark in (1, 2)]
    return np.flatnonzero(np.isin(keys, kinds[0]) & np.isin(keys, kinds[1]))


def note_contradictions(report: EncodeReport, arrays: dict[str, NDArray[Any]], names: Sequence[str]) -> None:
    """Counts them in a report, with the first ones by name.

    Args:
        arrays: of a store: sides, or contents and marks; files, numbers.
        names: of files.
    """

    def named(places: NDArray[np.int64]) -> list[str]:
        first = places[:_NAMED].tolist()
        return [joined(names[int(arrays["files"][place])], int(arrays["numbers"][place])) for place in first]

    if "sides" in arrays:
        swapped, others = contradictions(arrays["sides"])
        report.swapped, report.swapped_rows = len(swapped), named(swapped)
    else:
        others = judged_twice(arrays["contents"], arrays["marks"])
    report.contradicting, report.contradicting_rows = len(others), named(others)


def note_contradictions_of(report: EncodeReport, examples: Sequence[Example]) -> None:
    """The same of rows in memory."""
    documents = documents_of(examples)
    if documents.sides is not None or documents.marks is not None:
        note_contradictions(report, dict(documents.arrays), documents.names)
