"""Near duplicates: the exact index decides, MinHash only proposes, and opposite answers are never duplicates."""

from __future__ import annotations

import random

import numpy as np
import pytest

from ai_finetuning.data.doctor.duplicates import Pair, grams_of, groups, jaccard, near_pairs, numbers, signatures
from ai_finetuning.data.doctor.rules import normalised

WORDS = [
    *("東京", "大阪", "京都", "名古屋", "札幌", "仙台", "広島", "福岡", "横浜", "神戸", "は", "が", "を", "に", "で", "と", "の", "へ"),
    *("古い", "新しい", "大きな", "静かな", "有名な", "町", "川", "山", "港", "駅", "寺", "橋", "歴史", "文化", "産業", "人口"),
    *("です", "ます", "である", "ため", "から", "ので", "また", "そして", "しかし", "例えば", "ほとんど", "昔", "今", "毎年", "多くの"),
]  # fmt: skip


def text_of(seed: int, words: int = 80) -> str:
    draw = random.Random(seed)
    return "、".join("".join(draw.choices(WORDS, k=8)) for _ in range(words // 8)) + "。"


def changed(text: str, share: float, seed: int) -> str:
    draw = random.Random(seed)
    letters = list(text)
    for place in draw.sample(range(len(letters)), round(share * len(letters))):
        letters[place] = draw.choice("空海山川花鳥風月雪雨")
    return "".join(letters)


TEXTS = [text_of(seed) for seed in range(150)]


def test_grams_are_the_trigrams_of_the_normalised_text():
    (grams,) = grams_of(["東京、ＡＢＣ。"])
    word = normalised("東京、ＡＢＣ。")
    assert word == "東京abc"
    assert len(grams) == len({word[start : start + 3] for start in range(len(word) - 2)})
    assert [len(item) for item in grams_of(["", "、。", "a", "ab", "abc", "abcd"])] == [0, 0, 1, 1, 1, 2]
    assert np.array_equal(next(grams_of(["東京は首都です"])), next(grams_of(["東京は、首都です。"])))


def test_the_jaccard_index_is_that_of_the_sets():
    for first, second in zip(TEXTS[:20], TEXTS[1:21], strict=True):
        sets = [{word[i : i + 3] for i in range(len(word) - 2)} for word in map(normalised, (first, second))]
        exact = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
        assert jaccard(*grams_of([first, second])) == pytest.approx(exact)


def test_signatures_estimate_the_index():
    others = [changed(text, 0.03, seed) for seed, text in enumerate(TEXTS)]
    grams = list(grams_of([*TEXTS, *others]))
    marks = signatures(grams)
    guess = (marks[: len(TEXTS)] == marks[len(TEXTS) :]).mean(axis=1)
    exact = [jaccard(a, b) for a, b in zip(grams[: len(TEXTS)], grams[len(TEXTS) :], strict=True)]
    assert abs(guess - exact).max() < 0.2
    assert abs((guess - exact).mean()) < 0.02


@pytest.mark.parametrize(
    ("change", "least", "most"),
    [
        (lambda text, seed: text.replace("、", "，").replace("。", "．"), 1.0, 1.0),
        (lambda text, seed: changed(text, 0.02, seed), 0.95, 1.0),
        (lambda text, seed: text[: round(0.7 * len(text))], 0.98, 1.0),  # contained in the whole
        (lambda text, seed: "ご質問ありがとうございます。" + text, 0.98, 1.0),
        (lambda text, seed: text_of(seed + 1000), 0.0, 0.0),
    ],
    ids=["width", "2 %", "cut to 70 %", "greeting", "another text"],
)
def test_recall_of_changed_answers(change, least: float, most: float):
    ours = [Pair(f"{text_of(seed + 500, 16)}とは", "", text) for seed, text in enumerate(TEXTS)]
    theirs = [Pair(pair.question, "", change(pair.answer, seed)) for seed, pair in enumerate(ours)]
    side = np.arange(2 * len(ours)) >= len(ours)
    found = near_pairs([*ours, *theirs], side)
    assert all(second - first == len(ours) for first, second in found)
    assert least <= len(found) / len(ours) <= most


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("女性の科学者を三人挙げてください。", "マリー・キュリー、リーゼ・マイトナー、湯浅年子です。"),
         ("男性の科学者を三人挙げてください。", "アルベルト・アインシュタイン、ニールス・ボーア、湯川秀樹です。")),
        (("水の融点は何度ですか？", "水の融点は、1気圧のもとでは0度です。"), ("水の沸点は何度ですか？", "水の沸点は、1気圧のもとでは100度です。")),
        (("一月は何日までありますか？", "31日です。"), ("三月は何日までありますか？", "31日です。")),
        (("この文は肯定ですか、否定ですか？", "肯定です。"), ("この文は過去ですか、現在ですか？", "肯定です。")),
    ],
)  # fmt: skip
def test_opposite_questions_are_no_duplicates(first: tuple[str, str], second: tuple[str, str]):
    assert near_pairs([Pair(first[0], "", first[1]), Pair(second[0], "", second[1])]) == []


def test_another_material_makes_another_row():
    """Classes: one instruction, one answer, many texts."""
    rows = [Pair("次の文を肯定か否定に分類してください。", text_of(seed), "肯定です。") for seed in range(30)]
    assert near_pairs(rows) == []
    assert near_pairs([rows[0], rows[1], rows[0]]) == [(0, 2)]


def test_many_rows_with_one_answer_are_compared_by_their_questions():
    """Their bucket is too large for all pairs: the questions divide it."""
    rows = [Pair(text_of(seed, 24), "", "はい、そのとおりです。") for seed in range(200)]
    rows += [Pair(rows[7].question + "？", "", rows[7].answer), rows[150]]
    assert near_pairs(rows) == [(7, 200), (150, 201)]


def test_plain_texts_are_compared_as_they_are():
    assert near_pairs([Pair("", "", TEXTS[0]), Pair("", "", TEXTS[1]), Pair("", "", TEXTS[0] + "おわり")]) == [(0, 2)]


def test_links_make_groups():
    assert groups(5, [(3, 4), (1, 3)]) == [0, 1, 2, 1, 1]


def test_numbers_in_kanji_count():
    assert numbers("１２月、三十日に2回") == ("12", "三十", "2")
