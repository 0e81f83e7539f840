"""The folder of a finished run whose best weights are not its last ones, without a training; and what is in it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ai_finetuning.runs.weights import ADAPTER, INDEX, MODEL

BEST_STEP, LAST_STEP = 4, 8
VERDICT = {"result": "hold", "why": {"ja": "差は見えません。", "en": "No difference is seen."}, "step": LAST_STEP}


def tensors(value: int, name: str = "weight") -> bytes:
    """A file of safetensors with one tensor of 16 bytes."""
    head = json.dumps({name: {"dtype": "U8", "shape": [16], "data_offsets": [0, 16]}}).encode()
    return len(head).to_bytes(8, "little") + head + bytes([value] * 16)


def write_weights(folder: Path, kind: str, value: int) -> None:
    """`adapter`, `single` or `shards`: the weights of a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "shards":
        files = [f"model-{number:05d}-of-00002.safetensors" for number in (1, 2)]
        for number, name in enumerate(files):
            (folder / name).write_bytes(tensors(value + number, f"w{number}"))
        index = {
            "metadata": {"total_size": 32},
            "weight_map": {f"w{number}": name for number, name in enumerate(files)},
        }
        (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")
    else:
        (folder / {"adapter": ADAPTER, "single": MODEL}[kind]).write_bytes(tensors(value))
    (folder / ("adapter_config.json" if kind == "adapter" else "config.json")).write_text("{}", encoding="utf-8")


def kept_run(folder: Path, *kinds: str, **more: Any) -> Path:
    """A run whose losses fell until step 4 and have risen until step 8.

    Args:
        kinds: how the weights lie in the folder, and in `checkpoints/best`.
        more: of run.json.
    """
    last, best = kinds[0] if kinds else "adapter", kinds[-1] if kinds else "adapter"
    write_weights(folder, last, 80)
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    (folder / "base.json").write_text(json.dumps({"name": "b", "bits": None, "relative": "../base"}), encoding="utf-8")
    (folder / "README.md").write_text("---\nlanguage: ja\n---\n\n# base (lora)\n\n## 結果\n", encoding="utf-8")
    (folder / "report.html").write_text("<header></header><main><p>8</p></main>", encoding="utf-8")
    (folder / "config.yaml").write_text("model: {name: 'embedded:kotoha-tiny'}\nmethod: lora\n", encoding="utf-8")
    scores = [(0, 4.0), (BEST_STEP, 1.0), (LAST_STEP, 2.0)]
    rows = [{"step": step, "eval_loss": loss, "eval_perplexity": 2 * loss} for step, loss in scores]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    kept = folder / "checkpoints" / "best"
    write_weights(kept, best, 40)
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in kept.glob("*.safetensors")}
    (kept / "best.json").write_text(json.dumps({"step": BEST_STEP, "sha256": digests}), encoding="utf-8")
    content = {
        "status": "completed",
        "fingerprint": {"model": "embedded:kotoha-tiny", "method": "lora"},
        "total_steps": LAST_STEP,
        "best": {"step": BEST_STEP, "eval_loss": 1.0, "last_eval_loss": 2.0, "folder": "checkpoints/best"},
        "files": sorted(path.name for path in folder.iterdir() if path.suffix in (".json", ".safetensors", ".md")),
        "result": {
            "steps": LAST_STEP,
            "saved_step": LAST_STEP,
            "held_out_before": {"step": 0, "eval_loss": 4.0},
            "held_out_after": {"step": LAST_STEP, "eval_loss": 2.0},
            "verdict": {"kind": "overfitted"},
        },
        "verdict": VERDICT,
    }
    text = json.dumps(content | more, ensure_ascii=False, indent=1)
    (folder / "run.json").write_text(text, encoding="utf-8")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a run but its lock."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def loaded(folder: Path) -> dict[str, int]:
    """The values of the weights that a loader takes from a folder: the single file, else what the index names."""
    for single in (ADAPTER, MODEL):
        if (folder / single).is_file():
            return {"weight": (folder / single).read_bytes()[-1]}
    names = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
    return {weight: (folder / name).read_bytes()[-1] for weight, name in names.items()}
