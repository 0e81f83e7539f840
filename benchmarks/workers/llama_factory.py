"""LLaMA-Factory: at its defaults (padding, gradient checkpointing), at its best with neat_packing and without
checkpointing.

It is a tool of text files and settings, so it tokenizes rows.jsonl itself.
"""

from __future__ import annotations

import importlib.machinery
import json
import shutil
import sys
import types
from pathlib import Path
from typing import Any

from benchmarks.corpus import LONGEST
from benchmarks.shapes import LORA_ALPHA, LORA_RANK
from benchmarks.variants import FLASH, LIGER
from benchmarks.workers.channel import Channel, Spec, read_spec


def _stub_torchaudio() -> None:
    """LLaMA-Factory imports torchaudio for audio input; no build of it fits torch 2.13, and no text needs it."""
    stub = types.ModuleType("torchaudio")
    stub.__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
    sys.modules["torchaudio"] = stub


def _data(spec: Spec) -> Path:
    """Its data folder: rows.jsonl with EOS, which its template `empty` does not add, and the description of it."""
    folder = Path(spec.scratch) / "data"
    folder.mkdir(parents=True, exist_ok=True)
    rows = map(json.loads, (Path(spec.documents) / "rows.jsonl").read_text(encoding="utf-8").splitlines())
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row | {"output": row["output"] + " </s>"}) + "\n")
    columns = {"prompt": "instruction", "response": "output"}
    description = {"rows": {"file_name": "rows.jsonl", "columns": columns}}
    (folder / "dataset_info.json").write_text(json.dumps(description), encoding="utf-8")
    return folder


def _settings(spec: Spec, shared: dict[str, Any]) -> dict[str, Any]:
    settings = shared | {
        "model_name_or_path": spec.model,
        "stage": "sft",
        "do_train": True,
        "template": "empty",
        "dataset": "rows",
        "dataset_dir": str(_data(spec)),
        "cutoff_len": LONGEST,
        "bf16": spec.precision == "bf16",
        "finetuning_type": "full" if spec.method == "full" else "lora",
        "overwrite_cache": True,
    }
    if spec.method != "full":
        settings |= {"lora_rank": LORA_RANK, "lora_alpha": LORA_ALPHA, "lora_dropout": 0.0, "lora_target": "all"}
    if spec.method == "qlora":
        settings |= {"quantization_bit": 4, "quantization_method": "bnb"}
    if spec.best:
        settings |= {
            "neat_packing": True,
            "cutoff_len": spec.pack_tokens,
            "disable_gradient_checkpointing": not spec.checkpointing,
            "enable_liger_kernel": LIGER in spec.kernels,
        }
    if FLASH in spec.kernels:
        settings["flash_attn"] = "fa2"
    return settings


def main() -> None:
    """Steps as the driver asks."""
    spec = read_spec()
    channel = Channel(spec.device)
    _stub_torchaudio()
    from llamafactory.train.tuner import run_exp

    from benchmarks.workers.subject import Stepper, arguments, in_order, pick_steps

    shutil.rmtree(spec.scratch, ignore_errors=True)
    rows = spec.rows_per_step if spec.best else spec.per_step
    pick_steps(spec, rows)
    run_exp(args=_settings(spec, arguments(spec, rows) | in_order()), callbacks=[Stepper(channel)])


if __name__ == "__main__":
    main()
