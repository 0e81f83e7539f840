"""A model without data: every weight has its shape, its dtype and its ties, and takes no memory.

It is put together on the meta device, where PEFT and bitsandbytes work as usual, and only then becomes one of the CPU.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..models.parts import decoder_layers, tensors_of, unwrapped
from ..models.quantized import METHODS, find_method


def shapes_of(module: nn.Module, dtype: torch.dtype, *, layers: Sequence[int] | None = None) -> Any:
    """A copy of a model on the meta device, in training mode.

    Args:
        module: a transformers causal LM, loaded or on the meta device; it stays as it is.
        dtype: of the copy's weights; buffers keep theirs.
        layers: numbers of the layers to keep; None keeps all.
    """
    weights = {id(weight) for weight in module.parameters()}
    memo: dict[int, Any] = {}
    for tensor in _every_tensor(module):
        kind = dtype if id(tensor) in weights and tensor.is_floating_point() else tensor.dtype
        empty = torch.empty(tensor.shape, dtype=kind, device="meta")
        memo[id(tensor)] = nn.Parameter(empty, requires_grad=False) if id(tensor) in weights else empty
    copied: Any = copy.deepcopy(module, memo)
    kept = decoder_layers(copied)
    if layers is not None and kept is not None:
        for number in reversed(range(len(kept))):
            if number not in layers:
                del kept[number]
        text = copied.config.get_text_config()
        text.num_hidden_layers = len(layers)
        if getattr(text, "layer_types", None):
            text.layer_types = [text.layer_types[number] for number in layers]
    copied.train()
    return copied


def materialize(model: Any, device_map: Mapping[str, torch.device] | None = None) -> None:
    """Turns the meta tensors of a model into empty ones of the CPU, in place; call it where tensors have no data
    (planner/_upstream.py). Ties stay.

    Args:
        device_map: device by module name of the transformers model, for all of its weights: without data `cpu:0` and `cpu:1`
            are two devices, whose tensors do not meet in an operation.
    """
    made: dict[int, Any] = {}
    inner = unwrapped(model)
    places = {"": torch.device("cpu")} if device_map is None else dict(device_map)
    device_of = {id(part): device for name, device in places.items() for part in inner.get_submodule(name).modules()}
    device = torch.device("cpu")

    def of(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            empty: Any = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
            if isinstance(tensor, nn.Parameter):
                empty = nn.Parameter(empty, requires_grad=tensor.requires_grad)
                empty.__dict__.update({name: _inside(value, of) for name, value in vars(tensor).items()})
            made[id(tensor)] = empty
        obtained: Tensor = made[id(tensor)]
        return obtained

    for part in model.modules():
        device = device_of.get(id(part), next(iter(places.values())))
        own = [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]
        for name, tensor in (*own, *[item for item in vars(part).items() if isinstance(item[1], Tensor)]):
            setattr(part, name, of(tensor))
    # It lies there: Module.to() would want to swap tensors without data.
    model.hf_device_map = places


def _inside(value: Any, of: Callable[[Tensor], Tensor]) -> Any:
    """The scales that a quantized weight carries, in their objects."""
    if isinstance(value, Tensor):
        return of(value)
    if type(value).__name__ == "QuantState":
        for name, inner in vars(value).items():
            setattr(value, name, _inside(inner, of))
    return value


def _every_tensor(module: nn.Module) -> list[Tensor]:
    """Parameters, buffers, and tensors that a module keeps as plain attributes (the first frequencies of a rotary
    embedding).
    """
    plain = [value for part in module.modules() for value in vars(part).values() if isinstance(value, Tensor)]
    return [*tensors_of(module), *plain]


def quantize_shapes(model: Any, bits: int, compute: torch.dtype) -> None:
    """Replaces the linear layers of a model on the meta device, as loading it in 4 or 8 bit does, in place.

    Args:
        compute: dtype that weights are turned to for their products.
    """
    import transformers

    library: Any = transformers.quantizers
    make: Callable[..., Any] = library.AutoHfQuantizer.from_config
    method = find_method(bits)
    assert method in METHODS
    plain = {name: part.weight for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    biases = {name: part.bias for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    quantizer = make(method.config(compute, method.settings), pre_quantized=False)
    quantizer.preprocess_model(model=model, device_map={"": "cpu"})
    fill = _fill_4_bit if bits == 4 else _fill_8_bit
    with _own_tables():
        for name, part in model.named_modules():
            if name in plain and part.weight is not plain[name]:
                part.bias = biases[name]
                fill(part, plain[name])


def _fill_4_bit(part: Any, plain: Tensor) -> None:
    """Gives a layer of bitsandbytes packed weights and their scales. Its own class of parameters would take the tensor for
    one with data.
    """
    from bitsandbytes.functional import quantize_4bit

    asked, quantize = part.weight, _untyped(quantize_4bit)
    packed, state = quantize(
        plain.detach(),
        blocksize=asked.blocksize,
        compress_statistics=asked.compress_statistics,
        quant_type=asked.quant_type,
        quant_storage=asked.quant_storage,
    )
    weight: Any = nn.Parameter(packed, requires_grad=False)
    weight.quant_state, weight.bnb_quantized = state, True
    for name in ("blocksize", "compress_statistics", "quant_type", "quant_storage"):
        setattr(weight, name, getattr(asked, name))
    del part.weight
    part.weight = weight
    part.support_avx512bf16_for_cpu = False


def _fill_8_bit(part: Any, plain: Tensor) -> None:
    """Gives a layer of bitsandbytes its rows in 8 bit with a scale each."""
    weight: Any = nn.Parameter(torch.empty(plain.shape, dtype=torch.int8, device="meta"), requires_grad=False)
    weight.CB, weight.SCB = weight.data, torch.empty(plain.shape[0], device="meta")
    weight.has_fp16_weights = False
    del part.weight
    part.weight = weight


@contextlib.contextmanager
def _own_tables() -> Iterator[None]:
    """bitsandbytes keeps a table of codes for the process: inside, one without data takes its place."""
    from bitsandbytes import functional

    tables: dict[str, Tensor] = functional.name2qmap
    kept = dict(tables)
    tables["dynamic"] = torch.empty(256, device="meta")
    try:
        yield
    finally:
        tables.clear()
        tables.update(kept)


def _untyped(function: Any) -> Callable[..., Any]:
    """A function of a library without types."""
    typed: Callable[..., Any] = function
    return typed
