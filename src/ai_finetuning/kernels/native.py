"""The compiled kernels as functions of tensors, bf16 or fp32: shapes are checked here, pointers go no further."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .build import library
from .stand_in import only_allocating

_P, _I, _F, _N, _U = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int, ctypes.c_uint64
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "norm_forward": (_P, _P, _P, _P, _P, _I, _I, _F, _F, _N),
    "norm_backward": (*[_P] * 9, _I, _I, _F, _N),
    "rope": (_P, _P, _P, _P, _I, _I, _I, _I, _I, _N),
    "softmax_forward": (_P, _P, _I, _I, _I, _I, _I, _F, _F),
    "softmax_backward": (_P, _P, _P, _I, _I, _I, _I, _I, _F, _F),
    "gated_forward": (_P, _P, _P, _I, _N),
    "gated_backward": (_P, _P, _P, _P, _P, _P, _I, _N),
    "cross_entropy": (_P, _P, _P, _I, _I, _F, _N),
    "dropout": (_P, _P, _I, _U, _F, _N),
    "product": (_P, _P, _P, _P, _I, _I, _I, _I, _I, _I, _N, _N, _F, _F, _N),
    "product_in_pieces": (_P, _P, _P, _P, _I, _I, _I, _P, _F, _F, _I, _I),
    "attention_forward": (*[_P] * 9, _I, _P),
    "attention_backward": (*[_P] * 13, _I, _P),
}
# Those that return how many products failed; the others return nothing.
_COUNT_FAILURES = frozenset({"product_in_pieces", "attention_forward", "attention_backward"})
ACTIVATIONS = {"silu": 0, "gelu_pytorch_tanh": 1}


@lru_cache
def _function(name: str, dtype: torch.dtype) -> Any:
    function = getattr(library(dtype), name)
    function.argtypes, function.restype = _SIGNATURES[name], ctypes.c_int32 if name in _COUNT_FAILURES else None
    return function


def _call(name: str, *arguments: Tensor | float | int | None) -> None:
    """Tensors as pointers; all of them have to be contiguous on the CPU, and the first one says in which type it
    computes."""
    if only_allocating():
        return
    first = arguments[0]
    assert isinstance(first, Tensor)
    values: list[Any] = []
    for argument in arguments:
        if isinstance(argument, Tensor):
            assert argument.device.type == "cpu", name
            assert argument.is_contiguous(), name
            assert argument.dtype in (first.dtype, torch.float32, torch.int64), name
            values.append(argument.data_ptr())
        else:
            values.append(argument)
    _function(name, first.dtype)(*values)


def norm_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, eps: float, offset: float, centered: bool
) -> tuple[Tensor, Tensor]:
    """(y, stats) of x [rows, d]; weight, bias [d] fp32; stats [rows, 2] fp32."""
    y, stats = torch.empty_like(x), torch.empty(x.shape[0], 2)
    _call("norm_forward", x, weight, bias, y, stats, x.shape[0], x.shape[1], eps, offset, int(centered))
    return y, stats


def norm_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stats: Tensor,
    *,
    offset: float,
    centered: bool,
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """(dx [rows, d], dweight [d], dbias [d], norm_forward's y again); None where not wanted: dx, both of the weights, y."""
    dx, dw, again = wanted
    gradient = torch.empty_like(x) if dx else None
    y = torch.empty_like(x) if again else None
    dweight = torch.zeros_like(weight) if dw else None
    dbias = torch.zeros_like(weight) if dw and centered else None
    tensors = (dy, x, weight, bias, stats, gradient, y, dweight, dbias)
    _call("norm_backward", *tensors, x.shape[0], x.shape[1], offset, int(centered))
    return gradient, dweight, dbias, y


def to_heads(x: Tensor, out: Tensor, cos: Tensor, sin: Tensor, head_dim: int) -> None:
    """x [tokens, heads * d] into out [heads, tokens, d], its first 2 * cos.shape[1] features rotated."""
    tokens, width = x.shape
    _call("rope", x, out, cos, sin, tokens, width // head_dim, head_dim, cos.shape[1], width, 1)


def from_heads(x: Tensor, out: Tensor, cos: Tensor, sin: Tensor, head_dim: int) -> None:
    """The transpose of to_heads: x [heads, tokens, d] into out [tokens, heads * d]."""
    tokens, width = out.shape
    _call("rope", x, out, cos, sin, tokens, width // head_dim, head_dim, cos.shape[1], width, 0)


def softmax_forward(
    scores: Tensor, capped: Tensor | None, queries: int, *, first: int, window: int, scale: float, cap: float
) -> None:
    """In place on scores [matrices, group * queries, keys]; see cpu.cpp."""
    rows, keys = scores.shape[0] * scores.shape[1] // queries, scores.shape[2]
    _call("softmax_forward", scores, capped, rows, queries, keys, first, window, scale, cap)


def softmax_backward(
    gradient: Tensor,
    probabilities: Tensor,
    capped: Tensor | None,
    queries: int,
    *,
    first: int,
    window: int,
    scale: float,
    cap: float,
) -> None:
    """In place on gradient, of probabilities before and of scores after."""
    rows, keys = gradient.shape[0] * gradient.shape[1] // queries, gradient.shape[2]
    _call("softmax_backward", gradient, probabilities, capped, rows, queries, keys, first, window, scale, cap)


def gated_forward(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    """act(gate) * up."""
    out = torch.empty_like(gate)
    _call("gated_forward", gate, up, out, gate.numel(), ACTIVATIONS[activation])
    return out


def gated_backward(
    dh: Tensor, gate: Tensor, up: Tensor, activation: str, *, again: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(dgate, dup, and again: gated_forward's output; None where not asked for)."""
    dgate, dup, h = torch.empty_like(gate), torch.empty_like(up), torch.empty_like(gate) if again else None
    _call("gated_backward", dh, gate, up, dgate, dup, h, gate.numel(), ACTIVATIONS[activation])
    return dgate, dup, h


def cross_entropy(logits: Tensor, targets: Tensor, *, cap: float, with_gradient: bool) -> Tensor:
    """Losses [rows] fp32; logits [rows, vocabulary] become their gradient. targets [rows] int64, none ignored."""
    losses = torch.empty(logits.shape[0])
    _call("cross_entropy", logits, targets, losses, *logits.shape, cap, int(with_gradient))
    return losses


def dropout(x: Tensor, seed: int, p: float) -> Tensor:
    """Inverted dropout by a counter-based generator: the same choice for the same seed."""
    out = torch.empty_like(x)
    _call("dropout", x, out, x.numel(), seed, p, 0)
    return out


def add_dropped(out: Tensor, x: Tensor, seed: int, p: float) -> None:
    """out += dropout(x): the gradient's way back."""
    _call("dropout", x, out, x.numel(), seed, p, 1)


def product(sgemm: int, a: Tensor, b: Tensor, out: Tensor, *, alpha: float, beta: float) -> Tensor:
    """out [m, n] = alpha a b + beta out in fp32, by CBLAS's sgemm (ILP64) at an address, on torch's threads.

    Args:
        a, b: [m, k] and [k, n]; each may be a transposed view.
        out: a row's numbers one after the other.
    """
    (m, k), n = a.shape, b.shape[1]
    assert b.shape[0] == k
    assert out.shape == (m, n)
    assert out.stride(1) == 1 or n == 1
    assert a.dtype is b.dtype is out.dtype is torch.float32
    (across_a, step_a), (across_b, step_b) = _layout(a), _layout(b)
    pointers = (sgemm, a.data_ptr(), b.data_ptr(), out.data_ptr())
    sizes = (m, n, k, step_a, step_b, max(out.stride(0), n))
    _function("product", torch.float32)(*pointers, *sizes, across_a, across_b, alpha, beta, torch.get_num_threads())
    return out


def _layout(x: Tensor) -> tuple[int, int]:
    """Whether a matrix is a transposed view, and numbers from one of its rows (columns, if it is) to the next."""
    assert x.device.type == "cpu"
    if x.stride(1) == 1 or x.shape[1] == 1 and x.stride(0) != 1:
        return 0, max(x.stride(0), x.shape[1])
    assert x.stride(0) == 1
    return 1, max(x.stride(1), x.shape[0])


class _Torch(ctypes.Structure):
    """cpu.cpp's Torch: torch's products in a type, for the thread that calls them."""

    _fields_ = (("tensor", _P), ("mm", _P), ("addmm", _P), ("forget", _P), ("dtype", ctypes.c_int32))


@lru_cache
def _torch(dtype: torch.dtype) -> _Torch | None:
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        functions = (
            library.aoti_torch_create_tensor_from_blob,
            library.aoti_torch_cpu_mm_out,
            library.aoti_torch_cpu_addmm_out,
            library.aoti_torch_delete_tensor_object,
        )
        number = getattr(library, f"aoti_torch_dtype_{str(dtype).removeprefix('torch.')}")()
    except (OSError, AttributeError):
        return None
    return _Torch(*(ctypes.cast(function, _P).value for function in functions), number)


def calls_torch(dtype: torch.dtype) -> bool:
    """Whether this torch lets the kernels call its products."""
    return _torch(dtype) is not None


def product_in_pieces(
    a: Tensor, b: Tensor, out: Tensor, *, alpha: float, beta: float, pieces: tuple[int, int]
) -> Tensor:
    """out [m, n] = alpha a b + beta out by torch, each piece of out in a thread of its own.

    Args:
        a, b: [m, k] and [k, n].
        pieces: down and across; as many as torch has threads, or fewer.

    Raises:
        RuntimeError: torch has refused a product.
    """
    (m, k), n = a.shape, b.shape[1]
    assert b.shape[0] == k
    assert out.shape == (m, n)
    assert a.dtype is b.dtype is out.dtype
    assert all(tensor.device.type == "cpu" for tensor in (a, b, out))
    steps = (_I * 6)(*a.stride(), *b.stride(), *out.stride())
    pointers = (a.data_ptr(), b.data_ptr(), out.data_ptr())
    _failing("product_in_pieces", a.dtype, *pointers, m, n, k, ctypes.addressof(steps), alpha, beta, *pieces)
    return out


class AttentionPlan(ctypes.Structure):
    """cpu.cpp's AttentionPlan."""

    _fields_ = (
        ("heads", _I),
        ("kv_heads", _I),
        ("d", _I),
        ("half", _I),
        ("queries", _I),
        ("window", _I),
        ("scale", _F),
    )


def attention_forward(
    inputs: Sequence[Tensor],
    out: Tensor,
    probabilities: Tensor,
    angles: Sequence[Tensor],
    documents: Tensor,
    plan: AttentionPlan,
) -> None:
    """Writes attention of documents into out.

    Args:
        inputs: q [rows, heads * d], k and v [rows, kv_heads * d] before rotation.
        out: [rows, heads * d]; rows behind the documents are left as they are.
        probabilities: to be written for the gradient, flat; empty where it is to make them again.
        angles: cos and sin [rows, plan.half] fp32.
        documents: [count, 4] int64, see cpu.cpp's Document.
    """
    _attention("attention_forward", (*inputs, out), probabilities, angles, documents, plan)


def attention_backward(
    gradient: Tensor,
    inputs: Sequence[Tensor],
    gradients: Sequence[Tensor],
    out: Tensor | None,
    probabilities: Tensor,
    angles: Sequence[Tensor],
    documents: Tensor,
    plan: AttentionPlan,
) -> None:
    """Writes the gradients of q, k and v, of the output's gradient [rows, heads * d], and the output again where it is not
    None; the rest as in attention_forward().
    """
    _attention("attention_backward", (gradient, *inputs, *gradients, out), probabilities, angles, documents, plan)


def _attention(
    name: str,
    rows: Sequence[Tensor | None],
    probabilities: Tensor,
    angles: Sequence[Tensor],
    documents: Tensor,
    plan: AttentionPlan,
) -> None:
    if only_allocating():
        return
    tensors = [*rows, probabilities, *angles, documents]
    there = [tensor for tensor in tensors if tensor is not None]
    assert all(tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in there), name
    assert {tensor.dtype for tensor in there[:-3]} == {probabilities.dtype}, name
    assert {tensor.dtype for tensor in angles} == {torch.float32}, name
    assert documents.dtype is torch.int64, name
    assert max(first + length for first, length, *_ in documents.tolist()) <= angles[0].shape[0], name
    three = [plan.heads * plan.d, plan.kv_heads * plan.d, plan.kv_heads * plan.d]
    widths = [*three, three[0]] if name == "attention_forward" else [three[0], *three, *three, three[0]]
    for tensor, width in zip((*rows, *angles), (*widths, plan.half, plan.half), strict=True):
        assert tensor is None or tuple(tensor.shape) == (angles[0].shape[0], width), name
    pointers = [None if tensor is None else tensor.data_ptr() or None for tensor in tensors]  # an empty one has none
    _failing(name, probabilities.dtype, *pointers, documents.shape[0], ctypes.addressof(plan))


def _failing(name: str, dtype: torch.dtype, *arguments: Any) -> None:
    """Calls a function that computes by torch's products and returns how many of them failed."""
    torchs = _torch(dtype)
    assert torchs is not None, name
    if failed := _function(name, dtype)(ctypes.addressof(torchs), *arguments):
        raise RuntimeError(f"{name}: torch refused {failed} matrix products")
