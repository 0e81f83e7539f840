"""Sums gradients over data ranks: in buckets, while the backward pass continues, once an optimizer step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..weights.layout import local

BUCKET_BYTES = 25 * 2**20


def _sizes(bucket: Sequence[nn.Parameter]) -> list[int]:
    return [local(parameter).numel() for parameter in bucket]


class GradientReducer:
    """All-reduces the gradients of replicated weights.

    Buckets follow the reverse of the parameters' order, which is about the order in which gradients become ready, and
    are sent strictly in turn, so that all ranks agree on the order whatever becomes ready first (Li et al. 2020,
    arXiv:2006.15704).
    Unlike DistributedDataParallel it needs no wrapper around the forward pass: fused blocks, document losses and
    pipeline stages keep calling the model as they like, and the pass sums (the loss is divided by the step's label
    tokens already).

    Args:
        parameters: what trains on this rank; the same on all ranks of the group. Of a weight cut along `tp`, its part
            is sent.
        group: the data ranks.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], group: dist.ProcessGroup, *, bucket_bytes: int = BUCKET_BYTES
    ) -> None:
        self._group = group
        self._buckets: list[list[nn.Parameter]] = []
        size = bucket_bytes
        for parameter in reversed(parameters):
            if size >= bucket_bytes or parameter.dtype != self._buckets[-1][0].dtype:
                self._buckets.append([])
                size = 0
            self._buckets[-1].append(parameter)
            size += local(parameter).numel() * parameter.element_size()
        self._bucket_of = {id(p): index for index, bucket in enumerate(self._buckets) for p in bucket}
        self._flat: list[Tensor | None] = [None] * len(self._buckets)
        self._hooks = [p.register_post_accumulate_grad_hook(self._ready) for p in parameters]  # type: ignore[no-untyped-call]
        self._sending = False
        self.sent = 0
        self._reset()

    def _reset(self) -> None:
        self._missing = [len(bucket) for bucket in self._buckets]
        self._next = 0
        self._works: list[Any] = []

    def last_backward(self) -> None:
        """Announces the step's last backward pass: finished buckets are sent from now on."""
        self._reset()
        self._sending = True

    def _ready(self, parameter: nn.Parameter) -> None:
        if not self._sending:
            return
        self._missing[self._bucket_of[id(parameter)]] -= 1
        while self._next < len(self._buckets) and self._missing[self._next] == 0:
            self._send()

    def _send(self) -> None:
        bucket, flat = self._buckets[self._next], self._flat[self._next]
        if flat is None:
            flat = self._flat[self._next] = torch.empty(
                sum(_sizes(bucket)), dtype=bucket[0].dtype, device=bucket[0].device
            )
        for parameter, part in zip(bucket, torch.split(flat, _sizes(bucket)), strict=True):
            part.zero_() if parameter.grad is None else part.copy_(local(parameter.grad).reshape(-1))
        self._works.append(dist.all_reduce(flat, group=self._group, async_op=True))
        self.sent += flat.numel() * flat.element_size()
        self._next += 1

    @torch.no_grad()
    def finish(self) -> None:
        """Sends what was not sent yet (all of it without last_backward()), waits, and puts the sums into the
        gradients.
        """
        if not self._sending:
            self._reset()
        while self._next < len(self._buckets):
            self._send()
        self._sending = False
        for work, bucket, flat in zip(self._works, self._buckets, self._flat, strict=True):
            work.wait()
            assert flat is not None
            for parameter, part in zip(bucket, torch.split(flat, _sizes(bucket)), strict=True):
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                grad = local(parameter.grad)
                grad.copy_(part.view_as(grad))

    def close(self) -> None:
        """Takes the hooks off the parameters."""
        for hook in self._hooks:
            hook.remove()
