"""Every rule finds what it is for and leaves alone what only looks like it."""

from __future__ import annotations

import pytest

from ai_finetuning.data.doctor.passages import Passage
from ai_finetuning.data.doctor.rules import BY_KEY, DROP, RULES, find, normalised

from .rows import MISSED, OWN

ANSWERED = "東京です。江戸時代から政治の中心で、いまも多くの省庁と企業の本社が集まっています。"
LONG = "この条約は長い交渉のすえ、各国の代表者が集まった秋の会議での話し合いにより、最終的に"


def passage(text: str, key: str, question: str = "首都は？", material: str = "") -> Passage:
    role = "answer" if "answer" in BY_KEY[key].where else "question"
    return Passage(text, role, ("output",), question, material)


def found(key: str, text: str, question: str = "首都は？", material: str = "") -> bool:
    return bool(find(BY_KEY[key], passage(text, key, question, material)))


@pytest.mark.parametrize("key", OWN)
def test_own_rows(key: str):
    """Twenty of each: all that are meant are found but for those named in MISSED, and none of the others."""
    hits, others = OWN[key]
    assert min(len(hits), len(others)) >= 20
    assert [text for text in hits if not found(key, text)] == MISSED.get(key, [])
    assert [text for text in others if found(key, text)] == []


# (rule, text, question, material) for rules whose rows are more than a sentence.
FOUND = (
    ("quote_lost", "アバター』の初日の興行収入は大きかった。", "いつ？", ""),
    ("quote_lost", "前の段落です。\n平和の寓意」または「平和の勝利」は、絵の名前です。", "いつ？", ""),
    ("quote_lost", "1. 月への旅』（1902年）", "いつ？", ""),
    ("loop", "はい" * 60, "", ""),
    ("loop", ANSWERED + "詳しくはお問い合わせください。" * 5, "", ""),
    ("loop", "これは" + "とても、" * 20, "", ""),
    ("repeated", "州政府、" * 40 + "など", "", ""),
    ("repeated", ANSWERED * 4 + "終わり", "", ""),
    ("repeated", "一、二、三、四、五、" * 15, "", ""),
    ("truncated", LONG + "承認されて2019年7月29日に", "", ""),
    ("truncated", LONG + "承認された、", "", ""),
    ("truncated", LONG + "承認されましたが", "", ""),
    ("echo", "日本の首都はどこですか？", "日本の首都はどこですか", ""),
    ("echo", "ＡＢＣを説明して。", "ABCを説明して", ""),
    ("echo", "桜の季節は", "桜の季節は。", ""),
    ("style_mixed", "東京は首都です。人口は多い。大阪も大きいです。港がある。", "", ""),
    ("style_mixed", "これは本である。安いです。とても読みやすい。買いました。", "", ""),
    ("style_mixed", "雨が降った。傘を持ちました。晴れた。出かけましょう。", "", ""),
    ("simplified", "これは东京です。", "", ""),
    ("simplified", "这は簡体字です。", "", ""),
    ("simplified", "归り道です。", "", ""),
    ("latin_inside", "御treat走になりました。", "", ""),
    ("latin_inside", "生ingerを使います。", "", ""),
    ("latin_inside", "比phor的な言い方です。", "", ""),
    ("ai_identity", "私はAIとして、感情を持ちません。", "", ""),
    ("ai_identity", "言語モデルなので、天気は分かりません。", "", ""),
    ("ai_identity", "As an AI, I have no feelings.", "", ""),
    ("number_absent", "人口は980万人です。", "人口は？", "市の人口は、およそ370万人である。"),
    ("number_absent", "1999年に建ちました。", "いつ？", "この塔は1958年に建った。"),
    ("number_absent", "値段は1,500円です。", "いくら？", "値段は1,200円である。"),
    ("email", "連絡は a.b@example.co.jp まで。", "", ""),
    ("email", "連絡はａｂｃ＠ｅｘａｍｐｌｅ．ｃｏｍまで。", "", ""),
    ("email", "123@example.comです", "", ""),
    ("address", "東京都港区芝公園4丁目2番8号にあります。", "", ""),
    ("address", "大阪府大阪市北区堂島浜2丁目です。", "", ""),
    ("address", "神奈川県横浜市中区本町1-2です。", "", ""),
    ("replacement", "大きさは\ufffdです", "", ""),
    ("mojibake", ANSWERED.encode().decode("latin-1"), "", ""),
    ("mojibake", "はじめに。" + ANSWERED.encode().decode("cp932", "ignore"), "", ""),
    ("mojibake", ANSWERED.encode("euc_jp").decode("cp932", "replace"), "", ""),
    ("mojibake_likely", "鞫ｯ鬯ｲ驕ｺ髫ｴ驍ｵ鬮ｯ鬩搾鬯ｮｫ", "", ""),
)  # fmt: skip
LEFT_ALONE = (
    ("quote_lost", "「開いて」閉じた。", "", ""),
    ("quote_lost", "彼はこう言った。行くぞ』と。", "", ""),
    ("quote_lost", "）」』」）」』", "閉じ括弧を補ってください", ""),
    ("quote_lost", "「一行目\n二行目」の詩です。", "", ""),
    ("quote_lost", "1）王国\n2）帝国", "", ""),
    ("loop", "2、3、5、7、11、13、17、19、23、29、31、37、41、43、47、53、59、61、67、71、73", "", ""),
    ("loop", "ありがとうございます。ありがとうございます。", "", ""),
    ("loop", "見出し\n" + "-" * 80, "", ""),
    ("repeated", ANSWERED * 2, "", ""),
    ("repeated", "はい。はい。はい。", "", ""),
    ("repeated", "2、3、5、7、11、13、17、19、23、29、31、37、41、43、47、53、59、61、67、71、73、79、83、89", "", ""),
    ("truncated", ANSWERED, "", ""),
    ("truncated", "植物", "", ""),
    ("truncated", ANSWERED + "\nありがとうございます、", "", ""),
    ("truncated", LONG + "\n1. 牛乳、\n2. 卵、", "", ""),
    ("echo", "こんにちは", "「こんにちは」と繰り返してください", ""),
    ("echo", "こんにちは", "こんにちはと言ってください", ""),
    ("echo", "東京です。", "首都は？", ""),
    ("style_mixed", "東京は首都です。人口は多いです。大阪もある。", "", ""),
    ("style_mixed", "彼は「行くのだ。」「来るのだ。」と言いました。帰りました。", "", ""),
    ("style_mixed", "見出しである\n東京は首都です。大阪もあります。", "", ""),
    ("simplified", "国、学、会、来、与、余、体、点、虫、党、声、医", "", ""),
    ("simplified", "癇癪を起こした", "", ""),
    ("simplified", "嚙む、鹼、繫ぐ", "", ""),
    ("latin_inside", "約kcalとして", "", ""),
    ("latin_inside", "変数fooを、JavaScriptで使う", "", ""),
    ("latin_inside", r"式は a \times b です", "", ""),
    ("ai_identity", "ChatGPTはOpenAIの製品です。", "", ""),
    ("ai_identity", "言語モデルは確率を学びます。", "", ""),
    ("ai_identity", "AIの歴史は長い。", "", ""),
    ("number_absent", "人口は370万人です。", "人口は？", "市の人口は、およそ３７０万人である。"),
    ("number_absent", "1. 東京\n2. 大阪", "どこ？", "東京と大阪である。"),
    ("number_absent", "人口は980万人です。", "人口は？", ""),
    ("email", "@を付けて、user@と書きます", "", ""),
    ("email", "価格は3@100円です", "", ""),
    ("email", "A＠Bの形です", "", ""),
    ("address", "東京都は広い。", "", ""),
    ("address", "港区芝公園4丁目にあります。", "", ""),
    ("address", "京都府の人口は250万人です。", "", ""),
    ("replacement", ANSWERED, "", ""),
    ("mojibake", "アヒル口カモノハシとリブロース二リン酸", "", ""),
    ("mojibake", "癇癪を起こした", "", ""),
    ("mojibake", "縺れた糸", "", ""),
    ("mojibake_likely", "憂鬱な麒麟、檸檬と薔薇と葡萄", "", ""),
    ("mojibake_likely", "子曰、學而時習之、不亦說乎。", "", ""),
    ("mojibake_likely", "ﾊﾝｶｸ ｶﾅ ﾊﾞｶﾘ ﾉ ﾌﾞﾝｼｮｳ", "", ""),
)  # fmt: skip


@pytest.mark.parametrize(("key", "text", "question", "material"), FOUND)
def test_found(key: str, text: str, question: str, material: str):
    assert found(key, text, question, material)


@pytest.mark.parametrize(("key", "text", "question", "material"), LEFT_ALONE)
def test_left_alone(key: str, text: str, question: str, material: str):
    assert not found(key, text, question, material)


def test_every_rule_that_looks_at_a_text_has_rows_here():
    covered = {*OWN, *(key for key, *_ in FOUND)} & {*OWN, *(key for key, *_ in LEFT_ALONE)}
    # That of equal answers looks at two texts: test_pairs.py.
    assert {rule.key for rule in RULES if rule.find is not None} == covered | {"pair_equal"}


def test_keys_do_not_change():
    """Programs and people name rules by them."""
    assert [rule.key for rule in RULES] == [
        *("mojibake", "replacement", "surrogate", "control", "mojibake_likely", "radical", "decomposed", "zero_width"),
        *("no_break_space", "entity", "reference_mark", "quote_lost", "template_token", "template_token_asked"),
        *("special_token", "unreadable", "loop", "repeated", "english", "chinese", "foreign", "truncated", "echo"),
        *(
            *("pair_equal", "pair_swapped", "pair_length"),
            "near_duplicate",
            "same_question",
            "leak_question",
            "leak_near",
            "leak_coverage",
            "style_mixed",
            "simplified",
        ),
        *("traditional", "latin_inside", "ai_identity", "number_absent", "my_number", "card", "mobile", "phone"),
        *("postcode", "email", "bank", "secret", "address"),
    ]


# What a repair gives.
REPAIRS = (
    ("quote_lost", "アバター』の初日", "『アバター』の初日"),
    ("quote_lost", "1. 月への旅」です", "1. 「月への旅」です"),
    ("reference_mark", "東京です。[12][3]また", "東京です。また"),
    ("radical", "⻑野の⼤学", "長野の大学"),
    ("decomposed", "か\u3099くせい", "がくせい"),
    ("zero_width", "東\u200b京", "東京"),
    ("no_break_space", "5\u00a0kg", "5 kg"),
    ("entity", "A&amp;B &#39;", "A&B '"),
    ("template_token", "終わりです。<|im_end|>\n<|im_start|>user", "終わりです。"),
    ("control", "a\x00b", "ab"),
    ("mojibake", ANSWERED.encode().decode("latin-1"), ANSWERED),
    ("mojibake", ANSWERED.encode().decode("latin-1").encode().decode("latin-1"), ANSWERED),
    ("mojibake", "はじめに。" + "東京です".encode().decode("latin-1") + "。", "はじめに。東京です。"),
)


@pytest.mark.parametrize(("key", "text", "repaired"), REPAIRS)
def test_a_repair_gives_the_right_text_and_repairs_nothing_twice(key: str, text: str, repaired: str):
    fix = BY_KEY[key].fix
    assert callable(fix)
    assert fix(passage(text, key)) == repaired
    assert fix(passage(repaired, key)) == repaired
    assert not find(BY_KEY[key], passage(repaired, key))


@pytest.mark.parametrize("key", [rule.key for rule in RULES if callable(rule.fix)])
@pytest.mark.parametrize(
    "text", [ANSWERED, "アヒル口カモノハシ", "嚙む、鹼", r"a \times b", "1）王国\n2）帝国", "👨‍👩‍👧", ""]
)
def test_a_repair_changes_no_intact_text(key: str, text: str):
    fix = BY_KEY[key].fix
    assert callable(fix)
    assert fix(passage(text, key)) == text


def test_what_is_not_right_often_enough_is_never_done_by_itself():
    """Only these rules change or drop anything with `--fix safe`."""
    assert {rule.key for rule in RULES if rule.safe} == {
        *(
            "mojibake",
            "radical",
            "decomposed",
            "zero_width",
            "no_break_space",
            "entity",
            "reference_mark",
            "quote_lost",
        ),
        *("loop", "echo"),
    }
    assert all(rule.fix is not None for rule in RULES if rule.safe)
    assert not any(rule.fix == DROP and rule.severity == "note" for rule in RULES)


def test_questions_are_compared_without_width_case_and_punctuation():
    assert normalised("ＡＢＣ、首都は？") == normalised("abc首都は") == "abc首都は"
    assert normalised("C++とは？") != normalised("Cとは？")
    assert normalised("1.5倍…") != normalised("15倍")
    assert normalised("1.5倍です…。") == normalised("１．５倍です")
