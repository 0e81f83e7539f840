"""ddp and fsdp on two processes against one fp32 process, and the faults that train wrongly without an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.parity import CPU, Case, differences, loss_of, model_of
from tests.support.ranks import run_ranks

from ai_finetuning.parallel.collectives.mesh import Sizes, build_mesh
from ai_finetuning.parallel.strategies.distributed import DataParallel
from ai_finetuning.parallel.weights.layout import local

CASES = [
    Case(kind, method, data)
    for kind in ("llama", "stablelm", "gpt_neox", "qwen3_tied", "gemma2")
    for method in ("full", "lora")
    for data in ("padded", "packed", "documents")
] + [
    # Fewer rows than ranks, or an odd one: one of them computes without labels.
    Case("llama", "full", "padded", rows=1),
    Case("llama", "lora", "documents", rows=1),
    Case("stablelm", "full", "documents", rows=3),
    Case("llama", "qlora", "padded"),
    Case("llama", "qlora", "documents"),
    Case("stablelm", "qlora", "padded"),
]


def data_parallel(sharded: bool) -> Any:
    return lambda case: DataParallel(CPU, build_mesh(Sizes(dp=2), "cpu"), sharded=sharded)


def assert_equal(obtained: dict[str, dict[str, float]]) -> None:
    for case, worst in obtained.items():
        assert worst["loss"] < 1e-6, (case, worst)
        assert worst["norm"] < 1e-6, (case, worst)
        assert worst["gradient"] < 1e-6, (case, worst)
        assert worst["weight"] < 5e-6, (case, worst)
        assert worst["covered"] == 1.0, (case, worst)


@pytest.mark.parametrize("sharded", [False, True], ids=["ddp", "fsdp"])
def test_two_ranks_do_the_step_of_one(sharded: bool, tmp_path: Path):
    assert_equal(differences(2, CASES, data_parallel(sharded), tmp_path))


def packed_bytes(rank: int) -> tuple[int, int]:
    """Bytes of the packed 4-bit weights: of the model, and those that this rank holds once they are sharded."""
    case = Case("llama", "qlora")
    model = model_of(case)
    whole = {name: p.nbytes for name, p in model.named_parameters() if p.dtype is torch.uint8}
    strategy = data_parallel(sharded=True)(case)
    strategy.prepare(model, loss_of(case, model))
    here = {name: local(p.data) for name, p in model.named_parameters()}
    assert all(here[name].dtype is torch.uint8 for name in whole)
    return sum(whole.values()), sum(here[name].nbytes for name in whole)


def test_fsdp_divides_4_bit_weights(tmp_path: Path):
    """Else QLoRA under fsdp would be right and cost every device the memory of ddp."""
    obtained = run_ranks(2, packed_bytes, folder=tmp_path)
    whole = obtained[0][0]
    assert whole > 0
    assert [here for _, here in obtained] == [whole // 2] * 2
