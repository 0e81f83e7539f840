"""Numbers and dates of a workbook as Excel shows them: number formats with their sections, conditions and eras."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Sequence
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction

_Moment = datetime.date | datetime.time | datetime.timedelta
# Formats that a file names by number alone, and whose text is the country's: those of a Japanese Excel (ECMA-376, 18.8.30).
NUMBERED = {
    14: "yyyy/m/d",
    22: "yyyy/m/d h:mm",
    **dict.fromkeys((27, 36, 50, 57), "[$-411]ge.m.d"),
    **dict.fromkeys((28, 29, 51, 54, 58), '[$-411]ggge"年"m"月"d"日"'),
    30: "m/d/yy",
    31: 'yyyy"年"m"月"d"日"',
    32: 'h"時"mm"分"',
    33: 'h"時"mm"分"ss"秒"',
    **dict.fromkeys((34, 52, 55), 'yyyy"年"m"月"'),
    **dict.fromkeys((35, 53, 56), 'm"月"d"日"'),
}
_SECTION = re.compile(r'(?:"[^"]*"|\\.|\[[^\]]*\]|[^;])*')
_TOKENS = re.compile(r'"[^"]*"|\\.|_.|\*.|\[[^\]]*\]|General|G/標準|E[+-]|.', re.IGNORECASE | re.DOTALL)
_DATE_TOKENS = re.compile(
    r'"[^"]*"|\\.|\[[^\]]*\]|_.|\*.|ggg|gg|g|ee|e|yyyy|yyy|yy|y|mmmmm|mmmm|mmm|mm|m|dddd|ddd|dd|d|aaaa|aaa|hh|h|ss|s|'
    r"am/pm|a/p|.",
    re.IGNORECASE | re.DOTALL,
)
_CONDITION = re.compile(r"\[(<=|>=|<>|<|>|=)(-?\d+(?:\.\d+)?)\]")
_ELAPSED = re.compile(r"\[(h+|m+|s+)\]", re.IGNORECASE)
_DATE = re.compile(r"aaa|g|e|[ymdhs]", re.IGNORECASE)
_FRACTION = re.compile(r"([#0?]+[^#0?/]+)?([#0?]+)/([#0?]+|\d+)")
_PLACES = "#0?"
_COMPARED: dict[str, Callable[[float, float], bool]] = {
    "<": lambda one, other: one < other,
    "<=": lambda one, other: one <= other,
    ">": lambda one, other: one > other,
    ">=": lambda one, other: one >= other,
    "=": lambda one, other: one == other,
    "<>": lambda one, other: one != other,
}
_WEEKDAYS = "月火水木金土日"
_ERAS = (
    (datetime.date(2019, 5, 1), "令和", "R"),
    (datetime.date(1989, 1, 8), "平成", "H"),
    (datetime.date(1926, 12, 25), "昭和", "S"),
    (datetime.date(1912, 7, 30), "大正", "T"),
    (datetime.date(1868, 1, 25), "明治", "M"),
)


def _sections(form: str) -> list[str]:
    """A format's parts for positive and negative numbers, zero and text."""
    parts, at = [], 0
    while True:
        match = _SECTION.match(form, at)
        assert match is not None  # it may be empty
        parts.append(match.group())
        if match.end() >= len(form):
            return parts
        at = match.end() + 1


def _chosen(value: float, sections: Sequence[str]) -> tuple[str, bool]:
    """(the section for a number, whether it writes the sign by itself)."""
    numeric = sections[:3]
    conditions = [_CONDITION.search(section) for section in numeric]
    if any(conditions):
        for section, condition in zip(numeric, conditions, strict=True):
            if condition is None or _COMPARED[condition.group(1)](value, float(condition.group(2))):
                return section, condition is not None and condition.group(1) in ("<", "<=") and value < 0
        return numeric[-1], False
    if value < 0 and len(numeric) > 1:
        return numeric[1], True
    return (numeric[2], False) if value == 0 and len(numeric) > 2 else (numeric[0], False)


def shown_text(text: str, form: str) -> str:
    """A cell's text, with what its format writes around texts (`@"様"`)."""
    if "@" not in form or len(form) == 1:
        return text
    sections = _sections(form)
    tokens = _TOKENS.findall(sections[3] if len(sections) > 3 else sections[0] if len(sections) == 1 else "")
    if "@" not in tokens:
        return text
    return "".join(text if token == "@" else _literal(token) for token in tokens)


def _literal(token: str) -> str:
    """What a token that stands for no digit writes."""
    if token[0] == '"' and len(token) > 1:
        return token[1:-1]
    if token[0] == "\\":
        return token[1:]
    if token[0] == "[" and len(token) > 1:  # a currency ([$¥-411]), a color, a condition, a country
        return token[2:-1].split("-")[0] if token[1] == "$" else ""
    return "" if token[0] in "_*" and len(token) > 1 else token


def _general(value: float) -> str:
    if isinstance(value, int) or (value.is_integer() and abs(value) < 1e15):
        return str(int(value))
    return f"{value:.15g}".upper()


def shown_number(value: float, form: str, to_date: Callable[[float], _Moment | None]) -> str:
    """A number by its format: digits and what stands among them, thousands, per cent, fractions, powers of ten.

    Args:
        value: the number.
        form: the number format.
        to_date: gives the date that a number means; a format may show a weekday or an era alone.
    """
    section, signed = _chosen(value, _sections(form))
    tokens = _TOKENS.findall(section)
    written = [token for token in tokens if token[0] not in '"\\[_*' or len(token) == 1]
    if any(token.upper() in ("GENERAL", "G/標準", "@") for token in written) or not section:
        if not section and form not in ("", "General"):
            return ""
        digits = _general(abs(value))
        own = [digits if token.upper() in ("GENERAL", "G/標準", "@") else _literal(token) for token in tokens]
        return ("-" if value < 0 and not signed else "") + ("".join(own) or digits)
    if not set(written) & set(_PLACES):
        moment = to_date(value) if _DATE.search("".join(written)) else None
        if moment is not None:
            return shown_date(moment, form, value)
        return "".join(map(_literal, tokens))
    number = Decimal(value if isinstance(value, int) else f"{value:.15g}")
    return ("-" if value < 0 and not signed else "") + _digits(abs(number), tokens).strip()


def _digits(number: Decimal, tokens: Sequence[str]) -> str:
    """A number that is not negative, with its digits at their places."""
    number *= 100 ** tokens.count("%")
    plain = "".join(token if len(token) == 1 else "\0" for token in tokens)
    places = [index for index, token in enumerate(tokens) if token in _PLACES]
    power = next((index for index, token in enumerate(tokens) if token.upper() in ("E+", "E-")), None)
    fraction = _FRACTION.search(plain)
    if fraction is not None and power is None:
        before, after = tokens[: fraction.start()], tokens[fraction.end() :]
        return "".join(map(_literal, before)) + _fraction(number, fraction) + "".join(map(_literal, after))
    if power is not None:
        return _powers(number, tokens[:power], tokens[power], tokens[power + 1 :])
    last = places[-1]
    while last + 1 < len(tokens) and tokens[last + 1] == ",":  # each comma behind the last digit stands for a thousand
        number /= 1000
        last += 1
    return _placed(number, [token for index, token in enumerate(tokens) if not places[-1] < index <= last])


def _placed(number: Decimal, tokens: Sequence[str]) -> str:
    point = tokens.index(".") if "." in tokens else len(tokens)
    decimals = sum(token in _PLACES for token in tokens[point:])
    number = number.quantize(Decimal(1).scaleb(-decimals), ROUND_HALF_UP) if number < 10**25 else number
    whole, _, rest = f"{number:f}".partition(".")
    behind, shown = _behind_point(rest, tokens[point + 1 :])
    return _before_point(whole, tokens[:point]) + ("." if shown else "") + behind


def _before_point(whole: str, tokens: Sequence[str]) -> str:
    """The digits before the point, from the last one on; the first place takes all that are left."""
    places = [index for index, token in enumerate(tokens) if token in _PLACES]
    grouped = bool(places) and "," in tokens[places[0] : places[-1]]
    left = list(whole.lstrip("0"))
    parts: list[str] = []
    count = 0
    for index in range(len(tokens) - 1, -1, -1):
        token = tokens[index]
        if token not in _PLACES:
            parts.append("" if token == "," and places and index > places[0] else _literal(token))
            continue
        taken = [left.pop()] if left else ["0"] if token == "0" else []
        taken += [left.pop() for _ in range(len(left))] if index == places[0] else []
        for digit in taken:
            parts.append("," if grouped and count and count % 3 == 0 else "")
            parts.append(digit)
            count += 1
    return "".join(reversed(parts))


def _behind_point(rest: str, tokens: Sequence[str]) -> tuple[str, bool]:
    """(digits behind the point with what stands among them, whether there are any)."""
    needed, place, parts, shown = len(rest.rstrip("0")), 0, [], False
    for token in tokens:
        if token not in _PLACES:
            parts.append(_literal(token))
            continue
        if place < needed or token == "0":
            parts.append(rest[place : place + 1] or "0")
            shown = True
        place += 1
    return "".join(parts), shown


def _fraction(number: Decimal, form: re.Match[str]) -> str:
    limit = form.group(3)
    exact = Fraction(number)
    whole = int(exact) if form.group(1) else 0
    rest = exact - whole
    if limit.isdigit() and set(limit) - {"0"}:
        numerator, denominator = round(rest * int(limit)), int(limit)
    else:
        near = rest.limit_denominator(10 ** min(len(limit), 6) - 1)
        numerator, denominator = near.numerator, near.denominator
    if form.group(1) and numerator == denominator:
        whole, numerator = whole + 1, 0
    if form.group(1) and not numerator:
        return str(whole)
    return f"{whole} {numerator}/{denominator}" if whole else f"{numerator}/{denominator}"


def _powers(number: Decimal, tokens: Sequence[str], mark: str, behind: Sequence[str]) -> str:
    """A number with a power of ten (`1.23E+03`)."""
    point = tokens.index(".") if "." in tokens else len(tokens)
    step = max(sum(token in _PLACES for token in tokens[:point]), 1)
    decimals = sum(token in _PLACES for token in tokens[point:])
    power = number.adjusted() // step * step if number else 0
    digits = number.scaleb(-power).quantize(Decimal(1).scaleb(-decimals), ROUND_HALF_UP)
    if digits >= 10**step:
        digits, power = digits.scaleb(-step), power + step
    width = sum(token in _PLACES for token in behind)
    sign = "-" if power < 0 else "+" if mark.endswith("+") else ""
    rest = "".join(_literal(token) for token in behind if token not in _PLACES)
    return f"{_placed(digits, tokens)}{mark[0]}{sign}{abs(power):0{width}d}{rest}"


def shown_date(value: _Moment, form: str, serial: float | None = None) -> str:
    """A date, a time or a length of time by its format; one that is only marked as General or by country as 2024/4/1.

    Args:
        value: the date.
        form: the number format.
        serial: Excel's number for it, by which conditions choose; None where there are none.
    """
    sections = _sections(form)
    section = _chosen(serial, sections)[0] if serial is not None else sections[0]
    elapsed = {match.lower() for match in _ELAPSED.findall(section)}
    bare = _plain_part(section)
    if not elapsed and (bare in ("General", "@", "") or not _DATE.search(bare)):
        return str(value)
    tokens = _DATE_TOKENS.findall(section)
    written, clock = [], False
    for index, token in enumerate(tokens):
        lower = token.lower()
        # A month stands after an hour or before a second only where it means minutes.
        if lower in ("m", "mm") and (clock or _before_seconds(tokens[index + 1 :])):
            written.append(f"{_clock(value)[1]:0{len(lower)}d}")
            clock = False
            continue
        if lower in ("h", "hh", "[h]", "[hh]"):
            clock = True
        elif lower[0] in "ymdagse" and lower not in ("am/pm", "a/p"):
            clock = clock and lower in ("s", "ss")
        written.append(_part(value, token, form, tokens[index + 1 : index + 2]))
    return "".join(written)


def _plain_part(section: str) -> str:
    """A section without countries, colors and conditions."""
    return re.sub(r"\[[^\]]*\]", "", section)


def _before_seconds(rest: Sequence[str]) -> bool:
    following = next((token.lower() for token in rest if token.lower().strip("[]")[:1] in "ymdhs"), "")
    return following.strip("[]") in ("s", "ss")


def _clock(value: _Moment) -> tuple[int, int, int]:
    """Hours, minutes and seconds; a length of time has more than 24 hours."""
    if isinstance(value, datetime.timedelta):
        seconds = round(value.total_seconds())
        return seconds // 3600, seconds // 60 % 60, seconds % 60
    return getattr(value, "hour", 0), getattr(value, "minute", 0), getattr(value, "second", 0)


def _part(value: _Moment, token: str, form: str, following: Sequence[str]) -> str:
    """What one token of a date's format writes."""
    lower = token.lower()
    hours, minutes, seconds = _clock(value)
    if (elapsed := _ELAPSED.fullmatch(token)) is not None:
        unit = elapsed.group(1).lower()
        total = {"h": hours, "m": hours * 60 + minutes, "s": (hours * 60 + minutes) * 60 + seconds}[unit[0]]
        return f"{total:0{len(unit)}d}"
    if len(token) > 1 and token[0] in '"\\[_*':
        return _literal(token)
    twelve = "am/pm" in form.lower() or "a/p" in form.lower()
    hour = hours % 12 or 12 if twelve else hours
    noon = ("午前", "午後") if "$-411]" in form or "ja-jp" in form.lower() else ("AM", "PM")
    day = value if isinstance(value, datetime.date) else datetime.date(1899, 12, 31)
    day = day.date() if isinstance(day, datetime.datetime) else day
    name, letter, year = next(
        ((name, letter, day.year - start.year + 1) for start, name, letter in _ERAS if day >= start), ("", "", day.year)
    )
    first = year == 1 and "gannen" in form.lower() and "".join(following).strip('"\\')[:1] == "年"
    parts = {
        **dict.fromkeys(("yyyy", "yyy"), f"{day.year:04d}"),
        **dict.fromkeys(("yy", "y"), f"{day.year % 100:02d}"),
        "mmmmm": f"{day:%B}"[0],
        "mmmm": f"{day:%B}",
        "mmm": f"{day:%b}",
        "mm": f"{day.month:02d}",
        "m": str(day.month),
        "dddd": f"{day:%A}",
        "ddd": f"{day:%a}",
        "dd": f"{day.day:02d}",
        "d": str(day.day),
        "aaaa": f"{_WEEKDAYS[day.weekday()]}曜日",
        "aaa": _WEEKDAYS[day.weekday()],
        "ggg": name,
        "gg": name[:1],
        "g": letter,
        "ee": "元" if first else f"{year:02d}",
        "e": "元" if first else str(year),
        "hh": f"{hour:02d}",
        "h": str(hour),
        "ss": f"{seconds:02d}",
        "s": str(seconds),
        "am/pm": noon[hours % 24 >= 12],
        "a/p": "AP"[hours % 24 >= 12],
    }
    return parts.get(lower, token)
