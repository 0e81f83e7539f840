"""Prompt forms of other tools as `model.chat_template`: our key where we have the form, else Jinja text."""

from __future__ import annotations

import re

from ...errors import Reason
from .draft import Draft

BY_TOKENIZER = Reason(
    "トークナイザーのチャットテンプレートを使います。なければ model.chat_template で指定してください",
    "the tokenizer's own chat template is used; where it has none, give model.chat_template",
)
# Their name -> our key. Names that are not here stand for the template that the family's tokenizers bring.
TEMPLATE_KEYS = {
    "llama3": "llama3",
    "qwen": "qwen25_chatml",
    "qwen25": "qwen25_chatml",
    "qwen_25": "qwen25_chatml",
    "qwen2_5": "qwen25_chatml",
    "qwen3": "qwen3_chatml",
    "gemma": "gemma",
    "gemma2": "gemma",
    "gemma3": "gemma",
    "phi4": "phi4",
    "phi_4": "phi4",
}
# What these templates put behind an answer, whatever the tokenizer's EOS is.
TEMPLATE_ENDS = {
    "llama3": "<|eot_id|>",
    "llama4": "<|eot|>",
    "gemma": "<end_of_turn>",
    "gemma3": "<end_of_turn>",
    "chatml": "<|im_end|>",
    "qwen_25": "<|im_end|>",
    "qwen3": "<|im_end|>",
}
# Stanford Alpaca's prompts (github.com/tatsu-lab/stanford_alpaca, train.py), which LLaMA-Factory's and Axolotl's
# `alpaca` repeat; the other styles of Axolotl's AlpacaPrompter (src/axolotl/prompters.py).
_WITH = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
)
_WITHOUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
)
STYLES = {
    "alpaca": (
        _WITH + "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n",
        _WITHOUT + "### Instruction:\n{instruction}\n\n### Response:\n",
    ),
    "alpaca:chat": (
        _WITH + "USER: {instruction}\n{input}\nASSISTANT:",
        _WITHOUT + "USER: {instruction}\nASSISTANT:",
    ),
    "alpaca:phi": (
        "<|user|>\n{instruction}<|end|>{input}<|assistant|>",
        "<|user|>\n{instruction}<|end|>\n<|assistant|>\n",
    ),
    "chatml": (
        "<|im_start|>user\n{instruction}\n{input}<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>user\n{instruction}<|im_end|>\n<|im_start|>assistant\n",
    ),
}
_CHATML = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
# A tokenizer whose BOS is its EOS (GPT-NeoX, Falcon, Phi) puts none in front of a text.
_BOS = "{{- bos_token if bos_token and bos_token != eos_token else '' -}}"
_FIELD = re.compile(r"\{(instruction|input|system)\}")


def jinja_of(style: str) -> str:
    """The template of one of STYLES."""
    return _CHATML if style == "chatml" else jinja_of_formats(*STYLES[style])


def jinja_of_formats(with_input: str, without_input: str) -> str:
    """A template of prompts with `{instruction}` and `{input}`; answers end with EOS."""
    return (
        f"{_BOS}{{%- for message in messages -%}}"
        "{%- if message['role'] == 'system' -%}{{- message['content'] + '\\n\\n' -}}"
        "{%- elif message['role'] == 'assistant' -%}{{- message['content'] + eos_token -}}"
        "{%- elif message['input'] -%}"
        f"{{{{- {_filled(with_input, 'instruction')} -}}}}"
        f"{{%- else -%}}{{{{- {_filled(without_input, 'content')} -}}}}{{%- endif -%}}"
        "{%- endfor -%}"
    )


def _filled(form: str, instruction: str) -> str:
    """A Jinja expression of a text with fields; a field that a message lacks is empty."""
    parts = []
    for number, piece in enumerate(_FIELD.split(form)):
        if number % 2:
            name = instruction if piece == "instruction" else piece
            parts.append("''" if piece == "system" else f"message['{name}']")
        elif piece:
            escaped = piece.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
            parts.append(f"'{escaped}'")
    return " + ".join(parts) or "''"


def named_template(draft: Draft, key: str, name: str) -> None:
    """A template by their name: our key, our text of its form, or the tokenizer's own."""
    path = "model.chat_template"
    if name in TEMPLATE_KEYS:
        ours = TEMPLATE_KEYS[name]
        draft.take(
            key, path, ours, None if ours == name else Reason(f"{name} は {ours} です", f"{name} is {ours} here")
        )
    elif name in ("alpaca", "chatml", "qwen3_nothink"):
        style = "alpaca" if name == "alpaca" else "chatml"
        draft.take(key, path, jinja_of(style), Reason(f"{name} のプロンプト", f"the prompt of {name}"))
    elif name.startswith("tokenizer_default"):
        draft.convert(key, BY_TOKENIZER)
    else:
        draft.convert(key, BY_TOKENIZER, differs=True)
