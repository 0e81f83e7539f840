"""Where tokens stand in a text, told by the characters that each piece of the vocabulary is made of.

A tokenizer that keeps track of offsets needs half as long again as one that does not. Where its normalization keeps every
character's place and its pieces are the text's own characters or bytes, the ends of the tokens are the sums of their
lengths. Anything else is left to the tokenizer's own offsets; so is any text whose lengths do not add up.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
# Added to the characters of a piece that needs more than a sum: one that begins inside a character of a byte-level vocabulary,
# one that is a byte of another.
_MARKED = 1 << 24


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

    def _has_frame(self, core: Any) -> bool:
        """Whether special tokens stand around a text in the same number always; notes how many."""
        bare, framed = (core.encode("あ", add_special_tokens=special).ids for special in (False, True))
        before = next((place for place in range(len(framed)) if framed[place : place + len(bare)] == bare), None)
        if before is None:
            return False
        self._frame = (before, len(framed) - before - len(bare))
        return True

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
        before, after = self._frame if special else (0, 0)
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
