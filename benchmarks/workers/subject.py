"""Model, adapter and stepping that the peers share, as their documentation writes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Trainer, TrainerCallback, TrainingArguments

from benchmarks.corpus import PAD
from benchmarks.inputs import read_documents
from benchmarks.shapes import LORA_ALPHA, LORA_RANK
from benchmarks.variants import FLASH
from benchmarks.workers.channel import Channel, Spec, TokenCounter

LEARNING_RATE = 1e-4


def load(spec: Spec, *, dtype: torch.dtype | str = "auto") -> Any:
    """The base model on the spec's device; full fine-tuning trains fp32 weights whatever the dtype asked for."""
    expected = torch.float32 if spec.method == "full" else dtype
    quantization: dict[str, Any] = {}
    if spec.method == "qlora":
        quantization["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    if FLASH in spec.kernels:
        quantization["attn_implementation"] = "flash_attention_2"
    return AutoModelForCausalLM.from_pretrained(spec.model, dtype=expected, device_map=spec.device, **quantization)


def lora(spec: Spec) -> Any:
    """The LoraConfig, or None for full fine-tuning; no dropout, as in every variant."""
    if spec.method == "full":
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=LORA_RANK, lora_alpha=LORA_ALPHA, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )


def with_adapter(model: Any, spec: Spec) -> Any:
    """The model with its adapter, where the method has one."""
    if spec.method == "full":
        return model
    from peft import get_peft_model, prepare_model_for_kbit_training

    if spec.method == "qlora":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    return get_peft_model(model, lora(spec))


def dataset(spec: Spec) -> Any:
    """A `datasets.Dataset` of input_ids and labels."""
    from datasets import Dataset

    corpus = read_documents(Path(spec.documents))
    return Dataset.from_dict({"input_ids": [item.ids for item in corpus], "labels": [item.labels for item in corpus]})


def arguments(spec: Spec, rows: int) -> dict[str, Any]:
    """TrainingArguments that every trainer gets, for steps of `rows` rows; everything else stays at the trainer's
    default.
    """
    at_once = min(rows, spec.micro_batch)
    return {
        "output_dir": spec.scratch,
        "max_steps": len(spec.steps),
        "per_device_train_batch_size": at_once,
        "gradient_accumulation_steps": rows // at_once,
        "learning_rate": LEARNING_RATE,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": spec.device == "cpu",
        "dataloader_pin_memory": spec.device == "cuda",
    }


def in_order() -> dict[str, Any]:
    """The setting that keeps the corpus's order, which is shuffled already; older versions of transformers have none
    and shuffle once more.
    """
    known = "train_sampling_strategy" in TrainingArguments.__dataclass_fields__
    return {"train_sampling_strategy": "sequential"} if known else {}


class _Picked(Sampler[int]):
    """The rows of the steps that the spec picks, in the order that the trainer's own sampler gives them."""

    def __init__(self, inner: Any, rows: int, steps: list[int]) -> None:
        self._inner, self._rows, self._steps = inner, rows, steps

    def __len__(self) -> int:
        return len(self._steps) * self._rows

    def __iter__(self) -> Iterator[int]:
        order = list(self._inner)
        # A packer may make a row or two fewer than expected; the epoch then begins again.
        return (order[(step * self._rows + row) % len(order)] for step in self._steps for row in range(self._rows))


def pick_steps(spec: Spec, rows: int) -> None:
    """Makes every Trainer of this process run the picked steps of its epoch, `rows` rows each."""
    original = Trainer._get_train_sampler

    def picked(self: Trainer, *given: Any) -> _Picked:
        return _Picked(original(self, *given), rows, list(spec.steps))

    Trainer._get_train_sampler = picked


class Stepper(TrainerCallback):
    """Lets a Trainer do one optimizer step per line of the driver; a step's time runs from end to end, batches
    included.
    """

    def __init__(self, channel: Channel, ready: dict[str, Any] | None = None) -> None:
        self._channel, self._ready = channel, ready or {}

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Everything is built: says so."""
        self._counter = TokenCounter(model, PAD)
        self._channel.ready(**self._ready)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Reports the step and waits."""
        self._channel.lap(**self._counter.take())
