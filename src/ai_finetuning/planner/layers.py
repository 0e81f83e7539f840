"""What each layer of a model costs in a training step, for a map of several devices (parallel/strategies/device_map.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..errors import ModelError
from ..models.parts import decoder_layers
from ..parallel.strategies.device_map import Block, Split, balance
from . import memory
from .memory import Workload
from .shape import ModelShape, shape_of


def split_model(
    model: Any,
    work: Workload,
    capacity: Mapping[int, int],
    *,
    checkpointing: bool,
    targets: Sequence[str] | None = None,
) -> Split:
    """The balanced map of a model over devices.

    Args:
        model: a transformers causal LM without an adapter, on the meta device too.
        capacity: bytes by device index.
        targets: layers that get an adapter, where work is not full; None for all linear layers but the head.

    Raises:
        ModelError: no list of layers is found in the model.
    """
    return balance(blocks_of(model, work, checkpointing=checkpointing, targets=targets), capacity)


def blocks_of(model: Any, work: Workload, *, checkpointing: bool, targets: Sequence[str] | None = None) -> list[Block]:
    """The unsplittable parts of a model in the order of its forward pass; their bytes sum to memory.estimate()'s.

    What comes before the layers is one block; what comes after them (the final norm) lies with the head, where the loss
    is computed. A tied head is the embedding's own weight, so there both are one block, and the hidden states come back
    to the first device.
    """
    shape = shape_of(model)
    front, layers, back = modules_of(model)
    kept, computing = memory.layer_activations(shape, work, checkpointing=checkpointing)
    logits = memory.logit_bytes(shape, work)
    rank = 0 if work.full else work.trainable / max(1, shape.lora_parameters(1, targets))
    own = {
        id(weight)
        for place in (model.get_input_embeddings(), model.get_output_embeddings())
        for weight in place.parameters()
    }

    def block(modules: Sequence[str], activations: int = 0, transient: int = 0, *, looked_up: bool = False) -> Block:
        held = {id(weight): weight for name in modules for weight in model.get_submodule(name).parameters()}
        embeddings = sum(weight.numel() for key, weight in held.items() if key in own)
        whole, inside = sum(weight.numel() for weight in held.values()), _inside(shape, modules)
        linear = min(inside.quantizable, whole - embeddings)
        trains = whole if work.full else round(rank * inside.lora_parameters(1, targets))
        weights = memory.weight_bytes(work, linear, whole - linear) + (0 if work.full else 4 * trains)
        weights += memory.copy_bytes(work, whole - embeddings if looked_up else whole)
        return Block(tuple(modules), weights, memory.state_bytes(work, trains), activations, transient)

    middle = [block([name], kept, computing) for name in layers]
    if model.get_input_embeddings().weight is model.get_output_embeddings().weight:
        return [block([*front, *back], logits), *middle]
    return [block(front, looked_up=True), *middle, block(back, logits)]


def _inside(shape: ModelShape, modules: Sequence[str]) -> ModelShape:
    """The shape with the linear layers inside some modules alone."""
    prefixes = tuple(f"{name}." for name in modules)
    inside = tuple(item for item in shape.linear_features if f"{item[0]}.".startswith(prefixes))
    return replace(shape, linear_features=inside)


def modules_of(model: Any) -> tuple[list[str], list[str], list[str]]:
    """Names of the modules before the layers, of the layers, and of those after them with the head, which is last.

    Raises:
        ModelError: the decoder has no list of layers.
    """
    names = {id(module): name for name, module in model.named_modules()}
    children = list(model.get_decoder().children())
    layers = decoder_layers(model)
    if layers is None:
        kind = type(model).__name__
        raise ModelError(
            f"{kind} には層のリストが見つからないため、model_parallel で分けられません。strategy: fsdp を使ってください。",
            f"{kind} has no single list of layers, so model_parallel cannot split it; use strategy: fsdp.",
        )
    at = children.index(layers)
    # Rotary embeddings and dropout hold no weights and run before the first layer, wherever they are listed.
    after = [child for child in children[at + 1 :] if next(child.parameters(), None) is not None]
    before = [child for child in children if child is not layers and child not in after]
    back = [*after, model.get_output_embeddings()]
    first, middle, last = ([names[id(module)] for module in part] for part in (before, layers, back))
    return first, middle, last
