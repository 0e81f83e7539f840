"""model_parallel on two real GPUs: what the virtual devices of tests/unit/parallel cannot show."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.support.models import build_model, save_tiny_model
from tests.support.parity import Case, take_step
from tests.support.runs import losses, train_full

from ai_finetuning.config.parallel import ParallelConfig
from ai_finetuning.models.loading import load_causal_lm
from ai_finetuning.parallel.strategies.device_map import ModelParallel
from ai_finetuning.parallel.strategies.single import SingleDevice
from ai_finetuning.planner.layers import split_model
from ai_finetuning.planner.memory import Workload

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]


def device_map(kind: str) -> dict[str, torch.device]:
    work = Workload(trainable=0, bits=None, frozen_bytes=4, tokens=64, compute_bytes=4)
    return split_model(build_model(kind, layers=4), work, {0: 2**31, 1: 2**31}, checkpointing=False).device_map()


@pytest.mark.parametrize("kind", ["llama", "qwen3_tied"])
def test_the_step_of_one_device(kind: str):
    case = Case(kind, "lora", "documents", layers=4)
    got, expected = (
        take_step(case, s) for s in (ModelParallel(device_map(kind)), SingleDevice(torch.device("cuda", 0)))
    )
    assert got.loss == pytest.approx(expected.loss, abs=1e-5)
    assert got.norm == pytest.approx(expected.norm, rel=1e-4)


@pytest.mark.parametrize("bits", [None, 4])
def test_a_model_is_loaded_where_the_map_says_and_generates(tmp_path: Path, bits: int | None):
    folder = save_tiny_model(tmp_path / "tiny", "llama", layers=4)
    model = load_causal_lm(
        str(folder), dtype=torch.float32, load_in_4bit=bits == 4, device_map=device_map("llama"), attention="sdpa"
    )
    assert {parameter.device.index for parameter in model.parameters()} == {0, 1}
    assert model.lm_head.weight.device == model.model.norm.weight.device == torch.device("cuda", 1)
    assert model.generate(torch.tensor([[5, 6, 7]]).to(model.device), max_new_tokens=3).shape == (1, 6)


def test_fsdp_in_16_bit_follows_ddp(tiny_model_dir: Path, tmp_path: Path):
    """Weights are gathered in 2 bytes here, embedding and head on their own."""
    numbers = []
    for strategy in ("ddp", "fsdp"):
        train_full(
            tiny_model_dir,
            tmp_path / strategy,
            runtime={"precision": "bf16"},
            parallel=ParallelConfig(strategy=strategy, processes=2),
        )
        numbers.append([float.fromhex(item) for item in losses(tmp_path / strategy)])
    assert numbers[1] == pytest.approx(numbers[0], rel=0.02)
