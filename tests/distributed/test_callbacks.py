"""Callbacks and metrics of a run of several processes that a launcher has started."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.integration.test_callbacks import EVALUATION, accuracy
from tests.support.commands import environment
from tests.support.patience import patience
from tests.support.ranks import run_ranks
from tests.support.runs import ROWS, training, weights_digest
from transformers import TrainerCallback

from ai_finetuning import AdvancedMultiGPUTrainer, DataConfig, JapaneseModel
from ai_finetuning.config.parallel import ParallelConfig
from ai_finetuning.engine.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[2]


class OnRankOne(TrainerCallback):
    """Asks for something on one rank only: saves after step 2, evaluates after step 3, stops after step 4."""

    def __init__(self) -> None:
        self.evaluated: list[tuple[int, float]] = []
        self.saves = 0

    def on_step_end(self, args, state, control, **kwargs):
        assert args.world_size == 2
        assert state.is_world_process_zero is (args.process_index == 0)
        if args.process_index == 1:
            control.should_save = state.global_step == 2
            control.should_evaluate = state.global_step == 3
            control.should_training_stop = state.global_step == 4

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        self.evaluated.append((state.global_step, metrics["eval_accuracy"]))

    def on_save(self, args, state, control, **kwargs):
        self.saves += 1


def train(rank: int, model_dir: Path, folder: Path, parallel: dict[str, Any], one_process: bool) -> dict[str, Any]:
    """A run of one rank; what its callbacks and it itself saw."""
    callback = OnRankOne()
    trainer = AdvancedMultiGPUTrainer(
        JapaneseModel(str(model_dir), device=torch.device("cpu"), torch_dtype=torch.float32),
        training(
            folder,
            learning_rate=1e-2,
            warmup_steps=0,
            save_steps=100,
            num_epochs=1,
            parallel=ParallelConfig(**parallel),
        ),
        ROWS,
        EVALUATION,
        data=DataConfig(max_length=64),
        callbacks=None if one_process else [callback],
        compute_metrics=accuracy,
    )
    trainer.train()
    rows = [row for row in trainer.result.history if "eval_loss" in row]
    return {
        "step": trainer.result.state.step,
        "evaluated": callback.evaluated,
        "saves": callback.saves,
        "rows": rows,
        "after": trainer.evaluate(),
    }


@pytest.fixture(scope="module")
def alone(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Evaluations of the same run in one process, before and after every step."""
    folder = tmp_path_factory.mktemp("alone") / "out"
    trainer = AdvancedMultiGPUTrainer(
        JapaneseModel(str(tiny_model_dir), device=torch.device("cpu"), torch_dtype=torch.float32),
        training(folder, learning_rate=1e-2, warmup_steps=0, eval_steps=1, num_epochs=1, parallel=ParallelConfig()),
        ROWS,
        EVALUATION,
        data=DataConfig(max_length=64),
        compute_metrics=accuracy,
    )
    trainer.train()
    return [row for row in trainer.result.history if "eval_loss" in row]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "tensor"])
def test_a_flag_of_one_rank_counts_on_all_and_metrics_are_those_of_one_process(
    strategy: str, alone: list[dict[str, Any]], tiny_model_dir: Path, tmp_path: Path
):
    folder = tmp_path / "out"
    obtained = run_ranks(2, train, tiny_model_dir, folder, {"strategy": strategy}, False, folder=tmp_path)
    for rank in obtained:
        assert rank["step"] == 4
        assert rank["saves"] == 1
        assert rank["evaluated"] == [(step, pytest.approx(alone[step]["eval_accuracy"])) for step in (0, 3)]
        assert rank["after"] == obtained[0]["after"]
    assert [row["step"] for row in obtained[0]["rows"]] == [0, 3]
    for row in obtained[0]["rows"]:
        assert row["eval_loss"] == pytest.approx(alone[row["step"]]["eval_loss"], abs=1e-5)
        assert row["eval_labels"] == row["eval_tokens"] == alone[0]["eval_tokens"]
    assert obtained[0]["after"]["eval_loss"] == pytest.approx(alone[4]["eval_loss"], abs=1e-5)
    assert (folder / "checkpoints" / "checkpoint-2").is_dir()


SCRIPT = """
import sys
import torch
from tests.integration.test_callbacks import EVALUATION, accuracy
from tests.support.runs import ROWS, training
from transformers import EarlyStoppingCallback
from ai_finetuning import AdvancedMultiGPUTrainer, DataConfig, JapaneseModel
from ai_finetuning.config.parallel import ParallelConfig

trainer = AdvancedMultiGPUTrainer(
    JapaneseModel(sys.argv[1], device=torch.device("cpu"), torch_dtype=torch.float32),
    training(sys.argv[2], learning_rate=0.5, warmup_steps=0, eval_steps=1, parallel=ParallelConfig(strategy="fsdp")),
    ROWS,
    EVALUATION,
    data=DataConfig(max_length=64),
    callbacks=[EarlyStoppingCallback(1)],
    compute_metrics=accuracy,
)
before = trainer.evaluate()
trainer.train()
steps, after = trainer.result.state.step, trainer.evaluate()
trainer.save_model(sys.argv[3])
found = [steps, before["eval_loss"], before["eval_accuracy"], after["eval_loss"], after["eval_accuracy"]]
with open(f"{sys.argv[3]}-rank-{torch.distributed.is_initialized()}-{__import__('os').environ['RANK']}", "w") as file:
    file.write(repr(found))
"""


def test_a_script_of_transformers_habits_runs_under_torchrun(tiny_model_dir: Path, tmp_path: Path):
    """evaluate(), train() with early stopping, evaluate() and save_model(), the same on both ranks."""
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    saved = tmp_path / "saved"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"),
            *(
                "--nproc-per-node=2",
                str(tmp_path / "script.py"),
                str(tiny_model_dir),
                str(tmp_path / "out"),
                str(saved),
            ),
        ],
        capture_output=True,
        text=True,
        env=environment(PYTHONPATH=os.pathsep.join([str(ROOT), *sys.path])),
        timeout=patience(200),
    )
    assert done.returncode == 0, done.stderr
    first, second = ((tmp_path / f"saved-rank-False-{rank}").read_text(encoding="utf-8") for rank in (0, 1))
    assert first == second
    history = read_metrics(tmp_path / "out" / "metrics.jsonl")
    scores = [row for row in history if "eval_loss" in row]
    steps, before, _, after, _ = ast.literal_eval(first)
    assert before == pytest.approx(scores[0]["eval_loss"], abs=1e-5)
    assert after == pytest.approx(scores[-1]["eval_loss"], abs=1e-4)
    assert steps == scores[-1]["step"] < 12
    assert weights_digest(saved) == weights_digest(tmp_path / "out")


def test_metrics_of_a_pipeline_are_refused_on_every_rank(tiny_model_dir: Path, tmp_path: Path):
    for logged in run_ranks(2, refused, tiny_model_dir, tmp_path / "out", folder=tmp_path):
        assert "compute_metrics cannot go with strategy: pipeline" in logged


def refused(rank: int, model_dir: Path, folder: Path) -> str:
    from ai_finetuning.errors import ConfigError

    with pytest.raises(ConfigError) as error:
        train(rank, model_dir, folder, {"strategy": "pipeline"}, True)
    return error.value.en
