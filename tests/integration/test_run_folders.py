"""Runs that earlier versions wrote go on to the same bits (tests/fixtures/runs)."""

from __future__ import annotations

import json
import platform
import shutil
from pathlib import Path

import pytest
from tests.fixtures.runs import make
from tests.support.runs import losses, weights_digest

WRITTEN = Path(make.__file__).parent / "f119607"

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="the expected bits are those of x86-64"
)


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("lora", ["train", "lora/config.yaml"]),
        *((name, make.arguments(*make.RUNS[name], name)) for name in make.RUNS),
    ],
    ids=["its config.yaml", *(f"the same command, {name}" for name in make.RUNS)],
)
def test_a_run_folder_of_f119607_resumes_to_the_same_bits(tmp_path: Path, name: str, command: list[str]):
    """Stopped at step 7 by that commit, taken to step 12 by this one: every loss and the weights are those of a run
    that never stopped.
    """
    folder = tmp_path / "runs"
    shutil.copytree(WRITTEN, folder)
    assert make.run(folder, *command, "--resume") == 0
    expected = json.loads((WRITTEN / "expected.json").read_text(encoding="utf-8"))[name]
    assert losses(folder / name) == expected["losses"]
    assert weights_digest(folder / name) == expected["weights"]
