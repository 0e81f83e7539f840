"""A model before and after quantization on the same inputs: speed, memory, fidelity and a verdict with its
thresholds.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import math
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from ..config.data import DataConfig
from ..data.prepare import load_examples
from ..embedded import texts as shipped_texts
from ..engine.metrics import bits_per_character, perplexity
from ..errors import ConfigError, DataError, ToolkitError
from ..models import hub
from ..models._upstream import attention_name
from ..models.quantized import allow_cpu_packing, linear_modules, packs_on_cpu, unchanged, weight_bytes
from ..models.source import weight_file_bytes
from ..models.tokenizers import load_tokenizer
from ..system.environment import environment
from ..system.gpu import dtype_name, memory_growth
from .fidelity import compare_logits, first_divergence
from .speed import NEW_TOKENS, WARMUP, Timing, prefill, spread, take_turns

# Decoding takes NEW_TOKENS passes a run, so there are fewer of them.
MAX_DECODE_RUNS = 10
# What must be the same before and after quantization.
_SHAPE = ("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


@dataclass(frozen=True)
class Threshold:
    """A number of the comparison and the limits of its grades.

    Attributes:
        name: what it is called, and where it is found in the result.
        path: keys that lead to it.
        close, usable: limits of these grades; beyond the second it is poor.
        at_least: the limits are lower ones.
    """

    name: str
    path: tuple[str, ...]
    close: float
    usable: float
    at_least: bool = False

    def grade(self, value: float) -> str:
        """close, usable or poor."""
        for grade, limit in (("close", self.close), ("usable", self.usable)):
            if (value >= limit) if self.at_least else (value <= limit):
                return grade
        return "poor"


GRADES = ("close", "usable", "poor")
THRESHOLDS = (
    Threshold("perplexity ratio", ("perplexity_ratio",), 1.005, 1.05),
    Threshold("mean KL", ("agreement", "mean_kl"), 0.01, 0.1),
    Threshold("top-1 agreement", ("agreement", "top1"), 0.95, 0.85, at_least=True),
)
# Both must hold for any grade; the least share of memory that a quantization is worth its error for.
MAX_MEMORY_RATIO = 0.95


def compare_models(
    original: nn.Module, quantized: nn.Module, test_inputs: Sequence[torch.Tensor], *, num_runs: int = 100
) -> dict[str, Any]:
    """Speed, memory and fidelity of two models on the same inputs, run in turns; neither is changed.

    Args:
        original, quantized: one causal language model before and after quantization, each on its device.
        test_inputs: token ids, each [tokens] or [1, tokens].
        num_runs: timed prefill passes of each; decoding runs are min(num_runs, 10), of 32 new tokens each.

    Returns:
        `original` and `quantized`, each with
            latency_ms (p50, p90, p95, p99, mean, stdev of a prefill pass), tokens_per_second and characters_per_second
            (prefill); decode (latency_ms of a token after the first, tokens_per_second, characters_per_second);
            time_to_first_token_ms; memory_bytes, memory_by_dtype (weights, by storage), peak_bytes (weights and what a
            prefill of the longest input needs beside), disk_bytes; quantized_modules, bits; loss (nats per token),
            perplexity, bits_per_character; dtype, device, attention, name;
        `speedup`, `decode_speedup` (above 1: the quantized one is faster; median of pairs taken one after the other),
        `memory_ratio`, `disk_ratio`, `perplexity_ratio`; `agreement` (fidelity.compare_logits); `greedy`
        (first_divergence of each prompt's continuation, None where 32 tokens are the same; texts); `reasons` (why a
        number is None); `verdict`; `environment`; `num_runs`, `decode_runs`.

    Raises:
        ConfigError: no inputs, inputs of another shape or out of the vocabulary, num_runs below 1, or models that are
            not of one kind.
    """
    inputs = _checked(test_inputs, num_runs)
    models = {"original": original, "quantized": quantized}
    _require_one_kind(models)
    room = _room(models, inputs)
    reasons: dict[str, str] = {}
    tokenizer = _tokenizer(models, reasons)
    with unchanged(original), unchanged(quantized):
        fidelity = compare_logits(original, quantized, inputs)
        used = {name: _as_used(model) for name, model in models.items()}
        others = _Others()
        decode_runs = min(num_runs, MAX_DECODE_RUNS)
        timings = take_turns(used, inputs, prefill_runs=num_runs, decode_runs=decode_runs, room=room)
        share = others.share()
        longest = max(inputs, key=lambda ids: ids.shape[1])
        growth = {name: _growth(model, longest, reasons) for name, model in used.items()}
    characters = _characters(tokenizer, inputs)
    obtained: dict[str, Any] = {}
    for name, model in models.items():
        obtained[name] = _weights(model, growth[name], reasons) | _speeds(timings[name], characters, inputs, tokenizer)
        obtained[name] |= _prediction(fidelity["loss"][name], fidelity["predicted"], characters)
    obtained |= _ratios(obtained, timings)
    obtained["agreement"] = fidelity["agreement"]
    obtained["greedy"] = _greedy(timings, original, tokenizer)
    obtained["reasons"] = reasons
    obtained |= {"num_runs": num_runs, "decode_runs": decode_runs, "warmup_runs": WARMUP, "new_tokens": NEW_TOKENS}
    obtained["environment"] = environment() | {
        "inputs": _described(inputs),
        "other_processes": share,
        "timed_with_cpu_packing": packs_on_cpu(quantized),
    }
    obtained["verdict"] = verdict(obtained)
    return obtained


def benchmark_inputs(source: Any, tokenizer: Any, *, rows: int, max_length: int) -> list[torch.Tensor]:
    """Inputs for compare_models, [1, tokens] each.

    Args:
        source: any data that training takes; None for text that ships (embedded:kotoha-text), eight documents a
            row as far as they go.
        rows: most inputs; they are spread evenly over the source.
        max_length: most tokens of each.

    Raises:
        ConfigError: rows or max_length out of range. DataError: data that cannot be read.
    """
    if rows < 1:
        raise ConfigError(f"rows が {rows} です。1 以上にしてください。", f"rows is {rows}; it must be at least 1.")
    texts = source
    if source is None:
        documents = shipped_texts()[: rows * 8]
        texts = ["".join(documents[start::rows]) for start in range(min(rows, len(documents)))]
    try:
        examples, _, _ = load_examples(texts, tokenizer, DataConfig(max_length=max_length, on_long="split"))
    except DataError:  # conversations cannot be split
        examples, _, _ = load_examples(texts, tokenizer, DataConfig(max_length=max_length, on_long="drop"))
    return [torch.tensor(item.input_ids)[None] for item in examples[:: max(1, len(examples) // rows)][:rows]]


def _checked(test_inputs: Sequence[torch.Tensor], num_runs: int) -> list[torch.Tensor]:
    if isinstance(num_runs, bool) or not isinstance(num_runs, int) or num_runs < 1:
        raise ConfigError(
            f"num_runs が {num_runs!r} です。1 以上の整数にしてください。",
            f"num_runs is {num_runs!r}; it must be a whole number of at least 1.",
        )
    inputs = [ids[None] if isinstance(ids, torch.Tensor) and ids.ndim == 1 else ids for ids in test_inputs]
    if not inputs or not all(_is_row(ids) for ids in inputs):
        raise ConfigError(
            "test_inputs は [トークン] か [1, トークン] の形の、トークン ID（整数）のテンソルを 1 つ以上含むリストにしてください。",
            "test_inputs must be a list of at least one tensor of token ids (integers) of shape [tokens] or [1, "
            "tokens].",
        )
    return [ids.long() for ids in inputs]


def _is_row(ids: Any) -> bool:
    whole = isinstance(ids, torch.Tensor) and not ids.is_floating_point() and ids.dtype is not torch.bool
    return whole and ids.ndim == 2 and ids.shape[0] == 1 and ids.shape[1] >= 1


def _require_one_kind(models: Mapping[str, Any]) -> None:
    """Raises ConfigError where the configurations say that one is not the other before quantization."""
    configs = [getattr(model, "config", None) for model in models.values()]
    for key in _SHAPE:
        left, right = (getattr(config, key, None) for config in configs)
        if None not in (left, right) and left != right:
            raise ConfigError(
                f"2 つのモデルの {key} が違います（{left} と {right}）。同じモデルの量子化前後を渡してください。",
                f"the models differ in {key} ({left} and {right}); pass one model before and after quantization.",
            )


def _room(models: Mapping[str, Any], inputs: Sequence[torch.Tensor]) -> int | None:
    """Most positions of both models; refuses inputs that are longer or hold ids that no token has."""
    config = getattr(models["original"], "config", None)
    room, words = getattr(config, "max_position_embeddings", None), getattr(config, "vocab_size", None)
    longest = max(ids.shape[1] for ids in inputs)
    if room is not None and longest > room:
        raise ConfigError(
            f"test_inputs に {longest} トークンの入力がありますが、モデルの上限は {room} です。短くしてください。",
            f"test_inputs holds an input of {longest} tokens, and the models take at most {room}; shorten it.",
        )
    low, high = min(int(ids.min()) for ids in inputs), max(int(ids.max()) for ids in inputs)
    if low < 0 or (words is not None and high >= words):
        raise ConfigError(
            f"test_inputs のトークン ID は {low}〜{high} ですが、モデルの語彙は 0〜{(words or 0) - 1} です。このモデルのトークナイザーで作ってください。",
            f"test_inputs holds ids {low} to {high}, and the models know 0 to {(words or 0) - 1}; make them with "
            "these models' tokenizer.",
        )
    return room


def _tokenizer(models: Mapping[str, Any], reasons: dict[str, str]) -> Any:
    """The models' tokenizer, found by their names; None, with the reason, where there is none.

    Raises:
        ConfigError: the two have different ones.
    """
    obtained = {}
    for name, model in models.items():
        path = str(getattr(model, "name_or_path", "") or "")
        if not path:
            reasons[f"tokenizer of {name}"] = "the model has no name_or_path"
            continue
        try:
            obtained[name] = load_tokenizer(path)
        except (ToolkitError, OSError, ValueError) as error:
            reasons[f"tokenizer of {name}"] = str(error)
    vocabularies = [tokenizer.get_vocab() for tokenizer in obtained.values()]
    if len(vocabularies) == 2 and vocabularies[0] != vocabularies[1]:
        raise ConfigError(
            "2 つのモデルのトークナイザーが違います。同じモデルの量子化前後を渡してください。",
            "the models' tokenizers differ; pass one model before and after quantization.",
        )
    if not obtained:
        reasons["bits_per_character, characters_per_second, greedy texts"] = (
            "no tokenizer was found by the models' paths"
        )
    return next(iter(obtained.values()), None)


def _as_used(model: Any) -> Any:
    """The model as chat and generate run it: where a CPU re-packs 4-bit weights, a copy of it that may, for the
    model must stay as it is.
    """
    if not packs_on_cpu(model):
        return model
    used = copy.deepcopy(model)
    allow_cpu_packing(used)
    return used


def _growth(model: Any, ids: torch.Tensor, reasons: dict[str, str]) -> int | None:
    """What a prefill needs beside the weights, in bytes."""
    with torch.no_grad():
        growth = memory_growth(next(model.parameters()).device, lambda: prefill(model, ids, Timing()))
    if growth is None:
        reasons["peak_bytes"] = "this system cannot reset a process's peak memory"
    return growth


def _weights(model: Any, growth: int | None, reasons: dict[str, str]) -> dict[str, Any]:
    """What the model is held in, in memory and on disk."""
    held = weight_bytes(model)
    name = str(getattr(model, "name_or_path", "") or "")
    disk = _disk_bytes(name)
    if disk is None:
        reasons.setdefault(
            "disk_bytes", f"no folder of safetensors is known for {name or 'a model without name_or_path'}"
        )
    bits = {number: len(linear_modules(model, number)) for number in (4, 8)}
    return {
        "name": name,
        "dtype": dtype_name(getattr(model, "dtype", next(model.parameters()).dtype)),
        "device": str(next(model.parameters()).device),
        "attention": attention_name(model),
        "quantized_modules": sum(bits.values()),
        "bits": next((number for number, count in bits.items() if count), None),
        "memory_bytes": sum(held.values()),
        "memory_by_dtype": held,
        "peak_bytes": None if growth is None else sum(held.values()) + growth,
        "disk_bytes": disk,
    }


def _disk_bytes(name: str) -> int | None:
    """Bytes of the weight files of a folder, an embedded model or a model of the hub's cache."""
    try:
        folder = hub.on_disk(name) if name else None
    except ToolkitError:
        return None
    if folder is None and name:
        from huggingface_hub import try_to_load_from_cache

        with contextlib.suppress(ValueError):  # not a name that a hub could have
            config = try_to_load_from_cache(name, "config.json")
            folder = Path(config).parent if isinstance(config, str) else None
    return (weight_file_bytes(folder) or None) if folder is not None else None


def _speeds(timing: Timing, characters: float | None, inputs: Sequence[torch.Tensor], tokenizer: Any) -> dict[str, Any]:
    per_second = statistics.median(
        tokens / seconds for tokens, seconds in zip(timing.prompt_tokens, timing.prefill, strict=True)
    )
    share = None if characters is None else characters / sum(ids.shape[1] for ids in inputs)
    decoded = 1 / statistics.median(timing.per_token)
    texts = None if tokenizer is None else [len(_text(tokenizer, ids)) / len(ids) for ids in timing.texts.values()]
    return {
        "latency_ms": spread(timing.prefill),
        "tokens_per_second": per_second,
        "characters_per_second": None if share is None else per_second * share,
        "time_to_first_token_ms": spread(timing.first_token),
        "decode": {
            "latency_ms": spread(timing.per_token),
            "tokens_per_second": decoded,
            "characters_per_second": None if texts is None else decoded * statistics.mean(texts),
        },
    }


def _prediction(nats: float, tokens: int, characters: float | None) -> dict[str, float | None]:
    """Loss, perplexity and bits per character of the inputs' text, without what nothing stands before."""
    loss = nats / tokens if tokens else None
    likely = math.inf if loss is None else perplexity(loss)
    return {
        "loss": loss,
        "perplexity": likely if math.isfinite(likely) else None,
        "bits_per_character": bits_per_character(nats, characters) if tokens else None,
    }


def _characters(tokenizer: Any, inputs: Sequence[torch.Tensor]) -> float | None:
    """Characters of the predicted tokens: all of each input but its first."""
    if tokenizer is None:
        return None
    return sum(len(_text(tokenizer, ids[0].tolist())) - len(_text(tokenizer, ids[0, :1].tolist())) for ids in inputs)


def _text(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True))


def _ratios(obtained: Mapping[str, Any], timings: Mapping[str, Timing]) -> dict[str, float | None]:
    def ratio(key: str) -> float | None:
        before, after = obtained["original"][key], obtained["quantized"][key]
        return after / before if before and after is not None else None

    original, quantized = timings["original"], timings["quantized"]
    return {
        "speedup": _paired(original.prefill, quantized.prefill),
        "decode_speedup": _paired(original.per_token, quantized.per_token),
        "memory_ratio": ratio("memory_bytes"),
        "disk_ratio": ratio("disk_bytes"),
        "perplexity_ratio": ratio("perplexity"),
    }


def _paired(before: Sequence[float], after: Sequence[float]) -> float:
    return statistics.median(one / other for one, other in zip(before, after, strict=True))


def _greedy(timings: Mapping[str, Timing], original: Any, tokenizer: Any) -> dict[str, Any]:
    """Where the greedy continuations of the two part, and the texts themselves."""
    ends = getattr(getattr(original, "generation_config", None), "eos_token_id", None)
    stops = ends if isinstance(ends, list) else [ends] if ends is not None else []
    pairs = [
        (timings["original"].texts[number], timings["quantized"].texts[number])
        for number in sorted(timings["original"].texts)
    ]
    texts = None
    if tokenizer is not None:
        texts = [{"original": _text(tokenizer, left), "quantized": _text(tokenizer, right)} for left, right in pairs]
    return {"first_divergence": [first_divergence(left, right, stops) for left, right in pairs], "texts": texts}


class _Others:
    """Share of the machine's processor time that other processes take from now on."""

    def __init__(self) -> None:
        self._start = self._now()

    @staticmethod
    def _now() -> tuple[float, float]:
        """(wall seconds, busy seconds of all cores without this process's)."""
        machine, mine = psutil.cpu_times(), psutil.Process().cpu_times()
        idle = ("idle", "iowait", "guest", "guest_nice")
        busy = sum(value for key, value in machine._asdict().items() if key not in idle)
        return time.perf_counter(), busy - mine.user - mine.system

    def share(self) -> float:
        """0 to 1; a few hundredths are the clock's own grain."""
        wall, busy = (after - before for before, after in zip(self._start, self._now(), strict=True))
        return min(1.0, max(0.0, busy / (wall * (os.cpu_count() or 1))))


def _described(inputs: Sequence[torch.Tensor]) -> dict[str, Any]:
    digest = hashlib.sha256()
    for ids in inputs:
        digest.update(repr(ids[0].tolist()).encode("ascii"))
    lengths = [ids.shape[1] for ids in inputs]
    return {"number": len(inputs), "tokens": sum(lengths), "longest": max(lengths), "sha256": digest.hexdigest()}


def verdict(obtained: Mapping[str, Any]) -> dict[str, Any]:
    """A grade (close, usable, poor, or `not quantized`) by the worst of THRESHOLDS, and every check with its limits."""
    checks = [
        {
            "name": "quantized modules",
            "value": obtained["quantized"]["quantized_modules"],
            "limit": ">= 1",
            "holds": obtained["quantized"]["quantized_modules"] >= 1,
        },
        {
            "name": "memory ratio",
            "value": obtained["memory_ratio"],
            "limit": f"<= {MAX_MEMORY_RATIO}",
            "holds": obtained["memory_ratio"] <= MAX_MEMORY_RATIO,
        },
    ]
    grades = []
    for item in THRESHOLDS:
        value: Any = obtained
        for key in item.path:
            value = value[key]
        if value is None:  # inputs of a single token have no next one
            continue
        sign = ">=" if item.at_least else "<="
        limit = f"{sign} {item.close} close, {sign} {item.usable} usable"
        grades.append(item.grade(value))
        checks.append({"name": item.name, "value": value, "limit": limit, "holds": grades[-1] != "poor"})
    worst = max(grades, key=GRADES.index)
    held = checks[0]["holds"] and checks[1]["holds"]
    return {
        "grade": worst if held else "not quantized",
        "passed": all(check["holds"] for check in checks),
        "checks": checks,
    }
