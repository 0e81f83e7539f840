"""One optimizer step of a strategy on several ranks against the same step in one fp32 process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ai_finetuning.data.example import Example
from ai_finetuning.data.loader import Loader
from ai_finetuning.engine.loss import make_document_loss, make_loss
from ai_finetuning.engine.optimizer import build_optimizer
from ai_finetuning.models.adapters import add_lora
from ai_finetuning.models.documents import select_forward_path
from ai_finetuning.models.quantized import forbid_cpu_packing, validate_quantized
from ai_finetuning.parallel.strategies.single import SingleDevice

from .models import build_model
from .ranks import run_ranks

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """What is trained: architecture, `full`, `lora` or `qlora`, `padded`, `packed` (transformers' masks) or
    `documents` (the portable path).
    """

    kind: str
    method: str = "full"
    data: str = "padded"
    rows: int = 11
    layers: int = 2
    vocabulary: int = 400
    dropout: float = 0.0

    def __str__(self) -> str:
        return f"{self.kind}-{self.method}-{self.data}-{self.rows}-{self.vocabulary}-{self.dropout:g}"


@dataclass
class Outcome:
    """Loss, norm, and by name: (gradient, weight after an AdamW step, index of that part in the whole)."""

    loss: float
    norm: float
    parts: dict[str, tuple[np.ndarray, np.ndarray, tuple[slice, ...]]]
    also: tuple[float, ...] = ()


def documents(count: int) -> list[Example]:
    """Documents of 5 to 30 tokens whose prompts are masked unevenly."""
    random = np.random.default_rng(0)
    obtained = []
    for _ in range(count):
        size = int(random.integers(5, 30))
        ids = random.integers(3, 400, size)
        labels = ids.copy()
        labels[: int(random.integers(0, size - 2))] = -100
        obtained.append(Example(ids.astype(np.int64), labels.astype(np.int64)))
    return obtained


def loader(case: Case, rank: int = 0, size: int = 1) -> Loader:
    """All documents in one optimizer step."""
    packed = case.data != "padded"
    return Loader(
        documents(case.rows),
        rows_per_step=case.rows,
        seed=0,
        packing=packed,
        max_length=48,
        group_by_length=False,
        pad_token_id=0,
        share=(rank, size),
    )


def model_of(case: Case) -> Any:
    """The same random weights in every process; adapters that already do something."""
    model = build_model(case.kind, layers=case.layers, vocab_size=case.vocabulary)
    if case.method == "qlora":
        model = in_four_bit(model)
    if case.method != "full":
        model = add_lora(model, r=4, alpha=8, dropout=case.dropout, target_modules="all-linear")
        generator = torch.Generator().manual_seed(7)
        for name, parameter in sorted(model.named_parameters()):
            if "lora_" in name:
                parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def in_four_bit(model: Any) -> Any:
    """The model with NF4 layers (fp32 products), as transformers would load it; no files, since ranks share a disk."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    for layer in model.get_decoder().layers:
        for name, linear in [(name, m) for name, m in layer.named_modules() if isinstance(m, torch.nn.Linear)]:
            four = Linear4bit(linear.in_features, linear.out_features, linear.bias is not None, torch.float32)
            four.weight = Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4", module=four)
            four.bias = linear.bias
            layer.set_submodule(name, four.to(CPU))
    model.is_loaded_in_4bit = model.is_quantized = True
    forbid_cpu_packing(model)
    validate_quantized(model, 4, "parity")
    return model


def loss_of(case: Case, model: Any) -> Any:
    """The loss as assemble would choose it."""
    if case.data != "documents":
        return make_loss(logits_to_keep=True)
    inner = model if case.method == "full" else model.get_base_model()
    path, reason = select_forward_path(inner, CPU, autocast=None, kernels="portable")
    assert path is not None, reason
    return make_document_loss(path)


def take_step(case: Case, strategy: Any, micro_batch_size: int = 2) -> Outcome:
    """Prepares the model, and does one step: clip at 1, AdamW at the documented default rate (its first step
    magnifies tiny gradients).
    """
    model = model_of(case)
    strategy.prepare(model, loss_of(case, model))
    trained = [(name, p) for name, p in strategy.named_parameters(model) if p.requires_grad]
    optimizer = build_optimizer(trained, learning_rate=2e-5)
    strategy.attach(optimizer)
    data = loader(case, strategy.data_rank, strategy.data_size)
    group = data.micro_batches(0, 0, micro_batch_size)
    (num_valid,), _ = strategy.agree([sum(batch.num_label_tokens for batch in group)])
    loss = strategy.forward_backward(group, num_valid)
    return updated(strategy, trained, loss)


def updated(
    strategy: Any, trained: list[tuple[str, torch.Tensor]], loss: torch.Tensor, also: torch.Tensor | None = None
) -> Outcome:
    """The optimizer's step after a backward pass, with this process's parts of gradients and new weights; `also` is summed
    with the loss.
    """
    gradients = {name: p.grad.clone().cpu().numpy() for name, p in trained if p.grad is not None}
    update = strategy.update(loss, 1.0, also)
    assert update.applied
    layouts = getattr(strategy, "layouts", None)
    parts = {}
    for name, p in trained:
        if name in gradients:
            index = tuple(slice(None) for _ in p.shape)
            if layouts is not None:
                index = tuple(slice(o, o + s) for o, s in zip(layouts[name].offset, layouts[name].size, strict=True))
            parts[name] = (gradients[name], p.detach().cpu().numpy().copy(), index)
    return Outcome(update.loss, update.grad_norm, parts, update.also)


def _rank(rank: int, cases: Sequence[Case], build: Callable[[Case], Any]) -> list[Outcome]:
    outcomes = []
    for case in cases:
        strategy = build(case)
        outcomes.append(take_step(case, strategy))
        strategy.close()
    return outcomes


def differences(
    world: int, cases: Sequence[Case], build: Callable[[Case], Any], folder: Path, *, limit: float = 240.0
) -> dict[str, dict[str, float]]:
    """Largest differences of `world` ranks to one process, by case.

    Args:
        build: called on every rank, gives the strategy.

    Returns:
        `loss` (absolute), `norm` (relative), `gradient` (largest relative L2 over weights), `weight` (largest absolute
        after the step), `covered` (share of the trained elements that some rank holds).
    """
    answers = run_ranks(world, _rank, cases, build, folder=folder, limit=limit)
    obtained = {}
    for index, case in enumerate(cases):
        expected = take_step(case, SingleDevice(CPU))
        obtained[str(case)] = compare(expected, [rank[index] for rank in answers])
    return obtained


def compare(expected: Outcome, got: Sequence[Outcome]) -> dict[str, float]:
    worst = {"gradient": 0.0, "weight": 0.0}
    seen = {name: np.zeros(gradient.shape, bool) for name, (gradient, _, _) in expected.parts.items()}
    for outcome in got:
        for name, (gradient, weight, part) in outcome.parts.items():
            whole, after, _ = expected.parts[name]
            seen[name][part] = True
            scale = max(float(np.linalg.norm(whole)), 1e-12)
            worst["gradient"] = max(worst["gradient"], float(np.linalg.norm(gradient - whole[part])) / scale)
            if weight.size:
                worst["weight"] = max(worst["weight"], float(np.abs(weight - after[part]).max()))
    return worst | {
        "loss": max(abs(outcome.loss - expected.loss) for outcome in got),
        "norm": max(abs(outcome.norm - expected.norm) / expected.norm for outcome in got),
        "covered": sum(int(mask.sum()) for mask in seen.values()) / sum(mask.size for mask in seen.values()),
    }
