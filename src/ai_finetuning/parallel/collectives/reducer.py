"""Sums gradients over data ranks: in buckets, while the backward pass continues, once an optimizer step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..weights.layout import like, local, same_memory

BUCKET_BYTES = 25 * 2**20


@dataclass
class _Bucket:
    """Weights of one type whose gradients share one tensor."""

    parameters: list[nn.Parameter] = field(default_factory=list)
    index_of: dict[int, int] = field(default_factory=dict)
    starts: list[int] = field(default_factory=lambda: [0])

    def add(self, parameter: nn.Parameter) -> None:
        """One more weight."""
        self.index_of[id(parameter)] = len(self.parameters)
        self.parameters.append(parameter)
        self.starts.append(self.starts[-1] + local(parameter).numel())

    def empty(self) -> Tensor:
        """Room for the gradients."""
        first = self.parameters[0]
        return torch.empty(self.starts[-1], dtype=first.dtype, device=first.device)

    def view(self, flat: Tensor, place: int) -> Tensor:
        """The part of one weight, in its shape."""
        part = flat[self.starts[place] : self.starts[place + 1]]
        return part.view_as(local(self.parameters[place]))


class GradientReducer:
    """All-reduces the gradients of replicated weights.

    Buckets follow the reverse of the parameters' order, which is about the order in which gradients become ready, and
    are sent strictly in turn, so that all ranks agree on the order whatever becomes ready first (Li et al. 2020,
    arXiv:2006.15704).
    Unlike DistributedDataParallel it needs no wrapper around the forward pass: fused blocks, document losses and
    pipeline stages keep calling the model as they like, and the pass sums (the loss is divided by the step's label
    tokens already).
    A gradient is a view of its bucket from the first backward pass on, so that gradients are held once, and not at all
    between two steps.

    Args:
        parameters: what trains on this rank; the same on all ranks of the group. Of a weight cut along `tp`, its part
            is sent.
        group: the data ranks.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], group: dist.ProcessGroup, *, bucket_bytes: int = BUCKET_BYTES
    ) -> None:
        self._group = group
        self._buckets: list[_Bucket] = []
        size = bucket_bytes
        for parameter in reversed(parameters):
            if size >= bucket_bytes or parameter.dtype != self._buckets[-1].parameters[0].dtype:
                self._buckets.append(_Bucket())
                size = 0
            self._buckets[-1].add(parameter)
            size += local(parameter).numel() * parameter.element_size()
        self._bucket_of = {id(p): index for index, bucket in enumerate(self._buckets) for p in bucket.parameters}
        self._flat: list[Tensor | None] = [None] * len(self._buckets)
        self._hooks = [p.register_post_accumulate_grad_hook(self._ready) for p in parameters]  # type: ignore[no-untyped-call]
        self._sending = False
        self.sent = 0
        self._reset()

    def _reset(self) -> None:
        self._missing = [len(bucket.parameters) for bucket in self._buckets]
        self._next = 0
        self._works: list[Any] = []

    def last_backward(self) -> None:
        """Announces the step's last backward pass: finished buckets are sent from now on."""
        self._reset()
        self._sending = True

    def _ready(self, parameter: nn.Parameter) -> None:
        index = self._bucket_of[id(parameter)]
        self._take(index, self._buckets[index].index_of[id(parameter)])
        if not self._sending:
            return
        self._missing[index] -= 1
        while self._next < len(self._buckets) and self._missing[self._next] == 0:
            self._send()

    def _take(self, index: int, place: int) -> None:
        """Makes a gradient a view of its bucket: what was computed so far goes there, later passes add to it there."""
        bucket = self._buckets[index]
        flat = self._flat[index]
        if flat is None:
            flat = self._flat[index] = bucket.empty()
        parameter = bucket.parameters[place]
        view = bucket.view(flat, place)
        if parameter.grad is None:
            view.zero_()
        elif same_memory(local(parameter.grad), view):
            return
        else:
            view.copy_(local(parameter.grad))
        parameter.grad = like(parameter, view)

    def _send(self) -> None:
        for place in range(len(self._buckets[self._next].parameters)):
            self._take(self._next, place)
        flat = self._flat[self._next]
        assert flat is not None
        self._works.append(dist.all_reduce(flat, group=self._group, async_op=True))
        self.sent += flat.numel() * flat.element_size()
        self._next += 1

    @torch.no_grad()
    def finish(self) -> None:
        """Sends what was not sent yet (all of it without last_backward()) and waits; gradients are the sums then.

        The buckets live on as the gradients only, and go with them.
        """
        if not self._sending:
            self._reset()
        while self._next < len(self._buckets):
            self._send()
        self._sending = False
        for work in self._works:
            work.wait()
        self._works = []
        self._flat = [None] * len(self._buckets)

    def close(self) -> None:
        """Takes the hooks off the parameters."""
        for hook in self._hooks:
            hook.remove()
