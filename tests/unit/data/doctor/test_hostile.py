"""No text, however it is made, takes a rule more than its share of time, or makes two rows into many."""

from __future__ import annotations

import time

import pytest

from ai_finetuning.data.doctor.duplicates import Pair, near_pairs
from ai_finetuning.data.doctor.leakage import find_leakage
from ai_finetuning.data.doctor.passages import Passage
from ai_finetuning.data.doctor.rules import RULES, find

LENGTH = 60_000
HOSTILE = {
    "one letter": "あ" * LENGTH,
    "no mark": "これは長い文で" * (LENGTH // 7),
    "blanks": "a" + " " * LENGTH + "b。",
    "line ends": "1" + "\n" * LENGTH + "2",
    "openers": "「（“『【(" * (LENGTH // 6),
    "closers": "a』\n" * (LENGTH // 3),
    "quotes": "“" * LENGTH,
    "at": "a" * LENGTH + "@" + "a." * (LENGTH // 2),
    "digits": "1" * LENGTH,
    "hyphens": "0-" * (LENGTH // 2),
    "marks": "東[1]" * (LENGTH // 4),
    "latin-1": "東京".encode().decode("latin-1") * (LENGTH // 6),
    "cp932": "東京は".encode().decode("cp932", "ignore") * (LENGTH // 5),
    "kanji": "亜" * LENGTH,
    "refusals": "申し訳ありません" * (LENGTH // 8),
    "loop": "はい" * (LENGTH // 2),
    "tokens": "<|im_end|>" * (LENGTH // 10),
    "sentences": "です。だ。" * (LENGTH // 5),
    "address": "東京都" * (LENGTH // 3),
    "secret": "sk-" * (LENGTH // 3),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_every_rule_reads_a_text_once(name: str):
    """Quadratic time would be minutes for some of these."""
    text = HOSTILE[name]
    for rule in RULES:
        role = "answer" if "answer" in rule.where else "question"
        item = Passage(text, role, ("output",), "質問は？", text[:1000])
        began = time.process_time()
        hits = find(rule, item)
        if callable(rule.fix) and hits:
            rule.fix(item)
        assert time.process_time() - began < 5, rule.key


def test_many_equal_rows_are_compared_in_linear_time():
    rows = [
        Pair(
            "次の文を肯定か否定に分類してください。理由も一言で書いてください。",
            "",
            "肯定です。はっきり褒めているからです。",
        )
    ] * 800
    began = time.process_time()
    assert len({second for _, second in near_pairs(rows)}) == 799
    found = find_leakage(rows, rows[:200])
    assert len(found.question) == len(found.coverage) == 200
    assert time.process_time() - began < 30


def test_one_instruction_over_many_texts_is_no_burden():
    asked = "次の文章の感情を、ポジティブかネガティブのどちらかに分類してください。"
    train = [
        Pair(asked, f"{number}番目の店の料理はとても美味しく、また来たいと思いました。", "ポジティブ")
        for number in range(600)
    ]
    held = [
        Pair(asked, f"{number}番目の宿の部屋はとても静かで、また泊まりたいと思いました。", "ポジティブ")
        for number in range(150)
    ]
    began = time.process_time()
    found = find_leakage(train, held)
    assert (found.question, found.coverage) == ([], [])
    assert time.process_time() - began < 30
