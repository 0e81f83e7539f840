"""Whole runs of tiny random models through the product itself: five losses against fp32 on the CPU, a stop and its resume.

The reference takes transformers' own attention and loss on padded rows, so that the losses are two ways to one number on
a CPU too.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ... import embedded
from ...config.load import load_config
from ...engine.faults import Fault, Faults
from ...errors import PreemptedError, Reason
from ...messages import speak
from ...models.loading import quiet_progress
from ...models.source import find_tokenizer
from ...models.tokenizers import load_tokenizer
from ...system.files import sha256_of
from ...system.gpu import sixteen_bit
from ..execute import execute
from ..request import request_of
from ..result import Result as RunResult
from ..trainer_hooks import TrainerHooks
from .parity import exact
from .results import Check, Measured, NotHere

STEPS = 5
# Sizes of the families' smallest models that keep what is peculiar to each: groups of heads, norms of heads, windows and
# caps, partial rotation.
_SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 16, "tie_word_embeddings": True}),
    "gemma2": ("Gemma2Config", {"head_dim": 16, "sliding_window": 24}),
    "stablelm": ("StableLmConfig", {"num_key_value_heads": 4}),
}
METHODS = ("full", "lora", "qlora")
# Most that a loss may be off: absolute in fp32, relative in 16 bit.
_EXACT, _ROUNDED = 1e-3, 2e-2
_ROWS = [
    {"instruction": f"{number}の次の数は何ですか？", "output": f"{number + 1}です。" * (1 + number % 4)}
    for number in range(40)
]


class Bench:
    """A folder with the tiny models and their data, and what its runs gave.

    Args:
        folder: an empty one.
        device: to check, with its number.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.folder, self.device = folder, device
        self._count = 0
        self._losses: dict[tuple[str, str], list[float]] = {}
        self.data = folder / "rows.jsonl"
        self.data.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in _ROWS), encoding="utf-8")

    def model(self, family: str) -> Path:
        """The folder of a family's model, made at its first use: the same weights every time."""
        import transformers

        folder = self.folder / family
        if folder.is_dir():
            return folder
        tokenizer = load_tokenizer(find_tokenizer(embedded.MODEL))
        name, extra = FAMILIES[family]
        config = getattr(transformers, name)(
            **_SIZES | extra | {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            build: Any = transformers.AutoModelForCausalLM.from_config  # untyped
            model = build(config)
        quiet_progress()
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    def train(
        self,
        family: str,
        method: str,
        device: torch.device,
        *settings: str,
        faults: Faults | None = None,
        callbacks: tuple[Any, ...] = (),
    ) -> RunResult:
        """A run of STEPS steps, two rows in a micro-batch and two of these in a step, without dropout."""
        self._count += 1
        given = [
            f"model={self.model(family)}",
            f"method={method}",
            f"data.train={self.data}",
            "data.max_length=64",
            f"training.schedule.max_steps={STEPS}",
            "training.warmup_steps=0",
            "training.learning_rate=1e-3",
            "training.batch_size=2",
            "training.gradient_accumulation_steps=2",
            "training.runtime.progress=false",
            "training.runtime.report_samples=0",
            f"training.output_dir={self.folder / f'run-{self._count}'}",
            *(["lora.r=4", "lora.lora_dropout=0"] if method != "full" else []),
            *settings,
        ]
        with quiet(), exact():
            config = load_config(None, given)
            request = replace(request_of(config, str(device)), hooks=TrainerHooks(callbacks=callbacks))
            return execute(request, Faults() if faults is None else faults)

    def expected(self, family: str, method: str) -> list[float]:
        """The losses of the reference."""
        key = family, method
        if key not in self._losses:
            plain = ("training.runtime.precision=fp32", "training.runtime.kernels=plain")
            self._losses[key] = losses(self.train(family, method, torch.device("cpu"), *plain))
        return self._losses[key]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the lines of a run, those of processes that it starts included; what goes wrong in it is raised."""
    sys.stderr.flush()
    shown = os.dup(2)
    speak(only_errors=True)
    try:
        with open(os.devnull, "w", encoding="utf-8") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(shown, 2)
        os.close(shown)
        speak(only_errors=False)


def losses(result: RunResult) -> list[float]:
    """Of each step."""
    return [float(row["loss"]) for row in result.history if row.get("loss") is not None]


def needs_bitsandbytes(method: str) -> None:
    """Raises NotHere for QLoRA without its library."""
    if method != "qlora":
        return
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise NotHere("bitsandbytes がありません", "bitsandbytes is not installed") from error


def _follows(bench: Bench, family: str, method: str, precision: str) -> Measured:
    needs_bitsandbytes(method)
    expected = bench.expected(family, method)
    obtained = losses(bench.train(family, method, bench.device, f"training.runtime.precision={precision}"))
    if len(obtained) != STEPS or len(expected) != STEPS:
        return Measured(float("nan"), 0.0, Reason(f"{len(obtained)} ステップ", f"{len(obtained)} steps"))
    off = [
        abs(one - other) / (1.0 if precision == "fp32" else other)
        for one, other in zip(obtained, expected, strict=True)
    ]
    return Measured(max(off), _EXACT if precision == "fp32" else _ROUNDED)


def _resumes(bench: Bench, family: str, method: str) -> Measured:
    """Files of weights that differ after a stop in the middle and a resume: none."""
    needs_bitsandbytes(method)
    whole = bench.train(family, method, bench.device)
    folder = bench.folder / f"stopped-{family}-{method}"
    into = f"training.output_dir={folder}"
    stop = Faults([Fault("step", "term", 3, 0, 1)])
    with contextlib.suppress(PreemptedError):
        bench.train(family, method, bench.device, into, faults=stop)
        raise AssertionError("the run was asked to stop at step 3 and did not")
    again = bench.train(family, method, bench.device, into, "training.checkpoint.resume_from_checkpoint=auto")
    different = [a != b for a, b in zip(_marks(whole.folder), _marks(again.folder), strict=True)]
    return Measured(float(sum(different)), 0.0)


def _marks(folder: Path) -> list[str]:
    return [sha256_of(file) for file in sorted(folder.glob("*.safetensors"))]


def checks(bench: Bench) -> list[Check]:
    """Every family by every method in fp32 and in the device's 16-bit type; a resume of each method."""
    best = sixteen_bit(bench.device)
    # On a CPU mixed precision is taken where the processor has its instructions.
    names = {torch.bfloat16: "bf16", torch.float16: "fp16"}
    precisions = ["fp32", *([] if best is None else [names[best]])]
    obtained = [
        Check(f"steps/{family}/{method}/{precision}", partial(_follows, bench, family, method, precision))
        for family in FAMILIES
        for method in METHODS
        for precision in precisions
    ]
    return obtained + [Check(f"resume/{method}", partial(_resumes, bench, "llama", method)) for method in METHODS]
