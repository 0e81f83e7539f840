"""Liger's kernels (arXiv:2410.10989) for norms, gated MLPs and rotation on NVIDIA GPUs, where the user has installed them.

As with the fused blocks of CPUs, the model keeps its modules, parameters and classes: only the `forward` of single
modules is replaced, on the instance, and taken off again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import Reason
from ..kernels.checked import Pairs, why_not_taken

DEVICES = ("cuda",)


@dataclass(frozen=True)
class Kernels:
    """Four functions with gradients.

    Attributes:
        norm: (x, weight, eps, offset, casting) -> x over its root mean square, times offset + weight; casting `llama`
            multiplies in the dtype of x, `gemma` in fp32.
        silu, gelu: (gate, up) -> activation(gate) * up; gelu by tanh.
        rotate: (q, k, cos, sin) -> both rotated, [1, heads, tokens, d]; it may write into q and k.
    """

    norm: Callable[[Tensor, Tensor, float, float, str], Tensor]
    silu: Callable[[Tensor, Tensor], Tensor]
    gelu: Callable[[Tensor, Tensor], Tensor]
    rotate: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def _plain_norm(x: Tensor, weight: Tensor, eps: float, offset: float, casting: str) -> Tensor:
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    if casting == "llama":
        return (normed.to(x.dtype) * (offset + weight)).to(x.dtype)
    return (normed * (offset + weight.float())).to(x.dtype)


def _plain_rotation(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    def turned(x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return (x * cos[:, None] + torch.cat((-second, first), dim=-1) * sin[:, None]).to(x.dtype)

    return turned(q), turned(k)


# The same in plain torch, which Liger's are compared with.
PLAIN = Kernels(
    norm=_plain_norm,
    silu=lambda gate, up: F.silu(gate) * up,
    gelu=lambda gate, up: F.gelu(gate, approximate="tanh") * up,
    rotate=_plain_rotation,
)


def _ligers() -> Kernels:
    """Liger 0.8's autograd functions."""
    from liger_kernel import ops

    return Kernels(
        # The last argument: not over the gradient that arrives, which a residual may share.
        norm=lambda *given: ops.LigerRMSNormFunction.apply(*given, False),
        silu=ops.LigerSiLUMulFunction.apply,
        gelu=ops.LigerGELUMulFunction.apply,
        rotate=ops.LigerRopeFunction.apply,
    )


# Classes of transformers: norms by their casting, MLPs that are down(activation(gate(x)) * up(x)), and attentions that
# rotate the two halves of each head by a function of this name in their file.
_NORMS = {
    **dict.fromkeys(("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm"), "llama"),
    **dict.fromkeys(("GemmaRMSNorm", "Gemma2RMSNorm", "Gemma3RMSNorm"), "gemma"),
}
_OFFSETS = {"llama": 0.0, "gemma": 1.0}
_FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma", "Gemma2", "Gemma3")
_GATED = {f"{name}MLP" for name in (*_FAMILIES, "StableLm")}
_ROTATING = {f"{name}Attention" for name in _FAMILIES}
_ROTATION = "apply_rotary_pos_emb"
_ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu"}
_LABELS = {
    **dict.fromkeys(_OFFSETS, Reason("正規化", "norms")),
    "silu": Reason("MLP", "gated MLP"),
    "gelu": Reason("MLP", "gated MLP"),
    "rotate": Reason("回転位置", "rotation"),
}
# Largest relative difference to plain torch, gradients included.
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}


@dataclass(frozen=True)
class Replacements:
    """Modules of a model and the forward that each would get.

    Attributes:
        chosen: which parts, for a message; None where there is none.
        why: why not others.
    """

    forwards: tuple[tuple[Any, Callable[..., Any]], ...] = ()
    chosen: Reason | None = None
    why: Reason | None = None

    def put_on(self) -> None:
        """The modules compute by Liger."""
        for module, forward in self.forwards:
            module.forward = forward

    def take_off(self) -> None:
        """The modules as they were."""
        for module, forward in self.forwards:
            if module.__dict__.get("forward") is forward:
                del module.forward


def find_replacements(model: Any, device: torch.device, dtype: torch.dtype) -> Replacements:
    """What Liger computes as plain torch does, forward and backward, on a device.

    Args:
        dtype: of the products.
    """
    parts = list(_parts(model))
    if not parts:
        name = model.config.model_type
        return Replacements(
            why=Reason(f"Liger が知っている {name} の層はありません", f"Liger knows no layers of {name}")
        )
    try:
        kernels = _ligers()
    except Exception as error:  # not there, or not for this torch or Triton
        if getattr(error, "name", None) == "liger_kernel":
            return Replacements(
                why=Reason(
                    "Liger はありません（pip install 'ai-finetuning-toolkit[liger]'）",
                    "Liger is not installed (pip install 'ai-finetuning-toolkit[liger]')",
                )
            )
        text = f"Liger: {type(error).__name__}: {str(error)[:100]}"
        return Replacements(why=Reason(text, text))
    there = {kind for _, kind in parts}
    problems = {kind: _problem(kernels, kind, device, dtype, model.config) for kind in _LABELS if kind in there}
    globals_of: dict[Any, dict[str, Any]] = {}
    forwards = [
        (module, _replacement(module, kind, kernels, globals_of)) for module, kind in parts if problems[kind] is None
    ]
    taken = [_LABELS[kind] for kind, problem in problems.items() if problem is None]
    why = [Reason.joined([_LABELS[kind], problem], ": ") for kind, problem in problems.items() if problem is not None]
    by = Reason(
        "・".join(label.ja for label in taken) + "は Liger", ", ".join(label.en for label in taken) + " by Liger"
    )
    return Replacements(tuple(forwards), by if taken else None, Reason.joined(why) if why else None)


def _parts(model: Any) -> Iterator[tuple[Any, str]]:
    """Modules that Liger has a kernel for, with its name; not those whose forward somebody else has replaced."""
    for module in model.modules():
        name = type(module).__name__
        if "forward" in module.__dict__ or not type(module).__module__.startswith("transformers."):
            continue
        if name in _NORMS:
            yield module, _NORMS[name]
        elif name in _GATED and _activation(module) in _ACTIVATIONS:
            yield module, _ACTIVATIONS[_activation(module)]
        elif name in _ROTATING and _ROTATION in type(module).forward.__code__.co_names:
            yield module, "rotate"


def _activation(module: Any) -> str:
    return str(getattr(module.config, "hidden_activation", None) or module.config.hidden_act)


def _replacement(module: Any, kind: str, kernels: Kernels, globals_of: dict[Any, dict[str, Any]]) -> Callable[..., Any]:
    if kind in _OFFSETS:
        return partial(_norm, kernels, module, kind)
    if kind == "rotate":
        # The function is a name in the module's file; this copy of the forward alone sees another one there.
        own = type(module).forward
        names = globals_of.setdefault(own, {**own.__globals__, _ROTATION: partial(_rotate, kernels)})
        made = FunctionType(own.__code__, names, own.__name__, own.__defaults__, own.__closure__)
        made.__kwdefaults__ = own.__kwdefaults__
        return MethodType(made, module)
    return partial(_gated, getattr(kernels, kind), module)


def _norm(kernels: Kernels, module: Any, casting: str, x: Tensor) -> Tensor:
    eps = module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps
    return kernels.norm(x, module.weight, eps, _OFFSETS[casting], casting)


def _gated(product: Callable[[Tensor, Tensor], Tensor], module: Any, x: Tensor) -> Tensor:
    obtained: Tensor = module.down_proj(product(module.gate_proj(x), module.up_proj(x)))
    return obtained


def _rotate(kernels: Kernels, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> Any:
    assert unsqueeze_dim == 1  # heads before tokens, as all classes above have them
    return kernels.rotate(q, k, cos, sin)


def _problem(kernels: Kernels, kind: str, device: torch.device, dtype: torch.dtype, config: Any) -> Reason | None:
    """Why a kernel is not to be taken: it fails on this device, or differs from plain torch, forward or backward."""

    def both() -> Pairs:
        mine, theirs = (_results(which, kind, device, dtype, config) for which in (kernels, PLAIN))
        return zip(mine, theirs, strict=True)

    return why_not_taken(both, _TOLERANCE[dtype])


@torch.enable_grad()
def _results(kernels: Kernels, kind: str, device: torch.device, dtype: torch.dtype, config: Any) -> list[Tensor]:
    """Outputs and gradients on random numbers of the model's widths, the same ones for every set of kernels."""
    text, generator, tokens = config.get_text_config(), torch.Generator().manual_seed(0), 33

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype).requires_grad_()

    if kind in _OFFSETS:
        leaves = [leaf(1, tokens, text.hidden_size), leaf(text.hidden_size)]
        outputs = [kernels.norm(leaves[0], leaves[1], 1e-6, _OFFSETS[kind], kind)]
    elif kind == "rotate":
        heads, shared = text.num_attention_heads, text.num_key_value_heads
        width = getattr(text, "head_dim", None) or text.hidden_size // heads
        leaves = [leaf(1, tokens, count, width) for count in (heads, shared)]
        angles = torch.rand(1, tokens, width // 2, generator=generator).to(device).repeat(1, 1, 2)
        q, k = (1.0 * x.transpose(1, 2) for x in leaves)  # of its own, as it may be written into
        outputs = list(kernels.rotate(q, k, angles.cos().to(dtype), angles.sin().to(dtype)))
    else:
        leaves = [leaf(1, tokens, text.intermediate_size) for _ in range(2)]
        gate, up = (1.0 * x for x in leaves)
        outputs = [getattr(kernels, kind)(gate, up)]
    seeds = [torch.randn(x.shape, generator=generator).to(device, dtype) for x in outputs]
    return [*(x.detach().clone() for x in outputs), *torch.autograd.grad(outputs, leaves, seeds)]
