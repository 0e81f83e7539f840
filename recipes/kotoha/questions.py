"""kotoha-qa: Japanese conversations that a program makes from facts (CC0), with held-out phrasings and held-out facts.

The files that ship, `ai_finetuning/embedded/kotoha-qa/*.jsonl`, are what `dataset()` returns;
recipes/kotoha-qa/check.py checks every row another way than it was made.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypedDict

from recipes.kotoha.corpus import COUNTERS, MONTHS, PREFECTURES

# About one fact in ten is never trained on.
_HELD_OUT_OF = 10


class Row(TypedDict):
    """A conversation and the kind of its questions."""

    kind: str
    messages: list[dict[str, str]]


@dataclass(frozen=True)
class Fact:
    """Something that can be asked.

    Attributes:
        kind: its table below.
        words: what the phrasings are filled with.
        answer: the one right answer, a whole sentence.
    """

    kind: str
    words: dict[str, str]
    answer: str

    @property
    def held_out(self) -> bool:
        """Whether the fact is kept from training, by a hash of what it says."""
        text = self.kind + self.words.get("pair", "".join(self.words.values()))
        return int(hashlib.sha256(text.encode("utf-8")).hexdigest(), 16) % _HELD_OUT_OF == 0


@dataclass(frozen=True)
class Phrasings:
    """Ways to ask a kind's facts: those of the training, one that it never uses, and one that follows an earlier
    answer.
    """

    train: tuple[str, ...]
    held_out: str
    follow_up: str


PHRASINGS: dict[str, Phrasings] = {
    "seat": Phrasings(
        (
            "{name}の{office}所在地はどこですか？",
            "{name}の{office}はどの{unit}にありますか？",
            "{name}の{office}所在地を教えてください。",
            "{name}の{office}がある{unit}を答えてください。",
        ),
        "{name}の{office}はどこにありますか？",
        "では、{name}の{office}所在地はどこですか？",
    ),
    "region": Phrasings(
        ("{name}は何地方にありますか？", "{name}がある地方を教えてください。", "{name}は何地方ですか？"),
        "{name}はどの地方にありますか？",
        "では、{name}は何地方ですか？",
    ),
    "old_month": Phrasings(
        ("{name}の昔の呼び名は何ですか？", "{name}は昔、何と呼ばれましたか？", "{name}を昔の呼び名で答えてください。"),
        "{name}の昔の呼び名を教えてください。",
        "では、{name}はどうですか？",
    ),
    "counter": Phrasings(
        ("{name}を数える言葉は何ですか？", "{name}はどう数えますか？", "{name}の助数詞を答えてください。"),
        "{name}の数え方を教えてください。",
        "では、{name}はどうですか？",
    ),
    "unit": Phrasings(
        (
            "{number}{large}は何{small}ですか？",
            "{number}{large}は{small}でいうといくつですか？",
            "{number}{large}を{small}に直してください。",
        ),
        "{number}{large}は{small}でいくつですか？",
        "では、{number}{large}は何{small}ですか？",
    ),
    "days": Phrasings(
        (
            "{name}は何日までありますか？",
            "{name}の日数を答えてください。",
            "うるう年でない年の{name}は何日ありますか？",
        ),
        "{name}には何日ありますか？",
        "では、{name}は何日までありますか？",
    ),
    "next": Phrasings(
        ("{name}の次は何ですか？", "{name}の次に来るものを答えてください。", "{name}の後に来るのは何ですか？"),
        "{name}の次を教えてください。",
        "では、{name}の次は何ですか？",
    ),
    "era": Phrasings(
        ("{era}は西暦何年ですか？", "{era}を西暦で答えてください。", "{era}を西暦に直してください。"),
        "{era}は西暦で何年になりますか？",
        "では、{era}は西暦何年ですか？",
    ),
    "numeral": Phrasings(
        (
            "{number}を漢数字で書いてください。",
            "{number}を漢数字にしてください。",
            "{number}は漢数字でどう書きますか？",
        ),
        "漢数字で{number}を書いてください。",
        "では、{number}を漢数字で書いてください。",
    ),
    "katakana": Phrasings(
        (
            "「{word}」をカタカナで書いてください。",
            "「{word}」をカタカナにしてください。",
            "「{word}」はカタカナでどう書きますか？",
        ),
        "カタカナで「{word}」を書いてください。",
        "では、「{word}」をカタカナで書いてください。",
    ),
    "length": Phrasings(
        ("「{word}」は何文字ですか？", "「{word}」の文字数を答えてください。", "「{word}」は何文字でできていますか？"),
        "「{word}」の文字数はいくつですか？",
        "では、「{word}」は何文字ですか？",
    ),
    "opposite": Phrasings(
        (
            "「{word}」の反対の言葉は何ですか？",
            "「{word}」の反対語を答えてください。",
            "「{word}」の逆の意味の言葉を教えてください。",
        ),
        "「{word}」の対義語は何ですか？",
        "では、「{word}」の反対の言葉は何ですか？",
    ),
    "polite": Phrasings(
        (
            "次の文を「です・ます」の文にしてください。\n{plain}",
            "ていねいな言い方に直してください。\n{plain}",
            "次の文をていねいな文にしてください。\n{plain}",
        ),
        "次の文を敬体に書き換えてください。\n{plain}",
        "では、次の文はどうですか？\n{plain}",
    ),
    "choose": Phrasings(
        (
            "次の中から{group}を選んでください。\n{items}",
            "{group}はどれですか？\n{items}",
            "次のうち{group}はどれですか？\n{items}",
        ),
        "次の言葉のうち、{group}を答えてください。\n{items}",
        "では、次の中で{group}はどれですか？\n{items}",
    ),
}

UNITS = (
    ("キロメートル", "メートル", 1000),
    ("メートル", "センチメートル", 100),
    ("センチメートル", "ミリメートル", 10),
    ("キログラム", "グラム", 1000),
    ("トン", "キログラム", 1000),
    ("リットル", "ミリリットル", 1000),
    ("時間", "分", 60),
    ("分", "秒", 60),
    ("日", "時間", 24),
    ("週間", "日", 7),
    ("ダース", "個", 12),
    ("年", "か月", 12),
)
DAYS = {
    "一月": 31,
    "二月": 28,
    "三月": 31,
    "四月": 30,
    "五月": 31,
    "六月": 30,
    "七月": 31,
    "八月": 31,
    "九月": 30,
    "十月": 31,
    "十一月": 30,
    "十二月": 31,
}
RINGS = (
    ("月曜日", "火曜日", "水曜日", "木曜日", "金曜日", "土曜日", "日曜日"),
    tuple(MONTHS),
    ("子年", "丑年", "寅年", "卯年", "辰年", "巳年", "午年", "未年", "申年", "酉年", "戌年", "亥年"),
    ("春", "夏", "秋", "冬"),
)
# era: (year before its first, years to ask)
ERAS = {"令和": (2018, range(2, 9)), "平成": (1988, range(2, 31)), "昭和": (1925, range(2, 64))}
WORDS = (
    "ねこ",
    "いぬ",
    "うさぎ",
    "きつね",
    "たぬき",
    "すずめ",
    "つばめ",
    "かえる",
    "めだか",
    "さくら",
    "ひまわり",
    "あさがお",
    "たんぽぽ",
    "もみじ",
    "どんぐり",
    "りんご",
    "みかん",
    "すいか",
    "ぶどう",
    "いちご",
    "だいこん",
    "にんじん",
    "きゅうり",
    "たまねぎ",
    "ほうれんそう",
    "えんぴつ",
    "はさみ",
    "つくえ",
    "いす",
    "とけい",
    "かばん",
    "ぼうし",
    "くつした",
    "てぶくろ",
    "かさ",
    "でんしゃ",
    "じてんしゃ",
    "ひこうき",
    "やま",
    "かわ",
    "うみ",
    "そら",
    "ほし",
    "つき",
    "たいよう",
    "おにぎり",
    "みそしる",
    "うどん",
    "たまごやき",
    "さしみ",
)
OPPOSITES = (
    ("大きい", "小さい"),
    ("高い", "低い"),
    ("長い", "短い"),
    ("重い", "軽い"),
    ("強い", "弱い"),
    ("明るい", "暗い"),
    ("広い", "狭い"),
    ("新しい", "古い"),
    ("多い", "少ない"),
    ("遠い", "近い"),
    ("太い", "細い"),
    ("深い", "浅い"),
    ("熱い", "冷たい"),
    ("暑い", "寒い"),
    ("早い", "遅い"),
    ("難しい", "易しい"),
    ("上", "下"),
    ("右", "左"),
    ("前", "後ろ"),
    ("内", "外"),
    ("入口", "出口"),
    ("始まる", "終わる"),
    ("開ける", "閉める"),
    ("勝つ", "負ける"),
    ("増える", "減る"),
    ("上がる", "下がる"),
    ("売る", "買う"),
    ("貸す", "借りる"),
    ("起きる", "寝る"),
    ("乗る", "降りる"),
    ("押す", "引く"),
    ("成功", "失敗"),
    ("原因", "結果"),
    ("質問", "回答"),
    ("出発", "到着"),
    ("安全", "危険"),
    ("北", "南"),
)
# (plain, polite) ends of sentences.
VERBS = (
    ("パンを食べる", "パンを食べます"),
    ("本を読む", "本を読みます"),
    ("手紙を書く", "手紙を書きます"),
    ("駅まで歩く", "駅まで歩きます"),
    ("音楽を聞く", "音楽を聞きます"),
    ("窓を開ける", "窓を開けます"),
    ("川で泳ぐ", "川で泳ぎます"),
    ("友だちと話す", "友だちと話します"),
    ("部屋を掃除する", "部屋を掃除します"),
    ("会社へ行く", "会社へ行きます"),
    ("家に帰る", "家に帰ります"),
    ("写真を撮る", "写真を撮ります"),
    ("水を飲む", "水を飲みます"),
    ("荷物を運ぶ", "荷物を運びます"),
    ("電話をかける", "電話をかけます"),
    ("花に水をやる", "花に水をやります"),
    ("早く起きる", "早く起きます"),
    ("公園で遊ぶ", "公園で遊びます"),
    ("資料を作る", "資料を作ります"),
    ("会議に出る", "会議に出ます"),
    ("絵を描いた", "絵を描きました"),
    ("切符を買った", "切符を買いました"),
    ("料理を作った", "料理を作りました"),
    ("山に登った", "山に登りました"),
    ("雨に降られた", "雨に降られました"),
    ("友だちを待った", "友だちを待ちました"),
    ("鍵をなくした", "鍵をなくしました"),
    ("荷物を送った", "荷物を送りました"),
    ("酒を飲まない", "酒を飲みません"),
    ("たばこを吸わない", "たばこを吸いません"),
    ("電車に乗らない", "電車に乗りません"),
    ("約束を忘れない", "約束を忘れません"),
    ("テレビを見ない", "テレビを見ません"),
    ("約束を守った", "約束を守りました"),
    ("道に迷った", "道に迷いました"),
    ("店で働く", "店で働きます"),
)
WHO = ("私は毎朝", "兄は今日も", "妹はいつも", "先生は昼に", "父は一人で")
GROUPS = {
    "動物": ("犬", "猫", "馬", "牛", "羊", "熊", "猿", "鹿", "象", "虎"),
    "果物": ("りんご", "みかん", "ぶどう", "桃", "梨", "柿", "いちご", "バナナ"),
    "乗り物": ("電車", "自転車", "飛行機", "船", "バス", "自動車"),
    "色": ("赤", "青", "黄色", "緑", "白", "黒"),
    "体の部分": ("手", "足", "目", "耳", "鼻", "口"),
    "家具": ("机", "椅子", "たんす", "本棚", "食器棚"),
    "楽器": ("ピアノ", "太鼓", "笛", "三味線", "ギター"),
    "天気": ("雨", "雪", "晴れ", "曇り"),
}


def kanji_number(number: int) -> str:
    """1 to 9999 in kanji with place names: 二百三十."""
    digits = "〇一二三四五六七八九"
    text = ""
    for place, name in ((1000, "千"), (100, "百"), (10, "十"), (1, "")):
        digit = number // place % 10
        if digit:
            text += ("" if digit == 1 and place > 1 else digits[digit]) + name
    return text


def katakana(word: str) -> str:
    """Hiragana to katakana, code point by code point."""
    return "".join(chr(ord(char) + 0x60) if "ぁ" <= char <= "ゖ" else char for char in word)


def facts() -> list[Fact]:
    """Every fact, in the order of the tables."""
    return [fact for make in (_places, _language, _numbers, _order, _sentences) for fact in make()]


def _places() -> Iterator[Fact]:
    for name, (seat, region) in PREFECTURES.items():
        office = "道庁" if name == "北海道" else f"{name[-1]}庁"
        words = {"name": name, "office": office, "unit": "区" if seat.endswith("区") else "市"}
        yield Fact("seat", words, f"{seat}です。")
        yield Fact("region", {"name": name}, f"{region}地方です。")


def _language() -> Iterator[Fact]:
    yield from (Fact("old_month", {"name": name}, f"{old}です。") for name, old in MONTHS.items())
    yield from (Fact("counter", {"name": name}, f"{unit}です。") for name, unit in COUNTERS.items())
    for word in WORDS:
        yield Fact("katakana", {"word": word}, f"「{katakana(word)}」です。")
        yield Fact("length", {"word": word}, f"{len(word)}文字です。")
    for one, other in OPPOSITES:
        # Both directions are kept from training together.
        yield Fact("opposite", {"word": one, "pair": one + other}, f"「{other}」です。")
        yield Fact("opposite", {"word": other, "pair": one + other}, f"「{one}」です。")


def _numbers() -> Iterator[Fact]:
    for large, small, factor in UNITS:
        for number in range(1, 11):
            words = {"number": str(number), "large": large, "small": small}
            yield Fact("unit", words, f"{number * factor}{small}です。")
    for number in [*range(11, 100, 4), *range(100, 1000, 37), *range(1000, 10000, 999)]:
        yield Fact("numeral", {"number": str(number)}, f"{kanji_number(number)}です。")


def _order() -> Iterator[Fact]:
    yield from (Fact("days", {"name": name}, f"{days}日です。") for name, days in DAYS.items())
    for ring in RINGS:
        for index, name in enumerate(ring):
            yield Fact("next", {"name": name}, f"{ring[(index + 1) % len(ring)]}です。")
    for era, (before, years) in ERAS.items():
        for year in years:
            yield Fact("era", {"era": f"{era}{year}年"}, f"{before + year}年です。")


def _sentences() -> Iterator[Fact]:
    for number, (plain, polite) in enumerate(VERBS):
        for who in (WHO[number % len(WHO)], WHO[(number + 2) % len(WHO)]):
            yield Fact("polite", {"plain": f"{who}{plain}。"}, f"{who}{polite}。")
    rng = random.Random(3)
    for group, members in GROUPS.items():
        others = [name for name in GROUPS if name != group]
        for member in members:
            items = [member, *(rng.choice(GROUPS[name]) for name in rng.sample(others, 2))]
            rng.shuffle(items)
            yield Fact("choose", {"group": group, "items": "、".join(items)}, f"{member}です。")


def _row(kind: str, turns: list[tuple[str, str]]) -> Row:
    messages = [
        {"role": role, "content": text}
        for question, answer in turns
        for role, text in (("user", question), ("assistant", answer))
    ]
    return {"kind": kind, "messages": messages}


def _multi_turn(known: list[Fact], rng: random.Random) -> Iterator[Row]:
    """Two or three questions of a kind in a row, the later ones asked as people go on asking."""
    for kind, phrasings in PHRASINGS.items():
        mine = [fact for fact in known if fact.kind == kind]
        for _ in range(min(30, len(mine))):
            chosen = rng.sample(mine, rng.choice((2, 3)))
            first = (rng.choice(phrasings.train).format(**chosen[0].words), chosen[0].answer)
            rest = [(phrasings.follow_up.format(**fact.words), fact.answer) for fact in chosen[1:]]
            yield _row(f"multi_turn/{kind}", [first, *rest])


def dataset(seed: int = 0) -> dict[str, list[Row]]:
    """The rows of `train`, `held_out_phrasings` (trained facts asked in a way that training never uses) and
    `held_out_facts`.
    """
    rng = random.Random(seed)
    every = facts()
    known = [fact for fact in every if not fact.held_out]
    train = [
        _row(fact.kind, [(phrasing.format(**fact.words), fact.answer)])
        for fact in known
        for phrasing in PHRASINGS[fact.kind].train
    ]
    train += _multi_turn(known, rng)
    rng.shuffle(train)
    return {
        "train": train,
        "held_out_phrasings": [
            _row(fact.kind, [(PHRASINGS[fact.kind].held_out.format(**fact.words), fact.answer)]) for fact in known
        ],
        "held_out_facts": [
            _row(fact.kind, [(PHRASINGS[fact.kind].train[0].format(**fact.words), fact.answer)])
            for fact in every
            if fact.held_out
        ],
    }
