"""From a plan to the strategy that carries it out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from ..messages import notice
from ..models.placement import DeviceMap
from .collectives.mesh import build_mesh
from .plan import ParallelPlan
from .plugins import zero
from .plugins.accelerated import Accelerated, AcceleratedReplicas
from .strategies import tensor
from .strategies.device_map import ModelParallel
from .strategies.distributed import DataParallel
from .strategies.pipeline import Pipeline
from .strategies.single import SingleDevice
from .strategy import Strategy
from .weights.materialize import WeightPlacement


def build_strategy(
    choice: ParallelPlan,
    *,
    device: torch.device | DeviceMap,
    autocast: torch.dtype | None,
    scaler: bool,
    use_accelerate: bool,
    fp32_master_weights: bool = False,
    plan: Callable[[nn.Module], tensor.Plan] | None = None,
    max_grad_norm: float = 1.0,
) -> Strategy:
    """The strategy; the process group has to be there where there are several processes.

    Args:
        device: of this process; of model_parallel, the device of each module by its name.
        fp32_master_weights: every weight trains, in fp32; a model that is cut becomes so part by part.
        plan: says how a model's modules are cut, where `tp` is above 1.
        max_grad_norm: that the run will clip to.
    """
    if not isinstance(device, torch.device):
        return ModelParallel(device, autocast=autocast, scaler=scaler)
    if choice.processes == 1:
        kind = Accelerated if use_accelerate else SingleDevice
        return kind(device, autocast=autocast, scaler=scaler)
    mesh = build_mesh(choice.sizes, device.type)
    if choice.zero_stage is not None:  # through Accelerate, whatever use_accelerate says
        return zero.Zero(device, mesh, stage=choice.zero_stage, max_grad_norm=max_grad_norm, autocast=autocast)
    if use_accelerate and not choice.in_parts:
        return AcceleratedReplicas(device, mesh, autocast=autocast, scaler=scaler)
    if use_accelerate:
        notice(
            f"strategy {choice.strategy} では use_accelerate によらず、このツールキット自身の並列処理を使います（Accelerate は 1 プロセスと ddp だけです）。",
            f"strategy {choice.strategy} runs on this toolkit's own parallel path, regardless of "
            "use_accelerate (Accelerate supports one process and ddp).",
        )
    common: dict[str, Any] = {
        "sharded": choice.sharded,
        "autocast": autocast,
        "scaler": scaler,
        "fp32_master_weights": fp32_master_weights,
    }
    if choice.sizes.pp > 1:
        return Pipeline(device, mesh, schedule=choice.schedule, **common)

    def cut(model: nn.Module, along: DeviceMesh, weight_placement: WeightPlacement) -> None:
        assert plan is not None
        tensor.parallelize_layers(model, along, plan=plan(model), weight_placement=weight_placement)

    return DataParallel(device, mesh, parallelize_layers=cut, **common)
