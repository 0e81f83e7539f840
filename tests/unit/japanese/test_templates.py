"""Rules that hold for every chat template; the full strings are in test_golden_prompts.py."""

from __future__ import annotations

import copy
import hashlib
import unicodedata
from pathlib import Path

import pytest
from tests.support.models import build_tokenizer

from ai_finetuning.errors import DataError
from ai_finetuning.japanese import templates
from ai_finetuning.japanese.prompts import render
from ai_finetuning.japanese.templates import TEMPLATES, template_of, template_text, was_written_for

TALK = [
    {"role": "user", "content": "日本の首都は？"},
    {"role": "assistant", "content": "東京です。"},
    {"role": "user", "content": "人口は？"},
]
ONE = TALK[:1]


def tokenizer_with(template: str, eos: str = "</s>", bos: str = "<s>"):
    tokenizer = copy.deepcopy(build_tokenizer())
    tokenizer.eos_token = eos
    tokenizer.bos_token = bos or None
    tokenizer.chat_template = TEMPLATES[template].jinja
    return tokenizer


ANSWERED = [*ONE, {"role": "assistant", "content": "東京です。"}]


@pytest.mark.parametrize("template", TEMPLATES)
def test_rules_that_hold_for_every_template(template: str):
    tokenizer = tokenizer_with(template)
    text = render(tokenizer, ANSWERED)
    assert "\\n" not in text  # some copies in the wild print a backslash and an n
    assert text.count("<s>") <= 1
    assert "東京です。" in text
    prompt = render(tokenizer, ONE, add_generation_prompt=True)
    if not TEMPLATES[template].rewrites_history:
        assert text.startswith(prompt)
        assert render(tokenizer, [*ANSWERED, TALK[2]], add_generation_prompt=True).startswith(text.rstrip("\n"))
    longer = [*ANSWERED, TALK[2], {"role": "assistant", "content": "一千四百万人。"}]
    assert "東京です。" in render(tokenizer, longer)


def test_full_width_bars_are_part_of_the_prompt():
    text = render(tokenizer_with("deepseek_r1"), ANSWERED)
    assert unicodedata.normalize("NFKC", text) != text


def test_a_template_with_a_date_prints_a_frozen_one():
    text = render(tokenizer_with("llm_jp_4_harmony"), ONE, add_generation_prompt=True)
    assert "Current date: 2026-01-01\n\nReasoning: medium" in text
    assert text.endswith("<|start|>assistant")


def test_earlier_thinking_is_dropped_from_the_history():
    thought = [*ONE, {"role": "assistant", "content": "<think>首都を問う。</think>東京です。"}, TALK[2]]
    text = render(tokenizer_with("deepseek_r1"), thought, add_generation_prompt=True)
    assert "首都を問う" not in text
    assert "東京です。" in text


def test_a_conversation_that_the_template_refuses_is_a_data_error():
    with pytest.raises(DataError, match="refuses"):
        render(tokenizer_with("calm2"), [{"role": "tool", "content": "x"}])


def test_thinking_stands_before_the_last_answer_only():
    """A field of its own; the template of a family that thinks writes it, and an empty block where there is none."""
    thought = [*ONE, {"role": "assistant", "content": "東京です。", "reasoning_content": "首都を問う。"}]
    for key in ("qwen3_chatml", "deepseek_r1", "gpt_oss_harmony", "harmony", "llm_jp_4_harmony"):
        tokenizer = tokenizer_with(key)
        assert "首都を問う。" in render(tokenizer, thought), key
        assert "首都を問う。" not in render(tokenizer, [*thought, TALK[2]], add_generation_prompt=True), key
    assert "<think>\n\n</think>\n\n東京です。" in render(tokenizer_with("qwen3_chatml"), ANSWERED)


# Texts of earlier versions, taken from the history of templates.py (commit fabc21c): what saved folders hold.
FORMER_CALM2 = (
    "{%- if messages[0]['role'] == 'system' -%}{%- set system = messages[0]['content'] -%}{%- set turns = messages[1:] "
    "-%}{%- else -%}{%- set system = none -%}{%- set turns = messages -%}{%- endif -%}{%- if system is not none "
    "-%}{{- system + '\\n' -}}{%- endif -%}{%- for message in turns -%}{%- if message['role'] == 'user' -%}{{- 'USER: ' + "
    "message['content'] + '\\nASSISTANT: ' -}}{%- elif message['role'] == 'assistant' -%}{{- '' + message['content'] + "
    "eos_token + '\\n' -}}{%- else -%}{{- raise_exception('roles other than user and assistant are not known here') "
    "-}}{%- endif -%}{%- endfor -%}{%- if add_generation_prompt -%}{{- '' -}}{%- endif -%}"
)


def test_a_text_that_an_earlier_version_saved_is_recognised():
    assert template_of(FORMER_CALM2) is TEMPLATES["calm2"]
    assert was_written_for("calm2", FORMER_CALM2)
    assert not was_written_for("llama3", FORMER_CALM2)
    assert not was_written_for(None, FORMER_CALM2)
    assert template_of(FORMER_CALM2 + " ") is None
    assert template_of(None) is None


def test_every_key_that_there_was_is_still_known():
    """Stop strings of a saved folder follow from the digest of its text; a key in old settings still names a prompt."""
    for key, digests in templates._FORMER.items():
        assert len(digests) == len(set(digests)), key
        assert template_text(key) == TEMPLATES[templates._RENAMED.get(key, key)].jinja
    for key, item in TEMPLATES.items():
        assert template_of(item.jinja).stop_strings == item.stop_strings, key
        assert hashlib.sha256(item.jinja.encode()).hexdigest()[:16] not in templates._FORMER.get(key, ())
    assert template_text("mistral_inst") == TEMPLATES["mistral_v3"].jinja


def test_a_text_that_changes_leaves_its_digest():
    """tests/fixtures/template_texts.txt has every text that was ever written into a run's folder: none is forgotten."""
    written = (Path(__file__).parents[2] / "fixtures" / "template_texts.txt").read_text(encoding="utf-8").split("\n")
    now = {f"{key} {templates._digest(item.jinja)}" for key, item in TEMPLATES.items()}
    assert now <= set(written), f"add to template_texts.txt: {now - set(written)}"
    former = {f"{key} {digest}" for key, digests in templates._FORMER.items() for digest in digests}
    assert set(written) - {""} == now | former, "put the digest of a text that is no more into _FORMER"


@pytest.mark.parametrize("key", [key for key, item in TEMPLATES.items() if item.stop_strings])
def test_case_40_a_stop_is_the_line_that_opens_the_next_question(key: str):
    """From the line end in front of it to the end of the heading; between two turns the template writes just that."""
    tokenizer = copy.deepcopy(build_tokenizer())
    tokenizer.chat_template = TEMPLATES[key].jinja
    newline = TEMPLATES[key].newline or "\n"
    talk = [
        {"role": "user", "content": "甲甲"},
        {"role": "assistant", "content": "乙乙"},
        {"role": "user", "content": "丙丙"},
    ]
    between = render(tokenizer, talk, add_generation_prompt=True).split("乙乙")[1].split("丙丙")[0]
    opens = between.replace("</s>", "").replace(newline, "").lstrip()
    for stop in TEMPLATES[key].stop_strings:
        assert stop.startswith(newline)
        assert stop.replace(newline, "").strip() == opens.strip()
        assert stop.endswith((" ", "\n"))


def test_case_40_the_opening_that_a_template_writes_is_among_its_stops():
    """But for one that parts its turns by a blank: there only the token at the end of a turn tells."""
    for key, item in TEMPLATES.items():
        if not item.stop_strings or key == "rakuten_vicuna":
            continue
        tokenizer = copy.deepcopy(build_tokenizer())
        tokenizer.chat_template = item.jinja
        talk = [
            {"role": "user", "content": "甲"},
            {"role": "assistant", "content": "乙"},
            {"role": "user", "content": "丙"},
        ]
        between = render(tokenizer, talk).split("乙")[1].split("丙")[0].replace("</s>", "")
        assert any(stop in (item.newline or "\n") + between for stop in item.stop_strings), key
