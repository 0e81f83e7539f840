"""A tiny base model trained from scratch in a minute, for the demo: tokenizer, random Llama, our own trainer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ..config.data import DataConfig
from ..config.sections import CheckpointConfig, RuntimeConfig, ScheduleConfig
from ..config.training import TrainingConfig
from ..models.japanese_model import JapaneseModel
from ..models.loading import quiet_progress
from .full_finetuning import FullFinetuningTrainer

SPECIALS = ("<pad>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>")
SCRIPTS = r"\p{Han}+|\p{Hiragana}+|[\p{Katakana}ー]+|[^\p{Han}\p{Hiragana}\p{Katakana}ー]"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def write_random_llama(
    folder: Path, texts: Sequence[str], *, vocabulary: int = 2000, hidden: int = 192, layers: int = 4, heads: int = 4,
    positions: int = 512, seed: int = 0,
) -> Path:  # fmt: skip
    """A byte-level BPE tokenizer trained on the texts, and a random Llama of its vocabulary, in a folder."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    # Pieces never cross from one script to another: 愛知県 stays the same piece in every sentence.
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SCRIPTS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=list(SPECIALS), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    core.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=list(SPECIALS[3:]),
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=hidden * 11 // 4, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=positions, tie_word_embeddings=True,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(seed)
    quiet_progress()
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def train_tiny_base(
    folder: Path, texts: Sequence[str], *, steps: int, learning_rate: float = 2e-3, batch_size: int = 8
) -> Path:  # fmt: skip
    """Pre-trains a tiny Llama on texts; a folder that holds the finished model already is used as it is."""
    start = folder.with_name(folder.name + "-untrained")
    if not (start / "config.json").is_file():
        write_random_llama(start, texts)
    config = TrainingConfig(
        learning_rate=learning_rate, batch_size=batch_size, gradient_accumulation_steps=1, output_dir=str(folder),
        warmup_steps=steps // 20, logging_steps=max(1, steps // 10), save_steps=max(1, steps // 3),
        schedule=ScheduleConfig(name="cosine", max_steps=steps, min_lr_ratio=0.1),
        checkpoint=CheckpointConfig(resume_from_checkpoint="auto", allow_changed=True),
        runtime=RuntimeConfig(seed=0),
    )  # fmt: skip
    trainer = FullFinetuningTrainer(
        JapaneseModel(str(start)), config, use_accelerate=False, data=DataConfig(packing=True, max_length=256)
    )
    trainer.train(list(texts))
    return folder
