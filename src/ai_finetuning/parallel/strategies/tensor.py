"""Tensor parallelism: the ranks of `tp` share every layer, each with its part of the heads, features and vocabulary.

Column-parallel layers hold some outputs and read a replicated input; row-parallel ones hold the matching inputs, and
their outputs are added up (arXiv:1909.08053). A cut weight is a DTensor under its global name, so that FSDP2 can cut it
once more (parallel/weights/layout.py says which slice a rank has); all arithmetic is on plain local tensors. What is not cut
stays a plain tensor with the same value, and the same gradient, on every rank of `tp`.

Random numbers: all ranks of `tp` must draw the same ones (seed by data rank), so that dropout on replicated values is
one mask. LoRA's dropout on a cut input draws the whole mask and takes its part, which is the very mask of one process.
Dropout inside a model's attention (0 in the models of the catalog) is the same mask for the heads of every rank.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from ...errors import ConfigError, ModelError
from ...models.parts import unwrapped
from .._upstream import own_parameters
from ..collectives.tp_collectives import Group, copy_to, gather_from, reduce_from, scatter_to
from ..limits import validate_heads
from ..weights.layout import chunk, local, same_memory
from ..weights.materialize import WeightPlacement

# Module name, numbers written as *, to the way it is cut; the words are transformers' own.
Plan = Mapping[str, str]
COLUMN, COLUMN_JOINED = "colwise", "colwise_gather_output"
ROW, ROW_WHOLE_INPUT = "rowwise", "rowwise_split_input"
VOCABULARY, PARTIAL_GRADIENT = "embedding_rowwise", "replicated_with_grad_allreduce"
_STYLES = frozenset({COLUMN, COLUMN_JOINED, ROW, ROW_WHOLE_INPUT, VOCABULARY, PARTIAL_GRADIENT})
# Attributes that some models' attention reads in view(); a rank computes its own heads only.
_HEAD_COUNTS = ("num_heads", "num_attention_heads", "num_key_value_heads")


def validate(
    config: Any, *, tensor: int, sharded: bool, bits: int | None, optimizer: str, use_dora: bool = False
) -> None:
    """Refuses what tensor parallelism or FSDP cannot train, from settings and the model's configuration alone.

    Args:
        config: the transformers configuration.
        tensor: tensor_parallel_size.
        sharded: weights are cut over the data ranks (FSDP2).
        bits: of a quantized base, or None.
        optimizer: its name in the configuration.
        use_dora: DoRA is asked for.

    Raises:
        ConfigError: with the numbers and the way out.
    """
    if tensor > 1 or sharded:
        _refuse_optimizer(optimizer, "tensor_parallel_size" if tensor > 1 else "strategy: fsdp")
    if tensor == 1:
        return
    if bits is not None:
        raise ConfigError(
            f"tensor_parallel_size {tensor} は {bits} ビット量子化（QLoRA）と組み合わせられません。量子化した重みはブロック単位で詰められており、層の途中で切れません。"
            "量子化をやめて method: lora にするか、strategy: fsdp または ddp を使ってください。",
            f"tensor_parallel_size {tensor} cannot be combined with a {bits}-bit base (QLoRA): quantized weights are "
            "packed in blocks and "
            "cannot be sharded inside a layer; use method: lora, or strategy: fsdp or ddp.",
        )
    if use_dora:
        raise ConfigError(
            f"tensor_parallel_size {tensor} は lora.use_dora と組み合わせられません（DoRA のノルムは切られていない重みから計算します）。use_dora: "
            "false にしてください。",
            f"tensor_parallel_size {tensor} cannot be combined with lora.use_dora, whose norms are computed over whole "
            "weights; set use_dora: false.",
        )
    text = config.get_text_config()
    heads = text.num_attention_heads
    groups = getattr(text, "num_key_value_heads", None) or heads
    validate_heads(heads, groups, tensor)


def _refuse_optimizer(name: str, setting: str) -> None:
    """muon orthogonalises whole matrices; 8-bit states are quantized in blocks of 256 over whole weights."""
    if name not in ("muon", "adamw_8bit"):
        return
    ja = "行列全体を直交化する" if name == "muon" else "状態を重み全体のブロック単位で量子化する"
    en = "orthogonalises whole matrices" if name == "muon" else "quantizes its state in blocks over whole weights"
    raise ConfigError(
        f"optimizer.name {name} は{ja}ため、プロセスが重みの一部しか持たない {setting} では使えません。adamw にするか strategy: ddp を使ってください。",
        f"optimizer.name {name} {en}, but with {setting} a process holds only parts of them; use adamw, or "
        "strategy: ddp.",
    )


def parallelize_layers(model: nn.Module, mesh: DeviceMesh, *, plan: Plan, weight_placement: WeightPlacement) -> None:
    """Cuts a model along `tp`, in place; adapters have to be on it.

    Args:
        model: a transformers model, or one inside an adapter, rank 0's weights are broadcast to all
            ranks.
        mesh: the 1-D `tp` mesh.
        plan: how its modules are cut (models/plans.py).
        weight_placement: where the parts go.

    Raises:
        ModelError: the model is cut already, or has layers that cannot be.
        KeyError: a word in the plan that is not known here.
    """
    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        raise ModelError("モデルはすでに分割されています。", "the model is already sharded.")
    inner: nn.Module = unwrapped(model)
    styles = {name: style for name, _ in inner.named_modules() if (style := plan.get(re.sub(r"\d+", "*", name)))}
    for name, style in styles.items():
        if style not in _STYLES:
            raise KeyError(f"{name}: {style}")
    cut = _Cutter(mesh, weight_placement)
    entrances: dict[str, _Entrance] = {}
    for name, style in styles.items():
        parent = name.rpartition(".")[0]
        cut.module(inner.get_submodule(name), style, entrances.setdefault(parent, _Entrance(mesh.get_group())))
    for parent in {name.rpartition(".")[0] for name, style in styles.items() if style == COLUMN}:
        _divide_heads(inner.get_submodule(parent), parent, mesh.size())
    for parameter in model.parameters():
        if not isinstance(parameter, DTensor):
            parameter.data = cut.arrived(parameter)
    weight_placement.materialize(model)


def _divide_heads(attention: nn.Module, name: str, size: int) -> None:
    for attribute in _HEAD_COUNTS:
        count = getattr(attention, attribute, None)
        if not isinstance(count, int):
            continue
        if count % size:
            raise ModelError(
                f"{name}.{attribute} の {count} は {size} で割り切れません。tensor_parallel_size を変えてください。",
                f"{name}.{attribute} is {count}, which {size} does not divide; change tensor_parallel_size.",
            )
        setattr(attention, attribute, count // size)


class _Entrance:
    """The replicated input of the column-parallel layers of one block.

    q, k and v (gate and up) read the very same tensor; sharing one copy_to() adds their gradients up before the
    all-reduce, which so runs once instead of three (two) times.
    """

    def __init__(self, group: Group) -> None:
        self._group = group
        self.users = 0
        self._left = 0
        self._value: Tensor | None = None
        self._shared: Tensor | None = None

    def __call__(self, value: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and value.requires_grad):
            return value
        if self._value is not value or self._shared is None:
            self._value, self._shared, self._left = value, copy_to(value, self._group), self.users
        shared = self._shared
        self._left -= 1
        if self._left == 0:
            self._value = self._shared = None
        return shared


class _Cutter:
    """Cuts modules; tied weights stay tied."""

    def __init__(self, mesh: DeviceMesh, weight_placement: WeightPlacement) -> None:
        self._mesh, self._weight_placement = mesh, weight_placement
        self._group = mesh.get_group()
        self._source = dist.get_global_rank(self._group, 0)
        self._size, self._rank = mesh.size(), mesh.get_local_rank()
        # By identity; the whole weight is kept so that its identity is not taken over by another.
        self._cut: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}

    def arrived(self, whole: Tensor) -> Tensor:
        """A whole weight on the device: the first rank's."""
        moved = self._weight_placement.of(whole.detach())
        # Not into the file that the weights of a model on the CPU are views of: each rank would get its copy of all of
        # it.
        moved = moved.clone() if same_memory(moved, whole) else moved
        dist.broadcast(moved, self._source, group=self._group)
        return moved

    def _parameter(self, whole: nn.Parameter, dimension: int) -> nn.Parameter:
        if id(whole) not in self._cut:
            start, stop = chunk(whole.shape[dimension], self._size, self._rank)
            part = self.arrived(whole).narrow(dimension, start, stop - start).clone()
            spread = DTensor.from_local(
                part, self._mesh, [Shard(dimension)], run_check=False, shape=whole.shape, stride=whole.stride()
            )
            self._cut[id(whole)] = whole, nn.Parameter(spread, requires_grad=whole.requires_grad)
        return self._cut[id(whole)][1]

    def module(self, module: Any, style: str, entrance: _Entrance) -> None:
        """One module of the plan, and the adapter or the trained copy on it."""
        if hasattr(module, "modules_to_save"):
            for copy in (module.original_module, *module.modules_to_save.values()):
                self.module(copy, style, entrance)
            return
        base = getattr(module, "base_layer", None)
        if base is not None:
            self._adapter(module, style)
            module = base
        if style == VOCABULARY:
            self._embedding(module)
        elif style == PARTIAL_GRADIENT:
            module.forward = partial(_with_shared_weights, module, module.forward, self._group)
        else:
            self._linear(module, style, entrance)

    def _adapter(self, module: Any, style: str) -> None:
        """The half of LoRA that faces the cut is cut like its base; the other half stays whole, with whole
        gradients.
        """
        if getattr(module, "lora_variant", None):
            raise ModelError(
                "LoRA の変種（DoRA など）はテンソル並列では使えません。use_dora: false にしてください。",
                "variants of LoRA (DoRA) cannot be sharded for tensor parallelism; set use_dora: false.",
            )
        if style in (VOCABULARY, PARTIAL_GRADIENT):
            return
        column = style in (COLUMN, COLUMN_JOINED)
        for half in (module.lora_B if column else module.lora_A).values():
            self._linear(half, style, _Entrance(self._group))
        for dropout in module.lora_dropout.values() if style == ROW else ():
            if getattr(dropout, "p", 0.0):
                width = module.in_features
                dropout.forward = partial(_dropout_of_part, dropout, width, chunk(width, self._size, self._rank))

    def _linear(self, module: Any, style: str, entrance: _Entrance) -> None:
        _require_linear(module)
        column = style in (COLUMN, COLUMN_JOINED)
        width = module.out_features if column else module.in_features
        module.weight = self._parameter(module.weight, 0 if column else 1)
        if not column:
            module.forward = partial(_row, module, self._group, width if style == ROW_WHOLE_INPUT else None)
            return
        if module.bias is not None:
            module.bias = self._parameter(module.bias, 0)
        entrance.users += 1
        module.forward = partial(_column, module, entrance, self._group, width if style == COLUMN_JOINED else None)

    def _embedding(self, module: Any) -> None:
        _require_embedding(module)
        start, stop = chunk(module.num_embeddings, self._size, self._rank)
        module.weight = self._parameter(module.weight, 0)
        module.forward = partial(_embedding, module, module.forward, (start, stop), self._group)


def _require_linear(module: nn.Module) -> None:
    if type(module) is not nn.Linear:
        raise ModelError(
            f"テンソル並列で分割できるのは通常の線形層だけです（{type(module).__name__}）。量子化をやめるか strategy: fsdp を使ってください。",
            f"only plain linear layers can be sharded for tensor parallelism, not {type(module).__name__}; do not "
            "quantize, or use strategy: fsdp.",
        )


def _require_embedding(module: nn.Module) -> None:
    if not isinstance(module, nn.Embedding) or module.max_norm is not None:
        raise ModelError(
            f"埋め込み {type(module).__name__} はテンソル並列で分割できません。",
            f"the embedding {type(module).__name__} cannot be sharded for tensor parallelism.",
        )


def _column(linear: nn.Linear, entrance: _Entrance, group: Group, width: int | None, value: Tensor) -> Tensor:
    bias = None if linear.bias is None else local(linear.bias)
    part = F.linear(entrance(value), local(linear.weight), bias)
    return part if width is None else gather_from(part, width, group)


def _row(linear: nn.Linear, group: Group, width: int | None, value: Tensor) -> Tensor:
    part = value if width is None else scatter_to(value, width, group)
    added = reduce_from(F.linear(part, local(linear.weight)), group)
    return added if linear.bias is None else added + linear.bias.to(added.dtype)


@contextlib.contextmanager
def _weights(module: nn.Module, changed: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """A module's own weights changed while its forward runs; gradients flow back into the real ones."""
    parameters = own_parameters(module)
    kept = dict(parameters)
    try:
        for name, weight in kept.items():
            if weight is not None:
                parameters[name] = changed(weight)
        yield
    finally:
        parameters.update(kept)


def _embedding(
    module: nn.Embedding, forward: Callable[[Tensor], Tensor], mine: tuple[int, int], group: Group, ids: Tensor
) -> Tensor:
    """Vectors of this rank's tokens, zeros for others, added up; the module's own forward may scale them (Gemma)."""
    start, stop = mine
    others = (ids < start) | (ids >= stop)
    padding = module.padding_idx
    try:
        # The padding row's gradient stays zero on the rank that has it.
        module.padding_idx = padding - start if padding is not None and start <= padding < stop else None
        with _weights(module, local):
            obtained = forward((ids - start).masked_fill(others, 0))
    finally:
        module.padding_idx = padding
    return reduce_from(obtained.masked_fill(others[..., None], 0.0), group)


def _with_shared_weights(module: nn.Module, forward: Callable[..., Tensor], group: Group, *args: Any) -> Tensor:
    """A whole weight that works on cut values: each rank's gradient is its share, added up before it is accumulated."""
    with _weights(module, lambda weight: copy_to(weight, group)):
        return forward(*args)


def _dropout_of_part(dropout: nn.Dropout, width: int, mine: tuple[int, int], value: Tensor) -> Tensor:
    """Dropout on this rank's part of [..., width] with its part of the mask that one process would draw."""
    if not dropout.training or dropout.p == 0:
        return value
    whole = torch.ones((*value.shape[:-1], width), dtype=value.dtype, device=value.device)
    return value * F.dropout(whole, dropout.p)[..., mine[0] : mine[1]].contiguous()
