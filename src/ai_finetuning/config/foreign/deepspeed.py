"""How their run is spread: DeepSpeed's JSON, FSDP's keys of transformers, Axolotl and Accelerate, Megatron's sizes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import Reason
from .beside import find_beside
from .draft import Draft, Verdict
from .rows import SPEED
from .training_parts import MICRO, NOT_USED, SPLITS, first, split_size
from .values import is_off, number, shown, text, whole

OFFLOAD = Reason("CPU への退避はありません。メモリーだけの違いです", "nothing is moved to the CPU; only memory differs")
STAGES = {0: "ddp", 1: "zero", 2: "zero", 3: "fsdp"}
_STAGE_IN_NAME = re.compile(r"z(?:ero)?[-_]?([0-3])", re.IGNORECASE)
OTHER_SPLITS = (
    "expert_parallel_size",
    "expert_model_parallel_size",
    "context_parallel_size",
    "context_parapllel_size",
    "context_parallel",
    "sequence_parallel_degree",
    "sequence_parallel_size",
    "sequence_parallel",
    "dp_replicate_size",
    "virtual_pipeline_model_parallel_size",
)


def spread(draft: Draft) -> None:
    """`parallel.*` of whatever their file says of several devices."""
    sharded = [key for key in ("fsdp", "fsdp_config", "fsdp_version", "dp_shard_size") if key in draft.values]
    by_fsdp = _wants_fsdp(draft)
    stage = _deepspeed(draft)
    tensor, pipeline = split_size(draft, SPLITS[0]), split_size(draft, SPLITS[1])
    fsdp = Reason("重みを GPU に分けます", "weights are divided over the GPUs")
    if by_fsdp or stage == 3:
        why = fsdp if by_fsdp else Reason("ZeRO 3 と同じことを fsdp で行います", "fsdp does what ZeRO 3 does")
        draft.set("parallel.strategy", "fsdp", why)
    elif stage in (1, 2) and draft.gpus > 1:
        two = Reason("ZeRO 1 は 2 で行います", "ZeRO 1 is done as 2") if stage == 1 else None
        draft.set("parallel.deepspeed_stage", 2, two)
    elif draft.gpus >= tensor > 1:
        draft.set("parallel.strategy", "tensor")
        draft.set("parallel.tensor_parallel_size", tensor)
    elif draft.gpus >= pipeline > 1:
        draft.set("parallel.strategy", "pipeline")
        draft.set("parallel.pipeline_parallel_size", pipeline)
    for key in sharded:
        if by_fsdp:
            draft.convert(key, fsdp, "parallel.strategy")
        else:
            draft.drop(key, NOT_USED)
    for names, kind, size in ((SPLITS[0], "tensor", tensor), (SPLITS[1], "pipeline", pipeline)):
        given = first(draft, names)
        if given is not None:
            _say_size(draft, given, kind, size)
    for name in OTHER_SPLITS:
        draft.drop(name, SPEED)


def _say_size(draft: Draft, key: str, name: str, size: int) -> None:
    if size == 1:
        draft.drop(key, NOT_USED)
    elif draft.settings.get("parallel.strategy") == name:
        draft.convert(key, Reason(f"strategy: {name}", f"strategy: {name}"), "parallel.strategy")
    else:
        draft.drop(
            key,
            Reason(
                f"GPU への分け方だけの違いです（--gpus {draft.gpus}）",
                f"it only says how the work is spread (--gpus {draft.gpus})",
            ),
        )


def _wants_fsdp(draft: Draft) -> bool:
    value = draft.get("fsdp")
    if not is_off(value):
        options = value if isinstance(value, list) else str(value).split()
        return "no_shard" not in [str(option).lower() for option in options]
    config = draft.get("fsdp_config")
    return bool(isinstance(config, Mapping) and config) or whole(draft.get("dp_shard_size") or 1) > 1


def _deepspeed(draft: Draft) -> int:
    """The ZeRO stage; 0 where DeepSpeed divides nothing. What its JSON says of the training goes into the draft."""
    for name in ("deepspeed", "deepspeed_config"):
        if not draft.on(name):
            draft.drop(name, NOT_USED)
    key = next((name for name in ("deepspeed", "deepspeed_config") if draft.on(name)), None)
    return 0 if key is None else _stage_of(draft, key)


def _stage_of(draft: Draft, key: str) -> int:
    value = draft.values[key]
    config = value if isinstance(value, Mapping) else _read(draft, text(value))
    if config is None:
        found = _STAGE_IN_NAME.search(Path(text(value)).name)
        if found is None:
            draft.refuse(
                key,
                Reason(
                    f"{shown(value)} が見つからず、名前から ZeRO の段階も分かりません",
                    f"{shown(value)} is not there, and its name says no ZeRO stage",
                ),
            )
            return 0
        stage = int(found.group(1))
        how = Reason(
            f"{shown(value)} が見つからないため、ZeRO {stage} は名前から",
            f"{shown(value)} is not there: ZeRO {stage} is read off its name",
        )
    else:
        zero = config.get("zero_optimization")
        stage = whole(zero.get("stage", 0)) if isinstance(zero, Mapping) else whole(config.get("zero_stage", 0))
        how = Reason(f"ZeRO {stage}", f"ZeRO {stage}")
        _inside(draft, config)
    if stage in (1, 2) and draft.gpus == 1:
        draft.drop(
            key,
            Reason(f"{how.ja}。GPU 1 つでは分けるものがありません", f"{how.en}; one GPU has nothing to divide"),
        )
    elif stage == 0:
        draft.drop(key, Reason(f"{how.ja}（ddp と同じです）", f"{how.en}, which is ddp"))
    else:
        draft.convert(key, how, "parallel.strategy" if stage == 3 else "parallel.deepspeed_stage")
    return stage


def _read(draft: Draft, name: str) -> Mapping[str, Any] | None:
    path = find_beside(draft.folder, name)
    try:
        loaded = json.loads(path.read_text(encoding="utf-8-sig")) if path is not None else None
    except (OSError, ValueError, RecursionError):
        return None
    return loaded if isinstance(loaded, Mapping) else None


def _inside(draft: Draft, config: Mapping[str, Any]) -> None:
    """What a DeepSpeed configuration says beside the stage; `auto` leaves it to the run file."""
    zero = config.get("zero_optimization")
    offloads = [key for key in (zero or {}) if key.startswith("offload_")] if isinstance(zero, Mapping) else []
    for key in offloads:
        _note(draft, f"deepspeed.zero_optimization.{key}", "cpu", Verdict.DROPPED, OFFLOAD)
    for key, theirs in (("bf16", "bf16"), ("fp16", "fp16")):
        block = config.get(key)
        enabled = block.get("enabled") if isinstance(block, Mapping) else None
        if enabled is True and not any(name in draft.values for name in ("bf16", "fp16")):
            draft.set("training.runtime.precision", theirs)
            _note(draft, f"deepspeed.{key}", True, Verdict.CONVERTED, None, "training.runtime.precision")
    clip = config.get("gradient_clipping")
    if clip not in (None, "auto") and "max_grad_norm" not in draft.values:
        draft.set("training.max_grad_norm", number(clip))
        _note(draft, "deepspeed.gradient_clipping", clip, Verdict.TAKEN, None, "training.max_grad_norm")
    for key, others, path in (
        ("train_micro_batch_size_per_gpu", MICRO, "training.batch_size"),
        ("gradient_accumulation_steps", ("gradient_accumulation_steps",), "training.gradient_accumulation_steps"),
    ):
        value = config.get(key)
        if value not in (None, "auto") and first(draft, others) is None:
            ranks = draft.gpus if key == "gradient_accumulation_steps" else 1
            draft.set(path, whole(value) * ranks)
            _note(draft, f"deepspeed.{key}", value, Verdict.CONVERTED, Reason(f"× {ranks}", f"x {ranks}"), path)
    _optimizer(draft, config.get("optimizer"))
    if isinstance(config.get("scheduler"), Mapping):
        reason = Reason("学習率は実行ファイルの指定に従います", "the run file says the learning rate's schedule")
        given = first(draft, ("lr_scheduler_type", "lr_scheduler")) is not None
        _note(draft, "deepspeed.scheduler", config["scheduler"], Verdict.DROPPED, reason, differs=not given)


def _optimizer(draft: Draft, block: Any) -> None:
    if not isinstance(block, Mapping):
        return
    name = str(block.get("type", "")).lower()
    if name in ("adam", "adamw"):
        same = Reason("AdamW で、設定は実行ファイルに従います", "AdamW, with what the run file says")
        _note(draft, "deepspeed.optimizer", name, Verdict.DROPPED, same)
    else:
        lacking = Reason(f"オプティマイザー {name} はありません", f"there is no optimizer {name}")
        _note(draft, "deepspeed.optimizer", name, Verdict.REFUSED, lacking)


def _note(
    draft: Draft, key: str, value: Any, verdict: Verdict, reason: Reason | None, *ours: str, differs: bool = False
) -> None:
    draft.values.setdefault(key, value)
    draft.say(key, verdict, reason, *ours, differs=differs)
