"""Where tokens stand in a text, told by the characters that each piece of the vocabulary is made of.

A tokenizer that keeps track of offsets needs half as long again as one that does not. Where its normalization keeps every
character's place and its pieces are the text's own characters or bytes, the ends of the tokens are the sums of their
lengths. Anything else is left to the tokenizer's own offsets; so is any text whose lengths do not add up.

Such a tokenizer is asked for lines, where the tokens of a text are those of its lines: what it makes of a long text lies all
over the memory.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
# Added to the characters of a piece that needs more than a sum: one that begins inside a character of a byte-level vocabulary,
# one that is a byte of another.
_MARKED = 1 << 24
# Characters from which a text is divided at its next line end, and the most that a text has (tokenize.py refuses longer ones).
_PART, MOST_CHARACTERS = 1 << 10, 1 << 22
# What a Unigram model takes from its worst score for a character that it lacks (tokenizers' K_UNK_PENALTY).
_UNKNOWN = 10


class PieceLengths:
    """Offsets by lengths for one tokenizer.

    Args:
        tokenizer: a fast one of transformers.
    """

    def __init__(self, tokenizer: Any) -> None:
        core = tokenizer.backend_tokenizer
        kinds = [_parts(getattr(core, name)) for name in ("normalizer", "pre_tokenizer", "post_processor")]
        self.by_bytes = _is_byte_level(core, *kinds)
        self._composes = any(item["type"] == "NFC" for item in kinds[0])
        self.known = (self.by_bytes or _is_unigram(core, *kinds)) and self._has_frame(core)
        if self.known:
            self._measure(tokenizer)
            self._by_lines = not self.by_bytes and _divides_at_lines(core)

    def _has_frame(self, core: Any) -> bool:
        """Whether the same special tokens stand around every text; notes them."""
        bare, framed = (core.encode("あ", add_special_tokens=special).ids for special in (False, True))
        count = len(bare)
        before = next((place for place in range(len(framed)) if framed[place : place + count] == bare), None)
        if before is None:
            return False
        self._frame = framed[:before], framed[before + count :]
        return True

    def encode(self, core: Any, texts: Sequence[str], special: Sequence[bool]) -> list[NDArray[np.int32]]:
        """Ids [tokens] of each text, those that the tokenizer gives for all of it.

        Args:
            core: the tokenizer's Rust object, whose switches are set.
            texts: of at most MOST_CHARACTERS each.
            special: of each text, whether the tokenizer puts its own special tokens around it.
        """
        parts = [self._parts_of(text) for text in texts]
        coded = iter(core.encode_batch_fast(list(chain.from_iterable(parts)), add_special_tokens=False))
        obtained = []
        for own, framed in zip(parts, special, strict=True):
            before, after = self._frame if framed else ([], [])
            lists = [before, *(next(coded).ids for _ in own), after]
            obtained.append(
                np.fromiter(chain.from_iterable(lists), dtype=np.int32, count=sum(len(ids) for ids in lists))
            )
        return obtained

    def _parts_of(self, text: str) -> list[str]:
        """Some lines each, or all of the text."""
        if not self._by_lines:
            return [text]
        parts, start = [], 0
        while end := text.find("\n", start + _PART) + 1:
            parts.append(text[start:end])
            start = end
        return [*parts, text[start:]] if start < len(text) else parts or [text]

    def _measure(self, tokenizer: Any) -> None:
        vocabulary = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=True)
        size = max(vocabulary.values()) + 1
        self._characters = np.full(size, -1, dtype=np.int32)
        letters = _bytes_of_letters() if self.by_bytes else {}
        for piece, number in vocabulary.items():
            byte = None if self.by_bytes else _BYTE.fullmatch(piece)
            if byte is not None:
                self._characters[number] = _MARKED + (not _continues(int(byte[1], 16)))
            elif not self.by_bytes:
                self._characters[number] = len(piece)
            elif all(letter in letters for letter in piece):
                values = [letters[letter] for letter in piece]
                characters = sum(not _continues(value) for value in values)
                self._characters[number] = characters + _MARKED * _continues(values[0])
        for number, token in tokenizer.added_tokens_decoder.items():
            stripped = token.lstrip or token.rstrip or token.single_word
            self._characters[number] = -1 if stripped else len(token.content)
        if tokenizer.unk_token_id is not None:  # it stands for any number of characters
            self._characters[tokenizer.unk_token_id] = -1

    def offsets(self, ids: Sequence[int] | NDArray[np.int32], text: str, *, special: bool) -> NDArray[np.int32] | None:
        """[tokens, 2] int32: where the characters of each token begin and end; None where that cannot be told.

        Args:
            special: whether the tokenizer put its own special tokens around the text.
        """
        if self._composes and not unicodedata.is_normalized("NFC", text):
            return None  # characters that are taken away and added may come to the same length
        before, after = map(len, self._frame) if special else (0, 0)
        inner = slice(before, len(ids) - after)
        characters = self._characters.take(ids[inner])
        if characters.min(initial=0) < 0:
            return None
        marked = characters >= _MARKED if characters.max(initial=0) >= _MARKED else None
        if marked is not None:
            characters &= _MARKED - 1
        # By columns, as they are used: one behind the other in memory.
        offsets = np.zeros((2, len(ids)), dtype=np.int32)
        starts, ends = offsets[:, inner]
        np.cumsum(characters, out=ends)
        if (int(ends[-1]) if len(ends) else 0) != len(text):
            return None
        np.subtract(ends, characters, out=starts)
        if marked is not None and self.by_bytes:
            starts -= marked
        elif marked is not None:
            _share_a_place(marked, starts, ends)
        return offsets.T


def _share_a_place(is_byte: NDArray[np.bool_], starts: NDArray[np.int32], ends: NDArray[np.int32]) -> None:
    """Gives all bytes of what a vocabulary lacks the place of their whole run."""
    places = np.flatnonzero(is_byte)
    begins = np.flatnonzero(np.diff(places, prepend=-2) > 1)  # of each run, its first among the places
    lengths = np.diff(begins, append=len(places))
    starts[places] = np.repeat(starts[places[begins]], lengths)
    ends[places] = np.repeat(ends[places[begins + lengths - 1]], lengths)


def _continues(byte: int) -> bool:
    """Whether a byte of UTF-8 goes on with a character."""
    return byte & 0xC0 == 0x80


def _bytes_of_letters() -> dict[str, int]:
    """The byte that each letter of a byte-level vocabulary stands for: printable ones of Latin-1 for themselves, the others
    from U+0100 on (GPT-2's table).
    """
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {chr(0x100 + place): byte for place, byte in enumerate(others)}


def _parts(component: Any) -> list[dict[str, Any]]:
    """A component of a tokenizer as its settings, and each of a sequence of them."""
    if component is None:
        return []
    return _flat(json.loads(component.__getstate__()))


def _flat(settings: dict[str, Any]) -> list[dict[str, Any]]:
    if settings["type"] != "Sequence":
        return [settings]
    inner = next(value for value in settings.values() if isinstance(value, list))
    return [part for item in inner for part in _flat(item)]


def _is_unigram(core: Any, normalizer: list[Any], pre_tokenizer: list[Any], post_processor: list[Any]) -> bool:
    """Whether pieces are characters of the text, with `▁` for each blank."""
    return (
        type(core.model).__name__ == "Unigram"
        and not pre_tokenizer
        and all(item["type"] == "Replace" and _changes_blanks(item) for item in normalizer)
        and all(item["type"] == "TemplateProcessing" for item in post_processor)
    )


def _divides_at_lines(core: Any) -> bool:
    """Whether the tokens of a text are those of its lines: a line end is never an unknown token, no piece goes on behind it, and
    which segmentation of a line has the best sum of scores does not depend on the sums before it.

    A model that is `_is_unigram` is meant. Sums are 64 bit (Kudo 2018's lattice in the library tokenizers): they are exact where
    the scores are multiples of one power of two that leaves room for the longest text. Rounded ones would decide between
    segmentations that are equally good, such as the two of `あああ` in pieces of one and two, by what stands before.
    """
    added = core.get_added_tokens_decoder().values()
    if any(
        token.lstrip or token.rstrip or token.single_word or "\n" in token.content.removesuffix("\n") for token in added
    ):
        return False
    if any(token.content == "\n" for token in added):
        return True
    model = json.loads(core.model.__getstate__())
    vocabulary = model["vocab"]
    pieces = {piece for piece, _ in vocabulary}
    # Unknown characters that follow each other are one unknown token, or the bytes of each.
    in_bytes = model["byte_fallback"] and all(f"<0x{byte:02X}>" in pieces for byte in range(256))
    if not ("\n" in pieces or in_bytes) or any("\n" in piece[:-1] for piece in pieces):
        return False
    finest = max(score.as_integer_ratio()[1] for _, score in vocabulary)
    largest = max(abs(score) for _, score in vocabulary) + _UNKNOWN
    return bool(largest * finest * MOST_CHARACTERS < 2**53)


def _changes_blanks(item: dict[str, Any]) -> bool:
    return item["content"] == "▁" and list(item["pattern"].values()) == [" "]


def _is_byte_level(core: Any, normalizer: list[Any], pre_tokenizer: list[Any], post_processor: list[Any]) -> bool:
    """Whether pieces are bytes of the text, and their offsets are not trimmed."""
    kinds = [item["type"] for item in pre_tokenizer]
    return (
        type(core.model).__name__ == "BPE"
        and kinds.count("ByteLevel") == 1
        and kinds[-1] == "ByteLevel"
        and not pre_tokenizer[-1]["add_prefix_space"]
        and all(item["type"] == "Split" and item["behavior"] == "Isolated" for item in pre_tokenizer[:-1])
        and all(item["type"] == "NFC" for item in normalizer)
        and all(
            item["type"] == "TemplateProcessing" or (item["type"] == "ByteLevel" and not item["trim_offsets"])
            for item in post_processor
        )
    )
