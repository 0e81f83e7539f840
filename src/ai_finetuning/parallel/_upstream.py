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
