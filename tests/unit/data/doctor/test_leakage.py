"""What training data holds of the evaluation data: equal questions, near rows, covered questions; else nothing."""

from __future__ import annotations

import pytest

from ai_finetuning.data.doctor import leakage
from ai_finetuning.data.doctor.duplicates import Pair
from ai_finetuning.data.doctor.leakage import find_leakage, pair_of, question_key
from ai_finetuning.data.messages import Conversation, Message, PlainText

STORE = "単一の企業が複数の分野の専門店を一つの大きな建物に集めて、多くの種類の商品を売る店のことを何といいますか？"


def rows(count: int, words: str = "町") -> list[Pair]:
    return [
        Pair(f"{number}番目の{words}の名前を教えてください。", "", f"それは第{number}{words}といいます。")
        for number in range(count)
    ]


def test_equal_questions_are_found_however_they_are_written():
    train = [*rows(50), Pair("日本の首都は？", "", "東京です。")]
    found = find_leakage(
        train,
        [
            Pair("日本の首都は", "", "京都です。"),
            Pair("日本の　首都は？？", "", "東京です。"),
            Pair("大阪は？", "", "はい"),
        ],
    )
    assert found.question == [(50, 0), (50, 1)]
    assert found.evaluated == 3


def test_the_material_belongs_to_the_question():
    asked = "次の文章を要約してください。"
    train = [Pair(asked, "長い文章その一です。", "要約一"), Pair(asked, "長い文章その二です。", "要約二")]
    found = find_leakage(
        train, [Pair(asked, "長い文章その三です。", "要約三"), Pair(asked, "長い文章その二です", "要約四")]
    )
    assert found.question == [(1, 1)]
    assert question_key(Pair("", "材料", "答え")) == ""


def test_near_rows_and_covered_questions_are_found():
    train = [
        *rows(50),
        Pair(STORE, "", "百貨店です。"),
        Pair("あ", "", f"よくある問題に「{STORE}」があります。答えは百貨店です。"),
    ]
    found = find_leakage(
        train, [Pair(STORE.replace("何といいますか？", "何と呼びますか？"), "", "百貨店です。"), *rows(3, "川")]
    )
    assert found.near == [(50, 0)]
    found = find_leakage(train[:50] + train[51:], [Pair(STORE, "", "デパートです。"), *rows(3, "川")])
    assert found.coverage == [(50, 0)]
    assert (found.question, found.near) == ([], [])


def test_one_phrase_in_common_is_no_leak():
    """Thirteen equal characters are a phrase."""
    train = [Pair("次の質問に日本語で答えてください。富士山の高さは？", "", "3776メートルです。")]
    found = find_leakage(
        train, [Pair("次の質問に日本語で答えてください。琵琶湖の広さは？", "", "669平方キロメートルです。")]
    )
    assert (found.question, found.near, found.coverage) == ([], [], [])


def test_a_shared_paragraph_is_no_leak_where_the_question_is_another():
    paragraph = "この町は江戸時代に城下町として栄え、いまも古い町並みが残っている。毎年秋には大きな祭りがある。" * 3
    train = [Pair("祭りはいつありますか？", paragraph, "秋です。")]
    found = find_leakage(train, [Pair("町はいつの時代に栄えたと書かれていますか？", paragraph, "江戸時代です。")])
    assert (found.question, found.near, found.coverage) == ([], [], [])


def test_above_the_limit_a_sample_is_compared_and_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(leakage, "MOST_ROWS", 40)
    train, evaluated = rows(200), rows(200)
    found = find_leakage(train, evaluated)
    assert len(found.question) == 200  # always of all rows
    assert found.sampled
    assert found.looked_at == (30, 10)
    assert found.rows == (200, 200)
    monkeypatch.setattr(leakage, "MOST_ROWS", 1000)
    assert not find_leakage(train, evaluated).sampled


def test_long_texts_are_sampled_by_their_characters(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(leakage, "MOST_CHARACTERS", 2000)
    found = find_leakage(rows(500), rows(3))
    assert found.sampled
    assert found.looked_at[0] < 60


def test_conversations_are_compared_by_all_that_their_user_says():
    talk = Conversation(
        (
            Message("system", "店員です"),
            Message("user", "宿を", "材料"),
            Message("assistant", "はい"),
            Message("user", "海の近く"),
            Message("assistant", "了解"),
        )
    )
    assert pair_of(talk) == Pair("宿を\n海の近く", "材料", "はい\n了解")
    assert pair_of(PlainText("文")) == Pair("", "", "文")
