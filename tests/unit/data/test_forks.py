import numpy as np
import pytest

from ai_finetuning.data.example import Example
from ai_finetuning.data.forks import CHOSEN, REJECTED, forked, side_of


def row(ids: list[int], learnt: int) -> Example:
    """A conversation whose tokens from `learnt` on are label tokens."""
    array = np.array(ids, dtype=np.int32)
    return Example(array, np.where(np.arange(len(ids)) >= learnt, array, -100).astype(np.int32), source="a.csv:1")


@pytest.mark.parametrize(
    ("chosen", "rejected", "fork"),
    [
        (row([1, 2, 3, 4, 9], 3), row([1, 2, 3, 5, 6, 9], 3), (3, 2, 3)),
        (row([1, 2, 3, 4, 5, 9], 3), row([1, 2, 3, 4, 6, 9], 3), (4, 2, 2)),  # answers that begin alike
        (row([1, 2, 3], 2), row([1, 2, 3, 9], 2), (2, 1, 2)),  # one is the beginning of the other
        (row([1, 2], 1), row([1, 2], 1), (1, 1, 1)),  # equal
        (row([1, 2, 9], 1), row([3, 4, 9], 1), (0, 3, 3)),  # nothing in common
        (row([1, 2, 3, 9], 2), row([1, 2, 3, 8], 3), (2, 2, 2)),  # a label that only one side has
    ],
)
def test_two_conversations_are_one_document_and_come_back(
    chosen: Example, rejected: Example, fork: tuple[int, int, int]
):
    pair = forked(chosen, rejected)
    assert pair.fork == fork
    assert len(pair) == sum(fork)
    for side, whole in ((CHOSEN, chosen), (REJECTED, rejected)):
        obtained = side_of(pair, side)
        assert obtained.input_ids.tolist() == whole.input_ids.tolist()
        assert obtained.labels.tolist() == whole.labels.tolist()
        assert obtained.source == "a.csv:1"
