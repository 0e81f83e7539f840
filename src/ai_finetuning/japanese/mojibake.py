"""Text that was decoded with the wrong encoding, found row by row.

Two kinds of rule: those that prove the mistake, because encoding the text back gives bytes that decode to Japanese, and
those that go by which characters a Japanese text is made of. On 54,650 intact texts the former had no false alarm.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .classes import LONG, all_kinds, kinds_of, matching, table_of

_KANA = re.compile("[\u3041-\u3093\u30a1-\u30f6]")
_JAPANESE = re.compile("[\u3040-\u30ff\u4e00-\u9fff]")
_KANJI = re.compile("[\u4e00-\u9fff]")
# What bytes of UTF-8 or CP932 become when they are read as Latin-1 or Windows-1252.
_CP1252 = "".join(bytes([code]).decode("cp1252", "ignore") for code in range(0x80, 0xA0))
_WESTERN_LETTER = f"[\u0080-\u00ff{re.escape(_CP1252)}]"
# Searching skips to the first character of a pattern where that stands by itself.
_WESTERN = re.compile(f"{_WESTERN_LETTER}{_WESTERN_LETTER}{{2,}}")
_RUN = re.compile(f"{_WESTERN_LETTER}{_WESTERN_LETTER}+")
_C1 = re.compile("[\u0080-\u009f]")
# What short texts come out with where the encoding was another one: no repair has half-width kana or private characters.
_ODD = re.compile("[\uff61-\uff9f\ue000-\uf8ff]")
_LATIN = re.compile("[\u0080-\u00ff]")
# The lead bytes E3 81, E3 82, E3 83 and E4-E9 of UTF-8 read as CP932.
_UTF8_AS_CP932 = re.compile("[繧縺繝譁蜿荳莉蟄隱螟譛蠖蝨鬮][\u0080-\uffff]")
_UTF8_RUN = re.compile("[\uff61-\uff9f\u3000-\u30ff\u4e00-\u9fff\u0080-\u00ff\u2000-\u25ff]{4,}")
_KANA_BYTES = re.compile(rb"\xe3[\x81-\x83]")  # what every kana begins with in UTF-8
_HALF_KANA = re.compile("[\uff61-\uff9f]")
_MIXED_RUN = re.compile("[\uff61-\uff9f\u3000-\u30ff\u4e00-\u9fff]{6,}")
# Where only shares of characters speak: of half-width kana, and of odd characters.
HALF_SHARE, ODD_SHARE = 0.15, 0.25
# Of half-width kana, those in a wrong place, below which they are words.
NOT_SPELT_SHARE = 0.05
_BLANK = re.compile(r"\s")
# Half-width kana in places where no word has them. Between kanji stand particles, and ｶ, ｹ and ﾂ of names (霞ｹ関).
_NOT_SPELT = re.compile(
    "(?<=[｡-ｲｴｵﾅ-ﾉﾏ-ﾝﾞﾟ])ﾞ|(?<=[｡-ﾉﾏ-ﾟ])ﾟ|(?<![ｦ-ﾟ])[ｧ-ｰ]|(?<=[ｦ-ﾟ])(?<![ｷｼﾁﾆﾋﾐﾘﾞﾟｳﾌﾃﾄｸ])[ｬｭｮ]"
    "|[､･｡](?=[ｶ-ﾟ][､･｡])|(?<=[\u4e00-\u9fff])[ｧ-ｵｷｸｺ-ﾁﾅﾇﾈﾋ-ﾒﾕﾖﾛ-ﾟ](?=[\u4e00-\u9fff])"
)
_ODD_RUN = re.compile(f"[\u00c2-\u00f4][\u0080-\u00bf{re.escape(_CP1252)}]+|[\u0080-\u009f\ue000-\uf8ff]+")
# Anything that one of the rules below needs; most rows hold none of it.
_SUSPICIOUS = re.compile(f"[\u0080-\u009f\u00a0-\u00ff\uff61-\uff9f\ufffd\ue000-\uf8ff繧縺繝{re.escape(_CP1252)}]")


@functools.cache
def _level_two() -> re.Pattern[str]:
    """The kanji of JIS level 2 (EUC lead byte D0 and above)."""
    characters = []
    for lead in range(0xD0, 0xF5):
        for trail in range(0xA1, 0xFF):
            try:
                characters.append(bytes((lead, trail)).decode("euc_jp"))
            except UnicodeDecodeError:
                continue
    return re.compile(f"[{''.join(characters)}]")


@dataclass(frozen=True)
class Mojibake:
    """What happened to a text.

    Attributes:
        kind: the mistake, such as `utf-8 as cp932`.
        repaired: the text as it was, where encoding it again gives back the very same characters; else None.
        proven: whether the bytes tell, or U+FFFD; False where only the choice of characters does, which is a proof in many
            rows of a file and not in one.
    """

    kind: str
    repaired: str | None = None
    proven: bool = True


def find_mojibake(text: str, kinds: NDArray[Any] | None = None) -> Mojibake | None:
    """The mistake that broke a text, or a part of it; None for an intact text.

    Args:
        kinds: of each character of a long text the bits of kinds_table(), and perhaps others, where somebody has them.
    """
    kinds = kinds_of(text, kinds_table()) if kinds is None and len(text) >= LONG else kinds
    present = _kinds_of_short(text) if kinds is None else all_kinds(kinds)
    suspicious = bool(present & 1)
    if suspicious:
        # None of the rules looks further where a text has none of their characters.
        obtained = (
            ((_western(text) or _controls(text)) if present & 8 else None)
            or (_utf8_as_cp932(text) if present & 16 else None)
            or (_eucjp_as_cp932(text) if present & 32 else None)
        )
        if obtained is not None:
            return obtained
        if "\ufffd" in text:
            return Mojibake("U+FFFD")
    few = kinds is not None and not _are_many(*(int(np.count_nonzero(kinds & bit)) for bit in (2, 4)))
    unlikely = not few and _rare_kanji(text) or suspicious and (kinds is None or _may_be_odd(kinds)) and _is_odd(text)
    return Mojibake("a wrong encoding", proven=False) if unlikely else None


def _kinds_of_short(text: str) -> int:
    """Of a text that is too short for a table: all kinds, where it has anything that a rule needs."""
    return 0xFF if _SUSPICIOUS.search(text) else 0


@functools.cache
def kinds_table() -> NDArray[np.uint8]:
    """Of each character whether the rules need it (1), whether it is of JIS level 2 (2), a kanji (4), of Latin-1 (8), one that
    a lead byte of UTF-8 becomes in CP932 (16), a half-width kana (32), a blank (64).
    """
    level_two = (ord(letter) for letter in _level_two().pattern[1:-1])
    leads = _UTF8_AS_CP932.pattern[1 : _UTF8_AS_CP932.pattern.index("]")]
    return table_of(
        matching(_SUSPICIOUS),
        frozenset(level_two),
        range(0x4E00, 0xA000),
        range(0x80, 0x100),
        frozenset(map(ord, leads)),
        range(0xFF61, 0xFFA0),
        matching(_BLANK),
    )


def _are_many(rare: int, kanji: int) -> bool:
    """Whether so many of a text's kanji are of JIS level 2 that it is hardly Japanese."""
    return rare >= 3 and kanji >= 8 and rare > 0.35 * kanji


def _encoded(run: str, western: str) -> bytes | None:
    """The bytes of a run; Windows-1252 leaves five code points undefined, which decoders pass through."""
    if western == "latin-1":
        return run.encode("latin-1") if all(ord(character) < 256 for character in run) else None
    try:
        return b"".join(
            bytes([ord(character)]) if 0x80 <= ord(character) < 0xA0 else character.encode("cp1252")
            for character in run
        )
    except UnicodeEncodeError:
        return None


def _western(text: str) -> Mojibake | None:
    """UTF-8 or CP932 that was read as Latin-1 or Windows-1252: the run's bytes decode to Japanese."""
    for run in _WESTERN.finditer(text):
        start, end = run.span()
        # Dots, dashes and quotes of Windows-1252 stand in intact text as well, and so do rows of × where a censor was.
        if not _LATIN.search(run.group()) or len(set(run.group())) < 2:
            continue
        for western in ("latin-1", "cp1252"):
            # A character of CP932 ends in an ASCII byte as often as not: the run goes on to the text's end.
            raw, whole = _encoded(run.group(), western), _encoded(text[start:], western)
            for encoding, candidate in (("utf-8", raw), ("cp932", whole), ("cp932", raw), ("euc_jp", raw)):
                if encoding == "euc_jp" and western == "cp1252":
                    continue
                obtained = _decoded(candidate, encoding)
                if obtained is not None and _is_japanese(obtained, of=end - start) and not _is_broken(obtained):
                    repaired = _repaired(text, western, encoding) or _repaired_runs(text, western, encoding)
                    repaired = None if repaired is not None and _ODD.search(repaired) else repaired
                    return Mojibake(f"{encoding.replace('_', '-')} as {western}", repaired)
        twice = _encoded(run.group(), "cp1252") or _encoded(run.group(), "latin-1")
        once = _decoded(twice, "utf-8")
        if once is not None and once != run.group() and _WESTERN.search(once) and _western(once) is not None:
            return Mojibake("utf-8 twice as latin-1", _repaired_twice(text))
    return None


def _controls(text: str) -> Mojibake | None:
    """CP932 read as Latin-1 where no run is long enough, as in short katakana: no other text has several control characters
    U+0080-U+009F and is Japanese as CP932.
    """
    if len(_C1.findall(text)) < 2:
        return None
    obtained = _repaired(text, "latin-1", "cp932")
    if obtained is None or not _is_japanese(obtained, of=0) or _is_broken(obtained):
        return None
    return Mojibake("cp932 as latin-1", obtained)


def _is_broken(text: str) -> bool:
    """Whether what a decoding gives is mojibake of another kind: then it was the wrong one."""
    return (_utf8_as_cp932(text) or _eucjp_as_cp932(text) or _unlikely(text) or None) is not None


def _is_japanese(text: str, *, of: int) -> bool:
    """Whether a decoded run reads as Japanese: it has kana or several kanji, and hardly anything else."""
    japanese = len(_JAPANESE.findall(text))
    odd = sum(ord(character) < 0x20 and character not in "\n\r\t" for character in text)
    few = len(_KANA.findall(text)) > 0 or japanese >= 2
    return few and not odd and japanese * 3 >= len(re.findall("[^\x00-\x7f]", text)) and japanese * 6 >= of


def _decoded(raw: bytes | None, encoding: str) -> str | None:
    try:
        return raw.decode(encoding) if raw is not None else None
    except UnicodeDecodeError:
        return None


def _repaired(text: str, western: str, encoding: str) -> str | None:
    whole = _encoded(text, western)
    obtained = _decoded(whole, encoding)
    if obtained is None or whole is None or obtained.encode(encoding) != whole:
        return None
    return obtained


def _repaired_runs(text: str, western: str, encoding: str) -> str | None:
    """A text of which only parts are broken: each run of western characters decoded by itself; None unless all of them can
    be, so that nothing broken is left beside what was repaired.

    A character of CP932 or EUC-JP may end in ASCII, so that such a run has no certain end: UTF-8 only.
    """
    if encoding != "utf-8" or "\ufffd" in text:
        return None

    def run(match: re.Match[str]) -> str:
        obtained = _repaired(match.group(), western, encoding)
        wide = obtained is not None and all(ord(character) >= 0x100 for character in obtained)
        return obtained if obtained is not None and wide else match.group()

    repaired = _RUN.sub(run, text)
    left = _C1.search(repaired) or any(_LATIN.search(rest.group()) for rest in _WESTERN.finditer(repaired))
    return None if left or repaired == text else repaired


def _repaired_twice(text: str) -> str | None:
    """A text that was read wrongly two times: the rule again on what the first repair gives."""
    once = _repaired(text, "latin-1", "utf-8")
    obtained = _western(once) if once is not None and once != text else None
    return obtained.repaired if obtained is not None and obtained.kind.startswith("utf-8") else None


def _utf8_as_cp932(text: str) -> Mojibake | None:
    """UTF-8 read as CP932: the run's CP932 bytes decode, as far as they were kept, to kana."""
    if not _UTF8_AS_CP932.search(text):
        return None
    for run in _UTF8_RUN.findall(text):
        if not _may_hold_kana(run):
            continue
        raw = run.encode("cp932", "ignore")
        if len(_KANA_BYTES.findall(raw)) < 2:  # no two kana can come out
            continue
        obtained = raw.decode("utf-8", "ignore")
        kana = len(_KANA.findall(obtained))
        if kana >= 2 and kana > len(_KANA.findall(run)) and len(_JAPANESE.findall(obtained)) * 5 >= len(raw):
            return Mojibake("utf-8 as cp932", _from_cp932(text, "utf-8"))
    return None


@functools.cache
def _with_e3() -> re.Pattern[str]:
    """The characters whose bytes in CP932 hold E3, with which every kana begins in UTF-8."""
    trails = [*range(0x40, 0x7F), *range(0x80, 0xFD)]
    pairs = [(0xE3, trail) for trail in trails] + [(lead, 0xE3) for lead in (*range(0x81, 0xA0), *range(0xE0, 0xFD))]
    return re.compile(f"[{''.join(bytes(pair).decode('cp932', 'ignore') for pair in pairs)}]")


@functools.cache
def _no_kana_with_e3() -> re.Pattern[str]:
    """Those that are no kana themselves."""
    return re.compile(_KANA.sub("", _with_e3().pattern))


def _may_hold_kana(run: str) -> bool:
    """Whether the CP932 bytes of a run can be UTF-8 of more kana than it has: each of them takes a character with E3."""
    if not _no_kana_with_e3().search(run):
        return False  # every such character is a kana
    most = len(_with_e3().findall(run))
    return most >= 2 and sum(1 for _ in islice(_KANA.finditer(run), most)) < most


def _from_cp932(text: str, encoding: str) -> str | None:
    """A text whose CP932 bytes are of another encoding, where none was lost."""
    try:
        whole = text.encode("cp932").decode(encoding)
        return whole if whole.encode(encoding).decode("cp932") == text else None
    except UnicodeError:
        return None


def _eucjp_as_cp932(text: str) -> Mojibake | None:
    """EUC-JP read as CP932: half-width kana among kanji whose CP932 bytes are EUC-JP with kana."""
    if len(_HALF_KANA.findall(text)) < 4:
        return None
    for run in _MIXED_RUN.finditer(text):
        # Half-width text that is spelt as words are may be EUC-JP by chance (ｺｰﾋｰ､ﾃｨｰ).
        half = len(_HALF_KANA.findall(run.group()))
        if half < 4 or len(_NOT_SPELT.findall(run.group())) < NOT_SPELT_SHARE * half:
            continue
        raw = run.group().encode("cp932", "ignore")
        for candidate in (raw, raw[1:]):
            obtained = candidate.decode("euc_jp", "ignore")
            kana = len(_KANA.findall(obtained))
            if kana >= 2 and len(obtained.encode("euc_jp", "ignore")) * 10 >= len(candidate) * 9:
                return Mojibake("euc-jp as cp932", _from_cp932(text, "euc_jp"))
    return None


def _unlikely(text: str) -> bool:
    """Whether a text's characters are too rare for Japanese, by their shares."""
    return _rare_kanji(text) or bool(_SUSPICIOUS.search(text)) and _is_odd(text)


def _is_odd(text: str) -> bool:
    return _half_width(text) or _odd_characters(text)


def _may_be_odd(kinds: NDArray[Any]) -> bool:
    """Whether a text has as many characters of those kinds as it needs to be odd; odd runs are made of suspicious ones."""
    visible = len(kinds) - np.count_nonzero(kinds & 64)
    half, suspicious = np.count_nonzero(kinds & 32), np.count_nonzero(kinds & 1)
    return bool(half > HALF_SHARE * visible or suspicious > ODD_SHARE * visible)


def _rare_kanji(text: str) -> bool:
    """At least eight kanji, more than a third of them of JIS level 2."""
    rare = _level_two().findall(text)
    if len(rare) < 3 or not _are_many(len(rare), len(_KANJI.findall(text))):
        return False
    # Classical Chinese and lists of rare kanji are text too: mojibake repeats few lead characters or mixes in odd ones.
    odd = len(_HALF_KANA.findall(text)) + len(re.findall("[\u0080-\u00ff\u0370-\u04ff\u2500-\u257f]", text))
    return bool(odd) or not _KANA.search(text)


def _half_width(text: str) -> bool:
    """More than 15 % half-width kana that no Japanese is spelt with.

    Half-width names and headings are real text; bytes that were read as half-width kana begin with small letters and long
    vowels, voice what has no voice, change with commas, or stand one by one among kanji.
    """
    half = len(_HALF_KANA.findall(text))
    if half < 3 or half <= HALF_SHARE * _visible(text):
        return False
    wrong = len(_NOT_SPELT.findall(text))
    return wrong >= 2 and wrong >= 0.2 * half


def _odd_characters(text: str) -> bool:
    """More than a quarter controls U+0080-U+009F, private characters, and letters with what follows them in UTF-8 that was
    read as a Western encoding. Letters with accents alone are other languages.
    """
    odd = sum(map(len, _ODD_RUN.findall(text)))
    return odd >= 3 and odd > ODD_SHARE * _visible(text)


def _visible(text: str) -> int:
    return len(text) - len(_BLANK.findall(text))
