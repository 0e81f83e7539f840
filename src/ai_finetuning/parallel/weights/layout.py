"""Which part of a weight a rank holds, and who answers for it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor


@dataclass(frozen=True)
class Layout:
    """A rank's part of one weight.

    Attributes:
        shape: of the whole weight.
        offset: where this rank's part begins, in every dimension.
        size: of this rank's part.
        owner: whether this rank, of all that hold the same part, writes it and counts it in the gradient norm.
    """

    shape: tuple[int, ...]
    offset: tuple[int, ...]
    size: tuple[int, ...]
    owner: bool

    def ranges(self) -> list[list[int]]:
        """[begin, end] of this part in every dimension of the whole."""
        return [[start, start + length] for start, length in zip(self.offset, self.size, strict=True)]


def same_memory(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors begin at the same place; told without an address, which tensors without data lack."""
    return first.untyped_storage() is second.untyped_storage() and first.storage_offset() == second.storage_offset()


def chunk(size: int, parts: int, index: int) -> tuple[int, int]:
    """Where part `index` of `size` things begins and ends when torch.chunk cuts them; the last parts may be short or
    empty.
    """
    each = -(-size // parts)
    return min(index * each, size), min((index + 1) * each, size)


def layout_of(weight: Tensor, mesh: DeviceMesh) -> Layout:
    """The layout of a parameter on the mesh [pp, dp, tp].

    A DTensor was cut along `tp` first and along `dp` afterwards (parallel/strategies/distributed.py), each time as torch.chunk
    cuts; so every part is one slice of the whole.
    """
    shape = tuple(weight.shape)
    offset, size = [0] * len(shape), list(shape)
    cut = set()
    if isinstance(weight, DTensor):
        names = weight.device_mesh.mesh_dim_names or ()
        placements = dict(zip(names, weight.placements, strict=True))
        for name in ("tp", "dp"):
            dimension = getattr(placements.get(name), "dim", None)
            if dimension is None:
                continue
            cut.add(name)
            start, stop = chunk(size[dimension], mesh[name].size(), mesh.get_local_rank(name))
            offset[dimension] += start
            size[dimension] = stop - start
    owner = all(mesh.get_local_rank(name) == 0 for name in ("dp", "tp") if name not in cut)
    return Layout(shape, tuple(offset), tuple(size), owner)


def local(weight: Tensor) -> Tensor:
    """This rank's part of a weight or gradient, sharing its memory."""
    part: Tensor = weight.to_local() if isinstance(weight, DTensor) else weight
    return part


def like(weight: Tensor, part: Tensor) -> Tensor:
    """This rank's part of a tensor that is cut as a weight is, sharing the part's memory."""
    if not isinstance(weight, DTensor):
        return part
    mesh, placements = weight.device_mesh, weight.placements
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=weight.shape, stride=weight.stride())


def local_parameter(parameter: nn.Parameter) -> nn.Parameter:
    """A plain parameter over this rank's part; the optimizer works on it and so changes the model's own weight."""
    if not isinstance(parameter, DTensor):
        return parameter
    return nn.Parameter(local(parameter.detach()), requires_grad=parameter.requires_grad)
