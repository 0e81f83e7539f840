"""Memory and disk of a run by simple formulas, before anything is loaded.

Sources: bytes per parameter of mixed-precision AdamW as in ZeRO (arXiv:1910.02054, section 3.1); activations per token
and layer after Korthikanti et al. (arXiv:2205.05198) for gated MLPs without stored attention scores; NF4 with double
quantization as in QLoRA (arXiv:2305.14314). Estimates, to be compared with the peak that a run reports.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..errors import localized
from ..parallel.limits import BASE_BYTES, LOGIT_CHUNK_BYTES, OFFLOAD_AHEAD, OFFLOAD_CHUNK_BYTES
from .numbers import ModelShape

# Bytes of a quantized weight with its scales.
KBIT_BYTES = {4: 0.53, 8: 1.04}
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
        longest: tokens of the longest document; 0 for one as long as all of it.
        adapted: numbers that a token brings to all layers with an adapter.
        dropout: an adapter's inputs go through dropout.
        fused: fused blocks compute the layers (models/fused.py).
        gpu: one kernel computes attention and keeps no scores.
        documents: the head makes no more logits at a time than a chunk (engine/loss.py).
    """

    trainable: int
    bits: int | None
    frozen_bytes: int
    tokens: int
    compute_bytes: int
    optimizer_bytes: int = 8
    full: bool = False
    longest: int = 0
    adapted: int = 0
    dropout: bool = False
    fused: bool = False
    gpu: bool = False
    documents: bool = True

    @property
    def stream_bytes(self) -> int:
        """Bytes of a number of the hidden states between layers: as wide as the weights that make them."""
        return 4 if self.full or self.frozen_bytes == 4 else self.compute_bytes


def estimate(shape: ModelShape, work: Workload, *, checkpointing: bool) -> MemoryEstimate:
    """The peak of a training step."""
    linear = shape.quantizable
    kept, computing = layer_activations(shape, work, checkpointing=checkpointing)
    return MemoryEstimate(
        weights=weight_bytes(work, linear, shape.parameters - linear) + (0 if work.full else 4 * work.trainable),
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


def weight_bytes(work: Workload, linear: int, others: int) -> int:
    """Bytes of the base's weights: of its linear layers, and of embeddings, head, experts' tensors and whatever else is
    never quantized.

    Full fine-tuning keeps fp32 master weights.
    """
    if work.full:
        return 4 * (linear + others)
    if work.bits is not None:
        return int(KBIT_BYTES[work.bits] * linear) + work.frozen_bytes * others
    return work.frozen_bytes * (linear + others)


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
    """(bytes that every layer keeps until its backward pass, bytes of the one that is computed, back and again)."""
    kept = round(work.tokens * _kept(shape, work))
    widest = max(work.compute_bytes, work.stream_bytes)
    back = work.tokens * widest * (4 * shape.hidden + 4 * shape.intermediate)
    if (shape.softcap or shape.inner_dropout) and not (work.gpu or work.fused):
        back += 4 * 4 * work.tokens * shape.heads * (work.longest or work.tokens)  # scores on their way
    if not checkpointing:
        return kept, back
    return work.tokens * work.stream_bytes * shape.hidden, kept + back


def _kept(shape: ModelShape, work: Workload) -> float:
    """Bytes that one token leaves in one layer for the backward pass."""
    layers, compute, stream = max(1, shape.layers), work.compute_bytes, work.stream_bytes
    inputs = sum(item[1] for item in shape.linear_features) / layers
    outputs = sum(item[2] for item in shape.linear_features) / layers
    outputs = max(0.0, outputs - 2 * shape.hidden)  # two of them are added to the hidden states and not kept
    heads = shape.heads * shape.head_dim
    if work.fused:
        numbers = (shape.norms + 2) * shape.hidden + outputs + heads + shape.intermediate
        return compute * numbers + _scores(shape, work)
    # Norms compute in fp32 and keep what they read in it; where their weights train, what these are multiplied by too.
    norms = shape.norms * shape.hidden * (stream + (4 if stream == 2 or work.full else 0))
    total = 2 * shape.hidden * stream + norms + compute * (outputs + 2 * shape.intermediate)
    # Attention's output as heads and as tokens; on a CPU, queries and results of its products; fp32 rotations.
    total += heads * (2 * compute + (0 if work.gpu else 2 * compute) + (2 * stream if stream != compute else 0))
    total += _scores(shape, work)
    if work.full:
        return total + (inputs * compute if compute != stream else 0)
    adapted = work.adapted / layers
    rank = work.trainable / max(1, shape.lora_parameters(1, None))
    total += 2 * 4 * rank * len(shape.linear_features) / layers
    if work.dropout:
        return total + adapted * (2 * compute if work.gpu else 4 + compute)
    return total + (adapted * compute if compute == 2 and not work.gpu else 0)


# On a CPU, longest document whose probabilities are kept, all of a row in half of it (kernels/attention.py), and queries
# that fused blocks take at a time.
_KEPT_DOCUMENT, _QUERIES = 1024, 256


def _scores(shape: ModelShape, work: Workload) -> float:
    """Bytes of attention's scores that one token leaves in one layer."""
    longest, compute = work.longest or work.tokens, work.compute_bytes
    if work.gpu:
        return 4 * shape.heads  # and a kernel of its own for everything else
    if work.fused:
        return shape.heads * compute * (1 + shape.softcap) * (longest + _QUERIES) / 2
    if shape.softcap:
        return shape.heads * longest * (compute + 4 + (2 if compute == 2 else 0)) + longest
    if shape.inner_dropout:
        return shape.heads * longest * 3 * compute
    kept = longest <= _KEPT_DOCUMENT or compute == 2
    probabilities = shape.heads * compute * (longest + _QUERIES) / 2 if kept else 0.0
    return probabilities + 4 * shape.heads + 5 * longest / max(1, shape.layers)


def logit_bytes(shape: ModelShape, work: Workload) -> int:
    """Bytes of logits and of what the loss makes beside them.

    A document loss makes one chunk at a time, and the gradients of the hidden states, and of the head where it trains,
    before it goes on; others make all logits, and their gradient.
    """
    if not work.documents:
        return 3 * work.tokens * shape.vocabulary * 4
    numbers = min(work.tokens * shape.vocabulary, LOGIT_CHUNK_BYTES // 4)
    head = shape.vocabulary * shape.hidden
    weights = 2 * 4 * head if work.full else head * work.compute_bytes if work.frozen_bytes != work.compute_bytes else 0
    hidden = 3 * work.tokens * shape.hidden * max(work.compute_bytes, work.stream_bytes)
    # Beside the logits their gradient in fp32, the scores where logits are in 16 bit, and three more under a cap; the
    # compiled kernel works in place.
    copies = 0 if work.fused else 4 + (4 if work.compute_bytes == 2 else 0) + (12 if shape.capped_logits else 0)
    return numbers * (work.compute_bytes + copies) + weights + hidden


def checkpoint_bytes(trainable: int, optimizer_bytes: int = 8) -> int:
    """One checkpoint: fp32 weights that train, and the optimizer's moments."""
    return (4 + optimizer_bytes) * trainable + 2**20


def best_bytes(trainable: int, *, model_bytes: int) -> int:
    """The most that the best weights take: the set that is kept, the one that takes its place, and its parts."""
    return 2 * model_bytes + checkpoint_bytes(trainable, 0)


def disk_bytes(trainable: int, *, kept: int, model_bytes: int, optimizer_bytes: int = 8) -> int:
    """The most that a run has on disk at a time: kept checkpoints, the one being written, the final model."""
    return (kept + 1) * checkpoint_bytes(trainable, optimizer_bytes) + model_bytes + 8 * 2**20
