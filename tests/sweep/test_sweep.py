"""Families of causal language models against plain transformers; all of them with `make test-all`.

`python -m tests.sweep` writes what is found into docs/models.md.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sweep.check import Unbuilt, sweep
from tests.sweep.families import families
from tests.sweep.pages import KNOWN, line, read

# A dense model, a window in the mask only, experts, a state-space model.
QUICK = ("llama", "qwen2_moe", "mixtral", "mamba")
ALL = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in families()]


@pytest.mark.parametrize("family", ALL)
def test_a_family_trains_generates_and_merges_right_or_is_refused(family: str, tmp_path: Path):
    try:
        row = sweep(family, tmp_path)
    except Unbuilt as error:
        pytest.skip(f"no tiny model: {error}")
    if family in KNOWN:
        assert row.problems, f"{family} is right now: take it out of KNOWN"
    else:
        assert not row.problems
    path, documented = (text.split("|")[2].strip() for text in (line(row, "en"), read()[family]))
    assert path == documented, "docs/models.md is old: python -m tests.sweep"


def test_both_pages_have_the_same_families():
    assert read("en").keys() == read("ja").keys()
    assert set(QUICK) <= read("en").keys()
