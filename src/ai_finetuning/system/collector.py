"""Python's collector of cycles in a process of `aift`: held back while libraries are imported, and at the end.

torch, transformers and peft make a million objects as they are imported, of which 300 are garbage. Walking them again and
again, and once more when the process ends, takes a third of the CPU time of a command that does little else
(docs/evaluation.md). A program that imports this package keeps its collector as it is.
"""

from __future__ import annotations

import gc

# New objects that start a collection, in the place of Python's 700.
AT_START = 100_000

_usual: list[tuple[int, int, int]] = []


def hold_back() -> None:
    """Collects seldom, until as_usual()."""
    if not _usual:
        _usual.append(gc.get_threshold())
    gc.set_threshold(AT_START, *_usual[0][1:])


def as_usual() -> None:
    """Collects as Python does from now on, since tensors may lie in cycles; what libraries have made is left out for good.

    Does nothing where nothing was held back.
    """
    if _usual:
        gc.set_threshold(*_usual.pop())
        gc.freeze()


def leave() -> None:
    """The process ends: nothing is worth to be looked for."""
    gc.freeze()
