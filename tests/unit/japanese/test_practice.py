"""The demo's text: questions of the exam are new phrasings of taught facts, and the tables are whole."""

from __future__ import annotations

from ai_finetuning.japanese.practice import COUNTERS, MONTHS, PREFECTURES, corpus, exam, lessons


def test_tables_are_whole():
    assert len(PREFECTURES) == 47
    assert len(MONTHS) == 12
    assert all(name[-1] in "都道府県" for name in PREFECTURES)


def test_exam_asks_taught_facts_in_new_words():
    taught = {row["instruction"]: row["output"] for row in lessons()}
    asked = exam()
    assert not {item.question for item in asked} & set(taught)
    assert {item.answer for item in asked} == set(taught.values())
    assert len(asked) == 47 * 3 + len(MONTHS) + len(COUNTERS)


def test_the_seed_fixes_everything():
    assert corpus(20, seed=3) == corpus(20, seed=3)
    assert lessons(1) == lessons(1) != lessons(2)
    assert all(document.count("。") == 5 for document in corpus(50))
