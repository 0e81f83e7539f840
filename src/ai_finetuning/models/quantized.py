"""8-bit and 4-bit weights by bitsandbytes and torchao: a table of methods, and the guards that CPUs need.

Two defects of bitsandbytes 0.50.2 on processors with AVX512-BF16 are kept away here: `Linear4bit.forward` in
eval mode re-packs the weights in place, after which gradients are wrong and saved files are damaged
(relative gradient error 0.7-1.0). Both disappear when the re-packing is switched off right after loading.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..errors import ConfigError, ModelError
from ..messages import warn
from ..system.gpu import dtype_name
from ._upstream import is_torchao_weight
from .lora_targets import expert_weights

_MISSING = {
    "bitsandbytes": (
        "8bit・4bit の読み込みには bitsandbytes が必要です (macOS には対応版がありません)。`pip install bitsandbytes` するか、量子化なしで読み込んでください。",
        (
            "Loading in 8 or 4 bit needs bitsandbytes (there is none for macOS). `pip install bitsandbytes`, or load "
            "without quantization."
        ),
    ),
    "torchao": (
        (
            "torchao の重みには torchao が必要です。`pip install 'ai-finetuning-toolkit[torchao]'` するか、backend を bitsandbytes "
            "にしてください。"
        ),
        (
            "torchao weights need torchao: `pip install 'ai-finetuning-toolkit[torchao]'`, or choose the backend "
            "bitsandbytes."
        ),
    ),
}

# Share of a model's weights.
_MOST = 0.5


def validate_backend(backend: str) -> None:
    """Raises ModelError with the way out where the package of a backend is missing; other backends are transformers'
    business.
    """
    if backend not in _MISSING:
        return
    if importlib.util.find_spec(backend) is None:
        raise ModelError(*_MISSING[backend])
    importlib.import_module(backend)


@dataclass(frozen=True)
class Method:
    """One way to hold weights in 8 or 4 bits.

    Attributes:
        backend, bits, quant_type: its name.
        config: makes transformers' quantization config from the compute dtype and the settings.
        settings: names of what a caller may set, with their defaults.
        refusal: (Japanese, English) why it does not run on a device in a compute dtype, or None.
    """

    backend: str
    bits: int
    quant_type: str
    config: Callable[[torch.dtype, Mapping[str, Any]], Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    refusal: Callable[[torch.device, torch.dtype], tuple[str, str] | None] = lambda device, dtype: None

    @property
    def name(self) -> str:
        """`backend quant_type`, as messages and tables show it."""
        return f"{self.backend} {self.quant_type}"


def _bits_and_bytes_config(**arguments: Any) -> Any:
    from transformers import BitsAndBytesConfig

    make: Callable[..., Any] = BitsAndBytesConfig
    return make(**arguments)


def _llm_int8(dtype: torch.dtype, settings: Mapping[str, Any]) -> Any:
    return _bits_and_bytes_config(load_in_8bit=True, **settings)


def _four_bit(quant_type: str) -> Callable[[torch.dtype, Mapping[str, Any]], Any]:
    def config(dtype: torch.dtype, settings: Mapping[str, Any]) -> Any:
        return _bits_and_bytes_config(
            load_in_4bit=True, bnb_4bit_compute_dtype=dtype, bnb_4bit_quant_type=quant_type, **settings
        )

    return config


def _torchao(name: str, **arguments: Any) -> Callable[[torch.dtype, Mapping[str, Any]], Any]:
    def config(dtype: torch.dtype, settings: Mapping[str, Any]) -> Any:
        from torchao import quantization
        from transformers import TorchAoConfig

        # Else torchao changes torch.compile's settings for the whole process.
        return TorchAoConfig(getattr(quantization, name)(set_inductor_config=False, **arguments, **settings))

    return config


def _cuda_and_bf16(device: torch.device, dtype: torch.dtype) -> tuple[str, str] | None:
    """torchao 0.18 packs 4-bit weights for CUDA in bf16 only: all its packings fail on a CPU, or stay at a byte a
    weight.
    """
    if device.type == "cuda" and dtype is torch.bfloat16:
        return None
    return (
        (
            f"torchao int4 は CUDA の GPU と bfloat16 でだけ動きます（指定は {device.type} と {dtype_name(dtype)}）。bitsandbytes の nf4 なら "
            "CPU でも動きます。"
        ),
        (
            f"torchao int4 runs on a CUDA GPU in bfloat16 only (asked for {device.type} and {dtype_name(dtype)}); "
            "bitsandbytes nf4 runs on CPUs too."
        ),
    )


_DOUBLE_QUANT = {"bnb_4bit_use_double_quant": True}
# The first method of a backend and bits is what is taken where no quant_type is named.
METHODS = (
    Method("bitsandbytes", 8, "int8", _llm_int8, {"llm_int8_threshold": 6.0}),
    Method("bitsandbytes", 4, "nf4", _four_bit("nf4"), _DOUBLE_QUANT),
    Method("bitsandbytes", 4, "fp4", _four_bit("fp4"), _DOUBLE_QUANT),
    Method("torchao", 8, "int8", _torchao("Int8WeightOnlyConfig")),
    Method("torchao", 8, "int8-dynamic", _torchao("Int8DynamicActivationInt8WeightConfig")),
    Method(
        "torchao",
        4,
        "int4",
        _torchao("Int4WeightOnlyConfig", group_size=32, int4_packing_format="tile_packed_to_4d"),
        refusal=_cuda_and_bf16,
    ),
)


def find_method(bits: int, backend: str = "bitsandbytes", quant_type: str | None = None) -> Method:
    """The requested row of METHODS.

    Raises:
        ConfigError: there is none; names those that there are.
    """
    for method in METHODS:
        if (method.backend, method.bits) == (backend, bits) and quant_type in (None, method.quant_type):
            return method
    known = ", ".join(f"backend={row.backend} bits={row.bits} quant_type={row.quant_type}" for row in METHODS)
    asked = f"backend={backend} bits={bits}" + (f" quant_type={quant_type}" if quant_type is not None else "")
    raise ConfigError(
        f"{asked} という量子化方法はありません。次のいずれかにしてください: {known}。",
        f"{asked} is not a quantization method; choose one of: {known}.",
    )


@dataclass(frozen=True)
class Quantization:
    """A method with the settings that differ from its defaults."""

    method: Method
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        foreign = sorted(set(self.settings) - set(self.method.settings))
        if foreign:
            raise ConfigError(
                f"{', '.join(foreign)} は {self.method.name} では使えません。指定を外してください。",
                f"{', '.join(foreign)} does not apply to {self.method.name}; leave it out.",
            )

    def config(self, device: torch.device, compute_dtype: torch.dtype) -> Any:
        """Transformers' quantization config.

        Raises:
            ModelError: the backend's package is missing. ConfigError: the method does not run on this device in this
                dtype.
        """
        validate_backend(self.method.backend)
        reason = self.method.refusal(device, compute_dtype)
        if reason is not None:
            raise ConfigError(*reason)
        return self.method.config(compute_dtype, {**self.method.settings, **self.settings})


def _bitsandbytes_modules(model: nn.Module, bits: int) -> list[Any]:
    if "bitsandbytes" not in sys.modules:  # its import takes a second, and its weights cannot be there without it
        return []
    from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt

    kind: type[nn.Module] = Linear8bitLt if bits == 8 else Linear4bit
    obtained: list[Any] = [module for module in model.modules() if isinstance(module, kind)]
    if bits == 4:
        return [module for module in obtained if getattr(module.weight, "quant_state", None) is not None]
    return [module for module in obtained if module.weight.dtype is torch.int8]


def _torchao_modules(model: nn.Module, bits: int) -> list[Any]:
    """Modules whose weight is one of torchao's tensors."""
    return [module for module in model.modules() if is_torchao_weight(getattr(module, "weight", None), bits)]


def linear_modules(model: nn.Module, bits: int) -> list[Any]:
    """The modules whose weights are really held in `bits` bits, by any backend."""
    return _bitsandbytes_modules(model, bits) + _torchao_modules(model, bits)


def quantized_bits(model: nn.Module) -> int | None:
    """8 or 4 where the model holds quantized weights, else None."""
    return next((bits for bits in (4, 8) if linear_modules(model, bits)), None)


def validate_quantized(model: nn.Module, bits: int, name: str) -> int:
    """Number of modules in `bits` bits.

    Raises:
        ModelError: none is, so that "quantized" would silently mean 16 bit.
    """
    count = len(linear_modules(model, bits))
    if count == 0:
        raise ModelError(
            f"{name}: {bits}bit になった層が 0 個でした。線形層がすべて対象外か、CPU オフロード設定で除外されています。設定を外すか、量子化なしで使ってください。",
            f"{name}: 0 modules were quantized to {bits} bit; all linear layers were excluded, or CPU offload "
            "excluded them. Drop that setting, or load without quantization.",
        )
    return count


def warn_of_experts(model: nn.Module, bits: int) -> None:
    """One line for a mixture whose experts, tensors that quantizers of linear layers leave alone, hold most weights."""
    experts = sum(weight.numel() for _, weight in expert_weights(model))
    share = experts / max(1, sum(weight.numel() for weight in model.parameters()))
    if share > _MOST:
        warn(
            f"このモデルの重みの {share:.0%} はエキスパートのテンソルで、{bits}bit になりません。メモリーは量子化なしとほとんど変わりません。",
            f"{share:.0%} of this model's weights are tensors of experts, which do not become {bits} bit: it needs nearly "
            "as much memory as without quantization.",
        )


def forbid_cpu_packing(model: nn.Module) -> None:
    """Keeps 4-bit weights as loaded, so that training after evaluation and saving after a forward stay exact."""
    for module in _bitsandbytes_modules(model, 4):
        module.support_avx512bf16_for_cpu = False


def packs_on_cpu(model: nn.Module) -> bool:
    """Whether bitsandbytes could re-pack weights of this model on this machine."""
    modules = _bitsandbytes_modules(model, 4)
    if not modules or modules[0].weight.device.type != "cpu":
        return False
    from bitsandbytes.functional import has_avx512bf16

    asked: Callable[[], bool] = has_avx512bf16
    return bool(asked())


def allow_cpu_packing(model: nn.Module) -> None:
    """For inference only: lets bitsandbytes re-pack 4-bit weights (decodes about 3x faster on AVX512-BF16).

    The next forward changes the weights in place: the model must neither be trained nor saved afterwards.
    """
    for module in _bitsandbytes_modules(model, 4) if packs_on_cpu(model) else ():
        module.support_avx512bf16_for_cpu = True


@contextlib.contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Eval mode without re-packing inside; afterwards modes, flags, scales and biases are the objects they were before.

    bitsandbytes' forwards re-pack 4-bit weights, move 8-bit scales from the weight to the module and cast biases.
    """
    modes = [(module, module.training) for module in model.modules()]
    four, eight = _bitsandbytes_modules(model, 4), _bitsandbytes_modules(model, 8)
    flags = [(module, module.support_avx512bf16_for_cpu) for module in four]
    scales = [(module, module.weight.CB, module.weight.SCB, module.state.CB, module.state.SCB) for module in eight]
    biases = [(module.bias, module.bias.data) for module in (*four, *eight) if module.bias is not None]
    model.eval()
    forbid_cpu_packing(model)
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for module, flag in flags:
            module.support_avx512bf16_for_cpu = flag
        for module, *placed in scales:
            module.weight.CB, module.weight.SCB, module.state.CB, module.state.SCB = placed
        for bias, data in biases:
            bias.data = data


def weight_bytes(model: nn.Module) -> dict[str, int]:
    """Bytes of parameters and buffers by dtype of storage; shared storage counts once, quantization statistics
    included.
    """
    sizes: dict[str, int] = {}
    seen: set[int] = set()
    for held in held_tensors(model):
        for tensor in plain_parts(held):
            storage = tensor.untyped_storage()
            if storage.nbytes() == 0 or storage.data_ptr() in seen:
                continue
            seen.add(storage.data_ptr())
            dtype = dtype_name(tensor.dtype)
            sizes[dtype] = sizes.get(dtype, 0) + storage.nbytes()
    return sizes


def plain_parts(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The plain tensors that hold a tensor's data: torchao's claim the size and dtype of what they stand for."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from plain_parts(getattr(tensor, name))


def held_tensors(model: nn.Module) -> list[torch.Tensor]:
    """Parameters, buffers, and what bitsandbytes keeps beside its weights."""
    return [*model.parameters(), *model.buffers(), *_statistics(model)]


def _statistics(model: nn.Module) -> list[torch.Tensor]:
    """Scales and codes that bitsandbytes keeps beside the weights, outside of parameters and buffers."""
    # The first forward moves the 8-bit scales from the weight to the module's state.
    obtained = [
        module.weight.SCB if module.weight.SCB is not None else module.state.SCB
        for module in _bitsandbytes_modules(model, 8)
    ]
    for module in _bitsandbytes_modules(model, 4):
        state = module.weight.quant_state
        inner = (state.offset, state.state2.absmax, state.state2.code) if state.nested else ()
        obtained += [state.absmax, state.code, *inner]
    return [tensor for tensor in obtained if isinstance(tensor, torch.Tensor)]
