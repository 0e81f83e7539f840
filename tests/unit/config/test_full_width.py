"""Full-width characters in a YAML are named with line and character."""

from __future__ import annotations

from pathlib import Path

import pytest

from ai_finetuning.config.full_width import full_width
from ai_finetuning.config.load import load_config
from ai_finetuning.errors import ConfigError

CASES = {
    "a blank behind the colon": ("training:\n  learning_rate:　2e-4\n", 2, 17, "full-width blank follows the colon"),
    "a colon": ("training:\n  learning_rate： 2e-4\n", 2, 16, "colon is full-width"),
    "a colon at the top": ("method：lora\nmodel: x\n", 1, 7, "colon is full-width"),
    "a blank as indentation": ("training:\n　　learning_rate: 2e-4\n", 2, 1, "full-width blank indents"),
    "a digit": ("training:\n  learning_rate: ２e-4\n", 2, 18, "digit is full-width"),
    "a blank before a comment": ("method: lora　# コメント\n", 1, 13, "full-width blank precedes"),
    "a colon inside braces": ("data: {train： a}\n", 0, 0, "train： a"),
    "a tab": ("training:\n\tlearning_rate: 2e-4\n", 2, 1, "tabs are not allowed"),
}


@pytest.mark.parametrize(("text", "line", "column", "words"), CASES.values(), ids=CASES)
def test_a26_case_56_they_are_refused_with_their_place(tmp_path: Path, text: str, line: int, column: int, words: str):
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as refusal:
        load_config(path)
    assert words in refusal.value.en
    if line:
        assert f"line {line}, character {column}" in refusal.value.en.replace("column", "character")
        assert f"{line} 行目 {column} 文字目" in refusal.value.ja


def test_prose_keeps_them(tmp_path: Path):
    text = "data:\n  system_prompt: |\n    質問：　丁寧に\n    　字下げ\n  train: 　a.csv　\n"
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    assert load_config(path).data.system_prompt == "質問：　丁寧に\n　字下げ\n"
    assert full_width(text, {"system_prompt", "train"}) == []


@pytest.mark.parametrize(
    ("override", "plain"),
    [
        ("num_epochs=３", "3"),
        ("learning_rate=２e-４", "2e-4"),
        ("learning_rate=1e−4", "1e-4"),
        ("method=ＬｏＲＡ", "LoRA"),
        ("data.packing=ｔｒｕｅ", "true"),
    ],
)
def test_a_value_of_the_command_line_is_told_its_plain_spelling(override: str, plain: str):
    with pytest.raises(ConfigError) as refusal:
        load_config(None, [override])
    assert f"半角で {plain} と書いてください" in refusal.value.ja
    assert f"full-width characters; write {plain}." in refusal.value.en


@pytest.mark.parametrize("override", ["num_epochs=三", "num_epochs=many", "data.packing=はい"])
def test_other_values_are_not(override: str):
    with pytest.raises(ConfigError) as refusal:
        load_config(None, [override])
    assert "半角で" not in refusal.value.ja
