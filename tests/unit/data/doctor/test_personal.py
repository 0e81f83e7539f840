"""Check digits against hand-made cases, folding that keeps places, and masks."""

from __future__ import annotations

import random

from ai_finetuning.data.doctor import personal
from ai_finetuning.data.doctor.rules import BY_KEY


def test_check_digits_by_hand():
    """123456789018 is the ordinance's rule worked out: 6*1+5*2+4*3+3*4+2*5+7*6+6*7+5*8+4*9+3*0+2*1 = 212, 212 % 11 = 3."""
    assert personal.my_number_check("12345678901") == 8
    assert personal.my_number_check("00000000000") == 0
    assert personal.my_number_check("00000000006") == 0  # 12 % 11 = 1
    assert personal.luhn("4111111111111111")
    assert not personal.luhn("4111111111111112")
    assert personal.luhn("79927398713")


def test_about_a_tenth_of_random_numbers_passes_so_that_words_are_asked_for():
    draw = random.Random(0)
    numbers = [f"{draw.randrange(10**12):012d}" for _ in range(2000)]
    passing = [number for number in numbers if personal.my_number_check(number[:11]) == int(number[11])]
    assert 0.07 < len(passing) / len(numbers) < 0.13
    assert not any(personal.find_my_number(f"番号は{number}です") for number in numbers)
    assert all(personal.find_my_number(f"個人番号は{number}です") for number in passing)


def test_folding_keeps_places_and_the_long_vowel_mark():
    text = "データー０９０－１２３４－５６７８（自宅）"
    assert len(personal.folded(text)) == len(text)
    assert personal.folded(text).startswith("データー090-1234-5678(")
    ((start, stop),) = personal.find_mobile(text)
    assert text[start:stop] == "０９０－１２３４－５６７８"


def test_a_long_vowel_mark_between_digits_is_a_mistyped_hyphen():
    for text, find in (
        ("携帯は０９０ー１２３４ー５６７８です", personal.find_mobile),
        ("電話は03ｰ1234ｰ5678です", personal.find_phone),
        ("〒１００ー０００１", personal.find_postcode),
        ("カード4111ー1111ー1111ー1111", personal.find_card),
    ):
        assert len(personal.folded(text)) == len(text)
        assert find(text), text
    assert personal.folded("３ーカ月、セーター２ー") == "3ーカ月、セーター2ー"


def test_telephone_numbers_for_callers_from_abroad():
    mobiles = [
        "+81-90-1234-5678",
        "+81 90-1234-5678",
        "＋８１　９０　１２３４　５６７８",
        "+819012345678",
        "+81 (0)80-1234-5678",
    ]
    fixed = ["+81-3-1234-5678", "+81 3 1234 5678", "+81 (0)45-123-4567", "+81-800-123-4567", "+81-120-123-456"]
    for numbers, find, other in (
        (mobiles, personal.find_mobile, personal.find_phone),
        (fixed, personal.find_phone, personal.find_mobile),
    ):
        for number in numbers:
            assert find(f"番号は{number}です。") == [(3, 3 + len(number))], number
            assert other(f"番号は{number}です。") == [], number
    for text in ("+81 という国番号", "10+81-3=88", "差は+81-90です", "+81 2024 12 31"):
        assert personal.find_mobile(text) == personal.find_phone(text) == [], text


def test_a_mask_has_the_shape_of_its_kind_and_is_stable():
    """A masked text is masked as it is: its rule finds the mask, and nothing changes."""
    for key, text in (
        ("mobile", "電話は０９０－１２３４－５６７８です"),
        ("phone", "電話は03-1234-5678です"),
        ("postcode", "〒100-0001です"),
        ("bank", "普通1234567です"),
    ):
        find = BY_KEY[key].find
        mask = BY_KEY[key].mask
        once = personal.masked(text, getattr(personal, f"find_{key}")(text), mask)
        assert mask in once
        assert find is not None
        assert personal.masked(once, getattr(personal, f"find_{key}")(once), mask) == once
