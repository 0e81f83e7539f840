"""Small real models and tokenizers, built on the spot: no weights and no network."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path

SENTENCES = [
    "日本の首都は東京です。",
    "今日は良い天気ですね。",
    "質問に答えてください。",
    "私は毎朝七時に起きます。",
    "りんごが三つあります。",
    "電車は九時に出発します。",
    "機械学習の勉強をしています。",
    "ありがとうございました。",
    "Hello, how are you?",
    "大阪は関西にある都市です。",
    "カタカナとひらがなと漢字。",
    "一二三四五六七八九十百千万。",
]
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
SPECIALS = ["<pad>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>"]


def build_tokenizer(chat_template: str | None = CHAT_TEMPLATE):
    """A byte-level BPE tokenizer of about 400 pieces with pad, BOS, EOS and role tokens; the caller may change it."""
    return copy.deepcopy(_trained_tokenizer(chat_template))


@cache
def _trained_tokenizer(chat_template: str | None):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(SENTENCES, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=SPECIALS[3:],
    )
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    return tokenizer


CONFIGS = {
    "llama": ("LlamaConfig", {"num_key_value_heads": 2, "tie_word_embeddings": False}),
    "qwen2": ("Qwen2Config", {"num_key_value_heads": 2}),
    "stablelm": ("StableLmConfig", {"num_key_value_heads": 4}),
    "gpt_neox": ("GPTNeoXConfig", {}),
    "qwen3_tied": ("Qwen3Config", {"num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True}),
    "gemma2": (
        "Gemma2Config",
        {"num_key_value_heads": 2, "head_dim": 16, "sliding_window": 24, "attn_implementation": "eager"},
    ),
    "gpt2": ("GPT2Config", {"embd_pdrop": 0.0, "resid_pdrop": 0.0, "attn_pdrop": 0.0}),
}


def build_model(kind: str = "llama", *, seed: int = 0, vocab_size: int = 400, hidden_size: int = 64, layers: int = 2):
    """A tiny random causal LM (fp32, CPU) of the given architecture."""
    import torch
    import transformers

    name, extra = CONFIGS[kind]
    config = getattr(transformers, name)(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=1024,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **extra,
    )
    torch.manual_seed(seed)
    return transformers.AutoModelForCausalLM.from_config(config)


def build_experts(vocab_size: int = 300):
    """A tiny random mixture of experts: two layers of eight."""
    import transformers

    config = transformers.Qwen3MoeConfig(
        hidden_size=64,
        moe_intermediate_size=96,
        num_experts=8,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=vocab_size,
    )
    return transformers.AutoModelForCausalLM.from_config(config)


def save_tiny_model(folder: Path, kind: str = "llama", **sizes) -> Path:
    """Writes a loadable model folder (weights, tokenizer, chat template) and returns it."""
    tokenizer = build_tokenizer()
    model = build_model(kind, vocab_size=len(tokenizer), **sizes)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
