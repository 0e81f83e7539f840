"""Rows that are held to the base (data.replay.distill): the step against plain PyTorch, one row at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.support.models import build_model

from ai_finetuning.data.collate import collate
from ai_finetuning.data.example import Example
from ai_finetuning.engine.loss import Base, make_document_loss, make_loss
from ai_finetuning.labels import FROM_BASE, IGNORED
from ai_finetuning.models.adapters import add_lora, without_adapter
from ai_finetuning.models.documents import select_forward_path
from ai_finetuning.models.parts import unwrapped

WEIGHT = 3.0


def rows(kinds: str, seed: int = 0) -> list[Example]:
    """A row for each letter: `n`ew ones teach their tokens behind a prompt, `o`ld ones are held to the base."""
    generator = np.random.default_rng(seed)
    obtained = []
    for kind in kinds:
        ids = generator.integers(3, 400, generator.integers(5, 30)).astype(np.int32)
        labels = ids.copy() if kind == "n" else np.full_like(ids, FROM_BASE)
        labels[: 1 if kind == "o" else 3] = IGNORED
        obtained.append(Example(ids, labels, len(ids)))
    return obtained


def trained(kind: str = "llama", **options: Any) -> torch.nn.Module:
    """A model whose adapter, and whatever trains with it, has moved away from its base."""
    torch.manual_seed(0)
    model = add_lora(build_model(kind), r=4, alpha=8, **options)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
        elif weight.requires_grad and "lora_" not in name:
            weight.data += 0.05 * torch.randn_like(weight)
    return model


def reference(
    model: torch.nn.Module, examples: list[Example], kind: str = "llama"
) -> tuple[float, dict[str, torch.Tensor]]:
    """With a base that no adapter was ever on."""
    total, base = torch.zeros(()), build_model(kind)
    for item in examples:
        ids, labels = (torch.tensor(array, dtype=torch.int64) for array in (item.input_ids, item.labels))
        logits = model(input_ids=ids[None]).logits[0, :-1].log_softmax(dim=-1)
        if (labels == FROM_BASE).any():
            with torch.no_grad():
                expected = base(input_ids=ids[None]).logits[0, :-1].log_softmax(dim=-1)
            total = total + WEIGHT * F.kl_div(logits, expected, reduction="sum", log_target=True)
        else:
            total = total + F.nll_loss(logits, labels[1:], ignore_index=IGNORED, reduction="sum")
    total.backward()
    return float(total.detach()), gradients(model)


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def ours(model: torch.nn.Module, examples: list[Example], way: str) -> tuple[float, dict[str, torch.Tensor]]:
    base = Base(WEIGHT, lambda: without_adapter(model))
    cut = [[item] for item in examples] if way != "packed" else [examples[:2], examples[2:]]
    batch = collate([part for part in cut if part], pad_token_id=0, packed=way == "packed")
    if way == "padded":
        total = make_loss(logits_to_keep=True, base=base)(model, batch)
    else:
        path, reason = select_forward_path(unwrapped(model), torch.device("cpu"), autocast=None, kernels="portable")
        assert path is not None, reason
        total = make_document_loss(path, base=base)(model, batch)
    total.backward()
    return float(total.detach()), gradients(model)


@pytest.mark.parametrize("way", ["documents", "packed", "padded"])
@pytest.mark.parametrize("kinds", ["nonoo", "oo", "nn"])
def test_the_step_is_the_plain_one(way: str, kinds: str):
    examples = rows(kinds)
    loss, exact = reference(trained(), examples)
    got, mine = ours(trained(), examples, way)
    assert got == pytest.approx(loss, rel=1e-5)
    assert mine.keys() == exact.keys()
    assert exact
    for name, gradient in exact.items():
        assert torch.allclose(mine[name], gradient, atol=1e-5 * max(1.0, float(gradient.abs().max()))), name


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings:UserWarning")
@pytest.mark.parametrize(
    ("way", "kind", "options"),
    [
        ("documents", "qwen2", {"bias": "all"}),
        ("padded", "qwen2", {"bias": "all"}),
        ("documents", "stablelm", {"bias": "lora_only"}),
        ("documents", "llama", {"modules_to_save": ["embed_tokens"]}),
        ("documents", "qwen3_tied", {"modules_to_save": ["embed_tokens"]}),
        ("padded", "llama", {"modules_to_save": ["embed_tokens", "lm_head"]}),
    ],
    ids=str,
)
def test_what_trains_beside_the_adapter_is_no_part_of_the_base(way: str, kind: str, options: dict[str, Any]):
    """Biases, which change in place, and modules that are trained in full."""
    examples = rows("nonoo")
    loss, exact = reference(trained(kind, **options), examples, kind)
    got, mine = ours(trained(kind, **options), examples, way)
    assert got == pytest.approx(loss, rel=1e-5)
    assert mine.keys() == exact.keys()
    for name, gradient in exact.items():
        assert torch.allclose(mine[name], gradient, atol=1e-5 * max(1.0, float(gradient.abs().max()))), name


def test_an_adapter_that_does_nothing_yet_has_nothing_to_learn_of_old_rows():
    model = add_lora(build_model(), r=4, alpha=8)
    loss, found = ours(model, rows("oo"), "documents")
    assert loss == pytest.approx(0.0, abs=1e-5)
    assert max(float(gradient.abs().max()) for gradient in found.values()) < 1e-5
