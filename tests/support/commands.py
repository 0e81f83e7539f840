"""The `aift` command in tests: in this process, or as a process of its own that can be killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from .failed_verdicts import hear
from .patience import patience

ROWS = [{"instruction": f"{number}の次の数は何ですか？", "output": f"{number + 1}です。"} for number in range(22)]


def write_run(folder: Path, model: Path | str, **training: Any) -> Path:
    """A YAML of a LoRA run with dropout and accumulation: 24 steps, 6 an epoch (the last one short), held-out rows, no
    sample answers, no verdict.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS), encoding="utf-8")
    eval_data = folder / "held_out.jsonl"
    eval_data.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS[:4]), encoding="utf-8")
    config = {
        "model": {"name": str(model), "dtype": "float32"},
        "method": "lora",
        "data": {"train": str(rows), "eval": str(eval_data), "max_length": 64},
        "training": {
            "learning_rate": 5e-3,
            "batch_size": 2,
            "gradient_accumulation_steps": 2,
            "num_epochs": 4,
            "warmup_steps": 2,
            "eval_steps": 5,
            "save_steps": 4,
            "output_dir": str(folder / "out"),
            "gradient_checkpointing": False,
            "fp16": False,
            "runtime": {"progress": False, "report_samples": 0},
            "evaluation": {"verdict": False},
        }
        | training,
        "lora": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    return path


def environment(**changes: str) -> dict[str, str]:
    """The environment of a child: one thread, English, no hub."""
    return os.environ | {"OMP_NUM_THREADS": "1", "AIFT_LANG": "en", "PYTHONUTF8": "1"} | changes


def start(*arguments: str, fault: str = "", **changes: Any) -> subprocess.Popen[str]:
    """`aift` as a process."""
    return subprocess.Popen(
        [sys.executable, "-m", "ai_finetuning", *arguments],
        env=environment(AIFT_FAULT=fault, **changes),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    )


def spawn(*arguments: str, fault: str = "", timeout: float = 120, **changes: Any) -> tuple[int, str]:
    """(exit code, output) of `aift` as a process of its own; the timeout is one of a quiet machine."""
    process = start(*arguments, fault=fault, **changes)
    try:
        output, _ = process.communicate(timeout=patience(timeout))
    finally:
        process.kill()
    hear(output)
    return process.returncode, output


def call(*arguments: str) -> int:
    """Exit code of `aift` in this process."""
    from ai_finetuning.apps.cli.main import run

    return run(list(arguments))
