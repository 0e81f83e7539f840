"""The compiled kernels against plain torch in fp32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.support.models import build_model

from ai_finetuning.kernels import native
from ai_finetuning.kernels.attention import document_attention
from ai_finetuning.kernels.build import why_unavailable
from ai_finetuning.kernels.inputs import Gated, Given, Normed, Source
from ai_finetuning.kernels.loss import HeadSettings, LinearCrossEntropy, LinearDivergence, LinearLogProbabilities
from ai_finetuning.kernels.products import PIECES_HEADS, Products, why_no_pieces
from ai_finetuning.models.fused import MasterCasts

REASON = why_unavailable(torch.device("cpu"))
compiled = pytest.mark.skipif(REASON is not None, reason=f"no compiled kernels here: {REASON}")
# Most that results and gradients may be apart, by what the kernels compute in.
ERROR = {torch.bfloat16: 2e-2, torch.float32: 2e-6}
in_both_types = pytest.mark.parametrize("dtype", ERROR, ids=str)


def apart(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative L2 distance."""
    return float((got.detach().float() - expected.detach()).norm() / expected.detach().norm().clamp_min(1e-12))


def leaf(*shape: int, seed: int) -> torch.Tensor:
    """bf16 values, so that both sides begin with the same numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16().float().requires_grad_()


def both(function, reference, *inputs: torch.Tensor, dtype: torch.dtype) -> None:
    """Outputs and all gradients of the two agree to what the type can hold."""
    expected = reference(*inputs)
    seed = torch.randn(expected.shape, generator=torch.Generator().manual_seed(9)).bfloat16()
    exact = torch.autograd.grad(expected, inputs, seed.float())
    given = [item.detach().to(dtype).requires_grad_() for item in inputs]
    got = function(*given)
    obtained = torch.autograd.grad(got, given, seed.to(dtype))
    assert apart(got, expected) < ERROR[dtype]
    for index, (mine, theirs) in enumerate(zip(obtained, exact, strict=True)):
        assert apart(mine, theirs) < ERROR[dtype], index


@compiled
@in_both_types
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_rms_norm(offset: float, dtype: torch.dtype):
    from ai_finetuning.kernels.blocks import Made

    both(
        lambda x, w: Made.apply(Normed(1e-6, offset, False), x, w, None),
        lambda x, w: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * (offset + w),
        leaf(150, 96, seed=0),
        leaf(96, seed=1),
        dtype=dtype,
    )


@compiled
@in_both_types
def test_layer_norm(dtype: torch.dtype):
    from ai_finetuning.kernels.blocks import Made

    both(
        lambda x, w, b: Made.apply(Normed(1e-5, 0.0, True), x, w, b),
        lambda x, w, b: F.layer_norm(x, (96,), w, b, 1e-5),
        leaf(150, 96, seed=0),
        leaf(96, seed=1),
        leaf(96, seed=2),
        dtype=dtype,
    )


@compiled
@in_both_types
@pytest.mark.parametrize("activation", ["silu", "gelu_pytorch_tanh"])
def test_linears_of_a_gated_input(activation: str, dtype: torch.dtype):
    """With adapters, and of a frozen gate."""
    from ai_finetuning.kernels.blocks import Linears, LoRA

    act = F.silu if activation == "silu" else lambda x: F.gelu(x, approximate="tanh")
    g, u, w = leaf(70, 50, seed=0), leaf(70, 50, seed=1), leaf(24, 50, seed=2)
    down, up = leaf(4, 50, seed=3), leaf(24, 4, seed=4)

    def mine(g, u, w, down, up):
        return Linears.apply(Gated(activation), None, LoRA((0.5,)), 1, lambda t: t, g, u, w, None, down, up)[0]

    def plain(g, u, w, down, up):
        x = act(g) * u
        return x @ w.t() + 0.5 * (x @ down.t()) @ up.t()

    both(mine, plain, g, u, w, down, up, dtype=dtype)
    fixed = (g.detach(), u.detach())
    both(
        lambda w, down, up: mine(*(part.to(dtype) for part in fixed), w, down, up),
        lambda w, down, up: plain(*fixed, w, down, up),
        w,
        down,
        up,
        dtype=dtype,
    )


@compiled
@in_both_types
@pytest.mark.parametrize("centered", [True, False])
def test_linears_of_a_normed_input(centered: bool, dtype: torch.dtype):
    from ai_finetuning.kernels.blocks import Linears

    def plain(x, scale, bias, first, second):
        wide = F.layer_norm(x, (96,), scale, bias, 1e-5) if centered else F.rms_norm(x, (96,), scale, 1e-5)
        return torch.cat([wide @ first.t(), wide @ second.t()], dim=1) + (0 if centered else 0 * bias.sum())

    def mine(x, scale, bias, first, second):
        parts = (x, scale, bias if centered else None, first, second, None, None)
        return torch.cat(Linears.apply(Normed(1e-5, 0.0, centered), None, None, 2, lambda t: t, *parts), dim=1) + (
            0 if centered else 0 * bias.sum()
        )

    inputs = (leaf(150, 96, seed=0), leaf(96, seed=1), leaf(96, seed=2), leaf(24, 96, seed=3), leaf(8, 96, seed=4))
    both(mine, plain, *inputs, dtype=dtype)


def same_again(source: Source, dy: torch.Tensor, *origin: torch.Tensor | None) -> None:
    """What is made again has the bits of what was made, and gradients have theirs with it and without."""
    made, kept = source.make(*origin)
    gradients, again = source.back(dy, kept, [True] * len(origin), True, *origin)
    without, nothing = source.back(dy, kept, [True] * len(origin), False, *origin)
    assert torch.equal(made, again)
    assert nothing is None
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(gradients, without, strict=True))


@compiled
@in_both_types
def test_norms_and_gates_are_made_again_to_the_bit(dtype: torch.dtype):
    """Runs that began when they were kept go on with the same numbers."""
    x, dy = (leaf(333, 95, seed=seed).detach().to(dtype) * 3 for seed in range(2))
    same_again(Gated("silu"), dy, x, dy)
    same_again(Gated("gelu_pytorch_tanh"), dy, x, dy)
    same_again(Normed(1e-6, 1.0, False), dy, x, leaf(95, seed=2).detach(), None)
    same_again(Normed(1e-5, 0.0, True), dy, x, leaf(95, seed=2).detach(), leaf(95, seed=3).detach())


@compiled
@in_both_types
@pytest.mark.parametrize(("window", "cap"), [(0, 0.0), (64, 0.0), (0, 2.0), (33, 2.0)])
@pytest.mark.parametrize("lengths", [(5, 300, 28), (20, (90, 200, 7), 16)], ids=["documents", "forks"])
def test_attention_is_made_again_to_the_bit(lengths: tuple, window: int, cap: float, dtype: torch.dtype):
    from ai_finetuning.kernels.attention_blocks import Attended, AttentionShape
    from ai_finetuning.kernels.attention_pieces import attention_of
    from ai_finetuning.kernels.products import PIECES, TORCH_HEADS, Products

    shape, cos = AttentionShape(4, 2, 16, 16**-0.5, window, cap), leaf(340, 6, seed=4).detach()
    widths = (64, 64, 32, 32)
    dy, *inputs = (leaf(340, width, seed=seed).detach().to(dtype) for seed, width in enumerate(widths))
    same_again(Attended(lengths, shape), dy, *inputs, cos, cos)
    for name in (PIECES, TORCH_HEADS) if why_no_pieces(dtype) is None else ():
        same_again(attention_of(lengths, shape, Products(name), dtype), dy, *inputs, cos, cos)


@compiled
@in_both_types
@pytest.mark.parametrize("products", ["torch", "pieces", "torch+heads", "pieces+heads"])
def test_what_a_layer_keeps(products: str, dtype: torch.dtype):
    """Neither norms nor the product with the gate are kept for the backward pass; in fp32, nothing of attention either."""
    from ai_finetuning.models.fused import attach

    if products != "torch" and (reason := why_no_pieces(dtype)) is not None:
        pytest.skip(f"no products in pieces here: {reason}")
    model = build_model().to(dtype)
    attach(model, dtype, products)
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    tokens = 512
    hidden = torch.randn(1, tokens, 64).to(dtype).requires_grad_()
    angles = (torch.ones(1, tokens, 16), torch.zeros(1, tokens, 16))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.model.layers[0](hidden, position_embeddings=angles, seq_lens=(200, 56, 256))
    unit = tokens * 64 * dtype.itemsize
    # Of blocks of up to 256 queries; by heads documents are padded to 32 tokens.
    sizes = (200, 56, 256) if products == "torch" else (224, 64, 256)
    attention = 0 if dtype is torch.float32 else unit + 4 * sum(size**2 for size in sizes) * dtype.itemsize
    # x, q, x again; k and v, each half as wide; gate and up, each twice as wide; the angles.
    assert sum(kept.values()) < 9 * unit + attention, sum(kept.values()) / unit


def _reference_attention(q, k, v, *, heads, kv_heads, lengths, window=0, cap=0.0):
    d, out, start = q.shape[1] // heads, [], 0
    for length in lengths:
        rows = slice(start, start + length)
        queries = q[rows].view(length, heads, d).transpose(0, 1)
        keys, values = (
            x[rows].view(length, kv_heads, d).transpose(0, 1).repeat_interleave(heads // kv_heads, dim=0)
            for x in (k, v)
        )
        scores = queries @ keys.transpose(1, 2) * d**-0.5
        scores = torch.tanh(scores / cap) * cap if cap else scores
        distance = torch.arange(length)[:, None] - torch.arange(length)[None]
        seen = (distance >= 0) & (distance < (window or length))
        out.append((scores.masked_fill(~seen, float("-inf")).softmax(-1) @ values).transpose(0, 1).reshape(length, -1))
        start += length
    return torch.cat(out)


CASES = [
    pytest.param({"lengths": (5, 1, 40)}, id="short"),
    pytest.param({"lengths": (300, 17)}, id="several blocks of queries"),
    pytest.param({"lengths": (300, 17), "window": 64}, id="window"),
    pytest.param({"lengths": (270, 9), "cap": 2.0}, id="softcap"),
    pytest.param({"lengths": (270, 9), "cap": 2.0, "window": 33}, id="softcap and window"),
]


@compiled
@in_both_types
@pytest.mark.parametrize("case", CASES)
def test_fused_attention(case: dict, dtype: torch.dtype):
    from ai_finetuning.kernels.attention_blocks import Attended, AttentionShape
    from ai_finetuning.kernels.blocks import Made

    tokens = sum(case["lengths"])
    shape = AttentionShape(4, 2, 16, 16**-0.5, case.get("window", 0), case.get("cap", 0.0))
    still = torch.ones(tokens, 8), torch.zeros(tokens, 8)
    both(
        lambda q, k, v: Made.apply(Attended(case["lengths"], shape), q, k, v, *still),
        lambda q, k, v: _reference_attention(q, k, v, heads=4, kv_heads=2, **case),
        leaf(tokens, 64, seed=0),
        leaf(tokens, 32, seed=1),
        leaf(tokens, 32, seed=2),
        dtype=dtype,
    )


@compiled
@in_both_types
@pytest.mark.parametrize("queries", [64, 256])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize(
    "case", [{"lengths": (5, 1, 40)}, {"lengths": (300, 17, 600)}, {"lengths": (300, 17), "window": 64}]
)
def test_attention_in_pieces(case: dict, padding: int, threads: int, queries: int, dtype: torch.dtype):
    """Rotated as the other attention rotates, the same for any number of threads, zeros behind the documents."""
    from ai_finetuning.kernels.attention_blocks import Attended, AttentionShape
    from ai_finetuning.kernels.attention_pieces import AttendedInPieces
    from ai_finetuning.kernels.blocks import Made

    lengths, used, before = case["lengths"], sum(case["lengths"]), torch.get_num_threads()
    tokens = used + padding
    shape = AttentionShape(4, 2, 16, 16**-0.5, case.get("window", 0))
    angles = leaf(tokens, 6, seed=7).detach()
    inputs = [leaf(tokens, width, seed=seed).detach().to(dtype) for seed, width in enumerate((64, 32, 32))]
    seed = leaf(tokens, 64, seed=9).detach().to(dtype)

    def of(attended: Any, dtype: torch.dtype) -> list[torch.Tensor]:
        given = [part.to(dtype).requires_grad_() for part in inputs]
        mixed = Made.apply(attended, *given, angles.cos(), angles.sin())
        return [mixed, *torch.autograd.grad(mixed, given, seed.to(dtype))]

    mine = AttendedInPieces(lengths, shape, queries)
    torch.set_num_threads(threads)
    try:
        got, again, expected = of(mine, dtype), of(mine, dtype), of(Attended(lengths, shape), torch.float32)
        torch.set_num_threads(2)
        other = of(mine, dtype)
    finally:
        torch.set_num_threads(before)
    for obtained, repeated, elsewhere, theirs in zip(got, again, other, expected, strict=True):
        assert torch.equal(obtained, repeated)
        assert torch.equal(obtained, elsewhere)
        assert apart(obtained[:used], theirs[:used]) < ERROR[dtype]
        assert not obtained[used:].any()


LONG = pytest.param({"lengths": (3, 128, 1100, 129)}, id="longer than probabilities are kept")


@pytest.mark.parametrize("case", [*CASES, LONG])
def test_portable_attention_is_exact(case: dict):
    """The same in plain torch, fp32: any device, any model."""
    tokens = sum(case["lengths"])
    q, k, v = leaf(tokens, 64, seed=0), leaf(tokens, 32, seed=1), leaf(tokens, 32, seed=2)
    expected = _reference_attention(q, k, v, heads=4, kv_heads=2, **case)
    heads = [x.view(1, tokens, -1, 16).transpose(1, 2) for x in (q, k, v)]
    got, _ = document_attention(
        None,
        *heads,
        None,
        seq_lens=case["lengths"],
        scaling=16**-0.5,
        sliding_window=case.get("window"),
        softcap=case.get("cap"),
    )
    assert torch.allclose(got.reshape(tokens, 64), expected, atol=1e-5)
    toward = torch.randn(tokens, 64, generator=torch.Generator().manual_seed(4))
    gradients = torch.autograd.grad(got.reshape(tokens, 64), (q, k, v), toward)
    for gradient, right in zip(gradients, torch.autograd.grad(expected, (q, k, v), toward), strict=True):
        assert torch.allclose(gradient, right, atol=2e-5)


def test_portable_attention_refuses_what_it_does_not_know():
    """Sinks, a mask or missing lengths are an error, never another result."""
    x = torch.zeros(1, 2, 4, 8)
    for arguments in ({}, {"seq_lens": (4,), "s_aux": torch.zeros(2)}):
        with pytest.raises(ValueError, match="document attention"):
            document_attention(None, x, x, x, None, **arguments)
    with pytest.raises(ValueError, match="mask"):
        document_attention(None, x, x, x, torch.zeros(1, 1, 4, 4), seq_lens=(4,))


@compiled
@in_both_types
def test_linears_with_adapters_and_residual(dtype: torch.dtype):
    """Base, bias, LoRA and residual of a group in one call."""
    from ai_finetuning.kernels.blocks import Linears, LoRA

    x, res = leaf(60, 32, seed=0), leaf(60, 24, seed=1)
    w, b, down, up = leaf(24, 32, seed=2), leaf(24, seed=3), leaf(4, 32, seed=4), leaf(24, 4, seed=5)
    both(
        lambda x, res, w, b, down, up: Linears.apply(Given(), res, LoRA((0.5,)), 1, lambda t: t, x, w, b, down, up)[0],
        lambda x, res, w, b, down, up: res + x @ w.t() + b + 0.5 * (x @ down.t()) @ up.t(),
        x,
        res,
        w,
        b,
        down,
        up,
        dtype=dtype,
    )


@compiled
def test_lora_dropout_keeps_the_expectation_and_drops_alike_in_both_passes():
    """The gradient of A is zero exactly where the forward pass dropped; survivors are scaled by 1 / (1 - p)."""
    from ai_finetuning.kernels.blocks import Linears, LoRA

    x = torch.ones(1, 4096, dtype=torch.bfloat16)
    w = torch.zeros(1, 4096, dtype=torch.bfloat16)
    down = torch.ones(1, 4096, requires_grad=True)
    up = torch.ones(1, 1)
    torch.manual_seed(3)
    (y,) = Linears.apply(Given(), None, LoRA((1.0,), 0.25), 1, lambda t: t, x, w, None, down, up)
    y.backward()
    assert down.grad is not None
    kept = down.grad[0] != 0
    assert 0.72 < float(kept.float().mean()) < 0.78
    assert torch.allclose(down.grad[0][kept], torch.tensor(1 / 0.75), rtol=1e-2)
    assert float(y) == pytest.approx(float(down.grad.sum()), rel=1e-2)


@pytest.mark.parametrize("chunk_bytes", [1, 4 * 50 * 7, 2**20])
@pytest.mark.parametrize("cap", [0.0, 3.0])
def test_chunked_loss_is_the_plain_one(chunk_bytes: int, cap: float):
    """Loss and gradients of hidden states and head, whatever the chunk."""
    hidden, weight = leaf(23, 16, seed=0), leaf(50, 16, seed=1)
    targets = torch.randint(0, 50, (23,), generator=torch.Generator().manual_seed(2))
    logits = hidden @ weight.t()
    logits = torch.tanh(logits / cap) * cap if cap else logits
    expected = F.cross_entropy(logits, targets, reduction="sum")
    exact = torch.autograd.grad(expected / 23, (hidden, weight))
    got = LinearCrossEntropy.apply(hidden, weight, targets, cap, chunk_bytes, lambda t: t, False)
    mine = torch.autograd.grad(got / 23, (hidden, weight))
    assert float(got.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    for a, b in zip(mine, exact, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


class InSameShapes(MasterCasts):
    """Notes how many rows the products have that the head's weight is a factor of."""

    def __init__(self, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(dtype, PIECES_HEADS)
        self.rows: set[int] = set()
        original = Products.mm
        monkeypatch.setattr(Products, "mm", lambda own, a, b: self.rows.add(a.shape[0]) or original(own, a, b))


@compiled
@in_both_types
@pytest.mark.parametrize(
    ("rows", "at_a_time", "shapes"), [(1, 64, {32}), (23, 7, {7}), (70, 64, {32, 64}), (64, 64, {64})]
)
@pytest.mark.parametrize("cap", [0.0, 3.0])
def test_a_head_has_few_shapes(
    rows: int, at_a_time: int, shapes: set[int], cap: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    """Rows are padded for the products, and the padding is in no loss and in no gradient."""
    if (reason := why_no_pieces(dtype)) is not None:
        pytest.skip(f"no products in pieces here: {reason}")
    hidden, weight, targets = leaf(rows, 16, seed=0), leaf(50, 16, seed=1), torch.arange(rows) % 50
    owner, cast = torch.arange(rows) % 3, InSameShapes(dtype, monkeypatch)

    def logs(h: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        logits = h @ w.t()
        logits = torch.tanh(logits / cap) * cap if cap else logits
        return logits.log_softmax(dim=-1).gather(1, targets[:, None])[:, 0]

    chunk = 4 * 50 * at_a_time
    both(
        lambda h, w: LinearCrossEntropy.apply(h, w, targets, cap, chunk, cast, True)[None],
        lambda h, w: -logs(h, w).sum()[None],
        hidden,
        weight,
        dtype=dtype,
    )
    settings = HeadSettings(cap, chunk, cast, compiled=True)
    both(
        lambda h, w: LinearLogProbabilities.apply(h, w, targets, owner, 3, settings),
        lambda h, w: torch.zeros(3).index_add(0, owner, logs(h, w)),
        hidden,
        weight,
        dtype=dtype,
    )
    assert cast.rows == shapes


@pytest.mark.parametrize("chunk_bytes", [1, 16 * 50 * 7, 2**20])
@pytest.mark.parametrize("cap", [0.0, 3.0])
def test_chunked_divergence_is_the_plain_one(chunk_bytes: int, cap: float):
    hidden, base, weight = leaf(23, 16, seed=0), leaf(23, 16, seed=2).detach(), leaf(50, 16, seed=1).detach()

    def chances(states: torch.Tensor) -> torch.Tensor:
        logits = states @ weight.t()
        return (torch.tanh(logits / cap) * cap if cap else logits).log_softmax(dim=-1)

    expected = F.kl_div(chances(hidden), chances(base), reduction="sum", log_target=True)
    (exact,) = torch.autograd.grad(expected / 23, hidden)
    got = LinearDivergence.apply(hidden, base, weight, cap, chunk_bytes, lambda t: t)
    (mine,) = torch.autograd.grad(got / 23, hidden)
    assert float(got.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert torch.allclose(mine, exact, atol=1e-5)


@compiled
@in_both_types
@pytest.mark.parametrize("cap", [0.0, 3.0])
def test_compiled_loss(cap: float, dtype: torch.dtype):
    hidden, weight = leaf(40, 16, seed=0), leaf(333, 16, seed=1)
    targets = torch.randint(0, 333, (40,), generator=torch.Generator().manual_seed(2))

    def plain(hidden, weight):
        logits = hidden @ weight.t()
        return F.cross_entropy(torch.tanh(logits / cap) * cap if cap else logits, targets, reduction="sum")[None]

    both(
        lambda h, w: LinearCrossEntropy.apply(h, w, targets, cap, 4096, lambda t: t, True)[None],
        plain,
        hidden,
        weight,
        dtype=dtype,
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_gate_of_any_size_has_its_value(dtype: torch.dtype):
    """Models with massive activations have gates below -88, where exp(-gate) is beyond fp32."""
    if why_unavailable(torch.device("cpu"), dtype) is not None:
        pytest.skip("no compiled kernels here")
    gate = torch.tensor([-3e4, -500.0, -100.0, -89.0, -88.0, -20.0, 0.0, 20.0, 89.0, 500.0, 3e4]).repeat(8).to(dtype)
    up, seed = torch.ones_like(gate), torch.ones_like(gate)
    wide = gate.float().requires_grad_()
    plain = torch.nn.functional.silu(wide)
    (slope,) = torch.autograd.grad(plain.sum(), wide)
    obtained = native.gated_forward(gate, up, "silu")
    torch.testing.assert_close(obtained.float(), plain.detach(), rtol=1e-2, atol=1e-5)
    dgate, _, _ = native.gated_backward(seed, gate, up, "silu")
    torch.testing.assert_close(dgate.float(), slope, rtol=1e-2, atol=1e-5)
