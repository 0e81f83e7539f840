"""What a model of the catalog needs on each of several GPUs, from its row alone. Needs no torch."""

from __future__ import annotations

from ..models.catalog import CatalogRow

# Bytes of a parameter that several devices share by layers or shards, by use: with what memory.py counts for its weight,
# gradient and moments.
DIVIDED_BYTES = {"infer": 2.0, "lora": 2.0, "qlora": 0.53, "full": 18.0}
_GIB = 2**30


def need_gib(row: CatalogRow, use: str, devices: int = 1) -> float:
    """GiB on each of so many devices; infinity where the catalog has no number.

    Weights with their gradients and moments are divided; the rest of the computed need (activations, logits, runtime)
    counts on every device, so that the number errs upward.

    Args:
        use: `infer`, `lora`, `qlora` or `full`.
    """
    whole = row.memory_gib.get(use, float("inf"))
    divided = min(whole, DIVIDED_BYTES[use] * (row.params_b or 0.0) * 1e9 / _GIB)
    return whole - divided + divided / devices if devices > 1 else whole
