"""parallel.deepspeed_stage: what is refused before anything is loaded, and what choosing it does not import."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ai_finetuning import AdvancedMultiGPUTrainer, JapaneseModel, MultiGPUTrainingConfig
from ai_finetuning.config.parallel import ParallelConfig
from ai_finetuning.errors import ConfigError
from ai_finetuning.parallel.collectives.mesh import Sizes
from ai_finetuning.parallel.plan import ParallelPlan, resolve_parallel_plan, validate_model


def refused(function: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(ConfigError) as error:
        function(*args, **kwargs)
    return error.value.en


@pytest.mark.parametrize(
    "other",
    [{"strategy": "fsdp"}, {"strategy": "pipeline"}, {"tensor_parallel_size": 2}, {"pipeline_parallel_size": 2}],
)
def test_it_goes_with_ddp_alone(other: dict[str, Any]):
    logged = refused(ParallelConfig, deepspeed_stage=2, **other)
    assert "strategy: ddp" in logged
    assert "use strategy: fsdp" in logged


def test_other_stages_are_refused():
    assert "parallel.deepspeed_stage" in refused(ParallelConfig, deepspeed_stage=1)


def test_one_process_is_refused_before_the_model_is_looked_at(tmp_path: Path):
    config = MultiGPUTrainingConfig(deepspeed_stage=3, output_dir=str(tmp_path / "out"))
    trainer = AdvancedMultiGPUTrainer(JapaneseModel(str(tmp_path / "no such model")), config)
    assert "--cpu-processes 2" in refused(trainer.train, ["a", "b"])
    assert not (tmp_path / "out").exists()


def test_without_deepspeed_the_command_that_installs_it_is_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    logged = refused(resolve_parallel_plan, "ddp", processes=2, deepspeed_stage=2)
    assert "DS_BUILD_OPS=0 pip install --no-build-isolation" in logged
    assert "strategy: fsdp" in logged


def test_what_it_cannot_train_is_refused_with_a_way_out():
    plain: dict[str, Any] = {"bits": None, "optimizer": "adamw", "use_dora": False, "scaler": False}

    def logged(stage: int, **change: Any) -> str:
        return refused(validate_model, ParallelPlan(sizes=Sizes(dp=2), zero_stage=stage), None, **plain | change)

    assert "4-bit base; use 2" in logged(3, bits=4)
    assert "it is muon" in logged(2, optimizer="muon")
    assert "it is adamw_8bit" in logged(3, optimizer="adamw_8bit")
    assert "bf16 or fp32" in logged(2, scaler=True)
    validate_model(ParallelPlan(sizes=Sizes(dp=2), zero_stage=2), None, **plain | {"bits": 4})


def test_choosing_imports_neither_deepspeed_nor_accelerate():
    code = (
        "import sys, ai_finetuning.parallel.plan; print([m for m in ('deepspeed', 'accelerate') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
