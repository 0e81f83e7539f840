"""What the tracker counts, on tensors whose bytes are known."""

from __future__ import annotations

import torch

from ai_finetuning.planner.allocator import CachingAllocator
from ai_finetuning.planner.phases import Moment
from ai_finetuning.planner.tracker import Tracker

KIB = 1024


def test_a_storage_counts_once_until_its_last_view_is_gone():
    with Tracker() as tracker:
        whole = torch.zeros(KIB)
        part = whole.view(32, 32)[3:]
        assert tracker.live == 4 * KIB
        del whole
        assert tracker.live == 4 * KIB
        del part
        assert tracker.live == 0
    assert tracker.peak == 4 * KIB


def test_phases_have_peaks_of_their_own():
    with Tracker(CachingAllocator) as tracker:
        tracker.hold([held := torch.zeros(KIB)])
        tracker.at("forward")
        made = [torch.ones(KIB) for _ in range(3)]
        tracker.at("backward", "1")
        made.clear()
        tracker.at("backward", "0")
        made.append(held + 1)
    assert tracker.by_phase() == {"load": 4 * KIB, "forward": 16 * KIB, "backward": 16 * KIB}
    assert tracker.devices[""].peaks[Moment("backward", "0")] == 8 * KIB


def test_a_storage_that_is_resized():
    """As FSDP frees its gathered weights."""
    with Tracker() as tracker:
        tensor = torch.zeros(KIB)
        storage = tensor.untyped_storage()
        storage.resize_(0)
        assert tracker.live == 0
        storage.resize_(8 * KIB)
        assert tracker.live == 8 * KIB
    storage.resize_(0)  # outside nobody listens
    assert tracker.live == 8 * KIB


def test_the_backward_pass_is_seen():
    with Tracker() as tracker:
        weight = torch.ones(KIB, requires_grad=True)
        (weight * 2).sum().backward()
    assert weight.grad is not None
    assert tracker.live >= 8 * KIB
