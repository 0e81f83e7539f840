"""FlexAttention over documents, which GPUs take: its blocks, its arithmetic and its gradients, computed without
fusion on a CPU.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from tests.unit.kernels.test_triton_loss import lines_of
from tests.unit.models.test_documents import build, distance, reference, step

from ai_finetuning.kernels import attention
from ai_finetuning.kernels.attention import (
    document_attention,
    document_blocks,
    flex_document_attention,
    flex_options,
)
from ai_finetuning.models.documents import select_forward_path

CPU = torch.device("cpu")


@pytest.fixture
def trainable(monkeypatch: pytest.MonkeyPatch):
    """torch refuses FlexAttention's backward pass on a CPU; its plain implementation, which compiled kernels are
    checked against, has one.
    """
    torch._dynamo.reset()  # without fusion it is traced for every shape, up to a limit
    module = pytest.importorskip("torch.nn.attention.flex_attention")
    monkeypatch.setattr(module, "_validate_device", lambda query, key, value: None)


@pytest.mark.parametrize("window", [0, 40, 200])
@pytest.mark.parametrize("lengths", [(19,), (128, 128), (300, 1, 5, 260, 66), (90, 500, 50)])
def test_the_blocks_are_those_of_the_whole_mask(lengths: tuple[int, ...], window: int):
    """Which blocks are computed at all, and which without a mask, against the mask of all pairs of tokens."""
    from torch.nn.attention.flex_attention import create_block_mask

    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))

    def sees(batch, head, query, key):
        near = query - key < (window or len(document))
        return (document[query] == document[key]) & (query >= key) & near

    expected = create_block_mask(sees, None, None, len(document), len(document), device="cpu")
    got = document_blocks(lengths, window, CPU)
    assert torch.equal(got.to_dense(), expected.to_dense())
    assert torch.equal(got.full_kv_num_blocks, expected.full_kv_num_blocks)
    for mine, theirs, count in zip(
        got.full_kv_indices[0, 0], expected.full_kv_indices[0, 0], got.full_kv_num_blocks[0, 0], strict=True
    ):
        assert set(mine[:count].tolist()) == set(theirs[:count].tolist())
    place = torch.arange(len(document))
    seen = got.mask_mod(None, None, place[:, None], place[None, :])
    assert torch.equal(seen, sees(None, None, place[:, None], place[None, :]))


def alone(q, k, v, lengths, *, scale, window, cap):
    """Every document by itself: softmax of the visible scores in fp32."""
    parts = []
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    for qd, kd, vd in zip(*(x[:, :, : sum(lengths)].split(lengths, dim=2) for x in (q, k, v)), strict=True):
        scores = qd @ kd.transpose(2, 3) * scale
        scores = torch.tanh(scores / cap) * cap if cap else scores
        place = torch.arange(qd.shape[2])
        apart = place[:, None] - place[None, :]
        unseen = (apart < 0) | (apart >= (window or len(place)))
        parts.append(scores.masked_fill(unseen, float("-inf")).softmax(-1) @ vd)
    return torch.cat(parts, dim=2).transpose(1, 2)


@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize("padding", [0, 9])
def test_output_and_gradients_are_those_of_each_document_alone(trainable, padding: int, window, cap):
    lengths, generator = (150, 1, 70, 40), torch.Generator().manual_seed(0)
    tokens = sum(lengths) + padding
    q, k, v = (torch.randn(1, heads, tokens, 16, generator=generator).requires_grad_() for heads in (4, 2, 2))
    options = {"scaling": 0.3, "sliding_window": window, "softcap": cap}
    got, _ = flex_document_attention(None, q, k, v, None, seq_lens=lengths, **options)
    assert got.shape == (1, tokens, 4, 16)
    assert not got[:, sum(lengths) :].any()
    expected = alone(q, k, v, lengths, scale=0.3, window=window, cap=cap)
    seed = torch.randn(expected.shape, generator=generator)
    mine = torch.autograd.grad(got[:, : sum(lengths)], (q, k, v), seed)
    theirs = torch.autograd.grad(expected, (q, k, v), seed)
    assert torch.allclose(got[:, : sum(lengths)], expected, atol=1e-5)
    for one, other in zip(mine, theirs, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_rows_of_any_length_share_compiled_kernels(monkeypatch: pytest.MonkeyPatch):
    """Packed rows differ in every step; a kernel compiled anew for each of them would cost more than it saves."""
    from torch._dynamo.testing import CompileCounter
    from torch.nn.attention.flex_attention import flex_attention

    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(flex_attention, dynamic=True, backend=counter)
    monkeypatch.setattr(attention, "_flex", lambda _: compiled)
    rows = (
        ((200, 3), None),
        ((90, 90, 300), None),
        ((1, 700), 50),
        ((140, 2, 2, 2), 20),
        ((400, 1), None),
        ((33, 150), 9),
    )
    for lengths, window in rows:
        q, k = torch.randn(1, 4, sum(lengths), 16), torch.randn(1, 2, sum(lengths), 16)
        options = {"seq_lens": lengths, "sliding_window": window}
        got, _ = flex_document_attention(None, q, k, k, None, **options)
        assert torch.allclose(got, document_attention(None, q, k, k, None, **options)[0], atol=1e-5)
    assert counter.frame_count <= 2


def test_blocks_in_fp32_are_smaller_where_shared_memory_is_small():
    """Turing, Ampere for desktops, Ada, Blackwell for desktops; in 16 bit, and for small heads, torch's own fit."""
    plain = {"FORCE_USE_FLEX_ATTENTION": True}
    for capability in ((7, 5), (8, 6), (8, 9), (12, 0)):
        assert flex_options(torch.float32, 128, capability)["fwd_BLOCK_M"] == 64
        assert flex_options(torch.float32, 80, capability) == flex_options(torch.float32, 128, capability)
        assert flex_options(torch.float32, 256, capability)["fwd_BLOCK_M"] == 32
        assert flex_options(torch.float32, 64, capability) == plain
        assert flex_options(torch.bfloat16, 128, capability) == plain
    for capability in ((8, 0), (9, 0), (10, 0)):
        assert flex_options(torch.float32, 256, capability) == plain


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_kernels_in_fp32_fit_gpus_that_are_not_here(tmp_path: Path):
    """By Triton's own allocation of shared memory for torch's own templates, against what a block of threads may have."""
    rooms = {75: 65536, 86: 101376, 89: 101376, 120: 101376}
    rows = lines_of("compiled_flex", tmp_path)
    assert len(rows) == 4 * 3
    for row in rows:
        room, sizes = rooms[row["capability"]], row["bytes"]
        assert sizes["forward"] <= room, row
        # Of heads of 256 features no backward pass of torch fits Turing: its smallest block takes 1 KiB too much.
        assert (sizes["backward"] <= room) is ((row["capability"], row["width"]) != (75, 256)), row
        assert (sizes["torch's"] <= room) is (row["width"] == 64), row  # otherwise the choice is needless


def test_what_it_does_not_have_is_refused_or_computed_by_the_loop():
    q = torch.randn(1, 2, 6, 16)
    with pytest.raises(ValueError, match="s_aux"):
        flex_document_attention(None, q, q, q, None, seq_lens=(6,), s_aux=torch.zeros(2))
    with pytest.raises(ValueError, match="with a mask"):
        flex_document_attention(None, q, q, q, torch.ones(1, 1, 6, 6), seq_lens=(6,))
    torch.manual_seed(0)
    dropped, _ = flex_document_attention(None, q, q, q, None, seq_lens=(4, 2), dropout=0.5)
    torch.manual_seed(0)
    assert torch.equal(dropped, document_attention(None, q, q, q, None, seq_lens=(4, 2), dropout=0.5)[0])


@pytest.mark.parametrize("family", ["Llama", "Mistral", "Gemma2", "StableLm"])
def test_models_train_through_it_as_document_by_document(trainable, monkeypatch: pytest.MonkeyPatch, family: str):
    """A window shorter than a document (Mistral, Gemma 2), capped scores (Gemma 2), positions only (StableLM)."""
    wrapped, model = build(family)
    wrapped.train()
    loss, expected = reference(wrapped)
    monkeypatch.setitem(attention.BY_DEVICE, "cpu", (attention.FLEX,))
    used = []
    blocks = attention.document_blocks
    monkeypatch.setattr(attention, "document_blocks", lambda *given: used.append(given) or blocks(*given))
    name, got, mine = step(wrapped, model, autocast=None, kernels="portable")
    assert name == "portable"
    assert used
    assert got == pytest.approx(loss, rel=1e-5)
    assert distance(mine, expected) < 1e-5


def test_a_cpu_takes_the_loop_and_so_does_a_device_where_it_fails(monkeypatch: pytest.MonkeyPatch):
    _, model = build("Llama")
    path, _ = select_forward_path(model, CPU, autocast=None, kernels="portable")
    assert path is not None
    assert path.model.config._attn_implementation == attention.NAME
    path.close()

    def broken(compiled: bool):
        raise RuntimeError("no Triton here")

    monkeypatch.setitem(attention.BY_DEVICE, "cpu", (attention.FLEX, attention.NAME))
    monkeypatch.setattr(attention, "_flex", broken)
    path, reason = select_forward_path(model, CPU, autocast=None, kernels="portable")
    assert path is not None
    assert path.model.config._attn_implementation == attention.NAME
    assert "no Triton here" in str(reason)
    path.close()
    assert model.config._attn_implementation == "eager"


def test_a_kernel_without_a_backward_pass_is_not_taken(monkeypatch: pytest.MonkeyPatch):
    """As FlexAttention on a CPU: its answers are right, and the first training step would end the run."""
    torch._dynamo.reset()
    _, model = build("Llama")
    monkeypatch.setitem(attention.BY_DEVICE, "cpu", (attention.FLEX, attention.NAME))
    state = torch.get_rng_state()
    path, reason = select_forward_path(model, CPU, autocast=None, kernels="portable")
    assert path is not None
    assert path.model.config._attn_implementation == attention.NAME
    assert "NotImplementedError" in str(reason)
    assert torch.equal(torch.get_rng_state(), state)
    path.close()


@pytest.mark.parametrize(("factor", "taken"), [(1.0, attention.FLEX), (1.1, attention.NAME)])
def test_a_kernel_with_wrong_gradients_is_not_taken(trainable, monkeypatch, factor: float, taken: str):
    """Its answers alone would not show it."""
    _, model = build("Gemma2")
    right = attention._flex(False)

    def kernel(query, key, value, **options):
        query.register_hook(lambda gradient: gradient * factor) if query.requires_grad else None
        return right(query, key, value, **options)

    monkeypatch.setitem(attention.BY_DEVICE, "cpu", (attention.FLEX, attention.NAME))
    monkeypatch.setattr(attention, "_flex", lambda compiled: kernel)
    path, reason = select_forward_path(model, CPU, autocast=None, kernels="portable")
    assert path is not None
    assert path.model.config._attn_implementation == taken
    assert factor == 1.0 or "gradients" in str(reason) or "勾配" in str(reason)
    path.close()


@pytest.mark.slow  # Inductor compiles C++
def test_capped_scores_compile_to_one_kernel_for_all_lengths(monkeypatch: pytest.MonkeyPatch):
    """Gemma 2's, by CPU Inductor, which lowers the same graph as a GPU's: forward only, which is what it has."""
    torch._dynamo.reset()
    compiled = torch.compile(attention._flex(False), dynamic=True, fullgraph=True)
    monkeypatch.setattr(attention, "_flex", lambda _: compiled)
    generator = torch.Generator().manual_seed(0)
    for lengths, window in (((200, 100), None), ((90, 90, 300), None), ((64, 100), 50)):
        q, k, v = (torch.randn(1, heads, sum(lengths), 64, generator=generator) for heads in (4, 2, 2))
        options = {"seq_lens": lengths, "softcap": 50.0, "sliding_window": window}
        with torch.no_grad():
            got, _ = flex_document_attention(None, q, k, v, None, **options)
            expected, _ = document_attention(None, q, k, v, None, **options)
        assert torch.allclose(got, expected, atol=5e-6)
