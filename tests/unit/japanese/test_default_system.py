"""The system text that a model was trained with, in every family's template."""

from __future__ import annotations

import copy

import pytest
from tests.support.models import build_tokenizer

from ai_finetuning.japanese.default_system import (
    default_system,
    split_default_system,
    system_turn,
    with_default_system,
)
from ai_finetuning.japanese.prompts import render
from ai_finetuning.japanese.templates import TEMPLATES, template_of

HARD = 'あなたは"社内"の担当。\n{{ 改行 }}と{% if %}と\\nと 😀 と \' を守る。'
TALK = [
    {"role": "user", "content": "首都は？"},
    {"role": "assistant", "content": "東京です。"},
    {"role": "user", "content": "人口は？"},
]


@pytest.mark.parametrize("key", TEMPLATES)
@pytest.mark.parametrize("system", ["丁寧に答えてください。", HARD])
def test_a_conversation_without_system_is_asked_as_it_was_trained(key: str, system: str):
    tokenizer = copy.deepcopy(build_tokenizer())
    tokenizer.chat_template = TEMPLATES[key].jinja
    bare = [render(tokenizer, talk, add_generation_prompt=True) for talk in (TALK, TALK[:1])]
    trained = [
        render(tokenizer, [{"role": "system", "content": system}, *talk], add_generation_prompt=True)
        for talk in (TALK, TALK[:1])
    ]
    other = render(tokenizer, [{"role": "system", "content": "別"}, *TALK], add_generation_prompt=True)
    tokenizer.chat_template = with_default_system(tokenizer.chat_template, system)
    assert [render(tokenizer, talk, add_generation_prompt=True) for talk in (TALK, TALK[:1])] == trained
    assert render(tokenizer, [{"role": "system", "content": "別"}, *TALK], add_generation_prompt=True) == other
    off = system_turn(tokenizer, "")
    assert [render(tokenizer, [*off, *talk], add_generation_prompt=True) for talk in (TALK, TALK[:1])] == bare
    assert default_system(tokenizer) == system
    assert template_of(tokenizer.chat_template) is template_of(TEMPLATES[key].jinja)
    assert split_default_system(tokenizer.chat_template) == (TEMPLATES[key].jinja, system)


def test_another_text_takes_the_place_and_none_takes_it_away():
    body = TEMPLATES["alpaca_ja"].jinja
    once = with_default_system(body, "一")
    assert split_default_system(with_default_system(once, "二")) == (body, "二")
    assert with_default_system(once, None) == with_default_system(once, "") == body


def test_leading_blanks_of_a_template_stay_as_they_were():
    tokenizer = copy.deepcopy(build_tokenizer())
    for body in (
        "\n\n  {% if true %}a{% endif %}",
        "  a\n{{ messages[0]['content'] }}",
        "{{- messages[0]['content'] }}",
    ):
        tokenizer.chat_template = body
        expected = render(tokenizer, [{"role": "system", "content": "s"}, *TALK])
        tokenizer.chat_template = with_default_system(body, "s")
        assert render(tokenizer, TALK) == expected


def test_a_system_turn_is_there_only_where_it_says_something():
    tokenizer = copy.deepcopy(build_tokenizer())
    assert system_turn(tokenizer, None) == system_turn(tokenizer, "") == []
    assert system_turn(tokenizer, "短く。") == [{"role": "system", "content": "短く。"}]


@pytest.mark.parametrize(("key", "kept"), [("chatml", True), ("llm_jp_v2v3", False)])
def test_a_system_text_that_the_template_leaves_out_is_no_default(key: str, kept: bool, logged):
    """llm-jp's own template writes its fixed sentence in place of any system text."""
    from ai_finetuning.execution.system_prompt import keep_system

    tokenizer = build_tokenizer(TEMPLATES[key].jinja)
    keep_system(tokenizer, "あなたは関西弁で話します。", None)
    assert (default_system(tokenizer) is not None) is kept
    assert ("is not used by the chat template" in logged()) is not kept
