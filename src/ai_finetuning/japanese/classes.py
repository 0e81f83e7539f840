"""Which of a few kinds of characters a text holds, in one pass over it: most texts hold none of them, and the searches for
each kind can be left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray

# Below so many characters a search is faster than a pass with numpy.
LONG = 400


@lru_cache(maxsize=1)
def codes_of(text: str) -> NDArray[np.uint32]:
    """[characters] uint32: the code points of a text, half ones too."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


@cache
def table_of(*kinds: frozenset[int] | range) -> NDArray[np.uint8]:
    """[code points] uint8: bit n is set for the characters of kind n."""
    table = np.zeros(0x110000, dtype=np.uint8)
    for bit, kind in enumerate(kinds):
        table[np.fromiter(kind, dtype=np.int64)] |= 1 << bit
    return table


def matching(pattern: re.Pattern[str]) -> frozenset[int]:
    """The characters of the basic plane that a pattern of one character matches."""
    return frozenset(map(ord, pattern.findall(_basic_plane())))


@cache
def _basic_plane() -> str:
    return "".join(map(chr, range(0x10000)))


def kinds_in(text: str, table: NDArray[np.uint8]) -> int:
    """The bits of all kinds of a table that a text holds."""
    codes = codes_of(text)
    return int(np.bitwise_or.reduce(table.take(codes))) if len(codes) else 0


def distinct(texts: Iterable[str]) -> set[str]:
    """The characters of some texts, each once."""
    seen = np.zeros(0x110000, dtype=bool)
    for text in texts:
        seen[codes_of(text).astype(np.int64)] = True  # numpy needs more for other kinds of places
    return set(map(chr, np.flatnonzero(seen).tolist()))
