"""Metrics of answers by hand, and what is wrong with an answer's language."""

from __future__ import annotations

import itertools

import pytest

from ai_finetuning.evaluation.answers import (
    Graded,
    best_of,
    char_bigram_f1,
    char_f1_jglue,
    char_f1_llm_jp,
    char_rouge_l,
    common_subsequence,
    exact,
    exact_match,
    metrics_for,
    normalized,
)
from ai_finetuning.evaluation.language import FAULTS, Answered, faults_of, mean_share, share_of


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" 東京です。 ", "東京です"),
        ("「東京」。", "東京"),
        ("『東京』", "東京"),
        ("ＡＢＣ１２", "ABC12"),
        ("「東京」と「大阪」", "「東京」と「大阪」"),
        ("。", ""),
        ("「", "「"),
        ("", ""),
    ],
)
def test_what_does_not_count_between_answers(text: str, expected: str):
    assert normalized(text) == expected
    assert exact(text, expected) == 1


def test_the_nearest_of_all_accepted_answers_counts():
    assert best_of("exact", "愛知県", ["愛知県、岐阜県", "愛知県。"]) == 1
    assert best_of("char_f1_jglue", "愛知", ["大阪", "愛知県"]) == pytest.approx(4 / 5)


def test_metrics_by_hand():
    assert char_f1_jglue("かさ", "さか") == 1
    assert char_bigram_f1("かさ", "さか") == 0
    assert char_bigram_f1("東京都庁", "東京都") == pytest.approx(2 * 2 / (3 + 2))
    assert char_rouge_l("東京都庁", "東都") == pytest.approx(2 * 2 / 6)
    assert char_bigram_f1("東", "東") == 1
    assert char_rouge_l("", "東") == 0
    assert char_rouge_l("", "") == 1
    # Words are sorted first: "a b" and "b a" are the same.
    assert char_f1_llm_jp("B A", "A B") == 1
    assert char_f1_llm_jp("かさ", "さか") == pytest.approx(0.5)


def test_the_common_subsequence_is_that_of_the_table():
    def by_table(first: str, second: str) -> int:
        rows = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
        for i, a in enumerate(first):
            for j, b in enumerate(second):
                rows[i + 1][j + 1] = rows[i][j] + 1 if a == b else max(rows[i][j + 1], rows[i + 1][j])
        return rows[-1][-1]

    for first, second in itertools.product(["", "あい", "あいうえ", "うあいえあ", "ああいい" * 20], repeat=2):
        assert common_subsequence(first, second) == by_table(first, second)


def test_what_is_measured_is_decided_by_the_expected_answers():
    assert metrics_for(["東京", "大阪", "とても長い説明" * 20])[0] == "exact"
    assert metrics_for(["長い説明です。" * 10, "短い", "もう一つの長い説明です。" * 5])[0] == "char_bigram_f1"


def test_graded_answers():
    graded = [Graded("?", "東京", "東京。"), Graded("?", "東京", "大阪")]
    assert [item.right for item in graded] == [True, False]
    assert exact_match(graded) == 0.5
    assert exact_match([]) == 0


ENGLISH = "The capital of Japan is Tokyo, and it is one of the largest cities in the world."


@pytest.mark.parametrize(
    ("answered", "expected"),
    [
        (Answered("日本の首都は？", "東京です。"), ()),
        (Answered("日本の首都は？", ENGLISH), ("english",)),
        (Answered("英語に翻訳してください。", ENGLISH), ()),
        (Answered("日本の首都は？", "你好，我们的首都是东京，这是一个很大的城市。"), ("chinese",)),
        (Answered("首都は？", "東京です。" * 30, "length"), ("loop", "cut")),
        (Answered("首都は？", "東京です。", "loop"), ("loop",)),
        (Answered("首都は？", "東京です。<|im_end|>"), ("template",)),
        (Answered("首都は？", "  "), ("empty",)),
        (Answered("首都は？", "申し訳ありませんが、その質問にはお答えできません。"), ("refusal",)),
        (Answered("首都は？", "서울입니다。"), ("foreign",)),
    ],
)
def test_faults_of_an_answer(answered: Answered, expected: tuple[str, ...]):
    assert faults_of(answered) == expected


def test_what_vetoes_and_the_share_of_japanese():
    assert {name for name, fault in FAULTS.items() if fault.veto} == {"english", "chinese", "loop", "template"}
    assert mean_share([share_of(answer) for answer in ("東京です。", "", "Tokyo")]) == 0.5
    assert mean_share([]) == 0
