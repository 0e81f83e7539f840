"""Memory and disk of a run by simple formulas, before anything is loaded.

Sources: bytes per parameter of mixed-precision AdamW as in ZeRO (arXiv:1910.02054, section 3.1); activations per token
and layer after Korthikanti et al. (arXiv:2205.05198) for gated MLPs without stored attention scores; NF4 with double
quantization as in QLoRA (arXiv:2305.14314). Estimates, to be compared with the peak that a run reports.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..errors import localized
from ..parallel.limits import BASE_BYTES, OFFLOAD_AHEAD, OFFLOAD_CHUNK_BYTES
from .shape import ModelShape

# Bytes of a quantized weight with its scales.
KBIT_BYTES = {4: 0.58, 8: 1.07}
_GIB = 2**30


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes at the peak of a training step, by what they are for."""

    weights: int
    gradients_and_optimizer: int
    activations: int
    logits: int
    base: int = BASE_BYTES
    copies: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.copies + self.gradients_and_optimizer + self.activations + self.logits + self.base

    def text(self) -> str:
        """One line for people, in GiB."""
        parts = [
            (localized("重み", "weights"), self.weights),
            (localized("16bit コピー", "16-bit copies"), self.copies),
            (localized("勾配とオプティマイザー", "gradients and optimizer"), self.gradients_and_optimizer),
            (localized("アクティベーション", "activations"), self.activations),
            (localized("ロジット", "logits"), self.logits),
            (localized("実行環境", "runtime"), self.base),
        ]
        inside = " + ".join(f"{name} {size / _GIB:.2f}" for name, size in parts)
        return f"{self.total / _GIB:.2f} GiB = {inside}"


@dataclass(frozen=True)
class Workload:
    """What one micro-batch holds and how it is computed.

    Attributes:
        trainable: parameters that get gradients.
        bits: 4 or 8 where the base is quantized.
        frozen_bytes: bytes of a frozen weight as it is held (2 or 4).
        tokens: rows x tokens of a micro-batch, padding included.
        compute_bytes: bytes of an activation (2 under autocast, else 4).
        optimizer_bytes: of AdamW's two moments: 8, or 2 with 8-bit states.
    """

    trainable: int
    bits: int | None
    frozen_bytes: int
    tokens: int
    compute_bytes: int
    optimizer_bytes: int = 8
    full: bool = False


def estimate(shape: ModelShape, work: Workload, *, checkpointing: bool) -> MemoryEstimate:
    """The peak of a training step."""
    body = shape.parameters - shape.embedding_parameters
    kept, computing = layer_activations(shape, work, checkpointing=checkpointing)
    return MemoryEstimate(
        weights=weight_bytes(work, body, shape.embedding_parameters) + (0 if work.full else 4 * work.trainable),
        copies=copy_bytes(work, shape.parameters - shape.looked_up),
        gradients_and_optimizer=state_bytes(work, work.trainable),
        activations=kept * shape.layers + computing,
        logits=logit_bytes(shape, work),
    )


def offloaded(
    whole: MemoryEstimate, shape: ModelShape, work: Workload, what: str, *, checkpointing: bool
) -> MemoryEstimate:
    """The estimate where `activations` or the `optimizer`'s state wait in the host's memory: those in use stay."""
    if what == "activations":
        kept, computing = layer_activations(shape, work, checkpointing=checkpointing)
        return replace(whole, activations=kept * min(shape.layers, OFFLOAD_AHEAD + 1) + computing)
    if what == "optimizer":
        state = whole.gradients_and_optimizer * work.optimizer_bytes // (4 + work.optimizer_bytes)
        kept = whole.gradients_and_optimizer - state
        return replace(whole, gradients_and_optimizer=kept + min(state, 3 * OFFLOAD_CHUNK_BYTES))
    return whole


def weight_bytes(work: Workload, body: int, embeddings: int) -> int:
    """Bytes of the base's weights: `body` of its layers, and embeddings and head, which are never quantized.

    Full fine-tuning keeps fp32 master weights.
    """
    if work.full:
        return 4 * (body + embeddings)
    if work.bits is not None:
        return int(KBIT_BYTES[work.bits] * body) + work.frozen_bytes * embeddings
    return work.frozen_bytes * (body + embeddings)


def copy_bytes(work: Workload, multiplied: int) -> int:
    """fp32 weights that are computed with in 16 bit are held a second time: fused steps keep the copies
    (models/fused.py), autocast caches them.

    Adapters are small and cast again in every layer; an embedding that is only looked up has no copy.
    """
    in_fp32 = work.full or (work.bits is None and work.frozen_bytes == 4)
    return 2 * multiplied if in_fp32 and work.compute_bytes == 2 else 0


def state_bytes(work: Workload, trainable: int) -> int:
    """Bytes of the fp32 gradients and of the optimizer's moments of `trainable` weights."""
    return (4 + work.optimizer_bytes) * trainable


def layer_activations(shape: ModelShape, work: Workload, *, checkpointing: bool) -> tuple[int, int]:
    """(bytes that every layer keeps until its backward pass, bytes of the one that is computed again)."""
    whole = work.tokens * work.compute_bytes * (11 * shape.hidden + 4 * shape.intermediate)
    return (work.tokens * work.compute_bytes * shape.hidden, whole) if checkpointing else (whole, 0)


def logit_bytes(shape: ModelShape, work: Workload) -> int:
    """Bytes of the fp32 logits and their gradient."""
    return 2 * work.tokens * shape.vocabulary * 4


def checkpoint_bytes(trainable: int, optimizer_bytes: int = 8) -> int:
    """One checkpoint: fp32 weights that train, and the optimizer's moments."""
    return (4 + optimizer_bytes) * trainable + 2**20


def best_bytes(trainable: int, *, model_bytes: int) -> int:
    """The most that the best weights take: the set that is kept, the one that takes its place, and its parts."""
    return 2 * model_bytes + checkpoint_bytes(trainable, 0)


def disk_bytes(trainable: int, *, kept: int, model_bytes: int, optimizer_bytes: int = 8) -> int:
    """The most that a run has on disk at a time: kept checkpoints, the one being written, the final model."""
    return (kept + 1) * checkpoint_bytes(trainable, optimizer_bytes) + model_bytes + 8 * 2**20
