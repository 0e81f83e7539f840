"""Kernels without their arithmetic: they allocate what they always allocate, for tensors that have no data.

A plan runs the training step on such tensors (planner/simulate.py). What is written in Python runs as it is; the
compiled CPU kernels return at once, and one fused attention over the row stands for FlexAttention, which without a
GPU would compute every score.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from .autograd import Function

# Lengths of the documents of the row that is computed, while kernels only allocate; None: they compute.
_LENGTHS: ContextVar[list[int] | None] = ContextVar("lengths", default=None)
# The type of the device that a plan is for, while tensors without data lie on the CPU.
_PLANNED: ContextVar[str | None] = ContextVar("planned", default=None)


def only_allocating() -> bool:
    """Whether kernels are to leave out their arithmetic."""
    return _LENGTHS.get() is not None


@contextlib.contextmanager
def without_arithmetic(planned: str | None = None) -> Iterator[None]:
    """Kernels only allocate inside the block.

    Args:
        planned: type of the device whose kernels are meant; None for that of the tensors.
    """
    lengths, device = _LENGTHS.set([]), _PLANNED.set(planned)
    try:
        yield
    finally:
        _LENGTHS.reset(lengths)
        _PLANNED.reset(device)


def kernels_of(device: torch.device) -> str:
    """The type of the device whose kernels a tensor on `device` gets: its own, or the one that a plan is for."""
    return _PLANNED.get() or device.type


def note_documents(lengths: tuple[int, ...]) -> None:
    """Tells the lengths of the documents that come next: positions without data cannot tell them."""
    noted = _LENGTHS.get()
    if noted is not None:
        noted[:] = lengths


def noted_documents() -> tuple[int, ...]:
    """What note_documents() was told."""
    return tuple(_LENGTHS.get() or ())


class FusedAttention(Function):
    """What a fused attention (FlexAttention, flash-attention) allocates: the output and one fp32 number a row of scores,
    which are kept with queries, keys and values; going back, their gradients and one more such number.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        log_sum = torch.empty(query.shape[:-1], dtype=torch.float32, device=query.device)
        ctx.save_for_backward(query, key, value, out, log_sum)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        query, key, value, _, log_sum = ctx.saved_tensors
        delta = torch.empty_like(log_sum)
        gradients = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        del delta
        return gradients


def grouped_product(left: Tensor, right: Tensor, offs: Tensor | None = None, *_: Any) -> Tensor:
    """What `torch.nn.functional.grouped_mm` allocates, of any dtype: rows are padded to 16 bytes, as in torch 2.10 to 2.13.

    torch's own implementation without data takes bf16 alone; its kernels take fp32 and fp16 too.

    Args:
        left: [rows, k] or [groups, rows, k].
        right: [groups, k, columns], or [k, columns] of all groups one after the other.
        offs: where the groups end, [groups]; needed where one of the two has them one after the other.
    """
    size = [left.shape[-2], right.shape[-1]]
    if left.dim() == right.dim():  # of gradients of weights, or of groups alike
        size = [left.shape[0] if offs is None else offs.shape[0], *size]
    columns = -(-size[-1] * left.element_size() // 16) * 16 // left.element_size()
    return left.new_empty([*size[:-1], columns])[..., : size[-1]]
