"""Checks every row of kotoha-qa another way than it was made: python recipes/kotoha-qa/check.py [FOLDER]

Sums in base units, kanji numbers read back, the calendar module, Unicode names, tables of exceptions. Prints what is
wrong and exits 1.
"""

from __future__ import annotations

import calendar
import datetime
import json
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import ai_finetuning.embedded

BASE = {  # (dimension, size in base units)
    "キロメートル": ("m", 1_000_000),
    "メートル": ("m", 1000),
    "センチメートル": ("m", 10),
    "ミリメートル": ("m", 1),
    "トン": ("g", 1_000_000),
    "キログラム": ("g", 1000),
    "グラム": ("g", 1),
    "リットル": ("l", 1000),
    "ミリリットル": ("l", 1),
    "週間": ("s", 604_800),
    "日": ("s", 86_400),
    "時間": ("s", 3600),
    "分": ("s", 60),
    "秒": ("s", 1),
    "ダース": ("n", 12),
    "個": ("n", 1),
    "年": ("y", 12),
    "か月": ("y", 1),
}
# Prefectures whose seat is not called like them.
SEATS = {
    "北海道": "札幌",
    "岩手県": "盛岡",
    "宮城県": "仙台",
    "茨城県": "水戸",
    "栃木県": "宇都宮",
    "群馬県": "前橋",
    "埼玉県": "さいたま",
    "東京都": "新宿",
    "神奈川県": "横浜",
    "石川県": "金沢",
    "山梨県": "甲府",
    "愛知県": "名古屋",
    "三重県": "津",
    "滋賀県": "大津",
    "兵庫県": "神戸",
    "島根県": "松江",
    "香川県": "高松",
    "愛媛県": "松山",
    "沖縄県": "那覇",
}
ZODIAC = "子丑寅卯辰巳午未申酉戌亥"
FIRST_YEAR = {"令和": 2019, "平成": 1989, "昭和": 1926}
DIGITS = {char: value for value, char in enumerate("〇一二三四五六七八九")}


def read_kanji(text: str) -> int:
    """A kanji number as an int."""
    total, digit = 0, 1
    for char in text:
        if char in "十百千":
            total += digit * {"十": 10, "百": 100, "千": 1000}[char]
            digit = 1
        else:
            digit = DIGITS[char]
    return total + (digit if text[-1] in DIGITS else 0)


def unit(question: str, answer: str) -> bool:
    """Sums in base units agree."""
    names = "|".join(sorted(BASE, key=len, reverse=True))
    number, large = re.search(rf"(\d+)({names})", question).groups()  # type: ignore[union-attr]
    expected, small = re.fullmatch(rf"(\d+)({names})です。", answer).groups()  # type: ignore[union-attr]
    same = BASE[large][0] == BASE[small][0] and small in question
    return same and int(number) * BASE[large][1] == int(expected) * BASE[small][1]


def numeral(question: str, answer: str) -> bool:
    """The kanji number reads back as the digits."""
    return read_kanji(answer.removesuffix("です。")) == int(re.search(r"\d+", question).group())  # type: ignore[union-attr]


def days(question: str, answer: str) -> bool:
    """The calendar of a year without a leap day."""
    month = read_kanji(re.search(r"([一二三四五六七八九十]+)月", question).group(1))  # type: ignore[union-attr]
    return int(answer.removesuffix("日です。")) == calendar.monthrange(2023, month)[1]


def following(question: str, answer: str) -> bool:
    """Weekdays by datetime, months by number, years of the zodiac and seasons by place in a string."""
    name = re.sub(r"^では、", "", question).split("の")[0]
    obtained = answer.removesuffix("です。")
    if name.endswith("曜日"):
        week = "月火水木金土日"
        monday = datetime.date(2024, 1, 1)
        return week[(monday + datetime.timedelta(week.index(name[0]) + 1)).weekday()] + "曜日" == obtained
    if name.endswith("月"):
        return read_kanji(obtained.removesuffix("月")) == read_kanji(name.removesuffix("月")) % 12 + 1
    ring = ZODIAC if name.endswith("年") else "春夏秋冬"
    return ring[(ring.index(name[0]) + 1) % len(ring)] + name[1:] == obtained


def era(question: str, answer: str) -> bool:
    """Year of the era counted from its first."""
    name, year = re.search(r"(令和|平成|昭和)(\d+)年", question).groups()  # type: ignore[union-attr]
    return int(answer.removesuffix("年です。")) == FIRST_YEAR[name] + int(year) - 1


def kana(question: str, answer: str) -> bool:
    """Every character has the same Unicode name in the other script."""
    word, obtained = re.search(r"「(.+?)」", question).group(1), answer[1:].removesuffix("」です。")  # type: ignore[union-attr]
    names = [unicodedata.name(char).replace("HIRAGANA", "KATAKANA") for char in word]
    return names == [unicodedata.name(char) for char in obtained]


def length(question: str, answer: str) -> bool:
    """Characters counted one by one."""
    return sum(1 for _ in re.search(r"「(.+?)」", question).group(1)) == int(answer.removesuffix("文字です。"))  # type: ignore[union-attr]


def seat(question: str, answer: str) -> bool:
    """The seat is called like its prefecture, or stands among the exceptions."""
    name = re.search(r"(北海道|東京都|(?:京都|大阪)府|[^、。]{2,3}県)の", question).group(1)  # type: ignore[union-attr]
    return answer.removesuffix("です。")[:-1] == SEATS.get(name, name[:-1])


def polite(question: str, answer: str) -> bool:
    """The same sentence up to its end, which is a polite one."""
    plain = question.split("\n")[1]
    ends = ("ます。", "ました。", "ません。")
    shared = next((i for i, (a, b) in enumerate(zip(plain, answer, strict=False)) if a != b), 0)
    return answer.endswith(ends) and not plain.endswith(ends) and shared >= len(plain) - 4


def build_strategy(question: str, answer: str) -> bool:
    """One of the three items."""
    items = question.split("\n")[1].split("、")
    return len(set(items)) == 3 and answer.removesuffix("です。") in items


CHECKS: dict[str, Callable[[str, str], bool]] = {
    "unit": unit,
    "numeral": numeral,
    "days": days,
    "next": following,
    "era": era,
    "katakana": kana,
    "length": length,
    "seat": seat,
    "polite": polite,
    "choose": build_strategy,
    "region": lambda question, answer: answer.endswith("地方です。"),
    "old_month": lambda question, answer: len(answer) in (5, 6),
    "counter": lambda question, answer: len(answer) == 4,
    "opposite": lambda question, answer: answer.startswith("「") and answer[1:-4] not in question,
}


def right(kind: str, question: str, answer: str) -> bool:
    """Whether a row passes its kind's check; an answer that cannot even be read does not."""
    try:
        return CHECKS[kind](question, answer)
    except (AttributeError, KeyError, ValueError, IndexError):
        return False


def problems(folder: Path) -> list[str]:
    """What is wrong with the files."""
    obtained: list[str] = []
    parts = {}
    for path in sorted(folder.glob("*.jsonl")):
        parts[path.stem] = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    for part, rows in parts.items():
        seen = Counter(json.dumps(row["messages"], ensure_ascii=False) for row in rows)
        obtained += [f"{part}: twice: {text}" for text, count in seen.items() if count > 1]
        for number, row in enumerate(rows, start=1):
            kind = row["kind"].split("/")[-1]
            turns = [(message["role"], message["content"]) for message in row["messages"]]
            if [role for role, _ in turns] != ["user", "assistant"] * (len(turns) // 2):
                obtained.append(f"{part}:{number}: roles")
                continue
            for (_, question), (_, answer) in zip(turns[::2], turns[1::2], strict=True):
                if unicodedata.normalize("NFC", question + answer) != question + answer or not right(
                    kind, question, answer
                ):
                    obtained.append(f"{part}:{number}: {question} -> {answer}")

    def asked(part: str) -> set[str]:
        return {message["content"] for row in parts[part] for message in row["messages"] if message["role"] == "user"}

    obtained += [
        f"asked in training too: {text}" for part in parts if part != "train" for text in asked(part) & asked("train")
    ]
    regions = Counter(
        {row["messages"][0]["content"][:3]: 1 for rows in parts.values() for row in rows if row["kind"] == "region"}
    )
    if len(regions) != 47:
        obtained.append(f"{len(regions)} prefectures have a region, not 47")
    return obtained


if __name__ == "__main__":
    place = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(ai_finetuning.embedded.__file__).parent / "kotoha-qa"
    wrong = problems(place)
    print("\n".join(wrong) or "every row is right")
    sys.exit(1 if wrong else 0)
