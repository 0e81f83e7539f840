"""Plain text for pre-training, written for this project (CC0): everyday prose among facts of the tables below.

`corpus()` is a part of what kotoha-tiny was trained on (recipes/kotoha-tiny); questions.py asks about the same tables.
"""

from __future__ import annotations

import random

# prefecture: (seat of its government, region)
PREFECTURES = {
    "北海道": ("札幌市", "北海道"),
    "青森県": ("青森市", "東北"),
    "岩手県": ("盛岡市", "東北"),
    "宮城県": ("仙台市", "東北"),
    "秋田県": ("秋田市", "東北"),
    "山形県": ("山形市", "東北"),
    "福島県": ("福島市", "東北"),
    "茨城県": ("水戸市", "関東"),
    "栃木県": ("宇都宮市", "関東"),
    "群馬県": ("前橋市", "関東"),
    "埼玉県": ("さいたま市", "関東"),
    "千葉県": ("千葉市", "関東"),
    "東京都": ("新宿区", "関東"),
    "神奈川県": ("横浜市", "関東"),
    "新潟県": ("新潟市", "中部"),
    "富山県": ("富山市", "中部"),
    "石川県": ("金沢市", "中部"),
    "福井県": ("福井市", "中部"),
    "山梨県": ("甲府市", "中部"),
    "長野県": ("長野市", "中部"),
    "岐阜県": ("岐阜市", "中部"),
    "静岡県": ("静岡市", "中部"),
    "愛知県": ("名古屋市", "中部"),
    "三重県": ("津市", "近畿"),
    "滋賀県": ("大津市", "近畿"),
    "京都府": ("京都市", "近畿"),
    "大阪府": ("大阪市", "近畿"),
    "兵庫県": ("神戸市", "近畿"),
    "奈良県": ("奈良市", "近畿"),
    "和歌山県": ("和歌山市", "近畿"),
    "鳥取県": ("鳥取市", "中国"),
    "島根県": ("松江市", "中国"),
    "岡山県": ("岡山市", "中国"),
    "広島県": ("広島市", "中国"),
    "山口県": ("山口市", "中国"),
    "徳島県": ("徳島市", "四国"),
    "香川県": ("高松市", "四国"),
    "愛媛県": ("松山市", "四国"),
    "高知県": ("高知市", "四国"),
    "福岡県": ("福岡市", "九州"),
    "佐賀県": ("佐賀市", "九州"),
    "長崎県": ("長崎市", "九州"),
    "熊本県": ("熊本市", "九州"),
    "大分県": ("大分市", "九州"),
    "宮崎県": ("宮崎市", "九州"),
    "鹿児島県": ("鹿児島市", "九州"),
    "沖縄県": ("那覇市", "沖縄"),
}
MONTHS = {
    "一月": "睦月",
    "二月": "如月",
    "三月": "弥生",
    "四月": "卯月",
    "五月": "皐月",
    "六月": "水無月",
    "七月": "文月",
    "八月": "葉月",
    "九月": "長月",
    "十月": "神無月",
    "十一月": "霜月",
    "十二月": "師走",
}
COUNTERS = {
    "鉛筆": "本",
    "紙": "枚",
    "本": "冊",
    "犬": "匹",
    "馬": "頭",
    "鳥": "羽",
    "車": "台",
    "家": "軒",
    "靴": "足",
    "手紙": "通",
    "豆腐": "丁",
    "箸": "膳",
    "椅子": "脚",
    "船": "隻",
    "たんす": "棹",
    "俳句": "句",
    "切手": "枚",
    "花": "輪",
}

_STATEMENTS = (
    "{name}の{office}は{seat}にあります。",
    "{name}の{office}所在地は{seat}です。",
    "{seat}は{name}の{office}所在地として知られています。",
    "{name}は{region}地方にあり、{office}は{seat}に置かれています。",
)
_REGION_STATEMENTS = (
    "{name}は{region}地方に属します。",
    "{region}地方には{name}があります。",
    "地図で{name}をさがすと、{region}地方に見つかります。",
)
_PROSE = (
    "朝になると、町の人々は駅へ急ぎます。",
    "川のそばの道を、子どもたちが歩いて学校へ向かいます。",
    "雨の日には傘を持って出かけましょう。",
    "図書館では静かに本を読みます。",
    "春には桜が咲き、夏には海で泳ぎ、秋には山が赤くなり、冬には雪が降ります。",
    "母は台所で味噌汁を作り、父は庭の木に水をやりました。",
    "電車の窓から、遠くの山が青く見えました。",
    "今日は友人と会う約束があります。",
    "会議は午後三時に始まり、四時に終わる予定です。",
    "資料をご確認のうえ、ご返信くださいますようお願いいたします。",
    "旅の途中で、古い神社に立ち寄りました。",
    "市場には魚や野菜や果物が並んでいます。",
    "祖母は昔の話をゆっくりと聞かせてくれました。",
    "新しい機械の使い方を覚えるには、少し時間がかかります。",
    "夕方の空に、鳥の群れが飛んでいきました。",
    "弟は毎晩、日記を書いています。",
    "この店のうどんは安くておいしいと評判です。",
    "窓を開けると、涼しい風が入ってきました。",
    "先生は黒板に大きな字で答えを書きました。",
    "荷物が届いたら、受け取りの印を押してください。",
)
_SUBJECTS = ("私", "兄", "妹", "先生", "隣の人", "駅員", "友だち", "店の主人")
_PLACES = ("駅", "公園", "市場", "図書館", "海辺", "山の上", "庭", "橋のたもと")
_ACTS = (
    "手紙を書きました",
    "弁当を食べました",
    "本を読みました",
    "写真を撮りました",
    "歌を歌いました",
    "昔の話をしました",
    "雨宿りをしました",
    "地図を広げました",
)
_TIMES = ("朝早く", "昼すぎに", "夕方", "夜になって", "先週の日曜日に", "きのう", "雪の日に", "祭りの日に")


def _office(name: str) -> str:
    """What the government of a prefecture is called: 都庁, 道庁, 府庁 or 県庁."""
    return "道庁" if name == "北海道" else f"{name[-1]}庁"


def corpus(num_documents: int = 2000, seed: int = 0) -> list[str]:
    """Plain documents of five sentences each: facts as statements among everyday prose."""
    rng = random.Random(seed)

    def fact() -> str:
        name, (seat, region) = rng.choice(list(PREFECTURES.items()))
        form = rng.choice(_STATEMENTS + _REGION_STATEMENTS)
        return form.format(name=name, office=_office(name), seat=seat, region=region)

    def story() -> str:
        return f"{rng.choice(_SUBJECTS)}は{rng.choice(_TIMES)}、{rng.choice(_PLACES)}で{rng.choice(_ACTS)}。"

    def small_fact() -> str:
        if rng.random() < 0.5:
            month, old = rng.choice(list(MONTHS.items()))
            return rng.choice((f"{month}は昔、{old}と呼ばれました。", f"{old}は{month}の昔の呼び名です。"))
        thing, unit = rng.choice(list(COUNTERS.items()))
        return rng.choice((f"{thing}は一{unit}、二{unit}と数えます。", f"{thing}を数える言葉は{unit}です。"))

    makers = (fact, fact, story, small_fact, lambda: rng.choice(_PROSE))
    return ["".join(rng.choice(makers)() for _ in range(5)) for _ in range(num_documents)]
