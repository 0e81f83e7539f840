"""Mojibake is found row by row, in a whole text and in a part of it, and intact Japanese is left alone."""

from __future__ import annotations

import gzip
import json
import re
import unicodedata
from pathlib import Path

import pytest

from ai_finetuning.data.sources import load_samples
from ai_finetuning.errors import DataError
from ai_finetuning.japanese import mojibake
from ai_finetuning.japanese.mojibake import find_mojibake

TEXT = "東京は日本の首都です。人口は約一千四百万人で、多くの企業や大学が集まっています。"
MISTAKES = {
    "utf-8 as latin-1": lambda text: text.encode().decode("latin-1"),
    "utf-8 as cp1252": lambda text: text.encode().decode("cp1252", "replace"),
    "cp932 as latin-1": lambda text: text.encode("cp932").decode("latin-1"),
    "utf-8 twice as latin-1": lambda text: text.encode().decode("latin-1").encode().decode("latin-1"),
    "utf-8 as cp932": lambda text: text.encode().decode("cp932", "replace"),
    "utf-8 as cp932, bytes dropped": lambda text: text.encode().decode("cp932", "ignore"),
    "euc-jp as cp932": lambda text: text.encode("euc_jp").decode("cp932", "replace"),
    "cp932 as euc-jp": lambda text: text.encode("cp932").decode("euc_jp", "replace"),
    "cp932 as utf-8": lambda text: text.encode("cp932").decode("utf-8", "replace"),
    "utf-8 as euc-jp": lambda text: text.encode().decode("euc_jp", "replace"),
    "euc-jp as latin-1": lambda text: text.encode("euc_jp").decode("latin-1"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_every_mistake_is_found_in_a_whole_text(mistake: str):
    assert find_mojibake(MISTAKES[mistake](TEXT)) is not None


@pytest.mark.parametrize("mistake", ["utf-8 as latin-1", "utf-8 as cp1252", "utf-8 as cp932", "cp932 as utf-8"])
def test_a_broken_part_of_a_text_is_found(mistake: str):
    broken = TEXT[:12] + MISTAKES[mistake](TEXT[12:30]) + TEXT[30:]
    assert find_mojibake(broken) is not None


@pytest.mark.parametrize("mistake", ["utf-8 as latin-1", "cp932 as latin-1", "euc-jp as latin-1"])
def test_a_repair_is_offered_only_where_it_gives_the_very_text(mistake: str):
    obtained = find_mojibake(MISTAKES[mistake](TEXT))
    assert obtained is not None
    assert obtained.repaired == TEXT


INTACT = [
    TEXT,
    "癇癪を起こした", "嚙む、鹼、繫ぐ", "檸檬と薔薇と葡萄", "憂鬱な麒麟", "醤油・味噌・鰹節", "彼は、二年間×××の方法を教えこまれた",
    "……――‥‥“引用”‘引用’—–•", "Café au lait, naïve, Übermensch, ¿qué?, Ça va", "ﾃﾞｰﾀをｶﾀｶﾅで", "①㈱℡㌔", "價格は壹萬圓也",
    "Привет, мир", "안녕하세요", "你好，世界", "繧い繝い", "縺れた糸", "°C と ±5 と µm", "½ カップ", "ﾊﾝｶｸ ｶﾅ ﾊﾞｶﾘ ﾉ ﾌﾞﾝｼｮｳ",
    "子曰、學而時習之、不亦說乎。",
]  # fmt: skip


@pytest.mark.parametrize("text", INTACT)
def test_intact_text_is_left_alone(text: str):
    assert find_mojibake(text) is None


def test_real_japanese_has_no_false_alarm(shared: Path):
    """Every text of the instruction data; its one row with U+FFFD is broken in the original."""
    with gzip.open(shared / "data" / "instruct" / "dolly_ja_train.jsonl.gz", "rt", encoding="utf-8") as file:
        texts = [value for line in file for value in json.loads(line).values() if isinstance(value, str)]
    alarms = [text for text in texts if find_mojibake(text) is not None]
    assert [text for text in alarms if "\ufffd" not in text] == []
    assert len(texts) > 20_000


def _half_width() -> dict[int, str]:
    """Full-width katakana and marks to half width, voiced ones to two characters."""
    table = {unicodedata.normalize("NFKC", chr(code)): chr(code) for code in range(0xFF61, 0xFFA0)}
    for code in range(0x30A1, 0x30FB):
        letter, *mark = unicodedata.normalize("NFD", chr(code))
        if mark:
            table[chr(code)] = table.get(letter, letter) + {"\u3099": "ﾞ", "\u309a": "ﾟ"}[mark[0]]
    return str.maketrans(table)


def test_half_width_kana_are_words(shared: Path):
    """Answers whose katakana, or all kana, were written in half width: their bytes often are EUC-JP by chance."""
    with gzip.open(shared / "data" / "instruct" / "dolly_ja_train.jsonl.gz", "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["output"] for line in file][::4]
    half, katakana = _half_width(), str.maketrans({chr(code): chr(code + 0x60) for code in range(0x3041, 0x3097)})
    narrow = [text.translate(half) for text in texts] + [text.translate(katakana).translate(half) for text in texts]
    assert sum(len(re.findall("[ｦ-ﾟ]", text)) > 20 for text in narrow) > 1000
    alarms = [text for text in narrow if find_mojibake(text) is not None and "\ufffd" not in text]
    assert len(alarms) <= 1


def test_only_shares_of_characters_tell_of_a_text_that_is_too_short_for_a_proof():
    for text in ("1944年6月6日".encode().decode("latin-1"), "冬・春・夏".encode().decode("cp932", "ignore")):
        obtained = find_mojibake(text)
        assert obtained is not None
        assert not obtained.proven
        assert obtained.repaired is None


def test_a_few_broken_rows_of_a_file_are_named_and_can_be_left_out(tmp_path: Path):
    rows = [{"質問": f"{number}番の首都は？", "回答": TEXT} for number in range(40)]
    for number in (3, 17):
        rows[number]["回答"] = MISTAKES["euc-jp as cp932"](TEXT)
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(DataError) as refusal:
        load_samples(path)
    assert "a.jsonl:4" in refusal.value.en
    assert "a.jsonl:18" in refusal.value.en
    assert "strip_control" not in refusal.value.en
    assert len(load_samples(path, skip_bad_rows=True)[0]) == 38


def test_a_file_whose_headings_are_broken_too_is_mojibake_and_not_a_table_of_unknown_columns(tmp_path: Path):
    broken = MISTAKES["utf-8 as latin-1"]("質問,回答\n首都は？,東京です。\n")
    (tmp_path / "a.csv").write_text(broken, encoding="utf-8")
    with pytest.raises(DataError, match="mojibake"):
        load_samples(tmp_path / "a.csv")


@pytest.mark.parametrize("mistake", ["utf-8 as latin-1", "utf-8 twice as latin-1"])
def test_a_text_that_is_broken_in_part_or_twice_is_repaired(mistake: str):
    broken = MISTAKES[mistake](TEXT)
    obtained = find_mojibake(broken)
    assert obtained is not None
    assert obtained.repaired == TEXT
    part = find_mojibake("初めに。" + MISTAKES["utf-8 as latin-1"]("東京・猿") + "、\n終わり。")
    assert part is not None
    assert part.repaired == "初めに。東京・猿、\n終わり。"


def test_a_part_that_cannot_be_repaired_leaves_the_whole_as_it_is():
    part = MISTAKES["utf-8 as latin-1"]("東京です")
    for other in ("\x8c\x8d\x8e", "\ufffd", "ã\x81"):
        obtained = find_mojibake(f"初めに。{part}。次は{other}です。")
        assert obtained is not None
        assert obtained.repaired is None


def test_only_the_choice_of_characters_is_no_proof():
    obtained = find_mojibake("鞫ｯ鬯ｲ驕ｺ髫ｴ驍ｵ鬮ｯ鬩搾鬯ｮｫ")
    assert obtained is not None
    assert not obtained.proven


@pytest.mark.slow
@pytest.mark.parametrize("mistake", MISTAKES)
def test_recall_on_real_answers(shared: Path, mistake: str):
    """At least 99 of 100 answers that are broken as a whole are found, and a repair is the very text but where two
    characters have one code (¥ and the backslash of CP932).
    """
    with gzip.open(shared / "data" / "instruct" / "dolly_ja_train.jsonl.gz", "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["output"] for line in file][::4]
    seen = found = wrong = 0
    for text in texts:
        try:
            broken = MISTAKES[mistake](text)
        except UnicodeEncodeError:
            continue
        if broken == text:
            continue
        obtained = find_mojibake(broken)
        seen, found = seen + 1, found + (obtained is not None)
        wrong += obtained is not None and obtained.repaired not in (None, text)
    assert seen > 1000
    assert found >= 0.99 * seen
    assert wrong <= 0.005 * seen


def test_characters_whose_bytes_cannot_begin_a_kana_are_not_encoded():
    basic = map(chr, range(0x10000))
    with_e3 = {letter for letter in basic if b"\xe3" in letter.encode("cp932", "ignore")}
    assert with_e3 <= set(mojibake._with_e3().findall("".join(with_e3)))
    assert not mojibake._may_hold_kana("縺の間にあり")
    assert mojibake._may_hold_kana("縺薙ｌ縺ｯ")
