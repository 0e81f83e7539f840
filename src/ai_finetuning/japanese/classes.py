"""Which of a few kinds of characters a text holds, in one pass over it: most texts hold none of them, and the searches for
each kind can be left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Below so many characters a search is faster than a pass with numpy.
LONG = 400
# Characters of a long text that are looked at together, so that what is made of them stays in the processor's cache.
_TOGETHER = 2**15


def _codes_of(text: str) -> NDArray[np.uint32]:
    """[characters] uint32: the code points of a text, half ones too."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


@cache
def table_of(*kinds: frozenset[int] | range) -> NDArray[np.uint8]:
    """[code points] uint8: bit n is set for the characters of kind n."""
    table = np.zeros(0x110000, dtype=np.uint8)
    for bit, kind in enumerate(kinds):
        table[slice(kind.start, kind.stop) if isinstance(kind, range) else list(kind)] |= 1 << bit
    return table


def matching(pattern: re.Pattern[str]) -> frozenset[int]:
    """The characters of the basic plane that a pattern of one character matches."""
    return frozenset(map(ord, pattern.findall(_basic_plane())))


@cache
def _basic_plane() -> str:
    return "".join(map(chr, range(0x10000)))


def kinds_of(text: str, table: NDArray[Any]) -> NDArray[Any]:
    """[characters]: the bits that a table has for each character of a text."""
    return table.take(_codes_of(text))


def all_kinds(kinds: NDArray[Any]) -> int:
    """All bits that any character has."""
    return int(np.bitwise_or.reduce(kinds))


def distinct(texts: Iterable[str]) -> set[str]:
    """The characters of some texts, each once."""
    seen = np.zeros(0x110000, dtype=bool)
    for part in (text[start : start + _TOGETHER] for text in texts for start in range(0, len(text), _TOGETHER)):
        seen[_codes_of(part).astype(np.int64)] = True  # numpy needs more for other kinds of places
    return set(map(chr, np.flatnonzero(seen).tolist()))
