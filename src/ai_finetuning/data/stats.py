"""What `aift data show` and `aift data stats` say: exact tokens, lengths, what would be cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..labels import IGNORED
from .example import Example
from .forks import CHOSEN, REJECTED, side_of

# Tokens in front of one that is shown.
_CONTEXT = 8


@dataclass(frozen=True)
class ShownToken:
    """One token of a row: id, text, whether it is a label token, whether it is special.

    A character made of several tokens is shown at the last of them, `‥` at the others.
    """

    id: int
    text: str
    live: bool
    special: bool


def shown_tokens(example: Example, tokenizer: Any) -> list[ShownToken]:
    """Every token of a row, as the model gets it."""
    specials = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    shown: list[ShownToken] = []
    before: list[int] = []  # a few tokens in front: alone, a token loses the blank that it begins with
    part: list[int] = []  # tokens of a character that is not complete yet
    for number, label in zip(example.input_ids.tolist(), example.labels.tolist(), strict=True):
        part.append(number)
        text = _text_behind(before, part, tokenizer)
        if "\ufffd" in text and len(part) < 4:
            text = "‥"
        else:
            before, part = (before + part)[-_CONTEXT:], []
        shown.append(ShownToken(number, text, label != IGNORED, number in specials))
    return shown


def _text_behind(before: list[int], part: list[int], tokenizer: Any) -> str:
    """What `part` adds to the text of the tokens in front of it."""
    start = tokenizer.decode(before, skip_special_tokens=False) if before else ""
    whole = tokenizer.decode(before + part, skip_special_tokens=False)
    return str(whole[len(start) :] if whole.startswith(start) else tokenizer.decode(part, skip_special_tokens=False))


def wholes(example: Example) -> list[Example]:
    """What is read at once of a row: of a pair the two whole conversations, of others the row itself."""
    return [side_of(example, side) for side in (CHOSEN, REJECTED)] if example.fork else [example]


def histogram(lengths: Sequence[int], *, bins: int = 12) -> list[tuple[int, int, int]]:
    """(from, to, rows) of equal ranges of lengths; `to` is included."""
    low, high = min(lengths), max(lengths)
    width = max(1, -(-(high - low + 1) // bins))
    edges = range(low, high + 1, width)
    return [(edge, edge + width - 1, sum(edge <= length < edge + width for length in lengths)) for edge in edges]


def percentile(lengths: Sequence[int], share: float) -> int:
    """The length that `share` of the rows do not exceed."""
    ordered = sorted(lengths)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]
