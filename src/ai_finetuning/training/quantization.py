"""QuantizationOptimizer: 8-bit and 4-bit copies of a model, saved before any forward, and a first benchmark."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import ConfigError
from ..models import hub
from ..models.adapters import agreement, logits_of
from ..models.loading import load_causal_lm, read_config
from ..models.quantized import linear_modules, weight_bytes
from ..models.tokenizers import load_tokenizer
from ..notices import notice
from .output_folder import new_folder, refuse_used_folder

QUANT_TYPES = ("nf4", "fp4")


class QuantizationOptimizer:
    """Makes quantized copies of a model with bitsandbytes, on GPUs and CPUs.

    Args:
        model_name_or_path: hub id, alias, `embedded:NAME` or folder of a model that is not quantized yet.
        device: None takes the best one.
    """

    def __init__(self, model_name_or_path: str, device: torch.device | None = None) -> None:
        self.model_name_or_path = model_name_or_path
        self.device = torch.device(device) if device is not None else None

    def quantize_to_8bit(
        self,
        output_dir: str,
        compute_dtype: torch.dtype = torch.float16,
        llm_int8_threshold: float = 6.0,
        llm_int8_has_fp16_weight: bool = False,
        llm_int8_enable_fp32_cpu_offload: bool = False,
    ) -> Any:
        """LLM.int8() (arXiv:2208.07339): saves to output_dir and returns the model, which has run no forward.

        Args:
            output_dir: a folder that is not there yet, or is empty.
            compute_dtype: of what stays unquantized; fp16 becomes what the machine does well on a CPU.
            llm_int8_threshold: activations above it are computed in 16 bit.
            llm_int8_has_fp16_weight: refused: such weights cannot be saved in 8 bit.
            llm_int8_enable_fp32_cpu_offload: without effect, which is said: the whole model is on one device, and a saved copy
                that carries this flag is loaded unquantized by stock transformers.

        Raises:
            ConfigError: a folder in use, or a combination that cannot be reloaded. ModelError: nothing was quantized, or the
                model is quantized already. StorageError: it cannot be written.
        """
        if llm_int8_has_fp16_weight:
            raise ConfigError(
                "llm_int8_has_fp16_weight=True では重みが 16bit のまま残り、8bit として保存も再読み込みもできません。False にしてください。",
                "llm_int8_has_fp16_weight=True keeps 16-bit weights, which can be neither saved nor reloaded in 8 bit; set it to False.",
            )
        if llm_int8_threshold < 0:
            raise ConfigError(
                f"llm_int8_threshold が {llm_int8_threshold} です。0 以上にしてください。",
                f"llm_int8_threshold is {llm_int8_threshold}; it must be 0 or more.",
            )
        if llm_int8_enable_fp32_cpu_offload:
            notice(
                "llm_int8_enable_fp32_cpu_offload は使いません。モデル全体が 1 つの装置にあり、この設定が残ると再読み込み時に量子化されないためです。",
                "llm_int8_enable_fp32_cpu_offload has no effect: the whole model is on one device, and with it a saved copy would be loaded unquantized.",
            )
        return self._quantize(8, output_dir, compute_dtype, {"llm_int8_threshold": llm_int8_threshold})

    def quantize_to_4bit(
        self,
        output_dir: str,
        compute_dtype: torch.dtype = torch.float16,
        quant_type: str = "nf4",
        use_double_quant: bool = True,
    ) -> Any:
        """NF4 or FP4 (arXiv:2305.14314): saves to output_dir and returns the model, which has run no forward.

        Args:
            output_dir: a folder that is not there yet, or is empty.
            compute_dtype: of the products; fp16 becomes what the machine does well on a CPU.
            quant_type: `nf4` or `fp4`.
            use_double_quant: quantize the scales too.

        Raises:
            See quantize_to_8bit.
        """
        if quant_type not in QUANT_TYPES:
            raise ConfigError(
                f"quant_type が {quant_type!r} です。{' か '.join(QUANT_TYPES)} にしてください。",
                f"quant_type is {quant_type!r}; it must be {' or '.join(QUANT_TYPES)}.",
            )
        settings = {"bnb_4bit_quant_type": quant_type, "bnb_4bit_use_double_quant": use_double_quant}
        return self._quantize(4, output_dir, compute_dtype, settings)

    def _quantize(self, bits: int, output_dir: str, dtype: torch.dtype, settings: dict[str, Any]) -> Any:
        place = Path(output_dir)
        refuse_used_folder(place)
        self._refuse_quantized()
        with new_folder(place) as staging:
            model = load_causal_lm(
                self.model_name_or_path, dtype=dtype, device=self.device, load_in_8bit=bits == 8, load_in_4bit=bits == 4, quantization=settings
            )  # fmt: skip
            # Before any forward: on some processors bitsandbytes re-packs weights in their first one (QUANTIZATION.md A2).
            model.save_pretrained(staging)
            load_tokenizer(self.model_name_or_path).save_pretrained(staging)
        count, size = len(linear_modules(model, bits)), sum(path.stat().st_size for path in place.glob("*.safetensors"))
        notice(
            f"{count} 個の線形層を {bits}bit にして {place} に保存しました（{size / 1e6:.1f} MB）。",
            f"{count} linear layers are in {bits} bit; saved to {place} ({size / 1e6:.1f} MB).",
        )
        return model

    def _refuse_quantized(self) -> None:
        found = hub.locate(self.model_name_or_path)
        stored = read_config(found).get("quantization_config")
        if stored:
            raise ConfigError(
                f"{found.name} はすでに量子化されています（{stored.get('quant_method')}）。量子化前のモデルを指定してください。",
                f"{found.name} is quantized already ({stored.get('quant_method')}); name the model before quantization.",
            )

    def benchmark_quantization(
        self,
        original_model: nn.Module,
        quantized_model: nn.Module,
        test_inputs: list[torch.Tensor],
        num_runs: int = 100,
    ) -> dict[str, Any]:
        """Speed, memory and agreement of two models on the same inputs, run in turns.

        Args:
            original_model, quantized_model: causal language models with the same vocabulary.
            test_inputs: token ids, each [tokens] or [1, tokens].
            num_runs: timed forward passes of each model.

        Returns:
            `original` and `quantized` (latency_ms: p50, p90, p99; tokens_per_second; memory_bytes), `speedup`,
            `memory_ratio`, `agreement` (mean KL in nats, top-1 share).

        Raises:
            ConfigError: no inputs, inputs of another shape, num_runs below 1, or models of different vocabularies.
        """
        inputs = _checked(test_inputs, num_runs)
        models = {"original": original_model, "quantized": quantized_model}
        reference, candidate = (logits_of(model, inputs) for model in models.values())
        if reference[0].shape[-1] != candidate[0].shape[-1]:
            raise ConfigError(
                f"2 つのモデルの語彙が違います（{reference[0].shape[-1]} と {candidate[0].shape[-1]}）。同じモデルの量子化前後を渡してください。",
                f"the models' vocabularies differ ({reference[0].shape[-1]} and {candidate[0].shape[-1]}); pass one model before and after quantization.",
            )
        times = _interleaved(models, inputs, num_runs)
        tokens = statistics.mean(ids.shape[1] for ids in inputs)
        found: dict[str, Any] = {
            name: {
                "latency_ms": _percentiles(times[name]),
                "tokens_per_second": tokens / statistics.median(times[name]),
                "memory_bytes": sum(weight_bytes(model).values()),
            }
            for name, model in models.items()
        }
        close = agreement(reference, candidate)
        return {
            **found,
            "speedup": statistics.median(times["original"]) / statistics.median(times["quantized"]),
            "memory_ratio": found["quantized"]["memory_bytes"] / found["original"]["memory_bytes"],
            "agreement": {"mean_kl": close.kl, "top1": close.top1},
            "num_runs": num_runs,
        }


def _checked(test_inputs: Sequence[torch.Tensor], num_runs: int) -> list[torch.Tensor]:
    if isinstance(num_runs, bool) or num_runs < 1:
        raise ConfigError(
            f"num_runs が {num_runs!r} です。1 以上にしてください。",
            f"num_runs is {num_runs!r}; it must be at least 1.",
        )
    inputs = [ids[None] if ids.ndim == 1 else ids for ids in test_inputs]
    if not inputs or any(ids.ndim != 2 or ids.shape[0] != 1 or ids.shape[1] < 1 for ids in inputs):
        raise ConfigError(
            "test_inputs は [トークン] か [1, トークン] の形のテンソルを 1 つ以上含むリストにしてください。",
            "test_inputs must be a list of at least one tensor of shape [tokens] or [1, tokens].",
        )
    return inputs


@torch.no_grad()
def _interleaved(models: dict[str, nn.Module], inputs: list[torch.Tensor], num_runs: int) -> dict[str, list[float]]:
    """Seconds of every pass; the models take turns, so that what else the machine does falls on both."""
    times: dict[str, list[float]] = {name: [] for name in models}
    for index in range(num_runs):
        ids = inputs[index % len(inputs)]
        for name, model in models.items():
            place = next(model.parameters()).device
            start = time.perf_counter()
            model(input_ids=ids.to(place), use_cache=False)
            if place.type == "cuda":
                torch.cuda.synchronize(place)
            times[name].append(time.perf_counter() - start)
    return times


def _percentiles(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {f"p{share}": 1e3 * ordered[min(len(ordered) - 1, len(ordered) * share // 100)] for share in (50, 90, 99)}
