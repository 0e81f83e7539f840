"""Memory that runs out in the midst of a step over answers, of an evaluation, and of the reference's pass."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.integration.test_preference_runs import KEPT, request_of
from tests.unit.engine.test_preference_loss import marked, pairs

from ai_finetuning.config.run_folder import METRICS
from ai_finetuning.engine.metrics import read_metrics
from ai_finetuning.engine.preference_loss import PreferenceLoss
from ai_finetuning.execution.execute import execute


class SmallMemory:
    """Batches of more than two rows do not fit, which the second of them finds out when it has been computed: what the first
    one has left behind (gradients, sums of metrics, scores) is there already.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        original, self.large, self.raised = PreferenceLoss.__call__, 0, 0

        def computed(loss: PreferenceLoss, model, batch) -> torch.Tensor:
            value = original(loss, model, batch)
            self.large += batch.num_units > 2
            if batch.num_units > 2 and self.large % 2 == 0:
                self.raised += 1
                raise torch.OutOfMemoryError("CUDA out of memory")
            return value

        monkeypatch.setattr(PreferenceLoss, "__call__", computed)


@pytest.mark.parametrize("objective", ["preference", "kto"])
def test_a_step_that_is_done_again_is_the_step(
    objective: str, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged
):
    """Losses, metrics and weights are those of a machine with memory: no mean of means, and nothing is counted twice."""
    settings = {"objective": objective}
    rows, evaluated = (pairs(22), pairs(10, seed=9)) if objective == "preference" else (marked(22), marked(10))
    sizes = {"batch_size": 4, "gradient_accumulation_steps": 2, "learning_rate": 1e-3}

    def run(name: str) -> list[dict[str, float]]:
        monkeypatch.setenv("AIFT_CACHE", str(tmp_path / name / "cache"))
        execute(request_of(tiny_model_dir, tmp_path / name, rows, evaluated, settings=settings, **sizes))
        return read_metrics(tmp_path / name / METRICS)

    plain = run("plain")
    memory = SmallMemory(monkeypatch)
    small = run("small")
    assert memory.raised >= 3
    assert "reference log-probabilities are computed: retrying with batches of 2 rows" in logged()
    assert {row["micro_batch_size"] for row in small if "loss" in row} == {2}
    for one, other in zip(plain, small, strict=True):
        watched = [name for name in one if name.startswith(("loss", "grad", "eval_loss", "logps")) or "rewards" in name]
        watched += [name for name in ("kl", "eval_kl", "good", "bad") if name in one]
        assert [other[name] for name in watched] == pytest.approx([one[name] for name in watched], rel=1e-4, abs=1e-4)
    for file in (KEPT, "adapter_model.safetensors"):
        one, other = (load_file(tmp_path / name / file) for name in ("plain", "small"))
        assert all(torch.allclose(one[key], other[key], rtol=1e-4, atol=1e-4) for key in one)
