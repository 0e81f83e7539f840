"""What a kill leaves of the model that a run saves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.systems import needs_fork

# Of a run that has saved nothing yet, and of runs that go on and save over what they have.
CHANGES = [
    *(("none", new) for new in ("adapter", "single", "shards")),
    *((kind, kind) for kind in ("adapter", "single", "shards")),
    *(("single", "shards"), ("shards", "single")),
]
KILLED = """
import sys
from pathlib import Path
from ai_finetuning.execution.output_folder import OutputFolder
from ai_finetuning.runs.weights import weight_names
from tests.support.kept_runs import loaded, write_weights
from tests.support.kills import dies_at

kind, new, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
seen = set()

def values(kind, first):
    return {"w0": first, "w1": first + 1} if kind == "shards" else {"weight": first}

def save(staging):
    write_weights(staging, new, 40)
    for name in ("tokenizer.json", "README.md"):
        (staging / name).write_text("new", encoding="utf-8")

def place(run):
    return OutputFolder(run, keep=2).place_model(save, "step8")

for number in range(1, 200):
    run = folder / str(number)
    run.mkdir(parents=True)
    if kind != "none":
        write_weights(run, kind, 80)
    if not dies_at(number, lambda: place(run)):
        break
    there = loaded(run) if weight_names(run) else None
    assert there in (values(kind, 80) if kind != "none" else None, values(new, 40)), (number, there)
    if there == values(new, 40):  # with all that belongs to it
        assert {(run / name).read_text(encoding="utf-8") for name in ("tokenizer.json", "README.md")} == {"new"}, number
    seen.add(str(there))
    names = place(run)  # as when the run is resumed
    assert loaded(run) == values(new, 40), number
    assert sorted(path.name for path in run.iterdir()) == names, number
assert number > 5 and len(seen) == 2, (number, seen)
"""


@needs_fork
@pytest.mark.parametrize(("kind", "new"), CHANGES)
def test_a_kill_at_any_step_leaves_a_whole_model_or_none(tmp_path: Path, kind: str, new: str):
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, kind, new, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(root / "src"), str(root)]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
