"""The order and the packing that runs before mixtures had, bit for bit: a change here changes every resumed run."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from ai_finetuning.data.example import Example
from ai_finetuning.data.loader import Loader
from ai_finetuning.data.mixture import Mixture
from ai_finetuning.labels import IGNORED

# The first 16 digits of SHA-256 over three epochs by (packing, group_by_length), taken at commit 2341b9d.
PLAIN = {(False, False): "43de58ffa594923b", (False, True): "1456c1180fba6d16", (True, False): "82ff7d88dc482c49"}
REPLAY = {(False, False): "550271e51a116842", (False, True): "5316a403f4970c1c", (True, False): "451c9692440d3a08"}


def rows(count: int, first: int, seed: int) -> list[Example]:
    generator = np.random.default_rng(seed)
    obtained = []
    for number in range(count):
        length = int(generator.integers(4, 40))
        ids = np.full(length, 7, dtype=np.int32)
        ids[1] = first + number
        labels = ids.copy()
        labels[: int(generator.integers(1, length - 1))] = IGNORED
        obtained.append(Example(ids, labels, 1, f"row {first + number}"))
    return obtained


NEW, OLD = rows(400, 0, 1), rows(60, 10_000, 2)


def digest(data: Loader) -> str:
    obtained = hashlib.sha256()
    for epoch in range(3):
        obtained.update(data.steps(epoch).to_bytes(8, "little"))
        for index in range(data.steps(epoch)):
            for batch in data.micro_batches(epoch, index, 3):
                obtained.update(batch.input_ids.numpy().tobytes())
                obtained.update(batch.labels.numpy().tobytes())
    return obtained.hexdigest()[:16]


@pytest.mark.parametrize(("packing", "group"), PLAIN)
@pytest.mark.parametrize("replay", [False, True])
def test_the_rows_of_a_run_are_those_of_before(packing: bool, group: bool, replay: bool):
    data = Loader(
        Mixture(NEW, OLD, 0.35, seed=3) if replay else NEW,
        rows_per_step=8,
        seed=3,
        packing=packing,
        max_length=64,
        group_by_length=group,
        pad_token_id=0,
    )
    assert digest(data) == (REPLAY if replay else PLAIN)[packing, group]
