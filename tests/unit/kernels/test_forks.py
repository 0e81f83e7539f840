"""Attention over documents with a fork, in every way, against each conversation by itself: results and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ai_finetuning.kernels import attention
from ai_finetuning.kernels.attention import Length, document_attention, flex_document_attention
from ai_finetuning.kernels.attention_blocks import Attended, AttentionShape
from ai_finetuning.kernels.blocks import Made
from ai_finetuning.kernels.build import why_unavailable

HEADS, SHARED, WIDTH = 4, 2, 8
CPU = torch.device("cpu")
ROWS: list[tuple[Length, ...]] = [
    ((7, 5, 9),),
    (11, (40, 150, 170), 3, (0, 4, 6), (130, 1, 1)),
    ((300, 20, 140), (5, 2, 3, 4)),
]


def conversations(lengths: tuple[Length, ...]) -> list[Tensor]:
    """The places in the row of the tokens of each conversation."""
    obtained, start = [], 0
    for length in lengths:
        prefix, *branches = (length, 0) if isinstance(length, int) else length
        rest = start + prefix
        for branch in branches:
            obtained.append(torch.cat([torch.arange(start, start + prefix), torch.arange(rest, rest + branch)]))
            rest += branch
        start = rest
    return obtained


def leaves(tokens: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, heads, tokens, WIDTH, generator=generator) for heads in (HEADS, SHARED, SHARED)]


def alone(
    lengths: tuple[Length, ...], window: int | None, cap: float | None, seed: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """The row's results by one explicit conversation after the other, and gradients of its sum with `seed`."""
    inputs = [x.requires_grad_() for x in leaves(attention.total_of(lengths))]
    mixed, total = torch.zeros_like(seed), torch.zeros(())
    done: set[int] = set()
    for places in conversations(lengths):
        q, k, v = (x[:, :, places] for x in inputs)
        result = attention._explicit(q, k, v, WIDTH**-0.5, 0.0, window, cap).transpose(1, 2)
        new = [number for number, place in enumerate(places.tolist()) if place not in done]
        done.update(places.tolist())
        mixed[:, places[new]] = result[:, new].detach()
        total = total + (result[:, new] * seed[:, places[new]]).sum()
    return mixed, list(torch.autograd.grad(total, inputs))


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("window", [None, 6, 150])
@pytest.mark.parametrize("lengths", ROWS, ids=["one", "several", "many"])
def test_a_branch_sees_its_prefix_and_itself(lengths: tuple[Length, ...], window: int | None, cap: float | None):
    """A window counts places in the conversation, and not in the row, where a later branch lies further away."""
    tokens = attention.total_of(lengths)
    seed = torch.randn(1, tokens, HEADS, WIDTH, generator=torch.Generator().manual_seed(1))
    expected, gradients = alone(lengths, window, cap, seed)
    inputs = [x.requires_grad_() for x in leaves(tokens)]
    options = {"seq_lens": lengths, "sliding_window": window, "softcap": cap}
    mixed, _ = document_attention(None, *inputs, None, **options)
    assert apart(mixed.detach(), expected) < 1e-6
    for obtained, gradient in zip(torch.autograd.grad((mixed * seed).sum(), inputs), gradients, strict=True):
        assert apart(obtained, gradient) < 1e-6
    with torch.no_grad():  # forward only on a CPU
        mixed, _ = flex_document_attention(None, *leaves(tokens), None, **options)
    assert apart(mixed, expected) < 1e-6


@pytest.mark.parametrize("lengths", [ROWS[1], ROWS[2]])
def test_a_fork_changes_no_block_that_others_could_skip(lengths: tuple[Length, ...]):
    """Every pair of tokens that sees one another lies in a listed block, and whole blocks see one another wholly."""
    for window in (0, 6, 150):
        mask = attention.document_blocks(lengths, window, CPU)
        tokens = attention.total_of(lengths)
        place = torch.arange(tokens)
        expected = torch.zeros(tokens, tokens, dtype=torch.bool)
        for places in conversations(lengths):
            number = torch.arange(len(places))
            distance = number[:, None] - number[None, :]
            expected[places[:, None], places[None, :]] |= (distance >= 0) & (distance < (window or tokens))
        zero = torch.zeros((), dtype=torch.int64)
        by_token = mask.mask_mod(zero, zero, place[:, None], place[None, :])
        assert torch.equal(by_token, expected)
        for number, (some, which, whole, wholes) in enumerate(
            zip(
                mask.kv_num_blocks[0, 0],
                mask.kv_indices[0, 0],
                mask.full_kv_num_blocks[0, 0],
                mask.full_kv_indices[0, 0],
                strict=True,
            )
        ):
            rows = slice(128 * number, 128 * (number + 1))
            listed = torch.zeros(tokens, dtype=torch.bool)
            for block in [*which[:some].tolist(), *wholes[:whole].tolist()]:
                listed[128 * block : 128 * (block + 1)] = True
            assert not expected[rows][:, ~listed].any()
            for block in wholes[:whole].tolist():
                assert expected[rows, 128 * block : 128 * (block + 1)].all()


@pytest.mark.skipif(why_unavailable(CPU, torch.float32) is not None, reason="no compiled kernels here")
@pytest.mark.parametrize(("window", "cap"), [(None, None), (6, None), (150, 3.0)])
def test_fused_attention_forks_too(window: int | None, cap: float | None):
    for lengths in ROWS:
        tokens = attention.total_of(lengths)
        seed = torch.randn(1, tokens, HEADS, WIDTH, generator=torch.Generator().manual_seed(1))
        expected, gradients = alone(lengths, window, cap, seed)
        inputs = [x.requires_grad_() for x in leaves(tokens)]
        flat = [x.squeeze(0).transpose(0, 1).reshape(tokens, -1) for x in inputs]
        cos, sin = torch.ones(tokens, WIDTH // 2), torch.zeros(tokens, WIDTH // 2)
        shape = AttentionShape(HEADS, SHARED, WIDTH, WIDTH**-0.5, window or 0, cap or 0.0)
        mixed = Made.apply(Attended(lengths, shape), *flat, cos, sin).view(1, tokens, HEADS, WIDTH)
        assert apart(mixed.detach(), expected) < 1e-6
        for obtained, gradient in zip(torch.autograd.grad((mixed * seed).sum(), inputs), gradients, strict=True):
            assert apart(obtained, gradient) < 2e-6
