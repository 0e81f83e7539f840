"""A run over streamed data that is killed goes on by file and row, and ends with the bits of one that never stopped."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from tests.support.commands import ROWS, call, spawn, write_run
from tests.support.runs import losses, weights_digest

# Fourteen steps: two passes of six, the last of each short, and two steps of a third.
ARGUMENTS = ("data.streaming=true", "training.schedule.max_steps=14", "data.skip_bad_rows=true")
AUTO = "training.resume_from_checkpoint=auto"


def write(folder: Path, model: Path) -> tuple[str, ...]:
    """A run over 22 rows and a bad one, in pieces of four: a column that nobody learns fills them."""
    config = write_run(folder, model)
    lines = [json.dumps(row | {"note": "x" * 2**18}, ensure_ascii=False) + "\n" for row in ROWS]
    lines.insert(9, "壊れた行\n")
    (folder / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
    return ("train", str(config), *ARGUMENTS)


@pytest.fixture(scope="module")
def reference(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("streamed")
    assert call(*write(folder, tiny_model_dir)) == 0
    return folder / "out"


@pytest.mark.parametrize(
    "step",
    [
        pytest.param(11, id="in the second pass"),
        pytest.param(6, id="within a piece", marks=pytest.mark.faults),
        pytest.param(2, id="before the first checkpoint", marks=pytest.mark.faults),
        pytest.param(7, id="where a pass has ended", marks=pytest.mark.faults),
    ],
)
def test_kill_minus_9(tmp_path: Path, tiny_model_dir: Path, reference: Path, step: int):
    arguments = write(tmp_path, tiny_model_dir)
    code, output = spawn(*arguments, fault=f"step:kill@{step}")
    assert code == -signal.SIGKILL, output
    assert call(*arguments, AUTO) == 0
    assert len(losses(reference)) == 14
    assert losses(tmp_path / "out") == losses(reference)
    assert weights_digest(tmp_path / "out") == weights_digest(reference)
    results = [
        json.loads((folder / "run.json").read_text(encoding="utf-8"))["result"]
        for folder in (tmp_path / "out", reference)
    ]
    assert [result["data"]["left_out"] for result in results] == [1, 1]


def test_the_position_in_a_checkpoint_names_the_row(tiny_model_dir: Path, reference: Path):
    states = {
        int(path.parent.name.rpartition("-")[2]): json.loads(path.read_text(encoding="utf-8"))["data_position"]
        for path in reference.glob("checkpoints/checkpoint-*/state.json")
    }
    assert states
    for step, position in states.items():
        row = step % 6 * 4  # of the pass
        line = row + 1 + (row >= 9)
        assert Path(position["next"]).name == (f"rows.jsonl:{line}" if row else "")  # a pass begins with the first one
        assert "壊れた行" not in json.dumps(position, ensure_ascii=False)
