"""What has to be the same for a resumed run to be the same run: every setting, but for those that change no weight."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from torch import nn

from ..config.fields import fields_of, section_class
from ..config.mixture import sources_of, with_replay
from ..config.plain import to_plain
from ..config.run import RunConfig
from ..errors import ModelError
from ..models.adapter_folder import WEIGHTS
from ..models.loading import weight_fingerprint
from ..planner.cuts import Cut
from ..planner.plan import Plan
from ..system.files import sha256_of
from ..system.gpu import dtype_name
from . import base_facts
from .request import TrainRequest

SETTINGS = "settings"
# Settings that a resumed run may change: where things are and what is shown, kept or cached; and by what means the same
# numbers are computed, up to the order of a sum. Whole sections by their name.
HARMLESS = frozenset(
    (
        "model.attention",
        "model.trust_remote_code",
        "data.cache",
        "training.eval_steps",
        "training.evals_per_epoch",
        "training.save_steps",
        "training.saves_per_epoch",
        "training.save_only_model",
        "training.logging_steps",
        "training.output_dir",
        "training.gradient_checkpointing",
        "training.ddp",
        "training.local_rank",
        "training.world_size",
        "training.checkpoint",
        "training.evaluation",
        "training.runtime.report_samples",
        "training.runtime.report_to",
        "training.runtime.progress",
        "training.runtime.kernels",
        "training.runtime.offload",
        "lora.task_type",
        "parallel",
    )
)
# Settings of an adapter that the fingerprint holds as they are.
_LORA = (
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "bias",
    "qlora_4bit",
    "use_rslora",
    "use_dora",
    "modules_to_save",
)
# Settings of which the fingerprint holds what they come to, by the name that it has there: a file may be spelled in
# another way, and two epochs of 6 steps are 12 steps.
COMES_TO = {
    "model.name": "model",
    "model.chat_template": "data",
    "model.extra_tokens": "extra_tokens",
    "method": "method",
    "data.train": "data",
    "data.eval": "data",
    "data.replay.path": "data",
    "data.max_length": "max_length",
    "data.packing": "packing",
    "data.group_by_length": "group_by_length",
    "data.on_long": "data",
    "data.system_prompt": "data",
    "data.columns": "data",
    "data.sheet": "data",
    "data.skip_bad_rows": "data",
    "data.loss_on": "data",
    "data.max_samples": "data",
    "data.normalize": "data",
    "data.doctor": "data",
    "training.learning_rate": "learning_rate",
    "training.batch_size": "batch_size",
    "training.gradient_accumulation_steps": "gradient_accumulation_steps",
    "training.num_epochs": "total_steps",
    "training.schedule.max_steps": "total_steps",
    "training.warmup_steps": "warmup_steps",
    "training.schedule.warmup_ratio": "warmup_steps",
    "training.max_grad_norm": "max_grad_norm",
    "training.fp16": "precision",
    "training.runtime.precision": "precision",
    "training.runtime.seed": "seed",
    "training.schedule.name": "schedule",
    "training.schedule.decay_ratio": "decay_ratio",
    "training.optimizer.name": "optimizer",
    "training.optimizer.betas": "betas",
    "training.optimizer.weight_decay": "weight_decay",
    "training.optimizer.lora_plus_ratio": "lora_plus_ratio",
    "lora.use_qlora": "method",
    "lora.adapter": "lora.adapter",
    **{f"lora.{name}": f"lora.{name}" for name in (*_LORA, "target_parameters")},
}


@cache
def other_settings() -> tuple[str, ...]:
    """The dotted names of all settings that are neither harmless nor have a name of their own in the fingerprint."""
    names = [".".join(path) for path, hint in fields_of(RunConfig).items() if section_class(hint) is None]
    return tuple(name for name in names if not _listed(name, HARMLESS) and not _listed(name, COMES_TO))


def _listed(name: str, names: Any) -> bool:
    """Whether a setting, or a section that it lies in, is among the names."""
    parts = name.split(".")
    return any(".".join(parts[:length]) in names for length in range(1, len(parts) + 1))


def settings_of(config: RunConfig) -> dict[str, Any]:
    """The values of other_settings(), as JSON holds them; None below a section that is not there."""
    plain, obtained = to_plain(config), {}
    for name in other_settings():
        value: Any = plain
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        obtained[name] = value
    if config.trains_all:
        return {name: value for name, value in obtained.items() if not name.startswith("lora.")}
    return obtained


def fingerprint_of(request: TrainRequest, digest: str, summary: Plan, cut: Cut) -> dict[str, Any]:
    """The fingerprint of a run, without the mark of its weights.

    Args:
        request: settings and base.
        digest: of the training tokens and labels.
        summary: the plan's numbers.
        cut: how the rows of a step are computed.
    """
    config, training = request.config, request.config.training
    same = {
        "model": base_facts.identity(request.model.model_name),
        "method": config.effective_method,
        "data": digest,
        "rows": summary.rows,
        "batch_size": cut.batch_size,
        "gradient_accumulation_steps": cut.accumulation,
        "learning_rate": training.learning_rate,
        "warmup_steps": summary.warmup_steps,
        "total_steps": summary.total_steps,
        "max_grad_norm": training.max_grad_norm,
        "max_length": config.data.max_length,
        "packing": config.data.packing,
        "group_by_length": config.data.group_by_length,
        "seed": training.runtime.seed,
        "precision": summary.precision,
        "schedule": training.schedule.name,
        "decay_ratio": training.schedule.decay_ratio,
        "optimizer": training.optimizer.name,
        "betas": list(training.optimizer.betas),
        "weight_decay": training.optimizer.weight_decay,
        "lora_plus_ratio": training.optimizer.lora_plus_ratio,
        "extra_tokens": config.model.extra_tokens,
    }
    sources = sources_of(config.data.train)
    replay = config.data.replay
    if sources is not None and replay.path is not None and replay.share is not None:
        sources = with_replay(sources, replay.path, replay.share)
    if sources is not None:  # the digest holds the rows, not how often each is taken
        same["mixture"] = [
            {"rows": taken.there, "weight": entry.weight, "epochs": entry.passes, "by": entry.by}
            for entry, taken in zip(sources.entries, summary.sources, strict=True)
        ]
    if not request.full:
        same |= {f"lora.{name}": getattr(config.lora, name) for name in _LORA}
        same["lora.use_qlora"] = config.uses_qlora
        adapter = config.lora.adapter
        same["lora.adapter"] = sha256_of(Path(adapter) / WEIGHTS) if adapter is not None else None
        if config.lora.target_parameters is not None:
            same["lora.target_parameters"] = config.lora.target_parameters
    settings = settings_of(config)
    if request.model.torch_dtype is not None:  # a script gives it to the model
        settings["model.dtype"] = dtype_name(request.model.torch_dtype)
    return same | {SETTINGS: settings}


def weights_mark(model: nn.Module) -> str:
    """A mark of the base's weights as they are loaded, before anything is trained; not a hash of all of them."""
    return hashlib.sha256(json.dumps(weight_fingerprint(model)).encode()).hexdigest()


def validate_same_weights(marks: Sequence[str]) -> None:
    """Refuses processes that have read different weights; replicas do not send what stays frozen to each other.

    Args:
        marks: weights_mark() of every process, by rank.

    Raises:
        ModelError: with the first process whose weights differ from those of process 0.
    """
    other = next((rank for rank, mark in enumerate(marks) if mark != marks[0]), None)
    if other is not None:
        raise ModelError(
            f"プロセス {other} が読み込んだ元のモデルの重みが、プロセス 0 と違います。すべてのノードに同じモデルのファイルを置いてください（model.revision で版を固定できます）。",
            f"process {other} has read other weights of the base model than process 0: put the same files on every node "
            "(model.revision pins a version).",
        )


def differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(name, saved value, current value) of everything that differs between two fingerprints.

    A setting that the saved one does not know of, because an earlier version wrote it, had its default.
    """
    names = sorted((saved.keys() | current.keys()) - {SETTINGS})
    changed = [(name, saved.get(name), current.get(name)) for name in names if saved.get(name) != current.get(name)]
    if SETTINGS not in saved:  # of a version that kept a list of settings: what is not in it cannot be compared
        return changed
    before, now, default = saved[SETTINGS], current.get(SETTINGS, {}), _defaults()
    for name in sorted(before.keys() | now.keys()):
        pair = before.get(name, default.get(name)), now.get(name, default.get(name))
        if pair[0] != pair[1]:
            changed.append((name, *pair))
    return changed


@cache
def _defaults() -> dict[str, Any]:
    return settings_of(RunConfig())
