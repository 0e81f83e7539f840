"""What is said of a choice before it runs."""

from __future__ import annotations

import pytest

from ai_finetuning.parallel.collectives.mesh import Sizes
from ai_finetuning.parallel.plan import ParallelPlan, warn_of_idle_ranks


@pytest.mark.parametrize(
    ("rows", "sizes", "idle"),
    [(16, Sizes(dp=32), 16), (3, Sizes(pp=2, dp=4), 1), (16, Sizes(dp=16), 0), (1, Sizes(tp=8), 0)],
)
def test_ranks_without_rows_are_warned_of(rows: int, sizes: Sizes, idle: int, logged):
    """4 x 4 rows on 32 ranks: half of them would nothing to compute. Ranks that share layers share rows too."""
    warn_of_idle_ranks(ParallelPlan(sizes=sizes), rows)
    text = logged()
    assert (f"{idle} of them would have nothing to compute" in text) == (idle > 0)
    assert ("nothing to compute" in text) == (idle > 0)
