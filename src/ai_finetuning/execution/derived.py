"""What a run decides for its user, and reading it back from a checkpoint, which somebody else may have written."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from functools import cache
from typing import Any, get_type_hints

import torch
from pydantic import TypeAdapter

from ..data.prepare import SPLIT, SPLITS
from ..errors import ConfigError, Reason
from ..kernels.products import NAMES as PRODUCTS
from ..kernels.products import OPENBLAS, PIECES, TORCH, Products, why_not_here
from ..messages import notice
from ..models.loading import DTYPES
from .resume import ResumePoint, readable

# The order of old rows of which a part is held.
PARTS = "parts"


@dataclass(frozen=True)
class Derived:
    """What a run decides for its user. A checkpoint holds it, and a run that continues from there takes it over.

    Attributes:
        precision: fp32, bf16 or fp16.
        fp16: the flag that precision was derived from.
        warmup_steps: in force.
        warmup_ratio: the setting that it was derived from, or None.
        gradient_checkpointing: whether activations are recomputed.
        batch_size, gradient_accumulation_steps: how the rows of a step are computed.
        split: the rule by which a share of the rows became evaluation data.
        chat_template: the template's text.
        dtype, attention, kernels, products: of the loaded weights, the attention implementation, the path of the step,
            and whose matrix products it takes; None until the model is built.
        eval_steps: steps between evaluations; None where they are counted by epochs.
        target_modules: layers that carry an adapter; None until the model is built, and for full fine-tuning.
        strategy, devices: what `auto` took, and of how many devices; None where another strategy was asked for.
        threads: of each process, which share out the sums of a product on a CPU; None on other devices.
        replay: PARTS where old rows come in an order of which a part is held; None where there are none, or few, and in
            runs of versions that held the order whole.
    """

    precision: str
    fp16: bool
    warmup_steps: int
    gradient_checkpointing: bool
    batch_size: int
    gradient_accumulation_steps: int
    split: str = SPLIT
    chat_template: str | None = None
    dtype: str | None = None
    attention: str | None = None
    kernels: str | None = None
    target_modules: list[str] | None = None
    warmup_ratio: float | None = None
    eval_steps: int | None = None
    strategy: str | None = None
    devices: int | None = None
    products: str | None = None
    threads: int | None = None
    replay: str | None = None


# Values of those that are texts, where only some are known.
_KNOWN = {
    "split": tuple(SPLITS),
    "dtype": tuple(DTYPES),
    "precision": ("fp32", "bf16", "fp16"),
    "products": PRODUCTS,
    "strategy": ("ddp", "fsdp", "model_parallel"),
    "replay": (PARTS,),
}
# What a refusal says that a run began with, by the library of its products.
_BEGAN = {
    TORCH: Reason("ヘッドごとのアテンション", "attention by heads"),
    OPENBLAS: Reason("OpenBLAS の行列積", "OpenBLAS's matrix products"),
    PIECES: Reason("スレッドごとの行列積", "matrix products in pieces"),
}
# Numbers that count something.
_AT_LEAST_ONE = ("batch_size", "gradient_accumulation_steps", "devices", "threads")


@cache
def _kinds() -> dict[str, TypeAdapter[Any]]:
    return {name: TypeAdapter(hint) for name, hint in get_type_hints(Derived).items()}


def taken_over(resume: ResumePoint | None) -> dict[str, Any]:
    """The derived values of the run to go on with, by the name of their field; empty for a new run.

    Raises:
        CheckpointError: a value of another kind than its field's.
    """
    if resume is None:
        return {}
    with readable(resume.checkpoint or "run.json"):
        for name, value in resume.derived.items():
            if name in _kinds():
                _kinds()[name].validate_python(value, strict=True)
            if value is not None and name in _KNOWN and value not in _KNOWN[name]:
                raise ValueError(f"{name}: {value!r}"[:100])
            if value is not None and name in _AT_LEAST_ONE and value < 1:
                raise ValueError(f"{name}: {value!r}"[:100])
    return dict(resume.derived)


def cut_of_resumed(taken: Mapping[str, Any], batch_size: int, accumulation: int, given: Set[str]) -> int | None:
    """Rows of a micro-batch in a run that is resumed; None for a new run, and for one whose settings were changed on purpose.

    Args:
        taken: taken_over().
        batch_size, accumulation: of the settings.
        given: which of batch_size and gradient_accumulation_steps the user gave.
    """
    if not taken:
        return None
    size, count = taken.get("batch_size"), taken.get("gradient_accumulation_steps")
    if size is None or count is None:  # of a version that took the settings as they were
        return batch_size
    same = size * count == batch_size * accumulation
    same &= "batch_size" not in given or size == batch_size
    same &= "gradient_accumulation_steps" not in given or count == accumulation
    return int(size) if same else None


def kernels_of(asked: str, taken: dict[str, Any], *, resumed: bool, fp32: bool) -> str:
    """The setting `kernels` as a run takes it: `auto` goes on with what the resumed run had.

    Args:
        taken: as taken_over() gave it. A run of a version that did not write it down had no fused blocks in fp32.
    """
    had = taken.get("kernels") or ("portable" if resumed and fp32 else None)
    return had if asked == "auto" and had in ("portable", "plain") else asked


def validate_kernels(asked: str, taken: dict[str, Any], obtained: str, reason: Reason | None) -> None:
    """Refuses to go on in another way than a run began, unless the user asks for it.

    Raises:
        ConfigError: the run had fused blocks, which cannot be had here.
    """
    if asked != "auto" or taken.get("kernels") != "fused" or obtained == "fused":
        return
    why = reason or Reason("理由は不明です", "no reason is known")
    raise ConfigError(
        f"この学習は計算方法 fused で始まりましたが、ここでは使えません（{why.ja}）。始めた環境で再開するか、数値の丸めが変わってよければ "
        f"training.runtime.kernels={obtained} を付けて再開してください。",
        f"this run began with the fused blocks, which cannot be used here ({why.en}). Resume it where it began, or, if "
        f"numbers may be rounded in another way from here on, with training.runtime.kernels={obtained}.",
    )


def validate_products(had: str, compute: torch.dtype) -> None:
    """Refuses to go on without the way of matrix products that a run began with.

    Raises:
        ConfigError: it is not here.
    """
    reason = why_not_here(had, compute)
    if reason is None:
        return
    library = Products(had).library
    began = _BEGAN[TORCH if why_not_here(library, compute) is None else library]
    raise ConfigError(
        f"この学習は{began.ja}で始まりましたが、ここでは使えません（{reason.ja}）。始めた環境で再開するか、数値の丸めが変わってよければ "
        "training.runtime.kernels=portable を付けて再開してください。",
        f"this run began with {began.en}, which cannot be had here ({reason.en}). Resume it where it "
        "began, or, if numbers may be rounded in another way from here on, with training.runtime.kernels=portable.",
    )


def threads_of(had: int | None, now: int, cores: int, *, chosen: bool) -> int:
    """With how many threads a process of a run on a CPU computes: as the resumed run did, unless the user has said otherwise.

    Args:
        had: of the resumed run; None for a new one, and where an older version did not write it down.
        now: torch's threads.
        cores: that this process may use.
        chosen: whether somebody has chosen `now`.

    Raises:
        ConfigError: the run had more threads than there are cores, and nobody has chosen another number.
    """
    if had is None or had == now:
        return now
    if chosen:
        notice(
            f"この学習は {had} スレッドで始まりました。指定に従い {now} スレッドで続けます。数値の丸めがここから変わることがあります（OMP_NUM_THREADS={had} なら同じです）。",
            f"this run began with {had} threads and goes on with {now}, as asked: numbers may be rounded in another way from "
            f"here on (OMP_NUM_THREADS={had} keeps them).",
        )
        return now
    if had <= cores:
        return had
    raise ConfigError(
        f"この学習は {had} スレッドで始まりましたが、ここで使えるコアは {cores} 個です。OMP_NUM_THREADS={had} を付けて再開すると同じ数値のまま（遅く）続き、"
        f"OMP_NUM_THREADS={cores} を付けると、丸めが変わって速く続きます。",
        f"this run began with {had} threads, and {cores} cores can be used here. With OMP_NUM_THREADS={had} it goes on with the "
        f"same numbers, slowly; with OMP_NUM_THREADS={cores} fast, with numbers that may be rounded in another way.",
    )
