"""Private names of torch, transformers, accelerate and torchao that models need: looked through at every upgrade."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


def attention_name(model: Any) -> str | None:
    """The attention implementation that a model runs with; None for a model without a configuration.

    transformers 5.3 to 5.23: `config._attn_implementation`; `set_attn_implementation` is public, nothing public reads
    it back.
    """
    name = getattr(getattr(model, "config", None), "_attn_implementation", None)
    return None if name is None else str(name)


def attention_setting(model: Any) -> str | dict[str, str]:
    """What `set_attn_implementation` takes to bring back what a model has now: one name, or one for each configuration
    inside its own (a vision tower may have another).

    transformers 5.3 to 5.23: as above; `sub_configs` is public.
    """
    config = model.config
    own, names = attention_name(model) or "eager", {}
    for name in getattr(config, "sub_configs", None) or ():
        part = getattr(getattr(config, name, None), "_attn_implementation", None)
        if part is not None:
            names[name] = str(part)
    return {"": own, **names} if names else own


def tied_weight_names(model: Any) -> set[str]:
    """Names of the weights that loading makes from others.

    transformers 5: `all_tied_weights_keys`, public; before a model has gone through `post_init`, and for models from a
    repository's own code written for transformers 4, only `_tied_weights_keys` is there. Not needed from transformers 6.
    """
    return set(getattr(model, "all_tied_weights_keys", None) or getattr(model, "_tied_weights_keys", None) or ())


def version_of(weight: Tensor) -> int:
    """How often a tensor was changed in place.

    torch 2.10 to 2.13: `Tensor._version`, which torch's notes on autograd describe; there is no public name.
    """
    return weight._version


def in_backward() -> bool:
    """Whether a backward pass is running on this thread: a layer that is called then is computed again.

    torch 2.10 to 2.13: `torch._C._current_graph_task_id`, which torch's own checkpointing asks; -1 outside.
    """
    return bool(torch._C._current_graph_task_id() != -1)


def cast_together(tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Copies of many tensors in another dtype, by one operation of a few kernels.

    torch 2.10 to 2.13: `torch._foreach_copy_`, by which torch's own FSDP copies; torch documents others of the family.
    """
    made = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    torch._foreach_copy_(made, tensors)
    return made


def has_accelerate_hooks(model: nn.Module) -> bool:
    """Whether accelerate has put hooks on a model, as transformers lets it where it loads over several devices.

    accelerate 1.10 to 1.15: `_hf_hook` on the module; its public functions put hooks on and off, none asks.
    """
    return any(hasattr(module, "_hf_hook") for module in model.modules())


def leave_inputs_to_autocast(layer: Any, device_type: str) -> None:
    """Lets a LoRA layer of peft hand on its input as it is wherever autocast is on for a kind of device.

    peft 0.19 to 0.21: `_cast_input_dtype`. The public `disable_input_dtype_casting` is a switch for a block of code; the
    backward pass of a checkpointed layer computes outside of it, where autocast alone is put back.
    """
    layer._cast_input_dtype = partial(_cast_unless_autocast, layer._cast_input_dtype, device_type)


def _cast_unless_autocast(cast: Callable[[Any, Any], Any], device_type: str, value: Any, dtype: Any) -> Any:
    if isinstance(value, Tensor) and value.device.type == device_type and torch.is_autocast_enabled(device_type):
        return value
    return cast(value, dtype)


def cast_lora_input(layer: Any, value: Tensor, dtype: torch.dtype) -> Tensor:
    """A LoRA layer's input as its adapter takes it.

    peft 0.19 to 0.21: `_cast_input_dtype`, which heeds the public switch `disable_input_dtype_casting`.
    """
    obtained: Tensor = layer._cast_input_dtype(value, dtype)
    return obtained


def is_torchao_weight(weight: Any, bits: int) -> bool:
    """Whether a weight is held by torchao in so many bits.

    torchao 0.18: the classes of its tensors are named by their bits (Int8Tensor, Int4TilePackedTo4dTensor); the tensors
    have no attribute that says it.
    """
    kind = type(weight)
    return kind.__module__.startswith("torchao.") and kind.__name__.startswith(f"Int{bits}")


@contextlib.contextmanager
def without_bitsandbytes() -> Iterator[None]:
    """peft may be imported here, and wrap layers, without bitsandbytes, where nothing has imported that: its layers cannot be
    in the model then.

    peft 0.19 to 0.21 imports it with itself and for every layer that it wraps, wherever it is installed, and with it torch's
    compiler: seconds of a start, and 39 MiB. That is so only where this block has not been: None in `sys.modules` is a module
    that is not there (Python's reference, the import system), and what peft remembers of it is forgotten at the end, but for
    `peft.helpers`, whose search for layers by condition numbers (nothing here calls it) then reads packed weights as they are.
    Other threads than the first one import as ever, as None would be there for all of them.
    """
    if "bitsandbytes" in sys.modules or threading.current_thread() is not threading.main_thread():
        yield
        return
    sys.modules["bitsandbytes"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["bitsandbytes"]
        from peft import import_utils

        import_utils.is_bnb_available.cache_clear()
        import_utils.is_bnb_4bit_available.cache_clear()


def peft_refuses(model: Any, end: str) -> bool:
    """Whether PEFT refuses to wrap layers whose names end so in a model of this family.

    peft 0.19 to 0.21: a private function with the names of state-space models whose kernels read weights directly;
    nothing public asks it without wrapping the layer.
    """
    with without_bitsandbytes():
        from peft import LoraConfig
        from peft.tuners import tuners_utils

    check = getattr(tuners_utils, "_check_lora_target_modules_mamba", None)
    if check is None:
        return False
    try:
        check(LoraConfig(target_modules=[end]), model, end)
    except ValueError:
        return True
    return False


def peft_turns_into_experts(model: Any, target: str) -> bool:
    """Whether PEFT takes a name of `target_modules` (or `all-linear`) for weights of experts in this family.

    peft 0.19 to 0.21 does so where transformers 5 made tensors of what were layers of their own in transformers 4, in a
    module that is not in its documentation; what it does to a configuration is looked at here, not its tables.
    """
    with without_bitsandbytes():
        from peft import LoraConfig

    try:
        from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
    except ImportError:
        return False
    config = LoraConfig(target_modules=target if target == "all-linear" else [target])
    try:
        convert_peft_config_for_transformers(config, model, None)
    except ValueError:  # one of two names that it joins
        return True
    return bool(config.target_parameters)
