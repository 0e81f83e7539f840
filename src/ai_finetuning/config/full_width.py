"""Full-width characters that Japanese input methods leave in YAML, where they are text and no syntax, and in values."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass

from ..errors import Reason

_BLANK, _COLON = "\u3000", "\uff1a"
_DIGITS = "０-９．＋－Ｅｅ"
# (a line's pattern, the group of the character, what to say of it); `key` is a setting's name.
_FOUND = (
    (
        re.compile(rf"^[ \t]*(?P<at>{_BLANK})\s*(?:-\s*)?(?P<key>\w+)\s*[:{_COLON}]"),
        Reason(
            "字下げに全角スペースがあります。半角スペースにしてください",
            "a full-width blank indents the line; use spaces",
        ),
    ),
    (
        re.compile(rf"^\s*(?:-\s+)?[{{]?\s*(?P<key>\w+)\s*(?P<at>{_COLON})"),
        Reason(
            "「：」が全角です。半角の「:」と半角スペースにしてください", "the colon is full-width; use : and a space"
        ),
    ),
    (
        re.compile(rf"^\s*(?:-\s+)?(?P<key>\w+):(?P<at>{_BLANK})"),
        Reason(
            "「:」の後が全角スペースです。半角スペースにしてください",
            "a full-width blank follows the colon; use a space",
        ),
    ),
    (
        re.compile(rf"^\s*(?:-\s+)?(?P<key>\w+):\s[^\"'#]*?(?P<at>{_BLANK})+#"),
        Reason(
            "「#」の前が全角スペースです。半角スペースにしてください", "a full-width blank precedes the #; use a space"
        ),
    ),
    (
        re.compile(rf"^\s*(?:-\s+)?(?P<key>\w+):\s+[\w.+-]*?(?P<at>[{_DIGITS}])[0-9.eE+\-{_DIGITS}]*\s*(?:#.*)?$"),
        Reason("数字が全角です。半角にしてください", "a digit is full-width; use 0-9"),
    ),
)


# Dashes that stand for a minus in texts, which NFKC leaves as they are.
_DASHES = dict.fromkeys(map(ord, "−–‐ー"), "-")


def narrowed(text: str) -> str | None:
    """A word or number as it is typed without an input method; None of what is so already, and of what is Japanese."""
    plain = unicodedata.normalize("NFKC", text).translate(_DASHES).strip()
    return plain if plain != text.strip() and plain.isascii() else None


def narrow_hint(value: object) -> Reason:
    """A sentence that names the plain spelling of a refused value with full-width characters; empty of others."""
    plain = narrowed(value) if isinstance(value, str) else None
    if not plain:
        return Reason("", "")
    return Reason(
        f"全角の文字があります。半角で {plain} と書いてください。", f" It has full-width characters; write {plain}."
    )


@dataclass(frozen=True)
class FullWidth:
    """A character, and where it stands, from 1."""

    line: int
    column: int
    what: Reason


def full_width(text: str, keys: Collection[str]) -> list[FullWidth]:
    """Characters of a YAML that was refused which are likely why.

    Args:
        keys: names of settings; other lines may be prose, where these characters are at home.
    """
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        for pattern, what in _FOUND:
            match = pattern.match(line)
            if match is not None and match["key"] in keys:
                found.append(FullWidth(number, match.start("at") + 1, what))
                break
    return found
