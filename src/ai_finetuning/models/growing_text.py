"""The text of ids that come one by one, as one decode of all of them gives it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

# How many ids are decoded again in front of the new ones (alone, a token loses the blank that it begins with), and after
# how many the text in front of them is kept.
_CONTEXT, _SETTLED = 16, 64


class GrowingText:
    """Decodes only the end of a growing list of ids; the cost of a token does not grow with the text.

    A character of which bytes are missing reads as U+FFFD until they come.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._settled, self._text = 0, ""

    def add(self, ids: Sequence[int]) -> str:
        """The text of all ids so far, with these at the end."""
        self._ids += ids
        start = max(0, self._settled - _CONTEXT)
        before, end = self._decode(self._ids[start : self._settled]), self._decode(self._ids[start:])
        # A tokenizer in Rust reads no byte of a run that has a broken character, also the ones before it.
        whole = self._text + end[len(before) :] if end.startswith(before) else self._decode(self._ids)
        if len(self._ids) - self._settled >= _SETTLED and not whole.endswith("\ufffd"):
            self._settled, self._text = len(self._ids), whole
        return whole
