"""Rows that a vocabulary cannot hold are counted, with the characters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.support.commands import call
from tests.support.models import build_tokenizer

from ai_finetuning.data.messages import Conversation, Message, PlainText
from ai_finetuning.data.vocabulary import vocabulary_line, vocabulary_loss
from ai_finetuning.models.tokenizers import load_tokenizer


def talk(answer: str) -> Conversation:
    return Conversation((Message("user", "日本の年に"), Message("assistant", answer)))


@pytest.fixture(scope="module")
def known(sentencepieces: dict[str, Path]) -> str:
    """Characters that every one of the small vocabularies has."""
    return "日本の年に"


def test_unknown_characters_and_lost_lines_are_counted_by_row(sentencepieces: dict[str, Path], known: str):
    tokenizer = load_tokenizer(str(sentencepieces["T5, unigram without bytes"]))
    samples = [talk(known), talk(f"{known}𠮷{known}𠮷"), talk(known * 2), talk(f"{known}\n{known}")]
    samples.append(PlainText(f"{known}①"))
    loss = vocabulary_loss(samples, tokenizer)
    assert loss.rows == 5
    assert "𠮷" in loss.unknown
    assert loss.unknown_rows == 1
    assert loss.blank_rows == 1
    assert loss.blanks == (r"\n",)
    assert loss.changed_rows == 1
    assert loss.changed == ("① → 1",)
    line = vocabulary_line(loss) or ""
    assert f"rows with characters that the vocabulary does not hold: {loss.unknown_rows} of 5" in line
    assert r"rows that lose line ends or blanks: 1 of 5 (20.0%): \n" in line
    assert "\n" not in line


@pytest.mark.parametrize("layout", ["llama, unigram", "llama, BPE"])
def test_byte_fallback_without_normalization_loses_nothing(layout: str, sentencepieces: dict[str, Path]):
    tokenizer = load_tokenizer(str(sentencepieces[layout]))
    loss = vocabulary_loss([talk("𠮷\n\tﷺ  ①\r\n"), PlainText("👨‍👩‍👧‍👦\u200b")], tokenizer)
    assert loss.survives
    assert vocabulary_line(loss) is None
    assert vocabulary_loss([talk("𠮷\n\tﷺ  ①\r\n")], build_tokenizer()).survives  # byte-level BPE


def test_runs_of_blanks_and_tabs_are_named(sentencepieces: dict[str, Path]):
    tokenizer = load_tokenizer(str(sentencepieces["another name, BPE without bytes"]))
    loss = vocabulary_loss([PlainText("日  本"), PlainText("日\t本"), PlainText("日 本")], tokenizer)
    assert loss.blank_rows == 2
    assert set(loss.blanks) == {r"\t", "runs of blanks"}


def test_line_ends_that_the_template_writes_itself_are_not_lost(sentencepieces: dict[str, Path]):
    name = str(sentencepieces["rinna, unigram"])
    samples = [talk("日\n本"), PlainText("日\n本")]
    assert vocabulary_loss(samples, load_tokenizer(name, chat_template="alpaca_ja")).blank_rows == 2
    assert vocabulary_loss(samples, load_tokenizer(name, chat_template="rinna_nl")).blank_rows == 1


def test_stats_and_the_plan_say_it(sentencepieces: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = [{"instruction": "日本の", "output": output} for output in ("年に", "𠮷", "年に", "日本")]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    model = str(sentencepieces["T5, unigram without bytes"])
    expected = "rows with characters that the vocabulary does not hold: 1 of 4 (25.0%): 𠮷"
    assert call("data", "stats", str(file), "--model", model) == 0
    assert expected in capsys.readouterr().out
    for _ in range(2):  # the second time from the cache of tokens
        arguments = [f"model={model}", "method=lora", f"data.train={file}", "data.max_length=200"]
        out = f"training.output_dir={tmp_path / 'out'}"
        assert call("train", *arguments, out, "learning_rate=1e-4", "--dry-run") == 0
        assert expected in capsys.readouterr().out
    assert call("data", "stats", str(file), "--model", str(sentencepieces["llama, BPE"])) == 0
    assert "every row survives encoding and decoding" in capsys.readouterr().out
