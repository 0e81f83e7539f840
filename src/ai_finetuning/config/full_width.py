"""Full-width characters that Japanese input methods leave in YAML, where they are text and no syntax."""

from __future__ import annotations

import re
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
