"""Sentences are told apart by their ends: 敬体, 常体, or neither."""

from __future__ import annotations

import pytest

from ai_finetuning.japanese.style import Styles, sentence_style, sentences, styles

POLITE = (
    "東京は日本の首都です。", "人口は約1400万人でした。", "どこへ行きますか？", "ぜひご覧ください。", "まだ分かりません。",
    "一緒に行きましょう。", "雨が降るでしょう。", "予約しておきますね。", "ご用意しております。", "お待ちくださいませ。",
    "これは本です[3]。", "（詳しくは別紙のとおりです）。", "行きませんでした！", "そう思いますが。",
)  # fmt: skip
PLAIN = (
    "東京は日本の首都である。", "彼は笑った。", "水は100度で沸騰する。", "それは正しくない。", "雨が降るだろう。",
    "本を読む。", "とても高い。", "小さい。", "そう言われている。", "なぜそうなるのか？", "これは本だ[3]。", "早く帰りたい。", "手紙を書く。",
)  # fmt: skip
NEITHER = (
    "東京と大阪。",
    "人数は大人4名。",
    "宿を希望。",
    "2021年に受賞。",
    "はい。",
    "ありがとう。",
    "水、牛乳、卵など。",
    "あなた？",
    "よろしくお願い。",
)


@pytest.mark.parametrize("sentence", POLITE)
def test_polite_ends(sentence: str):
    assert sentence_style(sentence) == "polite"


@pytest.mark.parametrize("sentence", PLAIN)
def test_plain_ends(sentence: str):
    assert sentence_style(sentence) == "plain"


@pytest.mark.parametrize("sentence", NEITHER)
def test_other_ends_are_neither(sentence: str):
    assert sentence_style(sentence) is None


def test_quotations_code_and_lines_without_a_mark_do_not_count():
    text = "彼は「行くのだ。」と言いました。\n見出しである\n```\n終わりだ。\n```\n（これは注である。）以上です。"
    assert styles(text) == Styles(polite=2, plain=0)


def test_a_sentence_stands_where_it_says():
    text = "一つ目です。\n  二つ目である。"
    assert [text[item.start : item.stop] for item in sentences(text)] == ["一つ目です。", "二つ目である。"]


@pytest.mark.parametrize(
    ("polite", "plain", "mixed"), [(2, 2, True), (1, 3, False), (8, 2, True), (9, 2, False), (0, 9, False)]
)
def test_mixed_is_two_of_each_and_a_fifth(polite: int, plain: int, mixed: bool):
    found = styles("東京は首都です。" * polite + "大阪は大きい。" * plain)
    assert (found.polite, found.plain, found.mixed) == (polite, plain, mixed)


def test_items_of_a_list_and_speakers_have_their_own_style():
    items = "\n- 早く寝る。\n- 水を飲む。\n- 歩く。"
    assert not styles("方法を紹介します。続けてください。" + items).mixed
    assert styles("方法を紹介します。続けてください。" + items + "\n- 走ります。\n- 休みます。").mixed_part == "list"
    assert styles("方法を紹介します。続けてください。これは大切だ。忘れてはならない。" + items).mixed_part == "body"
    titles = "\n1. 早く寝る。体が休まります。\n2. 水を飲む。頭が働きます。\n3. 歩く。気が晴れます。"
    assert not styles("方法を紹介します。" + titles).mixed
    talk = "店員：いらっしゃいませ。お決まりですか？\n客：これがいい。それもくれ。\n店員：かしこまりました。"
    assert not styles(talk).mixed
    labels = "鼻歌：母親は歌います。不安でも歌います。\n悲鳴：とても大きい。敵を驚かせる。"
    assert styles(labels).mixed
