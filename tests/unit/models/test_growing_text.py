"""Ids that come one by one give the text of one decode."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.models import build_tokenizer
from tests.support.sentencepieces import each_layout

from ai_finetuning.models.growing_text import GrowingText
from ai_finetuning.models.tokenizers import load_tokenizer

TEXT = "def f(x):\n\treturn  x\n\n  - 鷗と髙﨑🍣が、東京で。\n    字下げ\n" * 12


def grown(tokenizer, ids: list[int]) -> list[str]:
    text = GrowingText(tokenizer.decode)
    return [text.add([number]) for number in ids]


@each_layout
def test_sentencepiece_text_grows_to_one_decode(layout: str, sentencepieces: dict[str, Path]):
    tokenizer = load_tokenizer(str(sentencepieces[layout]))
    ids = tokenizer.encode(TEXT, add_special_tokens=False)
    texts = grown(tokenizer, ids)
    for count in range(1, len(ids) + 1, 7):
        assert texts[count - 1] == tokenizer.decode(ids[:count])
    assert texts[-1] == tokenizer.decode(ids)


@pytest.mark.parametrize("cut", [0, 1, 2, 130, 131])
def test_broken_characters_come_out_as_in_one_decode(cut: int):
    tokenizer = build_tokenizer()
    ids = tokenizer.encode(TEXT, add_special_tokens=False)
    del ids[cut : cut + 3 : 2]
    assert grown(tokenizer, ids)[-1] == tokenizer.decode(ids)
