"""QuantizationOptimizer: 8-bit and 4-bit copies of a model, saved before any forward and verified by a reload."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import ConfigError, ModelError
from ..evaluation.fidelity import logits_of
from ..evaluation.quantization_benchmark import compare_models
from ..evaluation.quantization_report import write_report
from ..execution.output_folder import free_disk_bytes, new_folder, no_space, validate_new_folder
from ..inference.usable import whole_model
from ..messages import notice
from ..models import hub
from ..models.loading import load_causal_lm, resolve_dtype
from ..models.quantized import Method, Quantization, find_method, linear_modules, warn_of_experts, weight_bytes
from ..models.source import find_model, weight_file_bytes
from ..models.tokenizers import PROBES, load_tokenizer
from ..planner.shape import meta_model
from ..system.files import refuse_links_outside
from ..system.gpu import chosen_device, clear_gpu_memory, get_available_device


@dataclass(frozen=True)
class QuantizationReport:
    """What a quantization gave.

    Attributes:
        folder: where the copy is.
        method: how it is held.
        dtype: of what stays unquantized, and of the products.
        modules: linear layers really quantized.
        size_bytes: of its weight files.
        memory_bytes: of its weights when loaded.
    """

    folder: Path
    method: Method
    dtype: torch.dtype
    modules: int
    size_bytes: int
    memory_bytes: int


class QuantizationOptimizer:
    """Makes quantized copies of a model with bitsandbytes or torchao, on GPUs and CPUs.

    Args:
        model_name_or_path: hub id, alias, `embedded:NAME` or folder of a model that is not quantized
            yet, or of a checkpoint of all weights.
        device: None takes the best one.

    Attributes:
        report: the numbers of the last copy; None before.
    """

    def __init__(self, model_name_or_path: str, device: torch.device | None = None) -> None:
        self.model_name_or_path = model_name_or_path
        self.device = chosen_device(device)
        self.report: QuantizationReport | None = None
        self._model = model_name_or_path  # what is loaded: of a run that has not ended, a copy of its checkpoint

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
            llm_int8_enable_fp32_cpu_offload: without effect (reported): the whole model is on one device, and a
                saved copy that carries this flag is loaded unquantized by stock transformers.

        Raises:
            See quantize.
        """
        if llm_int8_has_fp16_weight:
            raise ConfigError(
                "llm_int8_has_fp16_weight=True では重みが 16bit のまま残り、8bit として保存も再読み込みもできません。False にしてください。",
                "llm_int8_has_fp16_weight=True keeps 16-bit weights, so the model cannot be saved or reloaded in "
                "8 bit; set it to False.",
            )
        if llm_int8_enable_fp32_cpu_offload:
            notice(
                "llm_int8_enable_fp32_cpu_offload は使いません。モデル全体が 1 つのデバイスにあり、この設定が残ると再読み込み時に量子化されないためです。",
                "llm_int8_enable_fp32_cpu_offload has no effect: the whole model is on one device, and with it a "
                "saved copy would be loaded unquantized.",
            )
        settings = {"llm_int8_threshold": llm_int8_threshold}
        return self.quantize(output_dir, bits=8, compute_dtype=compute_dtype, settings=settings)

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
            See quantize.
        """
        settings = {"bnb_4bit_use_double_quant": use_double_quant}
        return self.quantize(output_dir, bits=4, quant_type=quant_type, compute_dtype=compute_dtype, settings=settings)

    def quantize(
        self,
        output_dir: str | Path,
        *,
        bits: int,
        backend: str = "bitsandbytes",
        quant_type: str | None = None,
        compute_dtype: torch.dtype | str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> Any:
        """Any row of models.quantized.METHODS: saves before any forward, verifies the copy, returns it.

        It reports success when the stored copy, after reloading, gives the same logits to the last bit as a
        quantization in
        memory. Both are thrown away; the model that is returned has run no forward, does not re-pack its weights on a
        CPU, and bears the folder's name. One model at a time is in memory.

        Args:
            output_dir: a folder that is not there yet, or is empty.
            bits: 8 or 4.
            backend: `bitsandbytes` or `torchao`.
            quant_type: None takes the first of the backend for these bits.
            compute_dtype: None takes what the machine does well.
            settings: what the method lets set (bitsandbytes' names).

        Raises:
            ConfigError: a folder in use, an unknown method or setting, a model that is quantized already, or a method
                that this device does not run. ModelError: nothing was quantized, an adapter in place of a model, or a
                    copy that computes different results
                than it should. StorageError: it cannot be written.
        """
        expected = Quantization(find_method(bits, backend, quant_type), _with_threshold(settings or {}))
        folder = Path(output_dir)
        validate_new_folder(folder)
        self._model = whole_model(self.model_name_or_path).path
        self._refuse_quantized()
        refuse_links_outside(hub.on_disk(self._model))
        warn_of_experts(meta_model(self._model), expected.method.bits)
        device = self.device or get_available_device()
        dtype = resolve_dtype(compute_dtype, device)
        tokenizer = load_tokenizer(self._model)
        with new_folder(folder) as staging:
            self._store(expected, dtype, device, staging)
            tokenizer.save_pretrained(staging)
            clear_gpu_memory()
            self._prove(expected, dtype, device, staging, tokenizer)
        clear_gpu_memory()
        # Quantized in memory once more, not read from the folder: transformers 5.23 does not save again what it read
        # quantized.
        model = self._quantized(expected, dtype, device, announce=True)
        model.name_or_path = model.config.name_or_path = str(folder)
        self.report = _report(model, folder, expected.method, dtype)
        obtained = self.report
        notice(
            f"{obtained.modules} 個の線形層を {bits}bit（{obtained.method.name}）にして {folder} に保存し、"
            f"読み直して同じ計算結果になることを確かめました（{obtained.size_bytes / 1e6:.1f} MB）。",
            f"{obtained.modules} linear layers are in {bits} bit ({obtained.method.name}); saved to {folder}, reloaded "
            f"and verified to compute the same ({obtained.size_bytes / 1e6:.1f} MB).",
        )
        return model

    def _quantized(
        self, expected: Quantization, dtype: torch.dtype, device: torch.device, *, announce: bool = False
    ) -> Any:
        return load_causal_lm(self._model, dtype=dtype, device=device, quantization=expected, announce=announce)

    def _store(self, expected: Quantization, dtype: torch.dtype, device: torch.device, staging: Path) -> None:
        """Quantizes and saves before any forward: on some processors bitsandbytes re-packs weights in their first
        one (docs/design/quantization.md).
        """
        model = self._quantized(expected, dtype, device)
        needed = sum(weight_bytes(model).values())
        if free_disk_bytes(staging) < needed:
            raise no_space(staging.parent, needed)
        model.save_pretrained(staging)

    def _prove(
        self, expected: Quantization, dtype: torch.dtype, device: torch.device, staging: Path, tokenizer: Any
    ) -> None:
        """The stored copy gives the logits of a second quantization in memory, not of the saved one: damage would be
        in both of those.
        """
        encoded = (tokenizer.encode(text) for text in PROBES)
        probes = [torch.tensor([ids]) for ids in encoded if ids]  # some vocabularies drop a text of line ends
        in_memory = logits_of(self._quantized(expected, dtype, device), probes)
        clear_gpu_memory()
        stored = logits_of(load_causal_lm(str(staging), dtype=dtype, device=device, announce=False), probes)
        _require_same(in_memory, stored, self.model_name_or_path, expected.method)

    def _refuse_quantized(self) -> None:
        obtained = find_model(self._model)
        stored = obtained.quantization
        if stored:
            raise ConfigError(
                f"{obtained.name} はすでに量子化されています（{stored.get('quant_method')}）。量子化前のモデルを指定してください。",
                f"{obtained.name} is quantized already ({stored.get('quant_method')}); name the model before "
                "quantization.",
            )

    def benchmark_quantization(
        self,
        original_model: nn.Module,
        quantized_model: nn.Module,
        test_inputs: list[torch.Tensor],
        num_runs: int = 100,
        *,
        output_dir: str | Path | None = None,
    ) -> dict[str, Any]:
        """Speed, memory and fidelity of two models on the same inputs, run in turns; neither is changed.

        Args:
            original_model, quantized_model: one causal language model before and after quantization.
            test_inputs: token ids, each [tokens] or [1, tokens].
            num_runs: number of timed prefill passes for each model; of the slower decoding there are at most ten.
            output_dir: where benchmark.json, benchmark.md and benchmark.png are written; None writes nothing.

        Returns:
            See evaluation.quantization_benchmark.compare_models.

        Raises:
            ConfigError: no inputs, inputs of another shape, num_runs below 1, or models that are not of one kind.
            StorageError: output_dir cannot be written.
        """
        obtained = compare_models(original_model, quantized_model, test_inputs, num_runs=num_runs)
        if output_dir is not None:
            write_report(obtained, Path(output_dir))
        return obtained


def _with_threshold(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with the threshold as bitsandbytes takes it, which refuses 6 for 6.0."""
    if (threshold := settings.get("llm_int8_threshold")) is None:
        return dict(settings)
    number = isinstance(threshold, Real) and not isinstance(threshold, bool) and math.isfinite(threshold)
    if not number or threshold < 0:
        raise ConfigError(
            f"llm_int8_threshold が {threshold!r} です。0 以上の数にしてください。",
            f"llm_int8_threshold is {threshold!r}; it must be a number, 0 or more.",
        )
    return {**settings, "llm_int8_threshold": float(threshold)}


def _require_same(in_memory: list[torch.Tensor], stored: list[torch.Tensor], name: str, method: Method) -> None:
    """Raises ModelError where a copy computes different results after reloading."""
    for expected, obtained in zip(in_memory, stored, strict=True):
        if not torch.isfinite(expected).all():
            raise ModelError(
                f"{name} を {method.name} にすると出力が有限の値になりません。保存を取り消しました。compute_dtype を bfloat16 か float32 にするか、"
                "別の方法を試してください。",
                f"{name} in {method.name} produces values that are not finite; the output was deleted. Try "
                "compute_dtype "
                "bfloat16 or float32, or another method.",
            )
        if not torch.equal(expected, obtained):
            worst = float((expected - obtained).abs().max())
            raise ModelError(
                f"{name} を {method.name} で保存しましたが、読み直すと計算結果が変わります（ロジットの差 最大 {worst:.3g}）。保存を取り消しました。別の方法か、別の版の "
                f"{method.backend} を試してください。",
                f"{name} was saved in {method.name}, but computes different results after reloading (logits differ by "
                "up to "
                f"{worst:.3g}); the output was deleted. Try another method, or another version of {method.backend}.",
            )


def _report(model: Any, folder: Path, method: Method, dtype: torch.dtype) -> QuantizationReport:
    size = weight_file_bytes(folder)
    count = len(linear_modules(model, method.bits))
    return QuantizationReport(folder, method, dtype, count, size, sum(weight_bytes(model).values()))
