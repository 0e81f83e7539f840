"""Three SGD steps of every loss beside TRL 1.16's own trainers: losses, and where the weights have gone."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.support import trl_movement as trl
from tests.support.patience import patience
from tests.unit.engine.test_preference_loss import CPU, loader_of, loss_of, ways
from torch import Tensor, nn

from ai_finetuning.config.preference import LOSSES, PreferenceConfig
from ai_finetuning.data.answers import AnswerRows
from ai_finetuning.data.example import Example
from ai_finetuning.data.forks import forked
from ai_finetuning.labels import IGNORED
from ai_finetuning.models.adapters import add_lora
from ai_finetuning.parallel.strategies.single import SingleDevice

ROOT = Path(__file__).resolve().parents[3]
FROZEN: dict[str, Any] = json.loads(trl.FIXTURE.read_text(encoding="utf-8"))
WAYS = ("fused", "portable", "plain")
CASES = [(name, method) for name in trl.CASES for method in trl.METHODS]


@dataclass
class Trained:
    """Losses of the steps, and what trains before step 1 and after each."""

    losses: list[float]
    weights: list[dict[str, Tensor]]

    def movements(self) -> list[dict[str, Tensor]]:
        return [{name: after[name] - part for name, part in self.weights[0].items()} for after in self.weights[1:]]


def whole(prompt: list[int], answer: list[int], mark: int = 0) -> Example:
    ids = np.array([*prompt, *answer], dtype=np.int32)
    labels = np.where(np.arange(len(ids)) >= len(prompt), ids, IGNORED).astype(np.int32)
    return Example(ids, labels, mark=mark)


def answer_sum(model: nn.Module, prompt: list[int], answer: list[int], first: int, last: int) -> float:
    """Log-probability of the answer's tokens from `first` up to `last`."""
    logits = model(input_ids=torch.tensor([[*prompt, *answer]]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    rows = logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None])[:, 0]
    return float(rows[first:last].double().sum())


def references(name: str) -> Tensor:
    """[rows, 2, 2] as AnswerRows.reference, of the model without what moves it away."""
    model, rows = trl.plain_model(), trl.rows_of(name)
    marked = trl.CASES[name].trainer == "kto"
    scores = torch.zeros(len(rows), 2, 2, dtype=torch.float64)
    with torch.no_grad():
        for place, row in enumerate(rows):
            if marked:
                scores[place, 0, 0] = answer_sum(model, row.prompt, row.chosen, 0, 99)
                scores[place, 1, 0] = answer_sum(model, *trl.mismatched(name)[place], 0, 99)
                continue
            least = min(len(row.chosen), len(row.rejected))
            for side, answer in enumerate((row.chosen, row.rejected)):
                scores[place, side, 0] = answer_sum(model, row.prompt, answer, 0, least)
                scores[place, side, 1] = answer_sum(model, row.prompt, answer, least, 99)
    return scores.float()


def examples_of(name: str) -> tuple[list[Example], list[Example] | None]:
    """The rows, and for KTO those with the answers to other questions."""
    rows = trl.rows_of(name)
    if trl.CASES[name].trainer != "kto":
        return [forked(whole(row.prompt, row.chosen), whole(row.prompt, row.rejected)) for row in rows], None
    marks = [1 if row.good else -1 for row in rows]
    own = [whole(row.prompt, row.chosen, mark) for row, mark in zip(rows, marks, strict=True)]
    others = [whole(*pair, mark) for pair, mark in zip(trl.mismatched(name), marks, strict=True)]
    return own, others


def train(name: str, method: str, way: str) -> Trained:
    """Our three steps on a way of computing, with plain SGD."""
    case, inner = trl.CASES[name], trl.plain_model()
    wrapped = inner
    if method == "lora":
        wrapped = add_lora(inner, r=trl.RANK, alpha=trl.ALPHA, dropout=0.0, target_modules="all-linear")
    trl.move_away(wrapped, case)
    examples, others = examples_of(name)
    settings = PreferenceConfig(**case.ours)
    reference = references(name) if LOSSES[case.ours["loss"]].reference else None
    path = None if way == "plain" else ways(inner, way)
    result = Trained([], [trl.kept(wrapped)])
    try:
        loss, strategy = loss_of(path, settings), SingleDevice(CPU)
        strategy.prepare(wrapped, loss)
        for first in range(0, len(examples), trl.PER_STEP):
            step = slice(first, first + trl.PER_STEP)
            rows = AnswerRows(
                path is not None,
                None if reference is None else reference[step],
                None if others is None else others[step],
            )
            loader = loader_of(examples[step], rows)
            wrapped.zero_grad()
            loss.begin()
            if loss.has_rest:
                loss.find_rest(strategy, partial(strategy.score, loader.other_answers(0, 0, 3)))
            result.losses.append(float(strategy.forward_backward(loader.micro_batches(0, 0, 3), trl.PER_STEP)))
            with torch.no_grad():
                for weight in trl.trained(wrapped).values():
                    assert weight.grad is not None
                    weight -= case.rate * weight.grad
            result.weights.append(trl.kept(wrapped))
    finally:
        if path is not None:
            path.close()
    return result


@pytest.mark.parametrize(("name", "method"), CASES)
def test_weights_go_where_trl_moves_them(name: str, method: str):
    """By the products that the fixture keeps (tests/support/trl_movement.py): no TRL is needed here."""
    expected = FROZEN["cases"][f"{name}-{method}"]
    for way in WAYS:
        found = train(name, method, way)
        assert found.losses == pytest.approx(expected["losses"], rel=1e-5), way
        for movement, products, norm in zip(found.movements(), expected["signs"], expected["norms"], strict=True):
            off = np.sqrt(np.mean((np.array(trl.signs(movement)) - np.array(products)) ** 2))
            assert off <= 1e-5 * norm, (way, off / norm)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What TRL's trainers leave here and now."""
    python = Path(os.environ.get("AIFT_PEERS", ROOT / "build" / "peers")) / "bin" / "python"
    if not python.is_file():
        pytest.skip(f"no TRL: {python} does not exist (`make bench-peers-setup`, or AIFT_PEERS)")
    folder = tmp_path_factory.mktemp("trl")
    told = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run(
        [str(python), "-m", "tests.support.trl_movement", str(folder)],
        cwd=ROOT,
        env=told,
        check=True,
        capture_output=True,
        timeout=patience(300),
    )
    return folder


@pytest.mark.slow
def test_weights_are_those_of_trl_that_runs_here(theirs: Path):
    """Every tensor's elements, and that the fixture still says what TRL does."""
    from safetensors.torch import load_file

    now = json.loads((theirs / "movement.json").read_text(encoding="utf-8"))
    for name, method in CASES:
        kept = load_file(theirs / f"{name}-{method}.safetensors")
        for way in WAYS:
            found = train(name, method, way)
            for number, weights in enumerate(found.weights):
                expected = {key: kept[f"{number}/{key}"] for key in weights}
                if number == 0:
                    assert all(torch.equal(weights[key], part) for key, part in expected.items())
                    continue
                moved = sum(float((part - kept[f"0/{key}"]).double().square().sum()) for key, part in expected.items())
                off = sum(float((weights[key] - part).double().square().sum()) for key, part in expected.items())
                assert (off / moved) ** 0.5 <= 1e-5, (name, method, way, number)
        frozen = FROZEN["cases"][f"{name}-{method}"]
        assert now["cases"][f"{name}-{method}"]["losses"] == pytest.approx(frozen["losses"], rel=1e-5)
