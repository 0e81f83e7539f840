"""Unsloth's model in TRL's trainer, packed, as its documentation writes it. It needs a GPU."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from benchmarks.inputs import read_documents
from benchmarks.workers.channel import Channel, Spec, read_spec


def _masked(spec: Spec) -> Any:
    """A `datasets.Dataset` of input_ids and which of them take loss.

    Labels would bring a collator of transformers that forgets where packed documents end (unsloth/utils/packing.py
    extends those of language modelling only). Versions that do not know the mask compute the loss of all tokens.
    """
    from datasets import Dataset

    documents = read_documents(Path(spec.documents))
    masks = [[0] * item.prompt + [1] * (len(item) - item.prompt) for item in documents]
    return Dataset.from_dict({"input_ids": [item.ids for item in documents], "completion_mask": masks})


def main() -> None:
    """Steps as the driver asks."""
    spec = read_spec()
    channel = Channel(spec.device)
    # Nothing is sent from a benchmark, and what Unsloth generates lies with the worker.
    os.environ |= {"UNSLOTH_DISABLE_STATISTICS": "1", "UNSLOTH_COMPILE_LOCATION": f"{spec.scratch}-compiled"}
    # Before transformers and TRL, which it changes.
    import torch
    from unsloth import FastLanguageModel  # isort: skip
    from trl import SFTConfig, SFTTrainer

    from benchmarks.shapes import LORA_ALPHA, LORA_RANK
    from benchmarks.workers.subject import Stepper, arguments, in_order, pick_steps

    rows = spec.rows_per_step
    full = spec.method == "full"
    pick_steps(spec, rows)
    checkpointing = "unsloth" if spec.checkpointing else False
    model, tokenizer = FastLanguageModel.from_pretrained(
        model_name=spec.model,
        max_seq_length=spec.pack_tokens,
        dtype=torch.float32 if full else torch.bfloat16,
        load_in_4bit=spec.method == "qlora",
        full_finetuning=full,
        use_gradient_checkpointing=checkpointing,
    )
    if not full:
        model = FastLanguageModel.get_peft_model(
            model,
            r=LORA_RANK,
            lora_alpha=LORA_ALPHA,
            lora_dropout=0.0,
            bias="none",
            target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
            use_gradient_checkpointing=checkpointing,
        )
    SFTTrainer(
        model=model,
        processing_class=tokenizer,
        args=SFTConfig(
            **arguments(spec, rows),
            **in_order(),
            packing=True,
            max_length=spec.pack_tokens,
            gradient_checkpointing=spec.checkpointing,
            completion_only_loss=True,
            bf16=True,
        ),
        train_dataset=_masked(spec),
        callbacks=[Stepper(channel)],
    ).train()


if __name__ == "__main__":
    main()
