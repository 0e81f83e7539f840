"""Matrix products by another way: the same numbers, and a choice that is made once."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ai_finetuning.kernels import choice, native, products
from ai_finetuning.kernels.attention_blocks import AttentionShape
from ai_finetuning.kernels.build import why_unavailable
from ai_finetuning.kernels.choice import chosen_products
from ai_finetuning.kernels.products import (
    NAMES,
    OPENBLAS,
    OPENBLAS_HEADS,
    PIECES,
    PIECES_HEADS,
    TORCH,
    TORCH_HEADS,
    Products,
    products_of,
    why_no_pieces,
    why_not_here,
    why_not_openblas,
)

FP32, BF16 = torch.float32, torch.bfloat16
# What cannot compute here, by way and type.
WAYS = [(OPENBLAS, FP32), (OPENBLAS_HEADS, FP32), *itertools.product((PIECES, PIECES_HEADS), (FP32, BF16))]
REASONS = {way: why_not_here(*way) for way in WAYS}
SHAPE = AttentionShape(heads=4, kv_heads=2, head_dim=16, scale=0.25)


def here(name: str, dtype: torch.dtype) -> object:
    reason = REASONS[name, dtype]
    mark = pytest.mark.skipif(reason is not None, reason=f"{name} cannot compute here: {reason}")
    return pytest.param(name, dtype, marks=mark, id=f"{name}-{dtype}")


needs_both = pytest.mark.skipif(any(REASONS.values()), reason=f"not every way computes here: {REASONS}")


def matrix(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def views(rows: int, columns: int, seed: int, dtype: torch.dtype = FP32) -> list[torch.Tensor]:
    """One matrix as it lies, transposed, and as columns of a wider one."""
    x = matrix(rows, columns, seed).to(dtype)
    return [x, x.t().contiguous().t(), torch.cat([x, x], dim=1)[:, :columns]]


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (7, 5, 1), (1, 9, 300), (130, 64, 257), (257, 80, 31), (70, 90, 700)])
@pytest.mark.parametrize(("name", "dtype"), [here(*way) for way in WAYS if way[0] != PIECES_HEADS])
def test_products_are_those_of_torch(name: str, dtype: torch.dtype, sizes: tuple[int, int, int], threads: int):
    (m, k, n), before, mine = sizes, torch.get_num_threads(), Products(name)
    allowed = {"rtol": 1e-5, "atol": 1e-5} if dtype is FP32 else {"rtol": 1e-2, "atol": 2e-1}
    torch.set_num_threads(threads)
    try:
        for a in views(m, k, 0, dtype):
            for b in views(k, n, 1, dtype):
                exact, start = (a.double() @ b.double()), matrix(m, n, 2).to(dtype)
                assert torch.allclose(mine.mm(a, b).double(), exact, **allowed)
                assert torch.allclose(mine.sum(start, a, b).double(), start + exact, **allowed)
                out = start.clone()
                assert mine.add(out, a, b, 0.5) is out
                assert torch.allclose(out.double(), start + exact / 2, **allowed)
                assert torch.equal(mine.mm(a, b), mine.mm(a, b))
                wide = torch.cat([start, start], dim=1)  # into columns of a wider one, beside which nothing is written
                mine.add(wide[:, :n], a, b)
                assert torch.allclose(wide[:, :n].double(), start + exact, **allowed)
                assert torch.equal(wide[:, n:], start)
    finally:
        torch.set_num_threads(before)
        products.release()


@pytest.mark.parametrize(("name", "dtype"), [here(PIECES_HEADS, dtype) for dtype in (FP32, BF16)])
def test_thin_products_are_not_cut(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    """Each piece costs a call, and torch computes what is narrow as well by itself."""
    original, cut = native.product_in_pieces, []
    monkeypatch.setattr(
        native,
        "product_in_pieces",
        lambda a, b, *given, **options: cut.append((*a.shape, b.shape[1])) or original(a, b, *given, **options),
    )
    mine, limit = Products(name), 1e-4 if dtype is FP32 else 1e-2
    sizes = [(512, 512, 512), (600, 530, 700), (511, 700, 600), (600, 16, 700), (600, 700, 48)]
    for m, k, n in sizes:
        a, b, start = matrix(m, k, 0).to(dtype), matrix(k, n, 1).to(dtype), matrix(m, n, 2).to(dtype)
        exact = a.double() @ b.double()
        for obtained, expected in (
            (mine.mm(a, b), exact),
            (mine.sum(start, a, b), start + exact),
            (mine.add(start.clone(), a, b, 0.5), start + exact / 2),
        ):
            assert (obtained.double() - expected).norm() < limit * expected.norm()
    assert cut == [size for size in sizes[:2] for _ in range(3)]


@pytest.mark.skipif(REASONS[OPENBLAS, FP32] is not None, reason="no OpenBLAS here")
def test_other_types_stay_with_torch():
    a, b = matrix(8, 8, 0).bfloat16(), matrix(8, 8, 1).bfloat16()
    assert torch.equal(Products(OPENBLAS).mm(a, b), a @ b)
    assert products_of(lambda weight: weight) == Products(TORCH)


@pytest.mark.skipif(REASONS[PIECES, FP32] is not None, reason="no pieces here")
def test_a_product_that_torch_refuses_is_an_error(monkeypatch: pytest.MonkeyPatch):
    """Never a result that was not computed: torch's C interface answers with a number."""
    known = native._torch(FP32)
    assert known is not None
    booleans = native._Torch(known.tensor, known.mm, known.addmm, known.forget, 11)  # which have no products
    monkeypatch.setattr(native, "_torch", lambda dtype: booleans)
    with pytest.raises(RuntimeError, match="torch refused 1 matrix products"):
        Products(PIECES).mm(matrix(4, 4, 0), matrix(4, 4, 1))


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_every_torch_that_is_tested_has_pieces(dtype: torch.dtype):
    """Where the kernels are compiled. A torch that has dropped the functions would else skip all tests of them."""
    assert str(REASONS[PIECES, dtype]) == str(why_unavailable(torch.device("cpu"), dtype))


def test_every_numpy_with_openblas_computes_by_it():
    """Where the kernels are compiled. Functions that have another name would else skip all tests of them."""
    if np.show_config(mode="dicts")["Build Dependencies"]["blas"]["name"] != "scipy-openblas":
        pytest.skip("numpy is built with another library")
    assert str(REASONS[OPENBLAS, FP32]) == str(why_unavailable(torch.device("cpu"), FP32))


def test_rows_are_rounded_up():
    assert [products.rounded(rows) for rows in (0, 1, 32, 33, 1232)] == [0, 32, 32, 64, 1248]


@needs_both
@pytest.mark.parametrize(
    ("dtype", "first"),
    [(FP32, OPENBLAS_HEADS), (FP32, TORCH), (FP32, TORCH_HEADS), (BF16, PIECES_HEADS), (BF16, TORCH)],
)
def test_a_choice_is_made_once(dtype: torch.dtype, first: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Later runs take what the first one found, whatever a trial would say then."""
    monkeypatch.setenv("AIFT_CACHE", str(tmp_path))
    found = {"fastest": first}

    def seconds(shapes: object, attention: object, dtype: object, ways: list[str]) -> dict[str, float]:
        return {name: 1.0 if name == found["fastest"] else 1.3 for name in ways}

    monkeypatch.setattr(choice, "_seconds", seconds)
    assert chosen_products([(768, 768), (2048, 768)], SHAPE, dtype) == first
    (entry,) = (tmp_path / "products").glob("*.json")
    assert json.loads(entry.read_text(encoding="utf-8"))["products"] == first
    found["fastest"] = TORCH if first != TORCH else TORCH_HEADS if dtype is FP32 else PIECES_HEADS
    assert chosen_products([(2048, 768), (768, 768)], SHAPE, dtype) == first
    entry.write_text('{"products": "os.system"}', encoding="utf-8")  # what is no answer is found again
    assert chosen_products([(768, 768), (2048, 768)], SHAPE, dtype) == found["fastest"]


@needs_both
def test_what_is_hardly_faster_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AIFT_CACHE", str(tmp_path))
    monkeypatch.setattr(choice, "_seconds", lambda *_: {TORCH: 1.02, PIECES_HEADS: 1.0})
    assert chosen_products([(768, 768)], SHAPE, BF16) == TORCH


@needs_both
def test_a_choice_is_that_of_a_processor_of_versions_and_of_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A disk that goes to another computer, or gets another torch, is tried again; back home the first answer holds."""
    monkeypatch.setenv("AIFT_CACHE", str(tmp_path))
    monkeypatch.setattr(choice, "_seconds", lambda *_: {TORCH: 1.3, TORCH_HEADS: 1.0, OPENBLAS_HEADS: 1.2})
    assert chosen_products([(768, 768)], SHAPE, FP32) == TORCH_HEADS
    monkeypatch.setattr(choice, "_seconds", lambda *_: dict.fromkeys(NAMES, 1.0))
    others = (
        (choice, "processor", lambda: "another"),
        (torch, "__version__", "9.9"),
        (choice.np, "__version__", "9"),
        (choice, "openblas_version", lambda: "9"),
        (torch, "get_num_threads", lambda: 64),
    )
    for owner, name, value in others:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, value)
            assert chosen_products([(768, 768)], SHAPE, FP32) == TORCH
    assert chosen_products([(768, 768)], SHAPE, BF16) == TORCH
    assert chosen_products([(768, 2048)], SHAPE, FP32) == TORCH
    assert chosen_products([(768, 768)], AttentionShape(8, 2, 16, 0.25), FP32) == TORCH
    assert chosen_products([(768, 768)], SHAPE, FP32) == TORCH_HEADS


@needs_both
def test_without_a_place_to_keep_it_nothing_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An answer that is found anew in every run would let the bits follow the machine's load."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError("full")

    monkeypatch.setenv("AIFT_CACHE", str(tmp_path))
    monkeypatch.setattr(choice, "_seconds", lambda *_: {TORCH: 2.0, PIECES_HEADS: 1.0})
    monkeypatch.setattr(choice, "replacing", refuse)
    assert chosen_products([(768, 768)], SHAPE, BF16) == TORCH


@needs_both
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_a_trial_ends_and_narrow_models_need_none(dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AIFT_CACHE", str(tmp_path))
    assert chosen_products([(256, 256)], SHAPE, dtype) in products.NAMES
    (entry,) = (tmp_path / "products").glob("*.json")
    seconds = json.loads(entry.read_text(encoding="utf-8"))["seconds"]
    assert set(seconds) == ({TORCH, TORCH_HEADS, OPENBLAS_HEADS} if dtype is FP32 else {TORCH, PIECES_HEADS})
    assert all(0 < number < 10 for number in seconds.values())
    monkeypatch.setattr(choice, "_seconds", lambda *_: 1 / 0)
    assert chosen_products([(64, 64), (4096, 64)], SHAPE, dtype) == TORCH


def test_a_torch_without_the_functions_is_no_way(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(native, "calls_torch", lambda dtype: False)
    assert choice._ways(BF16) == [TORCH]
    assert choice._ways(FP32) == ([TORCH, OPENBLAS] if why_not_openblas() is None else [TORCH])
    reason = why_no_pieces(BF16)
    assert reason is not None
    assert "lacks the functions" in reason.en
