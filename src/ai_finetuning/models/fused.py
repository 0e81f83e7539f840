"""Puts the fused blocks of kernels/blocks.py under a transformers model, and takes them off again.

The model keeps its modules, parameters and classes: only the `forward` of single layers is replaced, on the instance,
and a call without document lengths (generation, a user's own call) still goes through the original one.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from ..errors import Reason
from ..kernels.attention import Length
from ..kernels.attention_blocks import AttentionShape, keeps_attention
from ..kernels.attention_pieces import attention_of
from ..kernels.blocks import Linears, LoRA, Made
from ..kernels.build import why_unavailable
from ..kernels.inputs import Gated, Given, Normed
from ..kernels.native import ACTIVATIONS
from ..kernels.products import PIECES, TORCH, Products, release, rounded
from ..system.gpu import cpu_has_bf16
from ._upstream import version_of
from .parts import decoder_layers


class MasterCasts:
    """Weights in the type that the blocks compute in: as they are, or bf16 copies of fp32 master weights, made once after
    each update.

    Fused AdamW changes weights without raising their version counter, so the optimizer has to say that it has stepped:
    `updated` is registered as its post-step hook. Copies into weights (a resume) are seen by the counter.
    """

    def __init__(self, dtype: torch.dtype, products: str = TORCH) -> None:
        self.dtype, self.products = dtype, Products(products)
        # A pipeline drops the weights of other stages; their copies go with them.
        self._copies: MutableMapping[Tensor, tuple[tuple[int, int], Tensor]] = WeakTensorKeyDictionary()
        self._steps = 0

    def updated(self, *_: Any) -> None:
        """The optimizer has stepped."""
        self._steps += 1

    def __call__(self, weight: Tensor) -> Tensor:
        """The weight itself where it is of the type, else its copy, refreshed when the weight has changed."""
        if weight.dtype is self.dtype:
            return weight
        now = (self._steps if weight.requires_grad else 0, version_of(weight))  # a frozen weight is cast once
        made, copy = self._copies.get(weight, (None, None))
        if copy is None:
            copy = weight.detach().to(self.dtype)
        elif made != now:
            copy = copy.copy_(weight.detach())
        self._copies[weight] = (now, copy)
        return copy


def padding_of(cast: Any, tokens: int) -> int:
    """Tokens behind the last document that give rows of similar length the same shapes, where that is faster."""
    pieces = isinstance(cast, MasterCasts) and cast.products.library == PIECES
    return rounded(tokens) - tokens if pieces else 0


@dataclass(frozen=True)
class Family:
    """How a decoder layer of an architecture is put together.

    Attributes:
        centered: LayerNorm instead of RMSNorm.
        offset: added to the norm's weight (Gemma multiplies by 1 + w).
        norms: names of (before attention, after attention, before MLP, after MLP); None where there is none after.
        head_norms: names of the norms on every head of q and k.
        rotary: attribute of the attention with the number of rotated features; None for all.
        window_in_config: the attention reads its sliding window from the configuration and keeps none of its own.
        supports: refuses configurations with a reason, or None.
    """

    norms: tuple[str, str | None, str, str | None] = (
        "input_layernorm",
        None,
        "post_attention_layernorm",
        None,
    )
    centered: bool = False
    offset: float = 0.0
    head_norms: tuple[str, str] | None = None
    rotary: str | None = None
    window_in_config: bool = False
    supports: Callable[[Any], Reason | None] = field(default=lambda config: None)


def _stablelm(config: Any) -> Reason | None:
    if config.use_parallel_residual:
        return Reason("残差が並列の構造には対応していません", "parallel residual")
    if config.qk_layernorm:
        return Reason("ヘッドごとの LayerNorm には対応していません", "per-head LayerNorm")
    return None


FAMILIES: dict[str, Family] = {
    "llama": Family(),
    "mistral": Family(window_in_config=True),
    "qwen2": Family(),
    "qwen3": Family(head_norms=("q_norm", "k_norm")),
    "stablelm": Family(centered=True, rotary="rotary_ndims", supports=_stablelm),
    "gemma2": Family(
        norms=(
            "input_layernorm",
            "post_attention_layernorm",
            "pre_feedforward_layernorm",
            "post_feedforward_layernorm",
        ),
        offset=1.0,
    ),
}


@dataclass
class _Layer:
    """What one layer's fused forward works with."""

    family: Family
    module: Any
    attention: AttentionShape
    activation: str
    cast: MasterCasts


def computed_in(model: Any, autocast: torch.dtype | None) -> torch.dtype | None:
    """The type that the fused blocks would compute a model in, or None where they have none: autocast's, or fp32 where
    all weights are.
    """
    if autocast is not None:
        return autocast if autocast is torch.bfloat16 else None
    return torch.float32 if all(weight.dtype is torch.float32 for weight in model.parameters()) else None


def why_not_worth(device: torch.device, compute: torch.dtype = torch.bfloat16) -> Reason | None:
    """None where the compiled kernels make a step faster, else the reason in a few words.

    A processor without bf16 instructions can run them in bf16 (the tests do), but torch's bf16 products around them are
    slower there than fp32 ones.
    """
    if device.type == "cpu" and compute is torch.bfloat16 and not cpu_has_bf16():
        return Reason("高速版 fused は bf16 対応 CPU のみ", "the processor has no bf16 instructions")
    return None


def why_not(model: Any, device: torch.device, *, compute: torch.dtype | None, if_slow: bool = False) -> Reason | None:
    """None where the fused blocks serve this model, else the reason in a few words.

    Args:
        compute: as computed_in() says.
        if_slow: also where they are not worth choosing.
    """
    config = model.config
    family = FAMILIES.get(config.model_type)
    if family is None:
        return Reason(
            f"高速版 fused は {config.model_type} に対応していません", f"no fused blocks for {config.model_type}"
        )
    if compute is None:
        return Reason(
            "高速版 fused は bf16 と、重みも fp32 の計算のみ",
            "the fused blocks compute in bf16, or in fp32 on fp32 weights",
        )
    worth = None if if_slow else why_not_worth(device, compute)
    reason = worth or why_unavailable(device, compute) or family.supports(config)
    if reason is not None:
        return reason
    activation = _activation(config)
    if activation not in ACTIVATIONS:
        return Reason(f"活性化関数 {activation} には対応していません", f"activation {activation}")
    if getattr(config, "attention_dropout", 0.0) or getattr(config, "hidden_dropout", 0.0):
        return Reason("モデルの中にドロップアウトがあります", "dropout inside the model")
    return next(
        (reason for layer in _layers(model) for reason in map(_why_not_linear, _linears(layer)) if reason), None
    )


def _layers(model: Any) -> nn.ModuleList:
    layers = decoder_layers(model)
    assert layers is not None  # every family above has them
    return layers


def _activation(config: Any) -> str:
    return str(getattr(config, "hidden_activation", None) or config.hidden_act)


def _linears(layer: Any) -> list[nn.Module]:
    attention, mlp = layer.self_attn, layer.mlp
    return [
        attention.q_proj,
        attention.k_proj,
        attention.v_proj,
        attention.o_proj,
        mlp.gate_proj,
        mlp.up_proj,
        mlp.down_proj,
    ]


def _why_not_linear(module: Any) -> Reason | None:
    base = getattr(module, "base_layer", module)
    if type(base) is not nn.Linear:
        return Reason(f"重みが {type(base).__name__} です", f"weights are {type(base).__name__}")
    if base is module:
        return None
    if len(module.active_adapters) != 1 or module.active_adapters[0] not in module.lora_A:
        return Reason("有効なアダプターが 1 つではありません", "not one active adapter")
    if getattr(module, "lora_variant", None):
        return Reason("LoRA の変種（DoRA）です", "a LoRA variant (DoRA)")
    if any(getattr(module, "lora_bias", {}).values()):
        return Reason("バイアスのある LoRA です", "LoRA with a bias")
    return None


def attach(model: Any, compute: torch.dtype, products: str = TORCH) -> MasterCasts:
    """Replaces the layers' forward on the instances; call why_not() first.

    Args:
        products: whose matrix products, of kernels/products.py.
    """
    config = model.config
    family, cast = FAMILIES[config.model_type], MasterCasts(compute, products)
    for layer in _layers(model):
        plan = _Layer(family, layer, _attention_shape(layer.self_attn, config), _activation(config), cast)
        layer.forward = _with_fallback(layer, plan)
    norm = model.get_decoder().norm
    original = norm.forward

    def final_norm(hidden: Tensor) -> Tensor:
        if hidden.dtype is not compute:
            plain: Tensor = original(hidden)
            return plain
        return _norm(norm, hidden.reshape(-1, hidden.shape[-1]), family).view_as(hidden)

    norm.forward = final_norm
    return cast


def linear_shapes(model: Any) -> list[tuple[int, int]]:
    """(outputs, inputs) of the linear layers of the blocks; call why_not() first."""
    bases: list[Any] = [getattr(module, "base_layer", module) for layer in _layers(model) for module in _linears(layer)]
    return sorted({(base.out_features, base.in_features) for base in bases})


def first_attention(model: Any) -> AttentionShape:
    """What the attention of the first layer computes; call why_not() first."""
    return _attention_shape(_layers(model)[0].self_attn, model.config)


def detach(model: Any) -> None:
    """The model as it was."""
    release()
    for module in (*_layers(model), model.get_decoder().norm):
        module.__dict__.pop("forward", None)


def _attention_shape(attention: Any, config: Any) -> AttentionShape:
    heads = config.num_attention_heads
    window = getattr(attention, "sliding_window", None)
    if FAMILIES[config.model_type].window_in_config:
        window = config.sliding_window
    return AttentionShape(
        heads=heads,
        kv_heads=config.num_key_value_heads,
        head_dim=attention.head_dim,
        scale=float(getattr(attention, "scaling", attention.head_dim**-0.5)),
        window=window or 0,
        cap=float(getattr(attention, "attn_logit_softcapping", None) or 0.0),
    )


def _with_fallback(layer: Any, plan: _Layer) -> Callable[..., Tensor]:
    original = layer.forward

    def forward(
        hidden_states: Tensor,
        *arguments: Any,
        position_embeddings: Any = None,
        seq_lens: Any = None,
        **others: Any,
    ) -> Tensor:
        if seq_lens is None:
            plain: Tensor = original(hidden_states, *arguments, position_embeddings=position_embeddings, **others)
            return plain
        return _forward(plan, hidden_states, position_embeddings, seq_lens)

    return forward


def _forward(plan: _Layer, hidden: Tensor, embeddings: tuple[Tensor, Tensor], lengths: tuple[Length, ...]) -> Tensor:
    """A decoder layer on hidden [1, tokens, d]."""
    layer, family = plan.module, plan.family
    attention, mlp = layer.self_attn, layer.mlp
    before, after, before_mlp, after_mlp = family.norms
    shape = hidden.shape
    x = hidden.reshape(-1, shape[-1]).to(plan.cast.dtype)
    q, k, v = _linear(
        (attention.q_proj, attention.k_proj, attention.v_proj), _normed(getattr(layer, before), x, family), plan
    )
    if family.head_norms is not None:
        q, k = (
            _norm(getattr(attention, name), part.view(-1, plan.attention.head_dim), family).view_as(part)
            for name, part in zip(family.head_norms, (q, k), strict=True)
        )
    cos, sin = (_half(table) for table in embeddings)
    attended = attention_of(lengths, plan.attention, plan.cast.products, plan.cast.dtype)
    inner: tuple[Any, ...] = (attended, q, k, v, cos, sin)
    if keeps_attention(plan.cast.dtype):
        inner = (Given(), Made.apply(*inner))
    x = _add(plan, x, inner, attention.o_proj, after)
    gate, up = _linear((mlp.gate_proj, mlp.up_proj), _normed(getattr(layer, before_mlp), x, family), plan)
    x = _add(plan, x, (Gated(plan.activation), gate, up), mlp.down_proj, after_mlp)
    return x.view(shape)


def _half(table: Tensor) -> Tensor:
    """[1, tokens, rotated] cos or sin as [tokens, rotated / 2] fp32; both halves are the same."""
    return table[0, :, : table.shape[-1] // 2].float().contiguous()


def _add(plan: _Layer, x: Tensor, inner: tuple[Any, ...], module: nn.Module, norm: str | None) -> Tensor:
    """x + norm(linear(inner)); without a norm the addition happens inside the product."""
    if norm is None:
        return _linear((module,), inner, plan, residual=x)[0]
    return x + _norm(getattr(plan.module, norm), _linear((module,), inner, plan)[0], plan.family)


def _normed(module: Any, x: Tensor, family: Family) -> tuple[Any, ...]:
    """(the norm of a module, what it takes)."""
    eps = getattr(module, "variance_epsilon", None) or module.eps
    return Normed(eps, family.offset, family.centered), x, module.weight, getattr(module, "bias", None)


def _norm(module: Any, x: Tensor, family: Family) -> Tensor:
    normed: Tensor = Made.apply(*_normed(module, x, family))
    return normed


def _linear(
    modules: Sequence[Any], inner: tuple[Any, ...], plan: _Layer, *, residual: Tensor | None = None
) -> Sequence[Tensor]:
    """The outputs of linear layers, with their adapters, on one input: (what makes it, what that takes)."""
    bases = [getattr(module, "base_layer", module) for module in modules]
    adapted = [module for module in modules if hasattr(module, "base_layer")]
    if len(adapted) not in (0, len(modules)):
        assert residual is None
        given = (Given(), Made.apply(*inner))
        return [_linear((module,), given, plan)[0] for module in modules]
    lora, pairs = _adapters(adapted)
    source, *origin = inner
    outputs: tuple[Tensor, ...] = Linears.apply(
        source,
        residual,
        lora,
        len(modules),
        plan.cast,
        *origin,
        *(base.weight for base in bases),
        *(base.bias for base in bases),
        *pairs,
    )
    return outputs


def _adapters(modules: Sequence[Any]) -> tuple[LoRA | None, list[Tensor]]:
    if not modules or modules[0].disable_adapters:
        return None, []
    scales, pairs, p = [], [], 0.0
    for module in modules:
        name = module.active_adapters[0]
        scales.append(float(module.scaling[name]))
        pairs += [module.lora_A[name].weight, module.lora_B[name].weight]
        p = float(getattr(module.lora_dropout[name], "p", 0.0)) if module.training else 0.0
    return LoRA(tuple(scales), p), pairs
