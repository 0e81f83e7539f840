"""Every family's step is simulated: `aift plan --plan exact` never falls back to the formula."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from tests.integration.test_families import folder_of
from tests.support.commands import call, write_run
from tests.sweep.families import build, families


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
# Parts of blt keep their default sizes, 5 GB of weights.
@pytest.mark.parametrize("family", [family for family in families() if family != "blt"])
def test_the_plan_of_a_family_is_simulated(
    family: str, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    try:
        build(family)(input_ids=torch.tensor([[5, 6, 7]]))
    except Exception as error:  # the tiny configuration makes no model that runs
        pytest.skip(f"not built: {str(error)[:80]}")
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
    assert "memory (simulated" in capsys.readouterr().out
