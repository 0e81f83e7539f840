"""Whether an answer follows an instruction that a program can check: length, form, words, style.

A prompt names its checks by the keys of CHECKS, with their arguments. An empty answer fails all of them.
"""

from __future__ import annotations

import difflib
import inspect
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .. import embedded
from ..japanese.style import styles
from ..messages import excerpt

PROMPTS = "embedded:instructions/prompts"

_BLANK = re.compile(r"\s")
_BULLET = re.compile(r"^\s*[・\-*•●○◦]", re.MULTILINE)
_NUMBERED = re.compile(r"^\s*(?:\d{1,2}[.．)）:、]|[①-⑳])", re.MULTILINE)
_HIRAGANA = re.compile(r"[ぁ-ゖ]")
_KATAKANA = re.compile(r"[ァ-ヺヽヾｦ-ｯｱ-ﾝ]")
_KANJI = re.compile(r"[㐀-䶿一-鿿豈-\ufaff々〆]")
_LATIN = re.compile(r"[A-Za-zＡ-Ｚａ-ｚ]")
_QUOTED = re.compile(r"「[^「」]*」|『[^『』]*』|（[^（）]*）|\([^()]*\)")
_SENTENCE_ENDS = re.compile(r"[。！？!?\n]+")
_FENCED = re.compile(r"\A\s*```(?:json)?\s*\n(.*?)\n\s*```\s*\Z", re.DOTALL)
_TABLE_RULE = re.compile(r"^\s*\|?\s*:?-{3,}:?\s*(?:\|\s*:?-{3,}:?\s*)+\|?\s*$", re.MULTILINE)
_MARKDOWN = re.compile(
    r"^\s{0,3}#{1,6}\s|\*\*[^*\n]+\*\*|^\s*[-*+]\s|```|^\s*\|.*\|\s*$|\[[^\]\n]+\]\([^)\n]+\)", re.MULTILINE
)
_KEIGO = re.compile(
    r"ござい|いたし|いたす|申し上げ|おります|いただ|頂[きくけ]|くださ[いっ]|賜|拝[見読受啓]|恐れ入|存じ|伺[いうっ]|お[ぁ-ん一-鿿]{1,8}(?:し|いたし)ます"
)
ABOUT = 0.1


def characters(text: str) -> int:
    """文字数: characters without blanks and line ends."""
    return len(_BLANK.sub("", text))


def sentences(text: str) -> list[str]:
    """The sentences of an answer; marks inside quotation marks and brackets end none."""
    plain = _QUOTED.sub("□", _QUOTED.sub("□", text))
    return [part.strip() for part in _SENTENCE_ENDS.split(plain) if part.strip()]


def paragraphs(text: str) -> list[str]:
    """Parts between empty lines."""
    return [part for part in re.split(r"\n\s*\n", text.strip()) if part.strip()]


def lines(text: str) -> list[str]:
    """Lines that are not empty."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def _is_json(text: str) -> bool:
    fenced = _FENCED.match(text)
    try:
        return isinstance(json.loads(fenced[1] if fenced else text), dict | list)
    except (ValueError, RecursionError):
        return False


def _json_keys(text: str, keys: Sequence[str]) -> bool:
    if not _is_json(text):
        return False
    fenced = _FENCED.match(text)
    value = json.loads(fenced[1] if fenced else text)
    return isinstance(value, dict) and set(value) == set(keys)


def _polite(text: str) -> bool:
    found = styles(text)
    return found.polite > 0 and found.plain == 0


def _plain(text: str) -> bool:
    found = styles(text)
    return found.plain > 0 and found.polite == 0


def _sections(text: str, separator: str, n: int) -> bool:
    return len([part for part in text.split(separator) if part.strip()]) == n


CHECKS: dict[str, Callable[..., bool]] = {
    # Length.
    "characters_at_least": lambda text, n: characters(text) >= n,
    "characters_at_most": lambda text, n: characters(text) <= n,
    "characters_about": lambda text, n: abs(characters(text) - n) <= ABOUT * n,
    "sentences": lambda text, n: len(sentences(text)) == n,
    "sentences_at_least": lambda text, n: len(sentences(text)) >= n,
    "sentences_at_most": lambda text, n: len(sentences(text)) <= n,
    "paragraphs": lambda text, n: len(paragraphs(text)) == n,
    "lines": lambda text, n: len(lines(text)) == n,
    "sections": _sections,
    # Form.
    "bullets": lambda text, n: len(_BULLET.findall(text)) == n,
    "bullets_at_least": lambda text, n: len(_BULLET.findall(text)) >= n,
    "numbered": lambda text, n: len(_NUMBERED.findall(text)) == n,
    "title": lambda text, opens, closes: bool(re.search(f"{re.escape(opens)}[^\n]+?{re.escape(closes)}", text)),
    "quoted": lambda text: text.strip().startswith("「") and text.strip().endswith("」"),
    "json": _is_json,
    "json_keys": _json_keys,
    "table": lambda text: bool(_TABLE_RULE.search(text)),
    "no_markdown": lambda text: not _MARKDOWN.search(text),
    # Words.
    "keywords": lambda text, words: all(word in text for word in words),
    "keyword_at_least": lambda text, word, n: text.count(word) >= n,
    "forbidden": lambda text, words: not any(word in text for word in words),
    "starts_with": lambda text, words: text.strip().startswith(words),
    "ends_with": lambda text, words: text.strip().endswith(words),
    "one_of": lambda text, words: text.strip().removesuffix("。") in words,
    # Letters.
    "hiragana_only": lambda text: (
        bool(_HIRAGANA.search(text)) and not any(pattern.search(text) for pattern in (_KATAKANA, _KANJI, _LATIN))
    ),
    "katakana_only": lambda text: (
        bool(_KATAKANA.search(text)) and not any(pattern.search(text) for pattern in (_HIRAGANA, _KANJI, _LATIN))
    ),
    "no_katakana": lambda text: not _KATAKANA.search(text),
    "no_kanji": lambda text: not _KANJI.search(text),
    "kanji_at_most": lambda text, n: len(_KANJI.findall(text)) <= n,
    "no_latin": lambda text: not _LATIN.search(text),
    "no_commas": lambda text: not re.search("[、,，]", text),
    # Style.
    "polite": _polite,
    "plain": _plain,
    "keigo": lambda text: bool(_KEIGO.search(text)),
}

# What the arguments of checks are; all others are texts.
_ARGUMENTS: Mapping[str, type] = {"n": int, "words": list, "keys": list}
_MOST = 1_000_000_000
_KINDS = {int: f"a whole number from 0 to {_MOST:,}", list: "a list of texts, none empty", str: "a text, not empty"}


@dataclass(frozen=True)
class Instruction:
    """A prompt with what its answer has to keep to.

    Attributes:
        number: of its row, from 1.
        checks: (key of CHECKS, its arguments).
    """

    number: int
    prompt: str
    checks: tuple[tuple[str, Mapping[str, Any]], ...]


def parse_checks(items: Any) -> tuple[tuple[str, Mapping[str, Any]], ...]:
    """(key of CHECKS, its arguments) of a list of objects like {"check": "characters_at_most", "n": 50}.

    Raises:
        ValueError: it is no such list; an unknown check; arguments that the check does not take.
    """
    if not isinstance(items, list) or not items:
        raise ValueError("a list of objects with a check")
    obtained = []
    for item in items:
        name = item.get("check") if isinstance(item, dict) else None
        if not isinstance(name, str) or name not in CHECKS:
            near = difflib.get_close_matches(str(name), CHECKS, n=3) or list(CHECKS)
            raise ValueError(f"check {excerpt(name)}; known: {', '.join(near)}")
        arguments = {key: value for key, value in item.items() if key != "check"}
        _validate_arguments(name, arguments)
        obtained.append((name, arguments))
    return tuple(obtained)


def _validate_arguments(name: str, arguments: Mapping[str, Any]) -> None:
    wanted = list(inspect.signature(CHECKS[name]).parameters)[1:]
    if set(arguments) != set(wanted):
        raise ValueError(f"{name}: {', '.join(map(excerpt, arguments)) or '-'}; takes {', '.join(wanted) or '-'}")
    for key, value in arguments.items():
        kind = str if name in ("starts_with", "ends_with") else _ARGUMENTS.get(key, str)
        texts = value if isinstance(value, list) else [value]
        fits = isinstance(value, kind) and not isinstance(value, bool)
        if fits and kind is int:
            fits = 0 <= value <= _MOST
        elif fits:  # an empty text is in every answer, and no answer breaks an empty list
            fits = bool(texts) and all(isinstance(text, str) and text for text in texts)
        if not fits:
            raise ValueError(f"{name}: {key} = {excerpt(value)}; {_KINDS[kind]}")


def instructions() -> list[Instruction]:
    """The prompts that ship."""
    with embedded.data_file(PROMPTS).open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [Instruction(number, row["prompt"], parse_checks(row["checks"])) for number, row in enumerate(rows, start=1)]


def followed(instruction: Instruction, answer: str) -> dict[str, bool]:
    """Which of an instruction's checks an answer passes, by their keys; a key that stands there again gets a number, as in
    `keywords 2`. An empty answer passes none.
    """
    there = bool(answer.strip())
    passed: dict[str, bool] = {}
    seen: Counter[str] = Counter()
    for name, arguments in instruction.checks:
        seen[name] += 1
        key = name if seen[name] == 1 else f"{name} {seen[name]}"
        passed[key] = there and CHECKS[name](answer, **arguments)
    return passed
