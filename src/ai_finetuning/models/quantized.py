"""8-bit and 4-bit weights by bitsandbytes, on GPUs and CPUs, with the guards that its CPU path needs.

Two defects of bitsandbytes 0.50.2 on processors with AVX512-BF16 are kept away here: `Linear4bit.forward` in
eval mode re-packs the weights in place, after which gradients are wrong and saved files are damaged
(relative gradient error 0.7-1.0). Both disappear when the re-packing is switched off right after loading.
"""

from __future__ import annotations

import logging
import sys

import torch
from torch import nn

from ..errors import ModelError

_NOISE = {
    # One line per matrix product ("inputs will be cast from ... to float16"): thousands in a short run.
    "bitsandbytes.autograd._functions": "inputs will be cast from",
    # Harmless: the optional `kernels` package is not used, bitsandbytes falls back to its own C++ code.
    "bitsandbytes.backends.cpu.ops": "from kernels-community",
}


class _DropLines(logging.Filter):
    """Drops the records of one logger whose text contains a phrase."""

    def __init__(self, phrase: str) -> None:
        super().__init__()
        self.phrase = phrase

    def filter(self, record: logging.LogRecord) -> bool:
        return self.phrase not in str(record.msg)


_FILTERS = {name: _DropLines(phrase) for name, phrase in _NOISE.items()}


def quiet_bitsandbytes() -> None:
    """Filters two floods of harmless log lines; calling it again changes nothing."""
    for name, drop in _FILTERS.items():
        logging.getLogger(name).addFilter(drop)


def require_bitsandbytes() -> None:
    """Raises ModelError with the way out where bitsandbytes is missing (macOS)."""
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise ModelError(
            "8bit・4bit の読み込みには bitsandbytes が必要です (macOS には対応版がありません)。`pip install bitsandbytes` するか、量子化なしで読み込んでください。",
            "Loading in 8 or 4 bit needs bitsandbytes (there is none for macOS). `pip install bitsandbytes`, or load without quantization.",
        ) from error
    quiet_bitsandbytes()


def kbit_config(bits: int, compute_dtype: torch.dtype, **settings: object):
    """The transformers quantization config for 8 or 4 bit; `settings` override (see bitsandbytes' names)."""
    from transformers import BitsAndBytesConfig

    require_bitsandbytes()
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True, **settings)
    four_bit = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, **settings}
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=compute_dtype, **four_bit)


def linear_modules(model: nn.Module, bits: int) -> list[nn.Module]:
    """The modules whose weights are really held in `bits` bits."""
    quiet_bitsandbytes()
    if "bitsandbytes" not in sys.modules:  # its import takes a second, and its weights cannot be there without it
        return []
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    kind, dtypes = (Linear8bitLt, {torch.int8}) if bits == 8 else (Linear4bit, None)
    found = [module for module in model.modules() if isinstance(module, kind)]
    if dtypes is None:
        return [module for module in found if getattr(module.weight, "quant_state", None) is not None]
    return [module for module in found if module.weight.dtype in dtypes]


def quantized_bits(model: nn.Module) -> int | None:
    """8 or 4 where the model holds bitsandbytes weights, else None."""
    return next((bits for bits in (4, 8) if linear_modules(model, bits)), None)


def require_quantized(model: nn.Module, bits: int, name: str) -> int:
    """Number of modules in `bits` bits.

    Raises:
        ModelError: none is, so that "quantized" would silently mean 16 bit.
    """
    count = len(linear_modules(model, bits))
    if count == 0:
        raise ModelError(
            f"{name}: {bits}bit になった層が 0 個でした。線形層がすべて対象外か、CPU オフロード設定で除外されています。設定を外すか、量子化なしで使ってください。",
            f"{name}: 0 modules were quantized to {bits} bit; all linear layers were excluded, or CPU offload excluded them. Drop that setting, or load without quantization.",
        )
    return count


def forbid_cpu_packing(model: nn.Module) -> None:
    """Keeps 4-bit weights as loaded, so that training after evaluation and saving after a forward stay exact."""
    for module in linear_modules(model, 4):
        module.support_avx512bf16_for_cpu = False


def allow_cpu_packing(model: nn.Module) -> None:
    """For inference only: lets bitsandbytes re-pack 4-bit weights (decodes about 3x faster on AVX512-BF16).

    The next forward changes the weights in place: the model must neither be trained nor saved afterwards.
    """
    modules = linear_modules(model, 4)
    if modules:
        from bitsandbytes.functional import has_avx512bf16

        for module in modules:
            module.support_avx512bf16_for_cpu = has_avx512bf16()


def weight_bytes(model: nn.Module) -> dict[str, int]:
    """Bytes of parameters and buffers by dtype; shared storage counts once, quantization statistics included."""
    sizes: dict[str, int] = {}
    seen: set[int] = set()
    for tensor in [*model.parameters(), *model.buffers(), *_statistics(model)]:
        key = tensor.untyped_storage().data_ptr()
        if key in seen:
            continue
        seen.add(key)
        dtype = str(tensor.dtype).removeprefix("torch.")
        sizes[dtype] = sizes.get(dtype, 0) + tensor.numel() * tensor.element_size()
    return sizes


def _statistics(model: nn.Module) -> list[torch.Tensor]:
    """Scales that bitsandbytes keeps beside the weights, outside of parameters and buffers."""
    # The first forward moves the 8-bit scales from the weight to the module's state.
    found = [
        module.weight.SCB if module.weight.SCB is not None else module.state.SCB for module in linear_modules(model, 8)
    ]
    for module in linear_modules(model, 4):
        state = module.weight.quant_state
        found.append(state.absmax)
        if state.nested:
            found.append(state.state2.absmax)
    return [tensor for tensor in found if isinstance(tensor, torch.Tensor)]
