"""Which rows training refuses by their text, which it only warns of, and that real data trains as before."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.models import build_tokenizer
from tokenizers import normalizers
from transformers import AddedToken

from ai_finetuning.config.data import DataConfig
from ai_finetuning.data.prepare import digest_of, hold_out, hold_out_equal_rows, load_examples, prepare
from ai_finetuning.data.sources import load_samples
from ai_finetuning.errors import DataError
from ai_finetuning.models.tokenizers import load_tokenizer

ANSWER = "東京は日本の首都です。人口は約一千四百万人で、多くの企業や大学が集まっています。"
# Kanji that Japanese hardly has, with half-width kana between them: no bytes prove anything.
UNLIKELY = "鞫ｯ鬯ｲ驕ｺ髫ｴ驍ｵ鬮ｯ鬩搾鬯ｮｫ"


def rows_of(answers: list[str], path: Path) -> Path:
    rows = [{"質問": f"{number}番の首都は？", "回答": answer} for number, answer in enumerate(answers)]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def test_unlikely_characters_are_refused_in_three_rows_and_one_in_a_hundred(tmp_path: Path):
    path = rows_of([UNLIKELY if number in (4, 20, 40) else ANSWER for number in range(300)], tmp_path / "a.jsonl")
    with pytest.raises(DataError) as refusal:
        load_samples(path)
    assert "3 rows cannot be used" in refusal.value.en
    assert "a.jsonl:21" in refusal.value.en
    assert len(load_samples(path, skip_bad_rows=True)[0]) == 297


@pytest.mark.parametrize("count", [2, 3])
def test_fewer_unlikely_rows_train_and_are_named(tmp_path: Path, count: int):
    """Two rows of any file, and three of more than three hundred."""
    rows = 40 if count == 2 else 301
    path = rows_of([UNLIKELY if number < count else ANSWER for number in range(rows)], tmp_path / "a.jsonl")
    samples, report = load_samples(path)
    assert len(samples) == rows
    assert any(f"perhaps mojibake: {count}" in line and "a.jsonl:1" in line for line in report.lines())


def test_each_file_is_judged_by_itself(tmp_path: Path):
    """Two broken rows here and two there are not four of one file."""
    paths = [rows_of([UNLIKELY] * 2 + [ANSWER] * 20, tmp_path / name) for name in ("a.jsonl", "b.jsonl")]
    assert len(load_samples(paths)[0]) == 44


def test_plain_text_is_judged_for_mojibake_only(tmp_path: Path):
    texts = ["はい" * 60, "終わり<|im_end|>", ANSWER]
    samples, report = load_samples(texts)
    assert len(samples) == 3
    assert not [line for line in report.lines() if "warning" in line]
    with pytest.raises(DataError, match="mojibake"):
        load_samples([*texts, ANSWER.encode().decode("latin-1")])


def test_loops_and_template_tokens_are_counted_with_their_first_five_rows(tmp_path: Path):
    answers = ["はい" * 60] * 7 + ["終わり<|im_end|>"] * 6 + [ANSWER] * 3
    samples, report = load_samples(rows_of(answers, tmp_path / "a.jsonl"))
    assert len(samples) == 16
    loops, tokens = [line for line in report.lines() if "warning" in line]
    assert "ends in a loop" in loops
    assert ": 7 (" in loops
    assert "a.jsonl:5)" in loops
    assert "prompt template" in tokens
    assert ": 6 (" in tokens
    assert "a.jsonl:12)" in tokens
    assert "はいはい" not in loops + tokens


def load(answer: str, reads: Any) -> int:
    rows = [{"instruction": "首都は？", "output": answer}]
    return len(load_examples(rows, reads, DataConfig(cache=False))[0])


def test_a_special_token_in_a_message_is_refused_unless_it_is_encoded_as_characters():
    reads = copy.deepcopy(build_tokenizer())
    with pytest.raises(DataError, match="contains </s>, which this tokenizer reads as a special token"):
        load("終わり</s>です", reads)
    reads.split_special_tokens = True
    assert load("終わり</s>です", reads) == 1


def test_a_special_token_that_only_normalisation_gives_is_refused_too():
    """Full-width characters become half-width before the tokenizer looks for its tokens."""
    reads = copy.deepcopy(build_tokenizer())
    assert load("終わり＜x＞です", reads) == 1
    reads.backend_tokenizer.normalizer = normalizers.NFKC()
    reads.add_special_tokens({"additional_special_tokens": [AddedToken("<x>", special=True, normalized=True)]})
    with pytest.raises(DataError, match="contains <x>"):
        load("終わり＜x＞です", reads)


def test_equal_questions_are_on_one_side_also_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """However they are written, and with any answer; the rows of a file without repeated questions stay where they were."""
    monkeypatch.setenv("AIFT_CACHE", str(tmp_path / "cache"))
    ways = ["{}番の首都は？", "{}番の首都は", "　{}番の、首都は？？"]
    rows = [{"質問": ways[number // 20].format(number % 20), "回答": f"答えは{number}です。"} for number in range(60)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    config = DataConfig()
    divided = [prepare(path, 0.2, build_tokenizer(), config, seed=seed) for seed in (0, 1, 0)]
    for data in divided:
        assert len({item.question for item in [*data.train, *data.eval_data]}) == 20
        assert not {item.question for item in data.train} & {item.question for item in data.eval_data}
        assert len(data.eval_data) == 12
    assert [item.source for item in divided[0].eval_data] == [item.source for item in divided[2].eval_data]
    once = load_examples(rows_of([ANSWER] * 40, tmp_path / "b.jsonl"), build_tokenizer(), config)[0]
    for seed in range(5):
        assert [item.source for item in hold_out(once, 0.2, seed)[1]] == [
            item.source for item in hold_out_equal_rows(once, 0.2, seed)[1]
        ]


# SHA-256 over tokens and labels of the version before these rules, with the tokenizer of kotoha-tiny.
BEFORE = {
    "instruct/dolly_ja_train.jsonl.gz": (
        "truncate",
        "c8736a39461006d7271925cb2e27aba27079df83109c59bfe7475169447769a3",
    ),
    "embedded:kotoha-qa": ("truncate", "64d180bf20b29a7aa8a08dc03e63eb933c62178242c7f3ecdbbd54a1d22eb11e"),
    "prose/aozora_public_domain.jsonl.gz": (
        "split",
        "d7de77ae3ca075a206a5d9e7d3a932a884bb8bb1bc22c5dacd1f3e0c685be905",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BEFORE)
def test_real_data_trains_as_before_bit_for_bit(shared: Path, name: str):
    """dolly_ja_train has a row in a loop (dolly-ja-07652): it is named, and trained."""
    source = name if ":" in name else str(shared / "data" / name)
    on_long, digest = BEFORE[name]
    config = DataConfig(cache=False, skip_bad_rows=True, max_length=2048, on_long=on_long)  # type: ignore[arg-type]
    examples, _, lines = load_examples(source, load_tokenizer("embedded:kotoha-tiny"), config)
    assert digest_of(examples) == digest
    assert any("ends in a loop" in line and ".gz:4447" in line for line in lines) == ("dolly" in name)
    rest, held = hold_out(examples, 0.1, 0)
    before = hold_out_equal_rows(examples, 0.1, 0)
    if "dolly" not in name:  # no question stands twice: the division of before
        assert [item.source for item in held] == [item.source for item in before[1]]
    else:
        assert not {item.question for item in rest} & {item.question for item in held}
        assert {item.question for item in before[0]} & {item.question for item in before[1]}
