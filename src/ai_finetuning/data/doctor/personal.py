"""Personal data and secrets in texts, found by shape and check digits, and masked by fixed ones of the same shape.

Digits and hyphens are folded to half width once for a text, character by character, so that a span of the folded text is
one of the text itself; ー is a letter and stays, but for one between digits, where it is a mistyped hyphen. Names of persons are not looked for: by their characters, private persons
cannot be told from the public ones that fill such data.
"""

from __future__ import annotations

import functools
import re

Span = tuple[int, int]

_FOLD: dict[int, int | str] = {0xFF10 + digit: ord("0") + digit for digit in range(10)}
_FOLD |= dict.fromkeys(map(ord, "‐‑‒–—―−－﹣⁃"), "-")
_FOLD |= {
    ord("（"): "(",
    ord("）"): ")",
    ord("＠"): "@",
    ord("．"): ".",
    ord("＋"): "+",
    ord("："): ":",
    ord("　"): " ",
}
_MISTYPED_HYPHEN = re.compile(r"(?<=[0-9])[ーｰ](?=[0-9])")
_LETTERS = {code: code - 0xFEE0 for code in (*range(0xFF21, 0xFF3B), *range(0xFF41, 0xFF5B))}

_TWELVE = re.compile(r"(?<![\d-])(?:\d{4}-\d{4}-\d{4}|\d{4} \d{4} \d{4}|\d{12})(?![\d-])")
_CARD = re.compile(
    r"(?<![\d-])(?:(?:4\d|5[1-5]|2[2-7]|3[0-9]|6[05])\d{2}[- ]?\d{4}[- ]?\d{4}[- ]?\d{2,4}|3[47]\d{2}[- ]?\d{6}[- ]?\d{5})(?![\d-])"
)
# Also as it is written for callers from abroad: +81-90-1234-5678, +81 (0)3-1234-5678.
_ABROAD = r"\+81[- ]?(?:\(0\)[- ]?)?"
_MOBILE = re.compile(
    rf"(?<![\d-])(?:0|{_ABROAD})[5789]0(?:-\d{{4}}-\d{{4}}|\(\d{{4}}\)\d{{4}}|\d{{8}}| \d{{4}} \d{{4}})(?![\d-])"
)
_PHONE = re.compile(
    r"(?<![\d-])(?:0120-\d{3}-\d{3}|0800-\d{3}-\d{4}|0570-\d{3}-\d{3}|0(?!0)\d-\d{4}-\d{4}|0\d{2}-\d{3}-\d{4}|0\d{3}-\d{2}-\d{4}|0\d{4}-\d-\d{4}"
    rf"|0\d{{1,3}}\(\d{{2,4}}\)\d{{4}}|\(0\d{{1,3}}\)\d{{2,4}}-\d{{4}}"
    rf"|{_ABROAD}(?![5789]0[- (])[1-9]\d{{0,3}}[- ]\d{{1,4}}[- ]\d{{3,4}})(?![\d-])"
)
_PHONE_BESIDE = re.compile(r"(?:電話|[Tt][Ee][Ll]|連絡先|[Ff][Aa][Xx])[^\d\n]{0,12}(0\d{9})(?!\d)")
_POSTCODE = re.compile(r"〒\s?(\d{3}-?\d{4})(?!\d)")
_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){0,8}\.[A-Za-z]{2,24}"
)
_BANK = re.compile(r"(?:普通|当座|口座番号|口座)[預金口座番号はがの:=＝・/() \t]{0,6}(\d{7})(?!\d)")
_ADDRESS = re.compile(
    r"(?:北海道|東京都|(?:京都|大阪)府|[一-龥]{2,3}県)[一-龥ぁ-んァ-ヶー]{1,12}?[市区町村郡][一-龥ぁ-んァ-ヶー々0-9]{0,20}?"
    r"\d{1,4}(?:丁目|番地?|号|-\d{1,4})(?:\d{0,4}(?:番地?|号|-\d{1,4}))*"
)
# Not \b: kana and kanji are letters to it as well.
_SECRET = re.compile(
    r"(?<![A-Za-z0-9_-])(?:sk-[A-Za-z0-9_-]{20,}|AKIA[0-9A-Z]{16}(?![0-9A-Za-z])|ghp_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{22,}"
    r"|hf_[A-Za-z0-9]{20,}|AIza[0-9A-Za-z_-]{35}|xox[abprs]-[A-Za-z0-9-]{20,}"
    r"|eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,})|-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"
)
_ANY = re.compile(r"\d{3}|@|〒|PRIVATE KEY|sk-|AKIA|ghp_|github_pat_|hf_|AIza|xox|eyJ")
_NUMBER_BESIDE = re.compile("マイナンバー|個人番号")
# How far from a number the words may stand that say what it is.
_NEAR = 30


@functools.lru_cache(maxsize=64)
def folded(text: str) -> str:
    """A text of the same length with half-width digits, hyphens and brackets."""
    return _MISTYPED_HYPHEN.sub("-", text.translate(_FOLD))


@functools.lru_cache(maxsize=64)
def _suspicious(text: str) -> bool:
    """Whether a text has anything that one of the rules needs; most have not."""
    return _ANY.search(folded(text)) is not None


def my_number_check(digits: str) -> int:
    """The check digit of the first eleven digits of an individual number (番号法施行規則): 11 less the sum of the digits,
    counted from the right, times 2 to 7 and 2 to 6, modulo 11; 0 where the remainder is at most 1.
    """
    total = sum(int(digit) * (n + 1 if n <= 6 else n - 5) for n, digit in enumerate(reversed(digits), start=1))
    rest = total % 11
    return 0 if rest <= 1 else 11 - rest


def luhn(digits: str) -> bool:
    """Whether digits end in the check digit of payment cards (ISO/IEC 7812-1)."""
    doubled = (int(digit) * (1 + index % 2) for index, digit in enumerate(reversed(digits)))
    return sum(value - 9 if value > 9 else value for value in doubled) % 10 == 0


def find_my_number(text: str) -> list[Span]:
    """Individual numbers (マイナンバー): twelve digits whose check digit fits, with words within 30 characters that say what
    they are; of random twelve digits a tenth fits.
    """
    if not _suspicious(text):
        return []
    plain = folded(text)
    found = []
    for match in _TWELVE.finditer(plain):
        digits = re.sub(r"\D", "", match.group())
        around = plain[max(0, match.start() - _NEAR) : match.end() + _NEAR]
        if my_number_check(digits[:11]) == int(digits[11]) and _NUMBER_BESIDE.search(around):
            found.append(match.span())
    return found


def find_card(text: str) -> list[Span]:
    """Numbers of payment cards: 14 to 16 digits with a brand's beginning and the right check digit."""
    if not _suspicious(text):
        return []
    numbers = ((match.span(), re.sub(r"\D", "", match.group())) for match in _CARD.finditer(folded(text)))
    return [span for span, digits in numbers if 14 <= len(digits) <= 16 and len(set(digits)) > 1 and luhn(digits)]


def find_mobile(text: str) -> list[Span]:
    """Mobile and IP telephone numbers (050, 070, 080, 090)."""
    return [match.span() for match in _MOBILE.finditer(folded(text))] if _suspicious(text) else []


def find_phone(text: str) -> list[Span]:
    """Fixed and toll-free telephone numbers with hyphens or brackets; ten bare digits only behind 電話, TEL or 連絡先."""
    if not _suspicious(text):
        return []
    plain = folded(text)
    spans = [match.span() for match in _PHONE.finditer(plain)] + [
        match.span(1) for match in _PHONE_BESIDE.finditer(plain)
    ]
    return sorted(set(spans))


def find_postcode(text: str) -> list[Span]:
    """Postcodes behind the mark 〒."""
    return [match.span(1) for match in _POSTCODE.finditer(folded(text))] if "〒" in text else []


def find_email(text: str) -> list[Span]:
    """Addresses of electronic mail, in full width too."""
    if "@" not in text and "＠" not in text:
        return []
    return [match.span() for match in _EMAIL.finditer(folded(text).translate(_LETTERS))]


def find_bank(text: str) -> list[Span]:
    """Numbers of bank accounts: seven digits behind 普通, 当座 or 口座番号."""
    return [match.span(1) for match in _BANK.finditer(folded(text))] if _suspicious(text) else []


def find_address(text: str) -> list[Span]:
    """Postal addresses with prefecture, municipality and number. Most in public data are offices and sights."""
    return [match.span() for match in _ADDRESS.finditer(folded(text))]


def find_secret(text: str) -> list[Span]:
    """Keys and tokens of services, private keys and JSON web tokens. What looks like words with hyphens is none."""
    if not _suspicious(text):
        return []
    found = []
    for match in _SECRET.finditer(text):
        key = match.group()
        words = key.startswith("sk-") and re.fullmatch(r"(?:[A-Za-z]+-)+[A-Za-z]+", key) is not None
        if key.startswith("-----") or (any(letter.isdigit() for letter in key) and not words and not _is_words(key)):
            found.append(match.span())
    return found


def _is_words(key: str) -> bool:
    """Whether a key is a title in an address (`sk-with-cotton-2021-new`): short words of lower-case letters or digits."""
    parts = key.split("-")[1:]
    return len(parts) >= 3 and all(re.fullmatch(r"[a-z]{1,12}|\d{1,4}", part) for part in parts)


# What stands in the place of each kind.
MASKS = {
    "my_number": "000000000000",
    "card": "0000-0000-0000-0000",
    "mobile": "090-0000-0000",
    "phone": "03-0000-0000",
    "postcode": "000-0000",
    "email": "[メール]",
    "bank": "0000000",
    "secret": "[秘密]",
}


def masked(text: str, spans: list[Span], mask: str) -> str:
    """A text with the same words in the place of each span."""
    return put(text, [(start, stop, mask) for start, stop in spans])


def put(text: str, changes: list[tuple[int, int, str]]) -> str:
    """A text with others in the place of some spans (start, stop, text)."""
    parts, done = [], 0
    for start, stop, by in sorted(changes):
        parts += [text[done:start], by]
        done = stop
    return "".join([*parts, text[done:]])
