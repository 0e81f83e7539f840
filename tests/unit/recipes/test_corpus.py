"""The text that kotoha-tiny was trained on beside literature: whole tables, and the same documents for the same
seed.
"""

from __future__ import annotations

import hashlib

from recipes.kotoha.corpus import MONTHS, PREFECTURES, corpus


def test_tables_are_whole():
    assert len(PREFECTURES) == 47
    assert len(MONTHS) == 12
    assert all(name[-1] in "都道府県" for name in PREFECTURES)


def test_the_seed_fixes_everything():
    assert corpus(20, seed=3) == corpus(20, seed=3)
    assert corpus(20, seed=3) != corpus(20, seed=4)
    assert all(document.count("。") == 5 for document in corpus(50))


def test_the_text_of_the_recipe_is_the_one_that_was_trained_on():
    """recipes/kotoha-tiny/prepare.py writes corpus(10_000, seed=1); other text would be another model."""
    text = "\n".join(corpus(10_000, seed=1))
    assert (
        hashlib.sha256(text.encode("utf-8")).hexdigest()
        == "8163b17cac8bbcdb44c2c6a752e3cca168323ab19ad0c56909b47d1228df9a2d"
    )
