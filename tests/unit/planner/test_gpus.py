"""The table of GPUs: how they are named, what is refused, and that its figures are those of one kind of card each."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ai_finetuning.errors import UsageError
from ai_finetuning.planner.gpus import CARDS, card_named, parse_gpus

KINDS = ("fp32", "tf32", "fp16", "bf16", "fp8")


@pytest.mark.parametrize(
    ("text", "name", "count"),
    [
        ("4090x2", "4090", 2),
        ("4090", "4090", 1),
        ("RTX 4090 x 2", "4090", 2),
        ("rtx4090", "4090", 1),
        ("NVIDIA GeForce RTX 5090", "5090", 1),
        ("a100-80x8", "a100-80", 8),
        ("A100 80", "a100-80", 1),
        ("a100-40gb×4", "a100-40", 4),
        ("A100_80GB*8", "a100-80", 8),
        ("RTX A5000x2", "a5000", 2),
        ("Tesla T4", "t4", 1),
        ("h100x16", "h100", 16),
    ],
)
def test_a_gpu_is_named_as_people_write_it(text: str, name: str, count: int):
    gpus = parse_gpus(text)
    assert (gpus.card.name, gpus.count) == (name, count)


@pytest.mark.parametrize(
    ("text", "near"),
    [("4091x2", "4090"), ("a100", "a100-40, a100-80"), ("a100x8", "a100-80"), ("h10", "h100"), ("a600", "a6000")],
)
def test_what_is_not_in_the_table_is_refused_with_near_names(text: str, near: str):
    with pytest.raises(UsageError) as refusal:
        parse_gpus(text)
    assert f"Did you mean {near}" in refusal.value.en or near in refusal.value.en.split("?")[0]
    assert text in refusal.value.ja
    assert "もしかして" in refusal.value.ja
    assert "b200" in refusal.value.en  # and the whole table


@pytest.mark.parametrize("text", ["", "x2", "4090x0", "4090x99999", "4090x", "2"])
def test_a_number_that_cannot_be_is_refused(text: str):
    with pytest.raises(UsageError):
        parse_gpus(text)


def test_every_row_is_whole():
    assert {"t4", "a10", "l4", "3090", "4090", "5090", "a5000", "a6000", "a100-40", "a100-80"} <= set(CARDS)
    assert {"h100", "h200", "b200"} <= set(CARDS)
    for card in CARDS.values():
        assert card.source.startswith("NVIDIA")
        assert {"fp32", "fp16"} <= set(card.tflops)
        assert card.has_bf16 == (card.capability >= (8, 0)), card.name
        assert ("fp8" in card.tflops) == (card.capability >= (8, 9)), card.name
        assert card.tflops["fp16"] >= card.tflops["fp32"]
        # The nominal size is in GB or GiB; a row states what is left of it.
        assert re.fullmatch(r"[a-z0-9]+(-\d+)?", card.name)
        assert 14 < card.memory_gib < 180


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA GeForce RTX 4090", "4090"),
        ("NVIDIA RTX A5000", "a5000"),
        ("NVIDIA A100-SXM4-80GB", "a100-80"),
        ("NVIDIA A100-PCIE-40GB", "a100-40"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("Tesla T4", "t4"),
        ("NVIDIA A10", "a10"),
        ("NVIDIA A10G", None),  # another card, with other figures
        ("NVIDIA RTX 5000 Ada Generation", None),
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA H100 PCIe", None),
    ],
)
def test_a_gpu_that_is_here_finds_its_row(device: str, name: str | None):
    card = card_named(device)
    assert (card.name if card else None) == name


@pytest.mark.parametrize("page", ["gpu.md", "gpu.ja.md"])
def test_both_pages_show_the_table(page: str):
    text = (Path(__file__).resolve().parents[3] / "docs" / page).read_text(encoding="utf-8")
    for card in CARDS.values():
        peaks = [f"{card.tflops[kind]:g}" if kind in card.tflops else "-" for kind in KINDS]
        capability = ".".join(map(str, card.capability))
        cells = [
            card.name,
            f"{card.memory_gib:g}",
            f"{card.bandwidth:g}",
            f"{card.link:g}",
            *peaks,
            capability,
            card.source,
        ]
        assert f"| {' | '.join(cells)} |" in text
