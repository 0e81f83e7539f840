"""Private names of torch, accelerate and DeepSpeed that strategies need: looked through at every upgrade."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store


def store_of_processes(prefix: str) -> Store:
    """The store over which the processes met, under a prefix of its own; a thread may use it beside collectives.

    torch 2.10 to 2.13: `_get_default_store`; a public function is not announced. The classes of stores are public, but
    not where a type checker looks.
    """
    from torch.distributed import distributed_c10d

    store: Store = distributed_c10d.PrefixStore(prefix, distributed_c10d._get_default_store())
    return store


def scale_all(tensors: Sequence[Tensor], factor: float) -> None:
    """Multiplies tensors in place, on GPUs in few kernels.

    torch 2.10 to 2.13: `_foreach_mul_`, which torch's own clip_grad_norm_ uses; the public
    `clip_grads_with_norm_` limits the factor to 1 and adds an epsilon, which would change the bits.
    """
    torch._foreach_mul_(list(tensors), factor)


def own_parameters(module: nn.Module) -> dict[str, Any]:
    """A module's own table of parameters by name, to be written as well: a tensor that is no parameter may stand in it.

    torch 2.10 to 2.13: `Module._parameters`; the public `torch.func.functional_call` would run the whole module, where
    only the table may change.
    """
    return module._parameters


def update_part(optimizer: Any, index: int) -> None:
    """Steps one group of DeepSpeed's optimizer, whose moments it makes.

    DeepSpeed 0.19: `_optimizer_step` of both stages; nothing public makes the moments before a real step.
    """
    optimizer._optimizer_step(index)


def look_for_moments(optimizer: Any) -> None:
    """Lets DeepSpeed's optimizer of stage 2 link its parameters with the moments that there are now.

    DeepSpeed 0.19: `_hp_optimizer_states_linked` and `_lazy_init_hp_params_optimizer_state`; it looks once, after the
    first group's first step.
    """
    optimizer._hp_optimizer_states_linked = False
    optimizer._lazy_init_hp_params_optimizer_state()


def compile_no_operators() -> None:
    """Tells DeepSpeed that it has no operators of its own.

    DeepSpeed 0.19: `deepspeed.ops.__compatible_ops__`; no public setting does it in a process that runs already.
    """
    import deepspeed

    deepspeed.ops.__compatible_ops__ = {}


def forget_accelerator() -> None:
    """Lets Accelerate begin again in this process, with or without DeepSpeed.

    accelerate 1.10 to 1.15: `AcceleratorState._reset_state`, which its own tests call; there is no public one.
    """
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)


def version_of(tensor: Tensor) -> int:
    """How often a tensor's memory was written in place; a tensor and its views count together.

    torch 2.10 to 2.13: `Tensor._version`, by which autograd itself finds out; nothing public tells it.
    """
    return tensor._version


def base_of(tensor: Tensor) -> Tensor:
    """The tensor that a view was made from; one that is no view is its own.

    torch 2.10 to 2.13: `Tensor._base`, which torch documents in its notes on views, without a public name.
    """
    return tensor if tensor._base is None else tensor._base


def is_cast_of_a_parameter(tensor: Tensor) -> bool:
    """Whether autocast has made a tensor from a weight that trains, to keep it until the forward pass ends.

    torch 2.10 to 2.13: the class of a node of the graph is known by its name only (`ToCopyBackward0`).
    """
    node = tensor.grad_fn
    if node is None or node.name() != "ToCopyBackward0":
        return False
    before = node.next_functions[0][0]
    return before is not None and "AccumulateGrad" in before.name()


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is no more than its storage: other classes (DTensor) know where their parts are.

    torch 2.10 to 2.13: a tensor without data, as a plan has them, is of the class `FakeTensor` (planner/_upstream.py).
    """
    return type(tensor) is Tensor or type(tensor).__name__ == "FakeTensor"
