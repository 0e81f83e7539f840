"""Numbers that an answer has from nowhere, and those that follow from its material."""

from __future__ import annotations

import pytest

from ai_finetuning.data.doctor.numbers import find_absent_numbers

GIVEN = (
    # (answer, material, question)
    ("12万5000年前", "およそ12万5千年前である。", ""),
    ("344,400平方キロメートル", "面積は34万4400平方キロメートル。", ""),
    ("7億5700万人", "入場者は757,000,000人。", ""),
    ("5.8百万人", "死者は580万人。", ""),
    ("580万人", "死者は5.8百万人。", ""),
    ("1932年から1939年まで", "ホームネーションズ(1932-39)", ""),
    ("629年か630年", "629/30年頃に攻撃された。", ""),
    ("1960年代と90年代", "1964年と1993年に勝った。", ""),
    ("88年の五輪", "1988年夏季オリンピック", ""),
    ("20世紀のジャーナリスト", "1913年生まれ、1990年没。", ""),
    ("10月2日", "born on 2 October 1869", ""),
    ("76歳まで生きた", "1879年3月14日-1955年4月18日", ""),
    ("二十三は23です", "二十三人が集まった。", ""),
    ("1945年に終わりました", "一九四五年に終戦を迎えた。", ""),
    ("約19 miのところ", "30kmの所にある。", ""),
    ("8フィート", "2.4mの長さ。", ""),
    ("57％は都市部に住んでいません", "43％が都市部に住む。", "住んでいない割合は何パーセント？"),
    ("合計13個", "窓は4つと9つ。", "窓は合計いくつ？"),
    ("56＋2＋10＝68", "56の国家、2つの領土、10の地域。", "総数は？"),
    ("75％はアラビカ種", "約4分の3はアラビカ種である。", ""),
    ("24ポンド", "ハーフピストルは6ポンド。", "4個は何ポンド？"),
    ("1. 東京\n12. 大阪", "東京と大阪。", ""),
    ("2004年06月05日", "2004年5月6日に放送された。", ""),
)
ABSENT = (
    ("人口は980万人です", "市の人口は370万人である。", "人口は？", ["980万"]),
    ("1999年に建ちました", "1958年に建った。", "", ["1999"]),
    ("値段は1,500円です", "値段は1,200円。", "", ["1,500"]),
    ("1970年代の曲", "1985年の曲。", "", ["1970"]),
    ("77年の大会", "1988年の大会。", "", ["77"]),
    ("19世紀の人", "1913年生まれ。", "", ["19"]),
    ("45歳で亡くなった", "1879年生まれ、1955年没。", "", ["45"]),
    ("11月2日", "born on 2 October 1869", "", ["11"]),
    ("60年間続いた", "1960年に始まった。", "", ["60"]),
    ("13機必要です", "10台を運ぶ。", "", ["13"]),
    ("99 kmのところ", "人口は472人、11の通りがある。", "", ["99"]),
)


@pytest.mark.parametrize(("answer", "material", "question"), GIVEN)
def test_what_follows_from_the_material(answer: str, material: str, question: str):
    assert find_absent_numbers(answer, material, question) == []


@pytest.mark.parametrize(("answer", "material", "question", "absent"), ABSENT)
def test_what_does_not(answer: str, material: str, question: str, absent: list[str]):
    assert [answer[start:stop] for start, stop in find_absent_numbers(answer, material, question)] == absent


def test_without_material_nothing_is_said():
    assert find_absent_numbers("1999年", "", "いつ？") == []
    assert find_absent_numbers("1999年", "nan", "いつ？") == []
