"""Sizes of the three dimensions of a run, checked, and the torch DeviceMesh over them."""

from __future__ import annotations

from dataclasses import dataclass

from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from ...errors import ConfigError

DIMENSIONS = ("pp", "dp", "tp")


@dataclass(frozen=True)
class Sizes:
    """Pipeline stages x data ranks x ranks that share a layer; their product is the number of processes."""

    pp: int = 1
    dp: int = 1
    tp: int = 1


def sizes_of(strategy: str, world: int, *, pipeline: int = 1, tensor: int = 1) -> Sizes:
    """How `world` processes are divided.

    Args:
        strategy: `pipeline` or `tensor` with size 1 means all ranks; other strategies take the sizes as they are.

    Raises:
        ConfigError: the sizes do not divide the number of processes.
    """
    if strategy == "pipeline" and pipeline == 1:
        pipeline = max(1, world // tensor)
    if strategy == "tensor" and tensor == 1:
        tensor = max(1, world // pipeline)
    if world % (pipeline * tensor):
        raise ConfigError(
            f"プロセス数 {world} が pipeline_parallel_size {pipeline} x tensor_parallel_size {tensor} = "
            f"{pipeline * tensor} で割り切れません。"
            f"プロセス数を {pipeline * tensor} の倍数にするか、大きさを変えてください。",
            f"{world} processes cannot be divided by pipeline_parallel_size {pipeline} x tensor_parallel_size "
            f"{tensor} = {pipeline * tensor}; "
            f"start a multiple of {pipeline * tensor} processes, or change the sizes.",
        )
    return Sizes(pipeline, world // (pipeline * tensor), tensor)


def build_mesh(sizes: Sizes, device_type: str) -> DeviceMesh:
    """The mesh [pp, dp, tp]; ranks of one tensor group are neighbours, so that they share a machine."""
    return init_device_mesh(device_type, (sizes.pp, sizes.dp, sizes.tp), mesh_dim_names=DIMENSIONS)
