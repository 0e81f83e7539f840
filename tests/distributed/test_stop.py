"""A stop that one process has read from a file ends the run in all of them, at the same step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.support.loops import run_of
from tests.support.parity import CPU, Case
from tests.support.ranks import run_ranks

from ai_finetuning.config.run_folder import CHECKPOINTS, STOP
from ai_finetuning.engine.hooks import Callback
from ai_finetuning.engine.loop import fit
from ai_finetuning.errors import PreemptedError
from ai_finetuning.execution.followed import Followed
from ai_finetuning.parallel.collectives.mesh import Sizes, build_mesh
from ai_finetuning.parallel.strategies.distributed import DataParallel


class Asks(Callback):
    """Writes the request before the second step ends, as another program may."""

    def __init__(self, folder: Path, how: str) -> None:
        self._file, self._how = folder / STOP, how

    def on_step_begin(self, state: Any, control: Any) -> None:
        if state.step == 1:
            self._file.write_text(f'{{"how": "{self._how}"}}', encoding="utf-8")


def stopped(rank: int, folder: Path, how: str) -> tuple[int, bool, str]:
    """(step, whether the best weights are the result, what was raised) of a run on a rank; its exchanges are counted."""
    strategy = DataParallel(CPU, build_mesh(Sizes(dp=2), "cpu"))
    run = run_of(Case("llama", "full", "documents", rows=24), strategy, folder, steps=4)
    if rank == 0:
        run.callbacks = [Asks(folder, how), Followed(folder)]
    said = ""
    try:
        fit(run)
    except PreemptedError as error:
        said = error.en
    strategy.close()
    return run.state.step, run.return_best, said


@pytest.mark.parametrize("how", ["save", "best", "now"])
def test_all_ranks_stop_at_the_step_that_one_was_asked_in(how: str, tmp_path: Path):
    obtained = run_ranks(2, stopped, tmp_path / "run", how, folder=tmp_path)
    assert [step for step, _, _ in obtained] == [2, 2]
    assert [best for _, best, _ in obtained] == [how == "best"] * 2
    expected = {"save": "saved up to step 2", "best": "", "now": "nothing is saved yet"}[how]
    assert all(expected in said and bool(said) == bool(expected) for _, _, said in obtained)
    assert (tmp_path / "run" / CHECKPOINTS / "checkpoint-2").is_dir() == (how == "save")
