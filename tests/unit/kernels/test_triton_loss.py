"""The loss kernel of GPUs: its arithmetic in Triton's interpreter, its machine code for GPUs that are not here, and how it
is chosen. Triton does not come with torch for CPUs; where it is missing, what needs it skips.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from ai_finetuning.errors import Reason
from ai_finetuning.kernels import loss
from ai_finetuning.kernels.loss import LinearCrossEntropy, plain_cross_entropy, row_kernel, why_not_one_kernel

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def lines_of(program: str, cache: Path) -> list[dict]:
    done = subprocess.run(
        [sys.executable, "-m", f"tests.support.{program}"],
        env=os.environ | {"TRITON_CACHE_DIR": str(cache), "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@needs_triton
def test_loss_and_gradient_are_those_of_plain_torch(tmp_path: Path):
    """In fp32, with and without capped logits; without a gradient the logits stay."""
    obtained = lines_of("interpreted_loss", tmp_path)
    assert len(obtained) == 12
    for row in obtained:
        assert max(row["errors"]) < 2e-6, row
        assert row["kept"], row
        allocated, declared = row["bytes"]
        assert allocated == declared > 0, row


@pytest.mark.slow
@needs_triton
def test_it_compiles_for_gpus_from_turing_to_blackwell(tmp_path: Path):
    obtained = lines_of("compiled_loss", tmp_path)
    assert {row["capability"] for row in obtained} == {75, 80, 86, 89, 90, 100, 120}
    assert all(row["shared"] < 48 * 1024 for row in obtained)  # what every GPU has
    assert all(row["scratch"] == 0 for row in obtained)  # nothing of the GPU's memory beside what a plan counts


def test_a_machine_without_it_says_why_and_computes_plainly(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "ai_finetuning.kernels.triton_loss", raising=False)
    reason = why_not_one_kernel(torch.float32, CPU, 0.0)
    assert reason is not None
    assert "triton" in reason.en
    assert row_kernel(torch.bfloat16, GPU, compiled=False) is plain_cross_entropy
    assert row_kernel(torch.bfloat16, GPU, compiled=True) is loss.one_kernel_cross_entropy
    assert row_kernel(torch.float32, CPU, compiled=False) is plain_cross_entropy


def test_a_kernel_that_errs_is_not_taken(monkeypatch: pytest.MonkeyPatch):
    def scaled(factor: float):
        def kernel(logits, targets, *, cap, with_gradient):
            losses = plain_cross_entropy(logits, targets, cap=cap, with_gradient=with_gradient)
            logits.mul_(factor)
            return losses

        return kernel

    monkeypatch.setattr(loss, "one_kernel_cross_entropy", scaled(1.0))
    assert why_not_one_kernel(torch.bfloat16, CPU, 30.0) is None
    monkeypatch.setattr(loss, "one_kernel_cross_entropy", scaled(1.05))
    assert why_not_one_kernel(torch.bfloat16, CPU, 30.0) == Reason(
        "結果か勾配が 5.0% 違います", "results or gradients differ by 5.0%"
    )


class Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def test_a_chunk_is_two_products_and_one_kernel(monkeypatch: pytest.MonkeyPatch):
    """With the head frozen, as LoRA has it; fake tensors take the way that a GPU takes."""
    monkeypatch.setattr(loss, "kernels_of", lambda device: "cuda")
    with FakeTensorMode(), Operations() as seen:
        hidden = torch.empty(64, 32, dtype=torch.bfloat16, requires_grad=True)
        weight, targets = torch.empty(500, 32, dtype=torch.bfloat16), torch.zeros(64, dtype=torch.int64)
        LinearCrossEntropy.apply(hidden, weight, targets, 0.0, 16 * 2 * 500, lambda x: x, True).backward()
    assert seen.names.count("ai_finetuning.cross_entropy_rows.default") == 4
    assert seen.names.count("aten.mm.default") == 8
    assert not any("logsumexp" in name or "gather" in name or "exp" in name for name in seen.names)
