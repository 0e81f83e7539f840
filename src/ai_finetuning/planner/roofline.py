"""How long a step takes on GPUs that are not here: arithmetic over what their maker states, a bound and no measurement.

t = sum of max(operations / rate, bytes / bandwidth) over what a step does (Williams et al., "Roofline", CACM 2009), and
not less than the host needs to start its kernels. Data ranks send each other gradients, and weights that they hold in parts,
while they compute: a step takes the longer of both. What tensor and pipeline ranks send is not in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import Reason
from .gpus import Card, Gpus
from .memory import weight_bytes

if TYPE_CHECKING:
    from ..parallel.plan import ParallelPlan
    from .memory import Workload
    from .shape import ModelShape

# Of the stated peaks, what large products and large copies reach: an assumption (620 of an H100's 989 TFLOP/s, 2.7 of its
# 3.35 TB/s) until `aift gpu self-check` has measured a card.
RATE, BANDWIDTH = 0.62, 0.80
# Element-wise traffic of a token in a layer, in activations of 11 hidden + 4 intermediate values: counted on simulated
# tensors of a LoRA step of an 8B Llama (643 GB for 4,096 tokens in 32 layers, with checkpointing). Without adapters two
# thirds of it are assumed, without checkpointing three quarters.
_TRAFFIC, _NO_ADAPTER, _KEPT = 24.0, 2 / 3, 3 / 4
# Bytes that the loss moves for a logit, by whether the head trains: counted on the same tensors.
_LOSS_BYTES = {False: 50, True: 148}
# Kernels of a layer and micro-batch, as counted there; half of them belong to the adapters. Seconds that starting one
# takes.
_KERNELS, _KERNEL_SECONDS = 330, 8e-6
# Bytes of a trained weight that clipping and AdamW move: gradient, weight and two moments read and written.
_UPDATE_BYTES = 36


@dataclass(frozen=True)
class Pass:
    """What the GPUs do for one micro-batch.

    Attributes:
        operations: of the products.
        weights: bytes of the weights that the products read.
        attention: operations of the attention scores and what is mixed by them.
        moved: bytes that everything else reads and writes.
        kernels: that are started.
    """

    operations: float
    weights: float
    attention: float
    moved: float
    kernels: int

    def seconds(self, rate: float, bandwidth: float) -> float:
        """How long it takes.

        Args:
            rate: operations a second. bandwidth: bytes a second.
        """
        computing = max(self.operations / rate, self.weights / bandwidth) + self.attention / rate
        return max(computing + self.moved / bandwidth, self.kernels * _KERNEL_SECONDS)


def micro_batch(shape: ModelShape, work: Workload, *, checkpointing: bool, document: float, updates: float) -> Pass:
    """What a micro-batch asks of a GPU.

    Args:
        document: tokens of a mean document: attention goes no further.
        updates: optimizer steps for each micro-batch.
    """
    products = sum(inputs * outputs for _, inputs, outputs in shape.linear_features)
    head = shape.vocabulary * shape.hidden
    passes = 2 + work.full + checkpointing
    # Quantized weights are read and written as 16 bit before each product, by kernels of their own.
    unpacked = products * passes * (2 + work.bits / 8) if work.bits is not None else 0.0
    wide = 11 * shape.hidden + 4 * shape.intermediate
    traffic = _TRAFFIC * (_NO_ADAPTER if work.full else 1) * (1 if checkpointing else _KEPT)
    return Pass(
        operations=2.0 * work.tokens * (products * passes + head * (2 + work.full)),
        weights=2.0 * products * passes + 2.0 * head * (2 + work.full),
        # A causal document: half of tokens x tokens, twice (scores, mixing); the backward pass makes five products of it.
        attention=2.0 * work.tokens * document * shape.hidden * shape.layers * (3.5 + checkpointing),
        moved=traffic * wide * work.compute_bytes * work.tokens * shape.layers
        + _LOSS_BYTES[work.full] * work.tokens * shape.vocabulary
        + _UPDATE_BYTES * work.trainable * updates
        + unpacked,
        kernels=int(_KERNELS * (0.5 if work.full else 1)) * shape.layers,
    )


@dataclass(frozen=True)
class Rates:
    """What a GPU reaches.

    Attributes:
        tflops: 10^12 operations a second of large products by fp32, bf16, fp16.
        bandwidth: 10^9 bytes a second of its memory.
        source: where the numbers are from.
        link: 10^9 bytes a second that it sends to other GPUs; None where that is not known, and takes no time then.
    """

    tflops: Mapping[str, float]
    bandwidth: float
    source: Reason
    link: float | None = None


def stated_rates(gpus: Gpus) -> Rates:
    """By the table."""
    card = gpus.card
    ja, en = "", ""
    if gpus.count > 1:
        ja = "。GPU 間の通信は、ddp と fsdp の勾配と重みだけを含みます"
        en = "; of what GPUs send each other only gradients and weights of ddp and fsdp"
    return Rates(
        {kind: RATE * value for kind, value in card.tflops.items()},
        BANDWIDTH * card.bandwidth,
        Reason(
            f"{gpus} の公称値からの計算で、実測ではありません{ja}",
            f"computed from the stated figures of {gpus}, not measured{en}",
        ),
        linked(card),
    )


def linked(card: Card) -> float:
    """10^9 bytes a second that a card is assumed to send to others."""
    return BANDWIDTH * card.link


def sent(shape: ModelShape, work: Workload, parallel: ParallelPlan, number: float) -> float:
    """Bytes that a data rank sends in a step, in rings: fp32 gradients once, or, where weights lie in parts, those twice and
    the gradients of each of `number` micro-batches.
    """
    sizes = parallel.sizes
    part = (sizes.dp - 1) / sizes.dp / (sizes.pp * sizes.tp)
    gradients = 4 * work.trainable
    if not (parallel.sharded or parallel.zero_stage == 3):
        return part * 2 * gradients
    every, linear = shape.parameters, shape.quantizable
    weights = work.compute_bytes * every if work.full else weight_bytes(work, linear, every - linear)
    return part * number * (2 * weights + gradients)


def step_seconds(
    one: Pass, precision: str, rates: Rates, parallel: ParallelPlan, number: float, sending: float = 0.0
) -> float:
    """How long an optimizer step takes.

    Args:
        one: what a micro-batch asks.
        precision: fp32, bf16 or fp16.
        parallel: how the run is spread over the GPUs.
        number: micro-batches of a step on each data rank.
        sending: bytes that a data rank sends in it.
    """
    sizes = parallel.sizes
    seconds = one.seconds(rates.tflops[precision] * 1e12, rates.bandwidth * 1e9)
    # Processes of a pipeline wait for the first and for the last micro-batch.
    computing = seconds * (number + sizes.pp - 1) / (sizes.tp * sizes.pp)
    return computing if rates.link is None else max(computing, sending / (rates.link * 1e9))
