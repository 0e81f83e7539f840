"""What a run takes by formulas alone, within milliseconds: shown until its plan is there. Needs no torch.

Counts come from the data's rows and characters, sizes from the model's config.json, speeds from the last run of this PC.
Nothing is tokenized and no model is built, so that all of it is rough.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..config.run import RunConfig
from ..config.section import explicitly_set
from ..models import sizes
from ..models.catalog import lookup
from ..models.local import need_bytes
from ..system import nvml
from ..system.machine import machine
from . import memory
from .gpus import card_named
from .length import MOST_JUDGED, USUAL_EVALUATIONS, Beside, parts, token_seconds
from .numbers import ModelShape
from .speed import last_speed, place_of

# Model types whose layers have two matrices beside attention and no gate, and those with a table of positions.
_UNGATED = ("gpt2", "gpt_neox", "opt", "bloom", "gpt_bigcode", "falcon", "phi")
_LEARNED = ("gpt2", "opt", "gpt_bigcode")
# Characters of a token where neither the catalog nor anybody else says, and tokens of a row that no text has.
_CHARACTERS, _TEMPLATE = 1.4, 8
_OPTIMIZER_BYTES = {"adamw": 8, "adamw_8bit": 2, "muon": 8}


@dataclass(frozen=True)
class Rows:
    """What is known of a run's data without a tokenizer.

    Attributes:
        count: rows that can be used, training and evaluation together.
        characters: of all of them.
        longest: characters of the longest row.
    """

    count: int
    characters: int
    longest: int


@dataclass(frozen=True)
class Rough:
    """A run by formulas; None for what they do not tell. Sizes in bytes."""

    rows: int
    eval_rows: int
    steps_per_epoch: int
    total_steps: int
    seconds: float | None
    memory_bytes: int | None
    disk_bytes: int | None


def rough(config: RunConfig, rows: Rows, model: Mapping[str, Any] | None) -> Rough:
    """A run by formulas.

    Args:
        model: its config.json; None where the model is not on this PC.
    """
    training, share = config.training, config.data.eval
    used = min(rows.count, config.data.max_samples or rows.count)
    eval_rows = round(share * used) if isinstance(share, float) else 0  # of the rows that max_samples leaves
    count = used - eval_rows
    row = _row_tokens(config, rows)
    a_step = training.batch_size * training.gradient_accumulation_steps
    packed = max(1, config.data.max_length // row) if config.data.packing else 1
    per_epoch = max(1, math.ceil(count / packed / a_step))
    total = training.schedule.max_steps or per_epoch * training.num_epochs
    shape = None if model is None else rough_shape(model)
    work = None if shape is None else _workload(config, shape, rows, row)
    return Rough(
        rows=count,
        eval_rows=eval_rows,
        steps_per_epoch=per_epoch,
        total_steps=total,
        seconds=_seconds(
            config, total / per_epoch * count * row, _beside(config, eval_rows, row, total, per_epoch), shape
        ),
        memory_bytes=_memory(config, shape, work),
        disk_bytes=None if shape is None or work is None else _disk(config, shape, work),
    )


def _row_tokens(config: RunConfig, rows: Rows) -> int:
    """Tokens of a usual row."""
    known = lookup(config.model.name)
    each = (known.chars_per_token_ja if known is not None else None) or _CHARACTERS
    return min(config.data.max_length, math.ceil(rows.characters / max(1, rows.count) / each) + _TEMPLATE)


def _evaluations(config: RunConfig, total: int, per_epoch: int) -> int:
    """Evaluations of a run with evaluation data; about ten where nobody says."""
    training = config.training
    if training.evals_per_epoch is not None:
        return math.ceil(total * training.evals_per_epoch / per_epoch)
    return min(total, USUAL_EVALUATIONS)


def _beside(config: RunConfig, eval_rows: int, row: int, total: int, per_epoch: int) -> Beside:
    """What it does beside its steps; half of a row is taken for its answer."""
    training = config.training
    return Beside(
        evaluations=_evaluations(config, total, per_epoch) if eval_rows else 0,
        eval_tokens=eval_rows * row,
        questions=training.evaluation.generate if eval_rows else 0,
        samples=min(training.runtime.report_samples, eval_rows),
        answer_tokens=row / 2,
        judged=min(MOST_JUDGED, eval_rows) if eval_rows and training.evaluation.verdict else None,
    )


def _seconds(config: RunConfig, tokens: float, beside: Beside, shape: ModelShape | None) -> float | None:
    """By the speed of the last run of this model and method here."""
    cards = nvml.gpus()
    device = "cuda" if cards else "cpu"
    place = place_of(device, 0 if device == "cuda" else None, config.parallel.strategy, 1)
    folder = Path(config.model.name).expanduser()
    name = str(folder.resolve()) if folder.is_dir() else config.model.name
    last = last_speed(name, config.effective_method, place)
    if last is None:
        return None
    if shape is not None:
        card = card_named(cards[0].name) if cards else None
        each = token_seconds(shape.parameters, shape.layers, gpu=bool(cards), card=card)
        beside = replace(beside, token_seconds=each)
    return parts(beside, tokens, last).total


def _workload(config: RunConfig, shape: ModelShape, rows: Rows, row: int) -> memory.Workload:
    """What a micro-batch asks of this PC, by its longest row."""
    full, gpu = config.trains_all, bool(nvml.gpus())
    longest = min(config.data.max_length, math.ceil(row * rows.longest * rows.count / max(1, rows.characters)))
    compute = 4 if config.training.runtime.precision == "fp32" or not config.training.fp16 else 2
    targets = config.lora.target_modules
    names = targets if isinstance(targets, list) else None
    bits = (4 if config.lora.qlora_4bit else 8) if config.uses_qlora else None
    return memory.Workload(
        trainable=shape.parameters if full else shape.lora_parameters(config.lora.r, names),
        bits=bits,
        frozen_bytes=4 if config.model.dtype == "float32" else 2,
        tokens=config.training.batch_size * max(row, longest),
        compute_bytes=compute,
        optimizer_bytes=_OPTIMIZER_BYTES[config.training.optimizer.name],
        full=full,
        longest=max(row, longest),
        adapted=0 if full else shape.adapted_inputs(names),
        dropout=not full and config.lora.lora_dropout > 0,
        gpu=gpu,
        documents=config.training.runtime.kernels != "plain",
    )


def _memory(config: RunConfig, shape: ModelShape | None, work: memory.Workload | None) -> int | None:
    """By the plan's own formula; of a model that is not here what the catalog says."""
    if shape is None or work is None:
        return need_bytes(config.model.name, config.effective_method)
    training, whole = config.training, memory.estimate(shape, work, checkpointing=False).total
    given = training.gradient_checkpointing if "gradient_checkpointing" in explicitly_set(training) else None
    short = whole > machine().room if given is None else given
    return memory.estimate(shape, work, checkpointing=True).total if short else whole


def _disk(config: RunConfig, shape: ModelShape, work: memory.Workload) -> int:
    checkpoint = config.training.checkpoint
    model_bytes = 4 * work.trainable if not config.trains_all else 2 * shape.parameters
    needed = memory.disk_bytes(
        work.trainable,
        kept=checkpoint.save_total_limit,
        model_bytes=model_bytes,
        optimizer_bytes=0 if config.training.save_only_model else work.optimizer_bytes,
    )
    best = config.data.eval is not None and (checkpoint.keep_best or checkpoint.load_best)
    return needed + best * memory.best_bytes(work.trainable, model_bytes=model_bytes)


def rough_shape(config: Mapping[str, Any]) -> ModelShape | None:
    """The sizes of a decoder by its config.json alone, as most families are built; None where it names none of them."""
    part: Mapping[str, Any] = config.get("text_config") or config
    found = [sizes.first_key(part, keys) for keys in (sizes.WIDTH, sizes.LAYERS, sizes.HEADS, ("vocab_size",))]
    if None in found:
        return None
    hidden, layers, heads, vocabulary = (int(part[str(key)]) for key in found)
    head = int(part.get("head_dim") or hidden // heads)
    groups = int(part.get("num_key_value_heads") or heads)
    inner_key = sizes.first_key(part, sizes.INNER[:-1])
    inner = int(part[inner_key]) if inner_key is not None else 4 * hidden
    gated = part.get("model_type") not in _UNGATED
    matrices = [
        ("q_proj", hidden, heads * head),
        ("k_proj", hidden, groups * head),
        ("v_proj", hidden, groups * head),
        ("o_proj", heads * head, hidden),
    ]
    experts_key = sizes.first_key(part, sizes.EXPERTS)
    experts = 0 if experts_key is None else int(part[experts_key])
    mlp = [*([("gate_proj", hidden, inner)] if gated else []), ("up_proj", hidden, inner), ("down_proj", inner, hidden)]
    of_experts = experts * (2 + gated) * hidden * int(part.get("moe_intermediate_size") or inner)
    matrices += [] if experts else mlp
    features = tuple((f"layers.{n}.{name}", a, b) for n in range(layers) for name, a, b in matrices)
    tied = bool(part.get("tie_word_embeddings", True))
    embedding = vocabulary * hidden * (1 if tied else 2)
    positions = sizes.positions_in(config)
    others = 2 * hidden * layers + hidden + (hidden * (positions or 0) if part.get("model_type") in _LEARNED else 0)
    return ModelShape(
        parameters=embedding + others + layers * of_experts + sum(a * b for _, a, b in features),
        embedding_parameters=embedding,
        linear_features=features,
        layers=layers,
        hidden=hidden,
        intermediate=inner,
        vocabulary=vocabulary,
        positions=positions,
        heads=heads,
        head_dim=head,
        softcap=bool(part.get("attn_logit_softcapping")),
        capped_logits=bool(part.get("final_logit_softcapping")),
    )
