"""How a worker talks to the driver, and what it measures about itself."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

LIBRARIES = (
    "torch",
    "triton",
    "transformers",
    "peft",
    "accelerate",
    "trl",
    "llamafactory",
    "unsloth",
    "datasets",
    "bitsandbytes",
    "liger-kernel",
    "flash-attn",
)


@dataclass(frozen=True)
class Spec:
    """What a worker is told.

    Attributes:
        model: folder of the model.
        documents: folder of documents.jsonl and rows.jsonl.
        scratch: a folder of the worker's own.
        method: full, lora or qlora.
        device: cpu or cuda.
        per_step: documents of an optimizer step.
        micro_batch: most rows of a padded micro-batch; more documents a step are accumulated.
        rows_per_step, pack_tokens: the same as packed rows: how many, and of how many tokens.
        steps: which of the epoch's steps to run, in this order.
        best: the peer's best documented settings instead of its defaults.
        settings: `key=value` settings of the project or of the peer.
        checkpointing: activations are computed again, in ours and in peers at their best.
        kernels: distributions whose kernels a peer takes beside torch's.
        pairs: the documents are pairs of answers (benchmarks/pairs.py), and `micro_batch` counts pairs.
        order: of pairs: which of them each step has, for workers that are told; ours tells.
        weights: of pairs: a file of trained weights and their gradients that a worker is compared with instead of being timed.
        precision: what everybody computes in, bf16 or fp32.
    """

    model: str
    documents: str
    scratch: str
    method: str
    device: str
    per_step: int
    micro_batch: int
    rows_per_step: int
    pack_tokens: int
    steps: Sequence[int]
    best: bool = False
    settings: Sequence[str] = ()
    checkpointing: bool = False
    kernels: Sequence[str] = ()
    pairs: bool = False
    order: Sequence[Sequence[int]] = ()
    weights: str | None = None
    precision: str = "bf16"


def read_spec() -> Spec:
    """The spec whose file the command line names."""
    values = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    return Spec(**{field.name: values[field.name] for field in fields(Spec)})


class Channel:
    """JSON lines to the driver on what was standard output; libraries' prints go to the log instead."""

    def __init__(self, device: str) -> None:
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self._device = device
        # Where memory runs out, it is a variant that the system ends, not somebody's work.
        Path("/proc/self/oom_score_adj").write_text("900", encoding="utf-8")

    def ready(self, **facts: Any) -> None:
        """Says that the first step can begin, and waits for the driver."""
        self._send({"ready": True, "versions": versions(), **facts})
        self._wait()

    def lap(self, *, tokens: int, slots: int, loss: float | None = None) -> None:
        """Reports the step that just ended and waits for the driver; does not return where no further one is wanted.

        Args:
            tokens: real tokens that went through the model.
            slots: positions computed, padding included.
        """
        if self._device == "cuda":
            import torch

            torch.cuda.synchronize()
        wall, cpu, faults = (now - then for now, then in zip(_clocks(), self._start, strict=True))
        self._send(
            {
                "tokens": tokens,
                "slots": slots,
                "loss": loss,
                "wall": wall,
                "cpu": cpu,
                "minor_faults": faults,
                "peak_bytes": peak_bytes(),
                "device_peak_bytes": _device_peak(self._device, "allocated"),
                "device_reserved_bytes": _device_peak(self._device, "reserved"),
            }
        )
        self._wait()

    def _send(self, message: dict[str, Any]) -> None:
        print(json.dumps(message), file=self._out, flush=True)

    def _wait(self) -> None:
        if sys.stdin.readline().strip() != "step":
            os._exit(0)  # nothing of a worker is kept: no model is saved at the end of its run
        self._start = _clocks()


def _clocks() -> tuple[float, float, int]:
    """(wall seconds, CPU seconds of all threads, minor page faults)."""
    import resource

    return time.perf_counter(), time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def peak_bytes() -> int:
    """VmHWM: the most resident memory that this process has had."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmHWM in /proc/self/status: the benchmark needs Linux")


def _device_peak(device: str, kind: str) -> int | None:
    """Most bytes that tensors had (`allocated`), or that torch held of the device (`reserved`)."""
    if device != "cuda":
        return None
    import torch

    return int(torch.cuda.memory_stats().get(f"{kind}_bytes.all.peak", 0))


def versions() -> dict[str, str]:
    obtained = {}
    for name in LIBRARIES:
        try:
            obtained[name] = version(name)
        except PackageNotFoundError:
            continue
    return obtained


class TokenCounter:
    """Counts what passes a model's embedding: real tokens (id is not PAD) and slots."""

    def __init__(self, model: Any, pad: int) -> None:
        self._pad = pad
        self._seen: list[tuple[Any, int]] = []
        model.get_input_embeddings().register_forward_pre_hook(self._count)

    def _count(self, _module: Any, arguments: tuple[Any, ...]) -> None:
        ids = arguments[0]
        self._seen.append(((ids != self._pad).sum(), ids.numel()))

    def take(self) -> dict[str, int]:
        """`tokens` and `slots` since the last call."""
        seen, self._seen = self._seen, []
        return {"tokens": sum(int(tokens) for tokens, _ in seen), "slots": sum(slots for _, slots in seen)}
