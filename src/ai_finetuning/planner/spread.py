"""What the fullest of several devices holds in a training step, by how the run is spread.

One process's estimate (memory.py) is divided as the strategies divide weights, gradients, moments and layers. Where a
part is not known to be divided it counts whole, so that a plan errs upward.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from ..parallel.plan import ParallelPlan
from ..parallel.strategies.device_map import Block, Split
from ..parallel.strategies.pipeline import SCHEDULES
from ..parallel.strategies.stages import split_layers
from .memory import MemoryEstimate, Workload
from .shape import ModelShape

# Of the 11 hidden states that a token leaves in a layer (memory.layer_activations), those that every rank of `tensor` has
# whole: inputs and outputs of the norms, and what is added to them.
_WHOLE, _ALL = 5, 11


def on_fullest_device(
    whole: MemoryEstimate,
    shape: ModelShape,
    work: Workload,
    blocks: Sequence[Block],
    parallel: ParallelPlan,
    micro_batches: int,
) -> MemoryEstimate:
    """The need of the device that needs most.

    Args:
        whole: of a process that holds everything.
        blocks: planner.layers.blocks_of() the model, whose bytes sum to `whole`.
        micro_batches: of an optimizer step on each data rank; a pipeline keeps several of them at a time.
    """
    sizes = parallel.sizes
    if sizes.pp > 1:
        whole = _of_stage(whole, shape, blocks, parallel, micro_batches)
    if sizes.tp > 1:
        whole = _of_tensor_rank(whole, shape, work, sizes.tp)
    if parallel.sharded or parallel.zero_stage == 3:
        # Stages of a pipeline keep their gradients whole until the step ends (parallel/strategies/pipeline.py).
        gradients = 0 if sizes.pp == 1 else _gradients(whole, work)
        whole = of_sharded_rank(whole, sizes.dp, gathered(blocks, shape, work) // sizes.tp, gradients=gradients)
        if work.full:
            whole = replace(whole, logits=max(whole.logits, _sent(blocks, work) // sizes.tp))
    elif parallel.zero_stage == 2:
        whole = replace(whole, gradients_and_optimizer=whole.gradients_and_optimizer // sizes.dp)
    return whole


def of_sharded_rank(whole: MemoryEstimate, ranks: int, gathered: int, *, gradients: int = 0) -> MemoryEstimate:
    """A rank of fsdp: weights, gradients and moments are divided, activations are its own, and no 16-bit copies stay.

    The same for any number of micro-batches in a step: each one's gradients are summed over the devices and divided as
    soon as its backward pass has them.

    Args:
        gathered: what is whole for a while (gathered()).
        gradients: bytes of them that are kept whole all the same.
    """
    return replace(
        whole,
        weights=whole.weights // ranks + gathered,
        copies=0,
        gradients_and_optimizer=(whole.gradients_and_optimizer - gradients) // ranks + gradients,
    )


def gathered(blocks: Sequence[Block], shape: ModelShape, work: Workload) -> int:
    """Bytes of weights that a rank of fsdp has whole at a time (parallel/strategies/shard.py).

    What is gathered comes in one buffer and is copied from it into the weights; the buffer goes when the next one comes.
    On GPUs embedding and head are gathered by themselves, and the head stays for its backward pass; where they are one
    weight, and on CPUs, they are whole from the forward pass to the end of the backward pass. Of the layers one computes
    and the next one comes.

    Args:
        blocks: of the model, in order (planner/layers.py).
    """
    layers = blocks[1 : 1 + shape.layers]
    layer = max((_gathered(block, work) for block in layers), default=0)
    ends = [_gathered(block, work) for block in blocks if block not in layers]
    if work.gpu and len(ends) > 1:
        return max(2 * max(ends), ends[-1] + 3 * layer)
    return 2 * sum(ends) + 3 * layer


def _gathered(block: Block, work: Workload) -> int:
    """A block's weights as they are sent: fp32 masters in 16 bit on GPUs, else as they are held, with their 16-bit copies."""
    if work.full and work.gpu and work.compute_bytes == 2:
        return 2 * _numbers(block, work)
    return block.weights


def _sent(blocks: Sequence[Block], work: Workload) -> int:
    """Bytes of the gradients of the largest layer, whole, and of the fp32 buffer from which they are summed."""
    held = 2 if work.gpu and work.compute_bytes == 2 else 4
    return (held + 4) * max(_numbers(block, work) for block in blocks)


def _numbers(block: Block, work: Workload) -> int:
    """Weights of a block that train."""
    return block.states // (4 + work.optimizer_bytes)


def on_fullest_of_map(whole: MemoryEstimate, split: Split) -> MemoryEstimate:
    """The GPU of a model_parallel map that is fullest by its own size, under the names of an estimate; weights count
    with their copies, activations with the logits.
    """
    load = split.fullest
    return MemoryEstimate(load.weights, load.states, load.activations, 0, whole.base)


def _gradients(whole: MemoryEstimate, work: Workload) -> int:
    return whole.gradients_and_optimizer * 4 // (4 + work.optimizer_bytes)


def _of_tensor_rank(whole: MemoryEstimate, shape: ModelShape, work: Workload, ranks: int) -> MemoryEstimate:
    """Weights are cut along heads, features and vocabulary; hidden states between the layers, and logits, are whole."""
    states = _WHOLE * shape.hidden
    share = (states + ((_ALL - _WHOLE) * shape.hidden + 4 * shape.intermediate) / ranks) / (
        _ALL * shape.hidden + 4 * shape.intermediate
    )
    inputs = min(whole.activations, work.tokens * work.compute_bytes * shape.hidden * shape.layers)
    return replace(
        whole,
        weights=whole.weights // ranks,
        copies=whole.copies // ranks,
        # Of an adapter one of two factors is whole on every rank; to divide none of it errs little.
        gradients_and_optimizer=whole.gradients_and_optimizer // (ranks if work.full else 1),
        activations=max(inputs, int(whole.activations * share)),
    )


def _of_stage(
    whole: MemoryEstimate,
    shape: ModelShape,
    blocks: Sequence[Block],
    parallel: ParallelPlan,
    micro_batches: int,
) -> MemoryEstimate:
    """The fullest process of a pipeline: its layers, with the activations of the micro-batches that are on their way."""
    processes, schedule = parallel.sizes.pp, SCHEDULES[parallel.schedule]
    front, middle = blocks[0], blocks[1 : 1 + shape.layers]
    back = blocks[-1] if len(blocks) > 1 + len(middle) else front  # a tied head is at both ends
    products = sum(inputs * outputs for _, inputs, outputs in shape.linear_features) / shape.layers
    stages = processes * schedule.stages
    sizes = split_layers([products] * shape.layers, stages, after=shape.vocabulary * shape.hidden)
    held: list[list[Block]] = [[] for _ in range(processes)]
    start = 0
    for stage, size in enumerate(sizes):
        own = [*([front] if stage == 0 else []), *middle[start : start + size]]
        own += [back] if stage == stages - 1 and back not in own else []
        place = stages - 1 - stage if schedule.vee and stage >= processes else stage % processes
        held[place] += own
        start += size
    count = schedule.count(micro_batches, processes)
    every = sum(block.weights for block in blocks)
    states = sum(block.states for block in blocks)
    needs = []
    for place, own in enumerate(held):
        weights = sum(block.weights for block in own)
        mine = sum(block.activations for block in own if block in middle)
        share = weights / every
        copies = int(whole.copies * share)
        needs.append(
            replace(
                whole,
                weights=weights - copies,
                copies=copies,
                gradients_and_optimizer=sum(block.states for block in own) if states else 0,
                activations=mine * _on_their_way(parallel.schedule, place, processes, count)
                + max((block.transient for block in own), default=0),
                logits=whole.logits if back in own else 0,
            )
        )
    return max(needs, key=lambda need: need.total)


def _on_their_way(schedule: str, place: int, processes: int, micro_batches: int) -> int:
    """Micro-batches of which a process keeps activations at a time: all of them under GPipe; as many as there are
    processes from it to the end under 1F1B (arXiv:2104.04473, section 2.2); half as many more than processes where each
    has two stages.
    """
    most = {"GPipe": micro_batches, "1F1B": processes - place}.get(schedule, processes + math.ceil(processes / 2))
    return min(most, micro_batches)
