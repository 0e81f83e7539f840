"""Matrix products by another library: the same numbers, and a choice that is made once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ai_finetuning.kernels import products
from ai_finetuning.kernels.products import OPENBLAS, TORCH, Products, chosen_products, products_of, why_not_openblas

REASON = why_not_openblas()
needs_openblas = pytest.mark.skipif(REASON is not None, reason=f"no OpenBLAS here: {REASON}")


def matrix(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def views(rows: int, columns: int, seed: int) -> list[torch.Tensor]:
    """One matrix as it lies, transposed, and as columns of a wider one."""
    x = matrix(rows, columns, seed)
    return [x, x.t().contiguous().t(), torch.cat([x, x], dim=1)[:, :columns]]


@needs_openblas
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (7, 5, 1), (1, 9, 300), (130, 64, 257), (257, 80, 31)])
def test_products_are_those_of_torch(sizes: tuple[int, int, int], threads: int):
    (m, k, n), before, mine = sizes, torch.get_num_threads(), Products(OPENBLAS)
    torch.set_num_threads(threads)
    try:
        for a in views(m, k, 0):
            for b in views(k, n, 1):
                exact, start = (a.double() @ b.double()), matrix(m, n, 2)
                assert torch.allclose(mine.mm(a, b).double(), exact, rtol=1e-5, atol=1e-5)
                assert torch.allclose(mine.sum(start, a, b).double(), start + exact, rtol=1e-5, atol=1e-5)
                out = start.clone()
                assert mine.add(out, a, b, 0.5) is out
                assert torch.allclose(out.double(), start + exact / 2, rtol=1e-5, atol=1e-5)
                assert torch.equal(mine.mm(a, b), mine.mm(a, b))
    finally:
        torch.set_num_threads(before)
        products.release()


@needs_openblas
def test_other_types_stay_with_torch():
    a, b = matrix(8, 8, 0).bfloat16(), matrix(8, 8, 1).bfloat16()
    assert torch.equal(Products(OPENBLAS).mm(a, b), a @ b)
    assert products_of(lambda weight: weight) == Products(TORCH)


@needs_openblas
@pytest.mark.parametrize("first", [OPENBLAS, TORCH])
def test_a_choice_is_made_once(first: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Later runs take what the first one found, whatever a trial would say then."""
    monkeypatch.setenv("AIFT_CACHE", str(tmp_path))
    found = {OPENBLAS: 1.3, TORCH: 1.0}
    monkeypatch.setattr(products, "_times_faster", lambda shapes: found[first])
    assert chosen_products([(768, 768), (2048, 768)]) == first
    (entry,) = (tmp_path / "products").glob("*.json")
    assert json.loads(entry.read_text(encoding="utf-8"))["library"] == first
    monkeypatch.setattr(products, "_times_faster", lambda shapes: found[TORCH if first == OPENBLAS else OPENBLAS])
    assert chosen_products([(2048, 768), (768, 768)]) == first
    entry.write_text('{"library": "os.system"}', encoding="utf-8")  # what is no answer is found again
    assert chosen_products([(768, 768), (2048, 768)]) != first


@needs_openblas
def test_a_choice_is_that_of_a_processor_and_of_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A disk that goes to another computer, or gets another torch, is tried again; back home the first answer holds."""
    monkeypatch.setenv("AIFT_CACHE", str(tmp_path))
    monkeypatch.setattr(products, "_times_faster", lambda shapes: 1.3)
    assert chosen_products([(768, 768)]) == OPENBLAS
    monkeypatch.setattr(products, "_times_faster", lambda shapes: 1.0)
    others = (
        (products, "processor", lambda: "another"),
        (torch, "__version__", "9.9"),
        (products.np, "__version__", "9"),
    )
    for owner, name, value in others:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, value)
            assert chosen_products([(768, 768)]) == TORCH
    assert chosen_products([(768, 768)]) == OPENBLAS
    assert len(list((tmp_path / "products").glob("*.json"))) == 4


@needs_openblas
def test_without_a_place_to_keep_it_nothing_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An answer that is found anew in every run would let the bits follow the machine's load."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError("full")

    monkeypatch.setenv("AIFT_CACHE", str(tmp_path))
    monkeypatch.setattr(products, "_times_faster", lambda shapes: 2.0)
    monkeypatch.setattr(products, "replacing", refuse)
    assert chosen_products([(768, 768)]) == TORCH


@needs_openblas
def test_a_trial_ends_and_narrow_models_need_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AIFT_CACHE", str(tmp_path))
    assert chosen_products([(512, 512)]) in products.NAMES
    monkeypatch.setattr(products, "_times_faster", lambda shapes: 1 / 0)
    assert chosen_products([(64, 64), (4096, 64)]) == TORCH
