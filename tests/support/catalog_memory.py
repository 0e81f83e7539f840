"""The GiB of the catalog's models, by the formula that a plan uses, from what a row says: `python -m
tests.support.catalog_memory` writes them into the catalog.

Layers and the width of their MLPs are not in a row: layers are taken as 12.5 times the square of the width of the hidden
states in weights, as in Llama's and Qwen's, and what is left of them is the MLP. Against true configurations the needs of
training differ by less than 6 % (tests/unit/models/test_catalog_memory.py).
"""

from __future__ import annotations

import re
from pathlib import Path

from ai_finetuning.models import catalog
from ai_finetuning.models.catalog import CatalogRow
from ai_finetuning.planner.memory import MemoryEstimate, Workload, estimate
from ai_finetuning.planner.shape import ModelShape

CATALOG = Path(catalog.__file__).with_name("catalog.yaml")
# A run's rank and micro-batch, and what a GPU's kernels and runtime take (planner/memory.py).
RANK, TOKENS = 16, 2048
_GIB = 2**30
_LAYER = 12.5
# Weights of the embedding and the head are one tensor in the small ones of these.
_TIED = {"gemma2": 1e12, "gemma3": 1e12, "gemma3_text": 1e12, "qwen2": 4e9, "qwen3": 5e9, "llama": 0.0, "gpt2": 1e12}


def shape_of_row(row: CatalogRow) -> ModelShape | None:
    """What a row says of a model's sizes; None where it does not say its width and vocabulary."""
    if row.params_b is None or row.hidden_size is None or row.vocab_size is None:
        return None
    hidden, weights = row.hidden_size, round(row.params_b * 1e9)
    tied = weights < _TIED.get(row.model_type or "", 0.0) or (row.params_b < 4 and "Llama-3.2" in row.id)
    embedding = min(row.vocab_size * hidden * (1 if tied else 2), weights * 3 // 4)
    body = weights - embedding
    active = body if row.active_params_b is None else max(1, round(row.active_params_b * 1e9) - embedding)
    layers = max(1, round(active / (_LAYER * hidden * hidden)))
    attention = 4 * hidden * hidden * 5 // 8
    intermediate = max(hidden, round((active / layers - attention) / (3 * hidden)))
    sizes = [("q_proj", hidden, hidden), ("k_proj", hidden, hidden // 4), ("v_proj", hidden, hidden // 4)]
    sizes.append(("o_proj", hidden, hidden))
    if row.active_params_b is None:  # experts get no adapter
        sizes += [("gate_proj", hidden, intermediate), ("up_proj", hidden, intermediate)]
        sizes.append(("down_proj", intermediate, hidden))
    gemma2 = row.model_type == "gemma2"
    return ModelShape(
        parameters=weights,
        embedding_parameters=embedding,
        linear_features=tuple(sizes) * layers,
        layers=layers,
        hidden=hidden,
        intermediate=intermediate,
        vocabulary=row.vocab_size,
        positions=row.context_length,
        heads=max(1, hidden // 128),
        head_dim=128,
        norms=4.0 if gemma2 else 2.0,
        softcap=gemma2,
        capped_logits=gemma2,
    )


def need(shape: ModelShape, use: str) -> MemoryEstimate:
    """Of a step on one GPU in 16 bit: 2,048 tokens, micro-batch 1, gradient checkpointing, adapters of rank 16."""
    full = use == "full"
    work = Workload(
        trainable=shape.parameters if full else shape.lora_parameters(RANK, None),
        bits=4 if use == "qlora" else None,
        frozen_bytes=2,
        tokens=TOKENS,
        compute_bytes=2,
        full=full,
        adapted=shape.adapted_inputs(None),
        dropout=not full,
        gpu=True,
    )
    return estimate(shape, work, checkpointing=True)


def computed(row: CatalogRow) -> dict[str, float] | None:
    """A row's `memory_gib`; None where its sizes are not known. For answers: weights in 16 bit, 3 % and 0.8 GiB."""
    shape = shape_of_row(row)
    if shape is None:
        return None
    uses = {use: round(need(shape, use).total / _GIB, 1) for use in ("lora", "qlora", "full")}
    return {"infer": row.memory_gib["infer"]} | uses


def main() -> None:
    """Writes them."""
    text = CATALOG.read_text(encoding="utf-8")
    for name, row in catalog.rows().items():
        found = computed(row) if row.memory_gib else None
        if found is None:
            continue
        start = text.index(f"\n{name}:\n") if f"\n{name}:\n" in text else text.index(f'\n"{name}":\n')
        values = ", ".join(f"{use}: {gib}" for use, gib in found.items())
        text = text[:start] + re.sub(r"memory_gib: \{[^}]*\}", f"memory_gib: {{{values}}}", text[start:], count=1)
    CATALOG.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
