"""Text in one form by default in five ways only; names of people stay."""

from __future__ import annotations

import json
import sys
import unicodedata
from pathlib import Path

import pytest

from ai_finetuning.japanese.normalize import NEVER_COMPOSED, normalize


@pytest.mark.parametrize(
    ("before", "after", "rule"),
    [
        ("一\r\n二\r三", "一\n二\n三", "newlines"),
        ("\ufeff本文", "本文", "bom"),
        ("か\u3099き\u3099", "がぎ", "composed"),
        ("ﾊﾝｶｸｶﾀｶﾅ", "ハンカクカタカナ", "half_width_kana"),
        ("ｶﾞｷﾞﾊﾟ｡｢｣､･ｰ", "ガギパ。「」、・ー", "half_width_kana"),
    ],
)
def test_the_five_defaults_and_their_counts(before: str, after: str, rule: str):
    text, counts = normalize(before)
    assert text == after
    assert counts[rule] > 0


@pytest.mark.parametrize(
    "text",
    [
        "\ufa19谷",
        "\ufa10本",
        "\ufa11",
        "\U0002f81a",
        "①㈱㍻Ⅳ",
        "ＡＢＣ１２３",
        "～〜－−",
        "？！（）",
        "𠮷鷗🍣",
        "a\u200bb",
        "髙橋",
    ],
)
def test_everything_else_stays_as_it_is(text: str):
    assert normalize(text) == (text, {})


def test_a_kept_name_beside_a_decomposed_kana():
    assert normalize("\ufa19か\u3099")[0] == "\ufa19が"


@pytest.mark.parametrize(
    ("switch", "before", "after"),
    [
        ("narrow_ascii", "ＡＢ１２", "AB12"),
        ("wave_dash", "９時～５時", "９時〜５時"),
        ("collapse_blank_lines", "一\n\n\n\n二", "一\n\n二"),
        ("strip_control", "a\x00b\u200bc", "abc"),
    ],
)
def test_the_rest_is_opt_in(switch: str, before: str, after: str):
    assert normalize(before)[0] == before
    assert normalize(before, **{switch: True})[0] == after


def test_every_rule_can_be_switched_off():
    text = "\ufeffか\u3099\r\nｶ"
    assert normalize(text, newlines=False, bom=False, compose=False, widen_kana=False) == (text, {})


def test_special_characters_of_the_fixture_change_only_in_kana(shared: Path):
    lines = (shared / "data" / "encoding" / "special_chars_expected.jsonl").read_text(encoding="utf-8").splitlines()
    changed = [row for row in map(json.loads, lines) for value in row.values() if normalize(value)[0] != value]
    assert {row["質問"] for row in changed} == {"半角ｶﾅ"}


def test_characters_that_are_never_composed_are_changed_by_nothing_and_joined_to_nothing():
    kept = {chr(code) for codes in NEVER_COMPOSED for code in codes}
    for code in range(sys.maxunicode + 1):
        parts = unicodedata.decomposition(chr(code)).split()
        if parts and not parts[0].startswith("<"):
            assert chr(code) not in kept or unicodedata.is_normalized("NFC", chr(code))
            assert len(parts) == 1 or chr(int(parts[1], 16)) not in kept or not _composes(code)
    assert all(unicodedata.is_normalized("NFC", letter) and not unicodedata.combining(letter) for letter in kept)


def _composes(code: int) -> bool:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", chr(code))) == chr(code)
