"""The numbers of an answer that neither its material nor its question gives.

Numbers are compared as values, so that 34万4400 is 344,400 and 二十三 is 23. What follows from a known number is none that is
absent: the decade or century of a year, the other half of 1932-39, a month with its English name, an age between two years,
a distance in miles; and a sum, a difference or a product where something is computed, and what stands behind an equals sign.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from .personal import folded

Span = tuple[int, int]

_KANJI = "〇一二三四五六七八九"
_UNITS = {"十": 10, "百": 100, "千": 1000, "万": 10**4, "億": 10**8, "兆": 10**12}
_PART = r"\d[\d,，]*(?:\.\d+)?"
_NUMBER = re.compile(rf"{_PART}[百千]?(?:[万億兆](?:{_PART}[百千]?)?)*")
_TOKEN = re.compile(rf"({_PART})([百千]?)([万億兆]?)")
_MILLIONS = re.compile(rf"({_PART})[^0-9]{{0,3}}(?:百万|million)")
# Longer rows of digits are no numbers that somebody compares.
_LONGEST = 24
_IN_KANJI = re.compile(f"[{_KANJI}十百千][{_KANJI}十百千万億兆]*")
_LIST_NUMBER = re.compile(r"^[ \t\u3000]{0,8}\d{1,3}[ \t\u3000]{0,8}[.．)）:、](?!\d)", re.MULTILINE)
# 1932-39 and 629/30.
_RANGE = re.compile(r"(?<!\d)(\d{3,4})\s?[-~〜～/]\s?(\d{1,2})(?!\d)")
_MONTHS = (
    *("january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november"),
    "december",
)
_MONTH = re.compile(rf"\b(?:{'|'.join(_MONTHS)})\b", re.IGNORECASE)
_FRACTION = re.compile(r"(?<!\d)(\d{1,2})分の(\d{1,2})(?!\d)")
_NOT_A_YEAR = re.compile("年[間後前以ぶ]")
_COMPUTED = re.compile(
    r"[=＝×÷]|合計|つまり|したがって|引く|引いた|足す|足した|差は|差が|半分|倍|平均|何(?:[年人歳才個日回枚倍円機度点]|[ァ-ヴー]+)|いく[つら]|どのくらい|どれくらい"
    r"|計算|パーセント|割合|総数|歳の時"
)
# Known numbers up to which their sums and products say something.
_MOST_KNOWN = 25
# What one unit of the first is in the second, read off the text behind a number.
_CONVERSIONS = (
    ("km|キロ", "mi|マイル", 1.609), ("m|メートル", "ft|フィート", 0.3048), ("cm|センチ", "in|インチ", 2.54),
    ("kg|キロ", "lb|ポンド", 0.4536), ("km2|平方キロ", "平方マイル", 2.590), ("ha|ヘクタール", "エーカー", 0.4047),
)  # fmt: skip


def find_absent_numbers(text: str, material: str, question: str) -> list[Span]:
    """Spans of the numbers of an answer that do not come from its material or its question; numbers of one digit and of
    lists say nothing. Empty where there is no material.
    """
    if not material.strip() or material.strip().lower() == "nan":
        return []
    plain = _LIST_NUMBER.sub(lambda match: " " * len(match.group()), folded(text))
    found = [(value, span) for value, span in _numbers(plain) if value >= 10]
    if not found:
        return []
    given = folded(f"{material}\n{question}")
    known = {value for value, _ in _numbers(given)} | set(_implied(given))
    years = {int(value) for value in known if value == int(value) and 500 <= value <= 2200}
    computes = _COMPUTED.search(f"{question}\n{plain}") is not None
    made = _made_of(known) if computes else set()
    absent = []
    for value, (start, stop) in found:
        behind = plain[stop : stop + 8].lstrip()
        if value in known or value in made or plain[:start].rstrip(" $¥約")[-1:] in ("=", "＝"):
            continue
        if not _is_of_a_year(value, behind, years) and not _is_converted(value, behind, known):
            absent.append((start, stop))
    return absent


def _numbers(text: str) -> Iterator[tuple[float, Span]]:
    """(value, span) of every number that is written in digits."""
    for match in _NUMBER.finditer(text):
        if match.end() - match.start() <= _LONGEST:
            yield _value(match.group()), match.span()


def _value(number: str) -> float:
    """34万4400, 7億5,700万, 12万5千."""
    whole = 0.0
    for part, small, large in _TOKEN.findall(number):
        whole += float(re.sub("[,，]", "", part)) * _UNITS.get(small, 1) * _UNITS.get(large, 1)
    return round(whole, 6)


def _implied(text: str) -> Iterator[float]:
    """Values that a text gives otherwise than in digits; the digits of a number without its unit, and with another one."""
    for match in _IN_KANJI.finditer(text):
        if len(match.group()) <= _LONGEST:
            yield _of_kanji(match.group())
    for first, last in _RANGE.findall(text):
        yield float(first[: -len(last)] + last)
    for whole, part in _FRACTION.findall(text):
        yield round(100 * int(part) / max(1, int(whole)), 6)
    for match in _MONTH.finditer(text):
        yield float(_MONTHS.index(match.group().lower()) + 1)
    for part, _, _ in _TOKEN.findall(text):
        if len(part) <= _LONGEST:
            yield float(re.sub("[,，]", "", part))
    for part in _MILLIONS.findall(text):
        if len(part) <= _LONGEST:
            yield float(re.sub("[,，]", "", part)) * 10**6


def _of_kanji(text: str) -> float:
    """二十三 and 一九四五."""
    if all(letter in _KANJI for letter in text):
        return float("".join(str(_KANJI.index(letter)) for letter in text))
    whole = group = digit = 0
    for letter in text:
        if letter in _KANJI:
            digit = _KANJI.index(letter)
        elif _UNITS[letter] < 10**4:
            group, digit = group + max(1, digit) * _UNITS[letter], 0
        else:
            whole, group, digit = whole + max(1, group + digit) * _UNITS[letter], 0, 0
    return float(whole + group + digit)


def _is_of_a_year(value: float, behind: str, years: set[int]) -> bool:
    """Whether it is the decade, the century or the last digits of a known year, or an age between two."""
    number = int(value)
    if behind.startswith("年代"):
        return any(number in (year // 10 * 10, year // 100 * 100, year % 100 // 10 * 10) for year in years)
    if behind.startswith("世紀"):
        return any(number == (year - 1) // 100 + 1 for year in years)
    if behind.startswith("年") and number < 100 and not _NOT_A_YEAR.match(behind):
        return any(number == year % 100 for year in years)
    if behind.startswith(("歳", "才")):
        return any(abs(abs(a - b) - number) <= 1 for a, b in itertools.combinations(sorted(years)[:40], 2))
    return False


def _is_converted(value: float, behind: str, known: set[float]) -> bool:
    """Whether it is a known number in another unit, rounded."""
    for one, other, factor in _CONVERSIONS:
        ratios = [ratio for units, ratio in ((one, factor), (other, 1 / factor)) if re.match(f"(?i:{units})", behind)]
        if any(abs(value - ratio * item) <= 0.04 * value for ratio in ratios for item in known if item >= 1):
            return True
    return False


def _made_of(known: set[float]) -> set[float]:
    """Sums, differences, products and quotients of two known numbers, and what is left of 100."""
    if len(known) > _MOST_KNOWN:
        return set()
    made = {100 - value for value in known if value < 100}
    for a, b in itertools.combinations_with_replacement(sorted(known), 2):
        made |= {a + b, b - a, b - a + 1, a * b, round(b / a, 6) if a else 0.0}
    return {round(value, 6) for value in made}
