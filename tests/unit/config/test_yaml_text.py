"""YAML that is no YAML is refused in both languages; what is written reads back as it was."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from tests.unit.config.test_limits import ENGLISH_SENTENCE

from ai_finetuning.config.yaml_text import dump_yaml, parse_yaml
from ai_finetuning.errors import ConfigError

BROKEN = [
    ("a:\n\tb: 1", "run.yaml の 2 行目 1 文字目", "タブは使えません。半角スペースにしてください", "use spaces"),
    ("a: b: c", "1 行目 5 文字目", "「:」は置けません", "a colon is not allowed here"),
    ("a: 1\nb\n", "3 行目 1 文字目", "「:」がありません", "a key has no colon"),
    ("a:\n  b: 1\n c: 2", "3 行目 2 文字目", "字下げが揃っていません", "the indentation is uneven"),
    (" a: 1\nb: 2", "2 行目 1 文字目", "字下げが揃っていません", "different columns"),
    ("a: 'x", "1 行目", "引用符が閉じられていません", "a quotation mark is not closed"),
    ("a: [1, 2", "1 行目", "「]」か「,」がありません", "a ] or a comma is missing"),
    ("a: {b: 1", "1 行目", "「}」か「,」がありません", "a } or a comma is missing"),
    ("a: ]", "1 行目", "値がありません", "a value is missing"),
    ("a: *x", "1 行目", "「*」で始まる値は引用符で囲んでください", "must be quoted"),
    ("a: !!python/name:os.system", "1 行目", "タグ（!!）は使えません", "tags (!!) are not read"),
    ("a: @x", "1 行目", "値を引用符で囲んでください", "quote it"),
    ("a: - b", "1 行目", "改行してください", "a dash is not allowed here"),
    ('a: "\\q"', "1 行目", "「\\」の使い方", "a backslash is used wrongly"),
    ("a: 1\n---\nb: 2", "2 行目", "文書は 1 つだけ", "one document"),
    ("? [a]\n: 1", "1 行目", "キーにはリストや組を使えません", "a key cannot be a list"),
    ("a: 1\nb: \x01", "2 行目 4 文字目", "制御文字", "control character"),
    ("a:\n  <<: {b: 1}", "2 行目 3 文字目", "「<<」（マージ）は使えません", "<< (merge) is not read"),
    ("a: !!int x", "run.yaml", "タグ（!!）を消してください", "is not valid YAML"),
    ("a: &x 1\nb: &x 2", "2 行目 4 文字目", "書き方を確認してください", "line 2, column 4"),  # no words of our own
]


@pytest.mark.parametrize(("text", "place", "ja", "en"), BROKEN, ids=[repr(text) for text, *_ in BROKEN])
def test_broken_yaml_is_refused_in_both_languages(text: str, place: str, ja: str, en: str):
    with pytest.raises(ConfigError) as refusal:
        parse_yaml(text, "run.yaml")
    assert place in refusal.value.ja
    assert ja in refusal.value.ja
    assert not ENGLISH_SENTENCE.search(refusal.value.ja)
    assert en in refusal.value.en
    assert "is not valid YAML" in refusal.value.en


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("0", 0), ("10", 10), ("-3", -3), ("+4", 4), ("1_000", 1000), ("0x10", 16), ("0b11", 3)),
        *((text, text) for text in ("0512", "010", "-07", "00", "1:30", "12:30:00", "0o17")),
    ],
)
def test_a_number_is_never_read_in_another_base_than_it_shows(text: str, value: Any):
    """YAML 1.1 has 0512 as 330 and 1:30 as 90: a setting would be another than its user reads."""
    read = parse_yaml(f"a: {text}", "run.yaml")["a"]
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize(
    "value",
    [
        *("1e3", "3e-4", "1.5", "on", "yes", "No", "true", "2026-01-01", "012", "1:30", "null", "~", "", " x ", "a: b"),
        *(
            "- a",
            "#x",
            "日本語 🗻",
            "改行\nのある文\n",
            "{{ bos }}\t{% if x %}",
            "\u2028",
            "\x85x",
            "x" * 300,
            "*",
            "!",
        ),
        *(1e-8, 2e-05, 1e22, 0.1, -1, 2**40, True, None, [], {}, [1, "1"], {0: "22GB"}, {"a": {"b": [0.9, 0.999]}}),
    ],
)
def test_written_values_read_back_here_and_elsewhere(value: Any):
    text = dump_yaml({"key": value})
    for read in (parse_yaml(text, "x"), yaml.safe_load(text)):
        assert read == {"key": value}
        assert type(read["key"]) is type(value)
