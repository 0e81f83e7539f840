"""Instruction checks: for each an answer that follows and some that do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from ai_finetuning.evaluation.instructions import CHECKS, Instruction, followed, instructions, parse_checks

# (check, arguments, answers that follow, answers that do not)
CASES = [
    ("characters_at_least", {"n": 5}, ["あいう えお", "一二三四五六"], ["あい う\nえ", "     "]),
    ("characters_at_most", {"n": 5}, ["あい うえ\nお"], ["あいうえおか"]),
    ("characters_about", {"n": 20}, ["あ" * 18, "あ" * 22], ["あ" * 17, "あ" * 23]),
    (
        "sentences",
        {"n": 2},
        ["はい。そうです！", "彼は「行く。帰る。」と言った。そうか。", "一\n二"],
        ["はい。", "一。二。三。"],
    ),
    ("sentences_at_least", {"n": 2}, ["一。二。三。"], ["一。"]),
    ("sentences_at_most", {"n": 2}, ["一。（注。注。）二。"], ["一。二。三。"]),
    ("paragraphs", {"n": 2}, ["一\n二\n\n三", "一\n \n\n二"], ["一\n二", "一\n\n二\n\n三"]),
    ("lines", {"n": 3}, ["一\n\n二\n三\n"], ["一\n二"]),
    ("sections", {"separator": "***", "n": 2}, ["一***二", "***\n一\n***\n二"], ["一", "一***二***三"]),
    ("bullets", {"n": 2}, ["・一\n・二", "説明\n- 一\n* 二"], ["・一", "一・二\n三・四"]),
    ("bullets_at_least", {"n": 2}, ["●一\n○二\n◦三"], ["● 一"]),
    (
        "numbered",
        {"n": 2},
        ["1. 一\n2. 二", "①一\n②二", "１、一".replace("１", "1") + "\n2）二"],
        ["1. 一", "1番\n2番"],
    ),
    ("title", {"opens": "『", "closes": "』"}, ["『雪』\n本文"], ["雪", "『』"]),
    ("quoted", {}, ["「前へ」", " 「一」\n"], ["「前へ」と言う", "前へ"]),
    ("json", {}, ['{"a": 1}', "```json\n[1, 2]\n```"], ["答え: {}", "1", '{"a": 1', "[" * 100_000]),
    ("json_keys", {"keys": ["a", "b"]}, ['{"b": 1, "a": 2}'], ['{"a": 1}', '{"a": 1, "b": 2, "c": 3}', "[1]"]),
    ("table", {}, ["|犬|猫|\n|---|---|\n|a|b|"], ["犬 | 猫", "---"]),
    (
        "no_markdown",
        {},
        ["普通の文章です。3 - 1 は 2。"],
        ["# 題", "**太字**", "- 一", "|a|b|", "`​``x```".replace("​", "")],
    ),
    ("keywords", {"words": ["花火", "浴衣"]}, ["浴衣で花火を見た"], ["花火を見た"]),
    ("keyword_at_least", {"word": "海", "n": 2}, ["海と海岸"], ["海"]),
    ("forbidden", {"words": ["雪", "白"]}, ["冬の朝"], ["白い朝"]),
    ("starts_with", {"words": "昔々"}, ["\n昔々ある所に"], ["むかし"]),
    ("ends_with", {"words": "おしまい"}, ["終わり。おしまい\n"], ["おしまい。"]),
    ("one_of", {"words": ["はい", "いいえ"]}, ["はい", "いいえ。"], ["はい、そうです", "イエス"]),
    ("hiragana_only", {}, ["はるは、あけぼの。3じ！", "らーめん"], ["春", "ハル", "はる spring", "123"]),
    ("katakana_only", {}, ["フランス、ドイツ"], ["フランスと", "仏"]),
    ("no_katakana", {}, ["和食は良い。ー"], ["カレー"]),
    ("no_kanji", {}, ["ぼくはケンです"], ["僕はケン", "人々"]),
    ("kanji_at_most", {"n": 2}, ["空が赤い"], ["夕空が赤い"]),
    ("no_latin", {}, ["三時 3"], ["AI", "ＡＩ"]),
    ("no_commas", {}, ["川が流れる。"], ["川、山", "a,b"]),
    ("polite", {}, ["今日は雨です。行きません。"], ["今日は雨です。行かない。", "雨だ。"]),
    ("plain", {}, ["今日は雨だ。試合は中止になった。"], ["雨です。", "雨だ。行きます。"]),
    ("keigo", {}, ["誠に申し訳ございません。", "ご案内いたします。"], ["ごめんね。行くよ。"]),
]


@pytest.mark.parametrize(("check", "arguments", "right", "wrong"), CASES, ids=[case[0] for case in CASES])
def test_a_check_tells_answers_apart(check: str, arguments: dict, right: list[str], wrong: list[str]):
    assert [text for text in right if not CHECKS[check](text, **arguments)] == []
    assert [text for text in wrong if CHECKS[check](text, **arguments)] == []


def test_every_check_is_tested_and_asked_for():
    asked = {name for item in instructions() for name, _ in item.checks}
    assert {case[0] for case in CASES} == set(CHECKS) == asked
    assert len(CHECKS) >= 26


def test_the_prompts_that_ship():
    found = instructions()
    assert 115 <= len(found) <= 130
    assert len({item.prompt for item in found}) == len(found)
    for item in found:
        assert set(followed(item, "これは、ためしの答えです。")) == {name for name, _ in item.checks}


def test_an_empty_answer_follows_nothing():
    item = Instruction(1, "読点を使わずに", (("no_commas", {}), ("characters_at_most", {"n": 9})))
    assert followed(item, " \n") == {"no_commas": False, "characters_at_most": False}
    assert followed(item, "はい") == {"no_commas": True, "characters_at_most": True}
    twice = Instruction(1, "", tuple(("keyword_at_least", {"word": word, "n": 1}) for word in ("海", "山")))
    assert followed(twice, "山です。") == {"keyword_at_least": False, "keyword_at_least 2": True}


def test_every_check_can_be_written_into_a_row_and_is_documented():
    """Each with the arguments of its case and with no others; docs/sampling.md lists them for people."""
    for check, arguments, _, _ in CASES:
        assert parse_checks([{"check": check, **arguments}]) == ((check, arguments),)
        with pytest.raises(ValueError, match=check):
            parse_checks([{"check": check, **arguments, "more": 1}])
    docs = Path(__file__).resolve().parents[3] / "docs"
    for page in ("sampling.md", "sampling.ja.md"):
        text = (docs / page).read_text(encoding="utf-8")
        assert [check for check in CHECKS if f"`{check}`" not in text] == []
