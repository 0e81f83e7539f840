"""Brings text into one form without changing what it says: never NFKC, never punctuation, never special tokens."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass

# Compatibility ideographs stay: NFC would turn the 﨑, 神 and 塚 of people's names into other characters.
_KEPT = re.compile("[\uf900-\ufaff\U0002f800-\U0002fa1f]")
# Characters that NFC neither changes nor joins to others: those of which most Japanese texts are made.
NEVER_COMPOSED = (
    *(range(0x00, 0x80), range(0xA1, 0xC0), range(0x2010, 0x2028), range(0x2030, 0x205F), range(0x2190, 0x2300)),
    *(range(0x2500, 0x2700), range(0x3000, 0x302A), range(0x3030, 0x3099), range(0x309B, 0x3100)),
    *(range(0x4E00, 0xA000), range(0xFF00, 0xFFF0)),
)
_HALF_KANA = re.compile("[\uff61-\uff9f]+")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u2060]")
_FULL_ASCII = re.compile("[０-９Ａ-Ｚａ-ｚ]")
_NARROW = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_BLANK_LINES = re.compile(r"\n{3,}")


def _compose(text: str) -> tuple[str, int]:
    """NFC around the kept ideographs; the number of characters that the composition took away or changed."""
    if unicodedata.is_normalized("NFC", text):
        return text, 0
    parts, position = [], 0
    for match in _KEPT.finditer(text):
        parts += [unicodedata.normalize("NFC", text[position : match.start()]), match.group()]
        position = match.end()
    parts.append(unicodedata.normalize("NFC", text[position:]))
    composed = "".join(parts)
    return composed, max(len(text) - len(composed), int(composed != text))


def _widen(match: re.Match[str]) -> str:
    """Half-width katakana to full-width; sound marks join the kana before them."""
    wide = unicodedata.normalize("NFKC", match.group())
    return wide.replace("\u3099", "゛").replace("\u309a", "゜")


@dataclass(frozen=True)
class Rules:
    """Which rules apply: those that change nothing of what a text says by default, the rest where it is asked for."""

    newlines: bool = True
    bom: bool = True
    compose: bool = True
    widen_kana: bool = True
    strip_control: bool = False
    narrow_ascii: bool = False
    wave_dash: bool = False
    collapse_blank_lines: bool = False


def normalize(text: str, **switches: bool) -> tuple[str, Counter[str]]:
    """The text in one form, and how often each rule changed something.

    By default: CRLF and CR to LF, U+FEFF removed, combining sequences composed (NFC, but U+F900-FAFF and U+2F800-2FA1F
    stay), half-width katakana widened. The rest is opt-in.

    Args:
        **switches: the fields of `Rules`.
    """
    rules = Rules(**switches)
    counts: Counter[str] = Counter()
    if rules.newlines and "\r" in text:
        counts["newlines"] = text.count("\r")
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if rules.bom and "\ufeff" in text:
        counts["bom"] = text.count("\ufeff")
        text = text.replace("\ufeff", "")
    if rules.strip_control:
        text, counts["control"] = _CONTROL.subn("", text)
    if rules.compose:
        text, counts["composed"] = _compose(text)
    if rules.widen_kana and _HALF_KANA.search(text):
        counts["half_width_kana"] = sum(len(run) for run in _HALF_KANA.findall(text))
        text = _HALF_KANA.sub(_widen, text)
    if rules.narrow_ascii:
        text, counts["full_width_ascii"] = _FULL_ASCII.subn(lambda match: match.group().translate(_NARROW), text)
    if rules.wave_dash and "～" in text:
        counts["wave_dash"] = text.count("～")
        text = text.replace("～", "〜")
    if rules.collapse_blank_lines:
        text, counts["blank_lines"] = _BLANK_LINES.subn("\n\n", text)
    return text, +counts
