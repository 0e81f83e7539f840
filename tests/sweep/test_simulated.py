"""Every family's step is simulated: `aift plan --plan exact` falls back to the formula for the families that are named
here, and says so.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.integration.test_families import folder_of
from tests.support.commands import call, write_run
from tests.sweep.check import Unbuilt, built
from tests.sweep.families import families

# How many tokens each expert gets, or which language a row has, are numbers that a simulation does not have; a number of layers
# that cannot be set; positions that hold for one length of rows alone.
BY_FORMULA = frozenset({"jetmoe", "prophetnet", "reformer", "xmod"})


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("family", families())
def test_the_plan_of_a_family_is_simulated(
    family: str, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    try:
        built(family)
    except Unbuilt as error:
        pytest.skip(f"not built: {error}")
    (tmp_path / "cache").mkdir(mode=0o700)
    monkeypatch.setenv("AIFT_CACHE", str(tmp_path / "cache"))
    run = write_run(tmp_path, folder_of(tmp_path / "base", family))
    if method == "full":
        values = yaml.safe_load(run.read_text(encoding="utf-8"))
        del values["lora"]
        run.write_text(yaml.safe_dump(values | {"method": "full"}, allow_unicode=True), encoding="utf-8")
    status = call("plan", str(run), "--plan", "exact")
    if status != 0:
        pytest.skip("this family does not train")
    assert ("memory (simulated" in capsys.readouterr().out) is (family not in BY_FORMULA)
