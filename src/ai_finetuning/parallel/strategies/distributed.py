"""Several processes: weights replicated (ddp) or sharded (fsdp), each layer shared (tensor) or not, in this fixed
order.

The model is cut along `tp` first and wrapped along `dp` afterwards; LoRA is in it by then (an adapter added later would
not be all-reduced; docs/design/distributed.md, fault 2), and the optimizer comes last, over this rank's parts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from .._upstream import scale_all
from ..batch import Batch, LossFunction
from ..collectives.reducer import GradientReducer
from ..processes import Peers, gather, host_group
from ..strategy import Update
from ..weights.layout import layout_of, local, local_parameter
from ..weights.materialize import WeightPlacement
from .shard import let_go, shard_layers, sharding_for
from .single import SingleDevice

CutLayers = Callable[[nn.Module, DeviceMesh, WeightPlacement], None]


class DataParallel(SingleDevice):
    """Data parallel over `dp`, tensor parallel over `tp`; parallel/strategies/pipeline.py adds `pp`.

    Args:
        device: of this rank.
        mesh: [pp, dp, tp].
        sharded: FSDP2 (arXiv:2304.11277) instead of replicas.
        fp32_master_weights: weights become fp32 when they are cut; replicas are given as they train.
        parallelize_layers: what cuts the model along `tp`; needed where that is above 1.
    """

    def __init__(
        self,
        device: torch.device,
        mesh: DeviceMesh,
        *,
        sharded: bool = False,
        autocast: torch.dtype | None = None,
        scaler: bool = False,
        fp32_master_weights: bool = False,
        parallelize_layers: CutLayers | None = None,
    ) -> None:
        super().__init__(device, autocast=autocast, scaler=scaler)
        self._in_parts = sharded or mesh["pp"].size() > 1 or mesh["tp"].size() > 1
        self._weight_placement = WeightPlacement(device, fp32_master_weights)
        self._casts_stay = not sharded  # copies of gathered weights would undo the sharding
        self.sharding = sharding_for(device, autocast, fp32_master_weights=fp32_master_weights)
        self.mesh, self._sharded, self._cut_layers = mesh, sharded, parallelize_layers
        self.data_rank, self.data_size = mesh.get_local_rank("dp"), mesh["dp"].size()
        self.rank, self.is_main = dist.get_rank(), dist.get_rank() == 0
        self.exchanges = 0
        self._all = Peers(self.rank, dist.get_world_size(), host_group())
        # Of the ranks that see the same rows, one: its numbers count in sums.
        self._counts = mesh.get_local_rank("tp") == 0
        self._data_group = mesh.get_group("dp")
        self._reducer: GradientReducer | None = None

    @property
    def weight_placement(self) -> WeightPlacement | None:
        """Where the parts of a cut model go."""
        return self._weight_placement if self._in_parts else None

    def placement(self, *, quantized: bool) -> dict[str, Any]:
        """The CPU for what is cut: no device need hold the whole model, and processes share the mapped file."""
        return {"device": torch.device("cpu") if self._in_parts and not quantized else self.device}

    def prepare(self, model: nn.Module, loss: LossFunction) -> nn.Module:
        """Cuts, then shards or replicates; every rank of `dp` starts with what trains from the weights of its first."""
        self._model, self._loss = model, loss
        if self.mesh["tp"].size() > 1:
            assert self._cut_layers is not None
            self._cut_layers(model, self.mesh["tp"], self._weight_placement)
        if self._sharded:
            self._shard(model, loss)
        else:
            self._weight_placement.materialize(model)
        self._take_parts(model)
        if not self._sharded and self.data_size > 1:
            self._replicate(model, loss)
        return model

    def _shard(self, model: nn.Module, loss: LossFunction) -> None:
        self._step_module = shard_layers(model, self.mesh["dp"], loss, self._weight_placement, self.sharding)

    def _global_names(self, model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
        yield from model.named_parameters()

    def _take_parts(self, model: nn.Module) -> None:
        """This rank's trainable parts and their layouts."""
        whole = {name: p for name, p in self._global_names(model) if p.requires_grad}
        self._whole = whole
        self._parts = {name: local_parameter(p) for name, p in whole.items()}
        self.layouts = {name: layout_of(p, self.mesh) for name, p in whole.items()}

    def _replicate(self, model: nn.Module, loss: LossFunction) -> None:
        """The first data rank's weights that train on all of them, and what sums their gradients.

        Frozen weights are not sent: every rank has read them from the same file.
        """
        source = dist.get_global_rank(self._data_group, 0)
        with torch.no_grad():
            parts = [local(parameter.data) for parameter in self._whole.values()]
            sent = [dist.broadcast(part, source, group=self._data_group, async_op=True) for part in parts]
            for work in sent:
                if work is not None:
                    work.wait()
        self._reducer = GradientReducer(list(self._whole.values()), self._data_group)

    def named_parameters(self, model: nn.Module) -> list[tuple[str, nn.Parameter]]:
        """This rank's parts of what trains."""
        return list(self._parts.items())

    def agree(self, counts: Sequence[float], flags: Sequence[bool] = ()) -> tuple[list[float], list[bool]]:
        """Sums over the data ranks, and what any process says: one vector in one message between the hosts."""
        self.exchanges += 1
        mine = [*(count if self._counts else 0.0 for count in counts), *map(float, flags)]
        vector = torch.tensor(mine, dtype=torch.float64)
        dist.all_reduce(vector, group=self._all.group)
        values = vector.tolist()
        return values[: len(counts)], [value > 0 for value in values[len(counts) :]]

    def gather(self, value: Any) -> list[Any]:
        """`value` of every process, by rank."""
        return gather(value, self._all)

    @property
    def sent_bytes(self) -> int:
        """Bytes of gradients that this rank has put into sums over the data ranks so far (0 where weights are
        sharded).
        """
        return 0 if self._reducer is None else self._reducer.sent

    def _loss_of(self, batch: Batch) -> Tensor:
        if self._sharded:
            loss: Tensor = self._step_module(batch)
            return loss
        return super()._loss_of(batch)

    def forward_backward(self, group: Sequence[Batch], num_valid: float) -> Tensor:
        """Gradients over this rank's micro-batches, summed over the data ranks."""
        self.exchanges += 1
        mine = super().forward_backward(group, num_valid)
        self._finish_gradients()
        return mine

    def _communicating(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Around a micro-batch: replicas send gradients in the step's last one only.

        Sharded weights' gradients are summed and cut in every one: until then a rank holds them whole, which for all
        weights may take more than everything else that it holds (docs/decisions/0109).
        """
        if last and self._reducer is not None:
            self._reducer.last_backward()
        return contextlib.nullcontext()

    def _finish_gradients(self) -> None:
        if self._reducer is not None:
            self._reducer.finish()
        for name, parameter in self._whole.items():
            part = self._parts[name]
            if part is not parameter:
                part.grad = None if parameter.grad is None else local(parameter.grad)

    def evaluate(self, batches: Sequence[Batch]) -> tuple[float, int]:
        """Every data rank scores its share; ranks with fewer batches score empty ones, so that all make the same
        calls.
        """
        mine = list(batches[self.data_rank :: self.data_size])
        most = -(-len(batches) // self.data_size)
        mine += [batches[-1].without_labels()] * (most - len(mine))
        (total, tokens), _ = self.agree(self._evaluate_mine(mine))
        return total, int(tokens)

    def score(self, batches: Sequence[Batch]) -> None:
        """Runs the loss on this process's batches; every process has to call it, with as many."""
        self.exchanges += 1
        super().score(batches)

    def _evaluate_mine(self, batches: Sequence[Batch]) -> tuple[float, int]:
        obtained = super()._evaluate_mine(batches)
        if self._sharded:
            let_go(self._step_module)
        return obtained

    def _with_gradients(self) -> list[nn.Parameter]:
        return [part for part in self._parts.values() if part.grad is not None]

    def update(self, loss: Tensor, max_norm: float, also: Tensor | None = None) -> Update:
        """One update of this rank's parts; the whole weights' gradients are dropped with them."""
        self.exchanges += 1
        update = super().update(loss, max_norm, also)
        for parameter in self._whole.values():
            parameter.grad = None
        return update

    def _measure(self, mine: Tensor, gradients: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The norm over every weight once, whoever holds it: owners' squares, summed over all processes. The loss
        travels with them, so that every rank knows of one that is not finite, and so does what is to be summed with it.
        """
        assert self.layouts is not None
        square = torch.zeros((), dtype=torch.float64, device=self.device)
        for name, part in self._parts.items():
            if part.grad is not None and self.layouts[name].owner:
                square += part.grad.double().square().sum()
        sums = torch.cat([square[None], mine.to(square.device) if self._counts else torch.zeros_like(mine)])
        dist.all_reduce(sums)
        return sums[1:], sums[0].sqrt()

    def _clip(self, parameters: list[nn.Parameter], norm: Tensor, size: float, max_norm: float) -> None:
        if size > max_norm:
            scale_all([part.grad for part in parameters if part.grad is not None], max_norm / size)

    def close(self) -> None:
        """Takes the hooks off."""
        if self._reducer is not None:
            self._reducer.close()
