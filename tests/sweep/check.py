"""One family on every path that it takes: a step against plain transformers, then saved, loaded and merged."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ai_finetuning.data.collate import collate
from ai_finetuning.data.tokenize import IGNORED, Example
from ai_finetuning.engine.loss import make_document_loss
from ai_finetuning.errors import Reason, ToolkitError
from ai_finetuning.execution.build import loss_of
from ai_finetuning.models.adapters import add_lora, load_adapter, merge_into, quiet_peft
from ai_finetuning.models.documents import select_forward_path, takes_positions
from ai_finetuning.models.lora_targets import resolve_targets
from ai_finetuning.models.parts import unwrapped

from .families import build

CPU = torch.device("cpu")
# Tokens of the documents; two are longer than every window of tests/sweep/families.py.
LENGTHS = (37, 5, 60, 2)
# Most relative distance of losses and of gradients, and of logits after saving, loading and merging.
LOSS, GRADIENT, LOGITS = 1e-5, 1e-4, 5e-4


@dataclass
class Row:
    """What a family's sweep gave.

    Attributes:
        family: its model_type.
        path: `portable` or `plain`; empty where it does not train.
        reason: why it takes the plain path, or why it does not train.
        targets: the layers that LoRA goes on by default.
        problems: what is not as it should be.
    """

    family: str
    path: str = ""
    reason: Reason | None = None
    targets: list[str] = field(default_factory=list)
    experts: bool = False
    problems: list[str] = field(default_factory=list)

    def close(self, what: str, obtained: float, most: float) -> None:
        """Notes a distance that is too large."""
        if not obtained <= most:
            self.problems.append(f"{what}: {obtained:.1e}")


class Unbuilt(Exception):
    """The family's tiny configuration does not make a model that runs."""


def sweep(family: str, folder: Path) -> Row:
    """Both methods on every path; a family that is refused says so in `reason`.

    Raises:
        Unbuilt: transformers cannot build or run it tiny.
    """
    model = built(family)
    row = Row(family)
    try:
        expected = reference(model)
        with _path(model, "portable") as (path, loss, reason):
            row.path, row.reason = ("portable" if path is not None else "plain"), reason if path is None else None
            _compare(row, f"full {row.path}", model, loss, expected)
        if row.path == "portable":
            with _path(model, "plain") as (_, loss, _reason):
                _compare(row, "full plain", model, loss, expected)
        _save_and_load(row, model, folder / "full")
        targets = resolve_targets(model, None)
        row.targets, row.experts = sorted({name.rpartition(".")[2] for name in targets.modules}), bool(targets.experts)
        _adapter(row, family, folder)
    except ToolkitError as refusal:
        row.path, row.reason = "", Reason(refusal.ja, refusal.en)
    except Exception as error:  # a family's own code; the others go on
        row.problems.append(f"{type(error).__name__}: {str(error).splitlines()[0][:80]}")
    return row


def built(family: str) -> Any:
    """A tiny model of a family, which has run once.

    Raises:
        Unbuilt: transformers cannot build or run it, or it is not tiny.
    """
    try:
        with torch.device("meta"):
            size = sum(weight.numel() for weight in build(family).parameters())
        if size > 15e6:
            raise Unbuilt(f"{size:,} weights")
        model = build(family)
        model(input_ids=torch.arange(3, 3 + LENGTHS[0])[None], use_cache=False)
    except Unbuilt:
        raise
    except Exception as error:
        raise Unbuilt(f"{type(error).__name__}: {str(error).splitlines()[0][:100]}") from error
    return model


def examples() -> list[Example]:
    """Documents whose first third takes no loss."""
    generator = torch.Generator().manual_seed(0)
    obtained = []
    for length in LENGTHS:
        ids = torch.randint(3, 250, (length,), generator=generator).numpy().astype("int32")
        labels = ids.copy()
        labels[: length // 3] = IGNORED
        obtained.append(Example(ids, labels, length))
    return obtained


def reference(model: Any) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of plain transformers, one document at a time."""
    model.zero_grad()
    losses = []
    for item in examples():
        ids, labels = (torch.tensor(np.asarray(part), dtype=torch.int64) for part in (item.input_ids, item.labels))
        logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
        losses.append(F.cross_entropy(logits.float(), labels[1:], ignore_index=IGNORED, reduction="sum"))
    total = torch.stack(losses).sum()
    total.backward()
    return float(total.detach()), _gradients(model)


def _gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: item.grad.clone() for name, item in model.named_parameters() if item.grad is not None}


@contextlib.contextmanager
def _path(model: Any, kernels: str) -> Iterator[tuple[Any, Callable[..., torch.Tensor], Reason | None]]:
    path, reason = select_forward_path(unwrapped(model), CPU, autocast=None, kernels=kernels, longest=max(LENGTHS))
    try:
        if path is not None:
            yield path, make_document_loss(path), reason
        else:
            yield None, loss_of(model, None, positions=takes_positions(unwrapped(model))), reason
    finally:
        if path is not None:
            path.close()


def _compare(
    row: Row,
    what: str,
    model: Any,
    loss: Callable[..., torch.Tensor],
    expected_of: tuple[float, dict[str, torch.Tensor]],
) -> None:
    expected, gradients = expected_of
    model.zero_grad()
    batch = collate([[item] for item in examples()], pad_token_id=0, packed=False)
    obtained = loss(model, batch)
    obtained.backward()
    own = _gradients(model)
    model.zero_grad()
    row.close(f"{what}: loss", abs(float(obtained.detach()) - expected) / abs(expected), LOSS)
    zeros = {name: torch.zeros_like(weight) for name, weight in model.named_parameters()}
    apart = sum(float((own.get(name, zero) - gradients.get(name, zero)).square().sum()) for name, zero in zeros.items())
    whole = sum(float(item.square().sum()) for item in gradients.values())
    row.close(f"{what}: gradient", (apart / whole) ** 0.5 if whole else float("inf"), GRADIENT)


def _logits(model: Any) -> torch.Tensor:
    ids = torch.randint(3, 250, (1, 40), generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        obtained: torch.Tensor = model.eval()(input_ids=ids, use_cache=False).logits[0].float()
    return obtained


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


def _load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True).eval()


def _save_and_load(row: Row, model: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    row.close("full: saved and loaded", _distance(_logits(_load(folder)), _logits(model)), LOGITS)


def _adapter(row: Row, family: str, folder: Path) -> None:
    """A LoRA step, then the adapter saved, loaded on its base, merged, and the merge saved and loaded."""
    model = add_lora(build(family), r=2, alpha=4)
    _, trained = reference(model)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name and name in trained:  # one that takes no part (Jamba's dt_proj) stays 0 in training
                torch.nn.init.normal_(weight, std=0.05)
    before = reference(model)
    with _path(model, "portable") as (path, loss, _):
        _compare(row, f"lora {'plain' if path is None else path.name}", model, loss, before)
    expected = _logits(model)
    model.save_pretrained(folder / "adapter")
    with quiet_peft():
        again = load_adapter(_load(folder / "full"), folder / "adapter")
    row.close("adapter: saved and loaded", _distance(_logits(again), expected), LOGITS)
    merged = merge_into(again)
    row.close("adapter: merged", _distance(_logits(merged), expected), LOGITS)
    merged.save_pretrained(folder / "merged")
    row.close("adapter: merged, saved and loaded", _distance(_logits(_load(folder / "merged")), expected), LOGITS)
