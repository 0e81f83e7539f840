"""The model of torch's CUDA allocator, on sequences whose result follows from its rules by hand."""

from __future__ import annotations

import random

import pytest

from ai_finetuning.planner.allocator import MIB, CachingAllocator


def test_small_requests_share_segments_of_2_mib():
    model = CachingAllocator()
    for key in range(4):
        model.allocate(key, 100)
    assert (model.allocated, model.reserved) == (4 * 512, 2 * MIB)
    model.allocate(9, MIB)
    model.allocate(10, MIB)  # the first segment has 2 KiB too little left
    assert model.reserved == 4 * MIB


def test_larger_requests():
    model = CachingAllocator()
    model.allocate(0, MIB + 1)  # of 20 MiB
    assert model.reserved == 20 * MIB
    model.allocate(1, 9 * MIB)  # beside it
    assert model.reserved == 20 * MIB
    model.allocate(2, 10 * MIB)  # one of its own: 9.99 MiB are left
    assert model.reserved == 30 * MIB
    model.allocate(3, 11 * MIB + 1)  # rounded up to 2 MiB
    assert model.reserved == 42 * MIB


def test_free_neighbours_are_joined_and_the_smallest_that_fits_is_taken():
    model = CachingAllocator()
    for key in range(4):
        model.allocate(key, 5 * MIB)
    assert model.reserved == 20 * MIB
    model.free(1)
    model.free(2)
    model.allocate(4, 10 * MIB - 512)  # where 1 and 2 were
    assert model.reserved == 20 * MIB
    model.free(0)
    model.free(4)
    model.free(3)
    assert model.allocated == 0
    model.allocate(5, 20 * MIB)  # the whole segment again
    assert model.reserved == 20 * MIB


def test_growing_segments_leave_no_holes():
    """Rows of growing lengths: fixed segments keep those that are too small, a segment that grows does not."""
    fixed, growing = CachingAllocator(), CachingAllocator(expandable=True)
    for model in (fixed, growing):
        for key in range(1, 11):
            model.allocate(key, 20 * key * MIB)
            model.free(key)
    assert growing.reserved == 200 * MIB
    assert fixed.reserved == sum(20 * key * MIB for key in range(1, 11))


@pytest.mark.parametrize("expandable", [False, True])
def test_never_less_than_is_in_use(expandable: bool):
    """Thousands of random requests: everything that was given back can be used again, whole."""
    draw, model, used = random.Random(0), CachingAllocator(expandable=expandable), dict[int, int]()
    for key in range(3000):
        if used and draw.random() < 0.5:
            gone = draw.choice(list(used))
            model.free(gone)
            del used[gone]
        used[key] = draw.choice([100, 5000, 700_000, 3 * MIB, 15 * MIB])
        model.allocate(key, used[key])
        assert sum(used.values()) <= model.allocated <= model.reserved
    for key in used:
        model.free(key)
    assert model.allocated == 0


@pytest.mark.parametrize("expandable", [False, True])
def test_what_is_free_can_be_forgotten(expandable: bool):
    model = CachingAllocator(expandable=expandable)
    for key in range(4):
        model.allocate(key, 100 * MIB)
    model.free(0)
    model.free(2)
    model.forget_free()
    assert (model.allocated, model.reserved) == (200 * MIB, 200 * MIB)
    model.free(1)
    model.allocate(4, 100 * MIB)
    assert model.reserved == 200 * MIB
