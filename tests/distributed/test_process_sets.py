"""The sets of benchmarks/scaling.py: all of them train on the same rows of a turn, or their speeds could not be
compared.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.corpus import documents
from benchmarks.process_sets import Job, ProcessSet
from benchmarks.rounds import WorkerError

KINDS = ("one", "control", "ddp", "pipeline")


def turns(kind: str, folder: Path) -> list[dict]:
    """A turn as one optimizer step of two micro-batches a process, and the next as two."""
    ranks = ProcessSet(
        kind, Job(kind, "lora", "deep", "cpu", "portable", 2, 64, 2), documents(32, vocabulary=4000), folder
    )
    try:
        ranks.ready()
        return [ranks.turn(0, 2), ranks.turn(1, 1)]
    finally:
        ranks.stop()


def test_a_turn_has_the_same_tokens_in_every_set(tmp_path: Path):
    obtained = {kind: turns(kind, tmp_path) for kind in KINDS}
    assert len({tuple(turn["tokens"] for turn in each) for each in obtained.values()}) == 1
    assert all([turn["steps"] for turn in each] == [1, 2] for each in obtained.values())
    adapter = obtained["ddp"][0]["sent"]
    assert adapter > 0
    assert {kind: [turn["sent"] for turn in each] for kind, each in obtained.items()} == dict.fromkeys(
        KINDS, [0, 0]
    ) | {
        "ddp": [adapter, 2 * adapter]  # twice as many optimizer steps
    }


def test_a_process_that_fails_is_named_with_its_trace(tmp_path: Path):
    ranks = ProcessSet(
        "ddp",
        Job("ddp", "lora", "no such shape", "cpu", "portable", 2, 64, 2),
        documents(32, vocabulary=4000),
        tmp_path,
    )
    with pytest.raises(WorkerError, match=r"(?s)ddp, rank 0.*no such shape"):
        ranks.ready()
    ranks.stop()
