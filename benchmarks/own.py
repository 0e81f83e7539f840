"""`aift train` with its optimizer step in the caller's hands: what is timed and checked is what users run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.shapes import LORA_ALPHA, LORA_RANK
from benchmarks.workers.channel import Spec

# (run, the loop's own step function of run and rows) -> what the loop's own step function returns.
StepFunction = Callable[[Any, Callable[[Any, Any], Any]], Any]

# What is asked for beside the settings; bf16 is what a run takes by itself.
PRECISIONS: dict[str, tuple[str, ...]] = {
    "bf16": (),
    "fp32": ("training.runtime.precision=fp32", "model.dtype=float32"),
}


class Finished(BaseException):
    """Raised by a step function to leave the run; no `except Exception` on the way takes it for an error."""


def settings_of(spec: Spec) -> dict[str, Any]:
    """The run's configuration; what is not named here stands at the toolkit's defaults."""
    never = 10**9
    config: dict[str, Any] = {
        "model": {"name": spec.model},
        "method": spec.method,
        "data": {
            "train": str(Path(spec.documents) / "rows.jsonl"),
            "max_length": spec.pack_tokens,
            "packing": True,
            "cache": False,
        },
        "training": {
            "learning_rate": 1e-4,
            "batch_size": spec.rows_per_step,
            "gradient_accumulation_steps": 1,
            "warmup_steps": 0,
            "gradient_checkpointing": spec.checkpointing,
            "eval_steps": never,
            "save_steps": never,
            "logging_steps": never,
            "output_dir": spec.scratch,
            "schedule": {"max_steps": len(spec.steps)},
            "runtime": {"progress": False},
        },
    }
    if spec.pairs:
        config["objective"] = "preference"
        # The order of the other variants, who pad their rows, is not grouped by length either.
        config["data"] |= {"packing": False, "group_by_length": False}
        config["training"] |= {
            "batch_size": spec.micro_batch,
            "gradient_accumulation_steps": spec.per_step // spec.micro_batch,
        }
    if spec.method != "full":
        config["lora"] = {"r": LORA_RANK, "lora_alpha": LORA_ALPHA, "lora_dropout": 0.0}
    return config


def train(spec: Spec, step: StepFunction, overrides: Sequence[str] = ()) -> int:
    """Runs `aift train` on the spec in this process, with `step` around the loop's step; returns the exit code."""
    from ai_finetuning.apps.cli.main import run
    from ai_finetuning.engine import loop

    shutil.rmtree(spec.scratch, ignore_errors=True)
    path = Path(spec.scratch).with_suffix(".yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings_of(spec)), encoding="utf-8")  # JSON is YAML
    original = loop.step_with_retry

    def stepped(current: Any, _: Any) -> Any:
        return step(current, original)

    loop.step_with_retry = stepped
    try:
        return run(["train", str(path), *PRECISIONS[spec.precision], *spec.settings, *overrides])
    finally:
        loop.step_with_retry = original
