"""From where weights were loaded to where they stay, part by part.

A model that is cut over several processes is loaded on the CPU, where its weights are views of the mapped file: the
kernel keeps one copy for all processes of the machine, and no GPU has to hold the whole. Each part moves when it is
cut, and only then becomes an fp32 master where the method trains everything.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ...models.parts import layer_list, tensors_of


@dataclass(frozen=True)
class WeightPlacement:
    """Where weights stay.

    Attributes:
        device: of this process.
        fp32_master_weights: weights become fp32 (arXiv:1710.03740).
    """

    device: torch.device
    fp32_master_weights: bool = False

    def of(self, tensor: Tensor) -> Tensor:
        """The tensor as it is there; itself where nothing changes."""
        return tensor.to(
            self.device, torch.float32 if self.fp32_master_weights and tensor.is_floating_point() else None
        )

    @torch.no_grad()
    def materialize(self, module: nn.Module) -> None:
        """Moves what a module holds, in place; what is cut already stays."""
        for tensor in tensors_of(module):
            if not isinstance(tensor, DTensor):
                self._materialize(tensor)

    def _materialize(self, tensor: Tensor) -> None:
        data = tensor.data
        there = self.of(data)
        if there is not data:
            tensor.data = there

    @contextlib.contextmanager
    def layer_offload(self, model: nn.Module) -> Iterator[None]:
        """The whole model can run without gradients, although no device need hold it.

        What is around the layers settles; a layer is on the device while it runs, and afterwards where it was.
        """
        layers = list(layer_list(model) or ())
        inside = {id(tensor) for layer in layers for tensor in tensors_of(layer)}
        with torch.no_grad():
            for tensor in tensors_of(model):
                if id(tensor) not in inside:
                    self._materialize(tensor)
        at_home: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {}

        def arrive(layer: nn.Module, _: object) -> None:
            at_home[layer] = [(tensor, tensor.data) for tensor in tensors_of(layer)]
            self.materialize(layer)

        def leave(layer: nn.Module, *_: object) -> None:
            for tensor, data in at_home.pop(layer, ()):
                tensor.data = data

        hooks = [layer.register_forward_pre_hook(arrive) for layer in layers]
        hooks += [layer.register_forward_hook(leave, always_call=True) for layer in layers]
        try:
            with torch.no_grad():
                yield
        finally:
            for hook in hooks:
                hook.remove()
