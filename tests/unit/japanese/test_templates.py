"""Full prompt strings, written by hand from the sources that docs/design/japanese.md names; nothing here is rendered to
be compared with itself.
"""

from __future__ import annotations

import unicodedata

import pytest
from tests.support.models import build_tokenizer

from ai_finetuning.japanese.prompts import render, user_turn
from ai_finetuning.japanese.templates import TEMPLATES

WITHOUT = "以下は、タスクを説明する指示です。要求を適切に満たす応答を書きなさい。"
WITH = "以下は、タスクを説明する指示と、文脈のある入力の組み合わせです。要求を適切に満たす応答を書きなさい。"
TALK = [
    {"role": "user", "content": "日本の首都は？"},
    {"role": "assistant", "content": "東京です。"},
    {"role": "user", "content": "人口は？"},
]
ONE = TALK[:1]
MATERIAL = [user_turn("要約して。", "長い文。")]
SYSTEM = [{"role": "system", "content": "短く。"}, *ONE]
# (template, eos, bos, messages, prompt)
GOLDENS = [
    # Section 9.
    ("calm2", "<eos>", "<bos>", TALK, "USER: 日本の首都は？\nASSISTANT: 東京です。<eos>\nUSER: 人口は？\nASSISTANT: "),
    (
        "llama3",
        "<|eot_id|>",
        "<|begin_of_text|>",
        TALK,
        (
            "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n日本の首都は？<|eot_id|><|start_header_id|>assistan"
            "t<|end_header_id|>\n\n東京です。<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n人口は？<|eot_id|><|start_he"
            "ader_id|>assistant<|end_header_id|>\n\n"
        ),
    ),
    (
        "swallow_llama2_v01",
        "</s>",
        "<s>",
        TALK,
        "<s>[INST] 日本の首都は？ [/INST] 東京です。</s>[INST] 人口は？ [/INST] ",
    ),
    (
        "nekomata",
        "<|endoftext|>",
        "",
        TALK,
        f"{WITH}\n\n### 指示:\n日本の首都は？\n\n### 応答:\n東京です。<|endoftext|>\n\n### 指示:\n人口は？\n\n### 応答:\n",
    ),
    (
        "stockmark",
        "</s>",
        "<s>",
        TALK,
        "<s>### Input:\n日本の首都は？\n\n### Output:\n東京です。</s>\n### Input:\n人口は？\n\n### Output:\n",
    ),
    # Section 1.3.
    ("alpaca_ja", "</s>", "<s>", ONE, f"{WITHOUT}\n\n### 指示:\n日本の首都は？\n\n### 応答:\n"),
    ("alpaca_ja", "</s>", "<s>", MATERIAL, f"{WITH}\n\n### 指示:\n要約して。\n\n### 入力:\n長い文。\n\n### 応答:\n"),
    ("stablelm_ja", "<eos>", "", ONE, f"{WITH}\n\n### 指示: \n日本の首都は？\n\n### 応答: \n"),
    ("stablelm_ja", "<eos>", "", MATERIAL, f"{WITH}\n\n### 指示: \n要約して。\n\n### 入力: \n長い文。\n\n### 応答: \n"),
    ("stablelm_ja_alpha", "<eos>", "", ONE, f"{WITH}\n\n### 指示: \n日本の首都は？\n\n### 応答: \n"),
    (
        "llm_jp_v2v3",
        "</s>",
        "<s>",
        TALK,
        f"<s>{WITHOUT}\n\n### 指示:\n日本の首都は？\n\n### 応答:\n東京です。</s>\n\n### 指示:\n人口は？\n\n### 応答:\n",
    ),
    ("llm_jp_v2v3", "</s>", "<s>", SYSTEM, f"<s>{WITHOUT}\n\n### 指示:\n日本の首都は？\n\n### 応答:\n"),
    (
        "rinna_nl",
        "</s>",
        "<s>",
        TALK,
        "ユーザー: 日本の首都は？<NL>システム: 東京です。<NL>ユーザー: 人口は？<NL>システム: ",
    ),
    ("rinna_nl", "</s>", "<s>", [{"role": "user", "content": "一\n二"}], "ユーザー: 一<NL>二<NL>システム: "),
    (
        "rinna_bilingual",
        "</s>",
        "<s>",
        TALK,
        "ユーザー: 日本の首都は？\nシステム: 東京です。\nユーザー: 人口は？\nシステム: ",
    ),
    (
        "calm3_chatml",
        "<|im_end|>",
        "",
        ONE,
        (
            "<|im_start|>system\nあなたは親切なAIアシスタントです。"
            "<|im_end|>\n<|im_start|>user\n日本の首都は？<|im_end|>\n<|im_start|>assistant\n"
        ),
    ),
    (
        "llama2_ja",
        "</s>",
        "<s>",
        ONE,
        "<s>[INST] <<SYS>>\nあなたは誠実で優秀な日本人のアシスタントです。\n<</SYS>>\n\n日本の首都は？ [/INST] ",
    ),
    (
        "qwen25_chatml",
        "<|im_end|>",
        "",
        ONE,
        (
            "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful "
            "assistant.<|im_end|>\n<|im_start|>user\n日本の首都は？<|im_end|>\n<|im_start|>assistant\n"
        ),
    ),
    (
        "qwen25_chatml",
        "<|im_end|>",
        "",
        SYSTEM,
        "<|im_start|>system\n短く。<|im_end|>\n<|im_start|>user\n日本の首都は？<|im_end|>\n<|im_start|>assistant\n",
    ),
    ("qwen3_chatml", "<|im_end|>", "", ONE, "<|im_start|>user\n日本の首都は？<|im_end|>\n<|im_start|>assistant\n"),
    (
        "gemma",
        "<eos>",
        "<bos>",
        SYSTEM,
        "<bos><start_of_turn>user\n短く。\n\n日本の首都は？<end_of_turn>\n<start_of_turn>model\n",
    ),
    (
        "phi4",
        "<|im_end|>",
        "",
        ONE,
        "<|im_start|>user<|im_sep|>日本の首都は？<|im_end|><|im_start|>assistant<|im_sep|>",
    ),
    (
        "deepseek_r1",
        "<｜end▁of▁sentence｜>",
        "<｜begin▁of▁sentence｜>",
        ONE,
        "<｜begin▁of▁sentence｜><｜User｜>日本の首都は？<｜Assistant｜>",
    ),
]


def tokenizer_with(template: str, eos: str = "</s>", bos: str = "<s>"):
    import copy

    tokenizer = copy.deepcopy(build_tokenizer())
    tokenizer.eos_token = eos
    tokenizer.bos_token = bos or None
    tokenizer.chat_template = TEMPLATES[template].jinja
    return tokenizer


@pytest.mark.parametrize(("template", "eos", "bos", "messages", "prompt"), GOLDENS)
def test_prompts_are_what_the_makers_wrote(template: str, eos: str, bos: str, messages: list, prompt: str):
    assert render(tokenizer_with(template, eos, bos), messages, add_generation_prompt=True) == prompt


ANSWERED = [*ONE, {"role": "assistant", "content": "東京です。"}]
ENDS = {
    "rinna_nl": "システム: 東京です。</s>",
    "calm2": "ASSISTANT: 東京です。</s>\n",
    "llm_jp_4_harmony": "<|start|>user<|message|>日本の首都は？<|end|><|start|>assistant<|channel|>final<|message|>東京です。<|return|>",
    "llm_jp_v2v3": "### 応答:\n東京です。</s>",
}


@pytest.mark.parametrize(("template", "end"), ENDS.items())
def test_an_answer_ends_with_its_token(template: str, end: str):
    assert render(tokenizer_with(template), ANSWERED).endswith(end)


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
    assert "Current date: 2026-01-01\nReasoning: medium" in text
    assert text.endswith("<|start|>assistant")


def test_earlier_thinking_is_dropped_from_the_history():
    thought = [*ONE, {"role": "assistant", "content": "<think>首都を問う。</think>東京です。"}, TALK[2]]
    text = render(tokenizer_with("deepseek_r1"), thought, add_generation_prompt=True)
    assert "首都を問う" not in text
    assert "東京です。" in text


def test_a_conversation_that_the_template_refuses_is_a_data_error():
    from ai_finetuning.errors import DataError

    with pytest.raises(DataError, match="refuses"):
        render(tokenizer_with("calm2"), [{"role": "tool", "content": "x"}])


def test_unconfirmed_families_are_marked():
    unconfirmed = {key for key, item in TEMPLATES.items() if not item.verified}
    assert {"llama2_ja", "llm_jp_4_harmony", "gpt_oss_harmony"} <= unconfirmed
    assert {"calm2", "llama3", "swallow_llama2_v01", "nekomata", "stockmark", "alpaca_ja"}.isdisjoint(unconfirmed)
