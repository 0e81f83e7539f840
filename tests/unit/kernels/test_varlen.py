"""torch's attention by variable lengths: what it is asked for, its gradients, and which attention a GPU takes.

Its kernels run on GPUs alone (tests/gpu/test_kernels.py). Here its documented contract, in plain torch, stands in for
them, and fake tensors go through the real operator.
"""

from __future__ import annotations

import pytest
import torch
from tests.support.models import build_model
from tests.support.virtual import virtual_devices
from tests.unit.kernels.test_flex import alone
from tests.unit.models.test_documents import build, distance, reference, step

from ai_finetuning.kernels import attention
from ai_finetuning.kernels.attention import FLEX, NAME, VARLEN, Unsuited, implementations_for, varlen_document_attention
from ai_finetuning.models import documents
from ai_finetuning.models.documents import select_forward_path

CPU = torch.device("cpu")


def contract(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False
):
    """varlen_attn as torch's page describes it: [tokens, heads, d], keys from `left` before a query to `right` behind."""
    assert query.dtype == key.dtype == value.dtype
    assert cu_seq_q.dtype is cu_seq_k.dtype is torch.int32
    assert enable_gqa or query.shape[1] == key.shape[1]
    assert max_q == max_k == int(cu_seq_q.diff().max())
    left, right = window_size
    parts = []
    for start, stop in zip(cu_seq_q.tolist(), cu_seq_q.tolist()[1:], strict=False):
        q, k, v = (x[start:stop].transpose(0, 1).float() for x in (query, key, value))
        k, v = (x.repeat_interleave(len(q) // len(x), dim=0) for x in (k, v))
        place = torch.arange(stop - start, device=query.device)
        before = place[:, None] - place[None, :]
        seen = (before <= left if left >= 0 else torch.tensor(True)) & (
            -before <= right if right >= 0 else before == before
        )
        scores = q @ k.transpose(1, 2) * (scale if scale is not None else q.shape[-1] ** -0.5)
        parts.append((scores.masked_fill(~seen, float("-inf")).softmax(-1) @ v).transpose(0, 1))
    return torch.cat(parts).to(query.dtype)


@pytest.fixture
def by_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_varlen", lambda: contract)


@pytest.mark.parametrize("window", [None, 1, 50, 150, 151])
@pytest.mark.parametrize("padding", [0, 9])
def test_output_and_gradients_are_those_of_each_document_alone(by_contract, padding: int, window: int | None):
    lengths, generator = (150, 1, 70, 40), torch.Generator().manual_seed(0)
    tokens = sum(lengths) + padding
    q, k, v = (
        torch.randn(1, heads, tokens, 16, generator=generator).bfloat16().requires_grad_() for heads in (4, 2, 2)
    )
    got, _ = varlen_document_attention(None, q, k, v, None, seq_lens=lengths, scaling=0.3, sliding_window=window)
    assert got.shape == (1, tokens, 4, 16)
    assert not got[:, sum(lengths) :].any()
    wide = [x.detach().float().requires_grad_() for x in (q, k, v)]
    expected = alone(*wide, lengths, scale=0.3, window=window, cap=None)
    seed = torch.randn(expected.shape, generator=generator)
    mine = torch.autograd.grad(got[:, : sum(lengths)], (q, k, v), seed.bfloat16())
    theirs = torch.autograd.grad(expected, wide, seed)
    assert torch.allclose(got[:, : sum(lengths)].float(), expected, atol=2e-2)
    for one, other in zip(mine, theirs, strict=True):
        assert float((one.float() - other).norm()) <= 1e-2 * float(other.norm())


@pytest.mark.parametrize("window", [None, 7])
def test_torchs_operator_takes_the_call_and_its_backward_pass(window: int | None):
    """Shapes, groups of heads and the window, by the fake kernels that torch registers for its own operator."""
    pytest.importorskip("torch.nn.attention.varlen")
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        q, k = (torch.empty(1, heads, 33, 64, requires_grad=True) for heads in (8, 2))  # fp32, as rotation leaves them
        v = torch.empty(1, 2, 33, 64, dtype=torch.bfloat16, requires_grad=True)
        got, _ = varlen_document_attention(None, q, k, v, None, seq_lens=(20, 10), sliding_window=window)
        assert (got.shape, got.dtype) == ((1, 33, 8, 64), torch.bfloat16)
        gradients = torch.autograd.grad(got, (q, k, v), torch.empty_like(got))
    assert [(x.shape, x.dtype) for x in gradients] == [(x.shape, x.dtype) for x in (q, k, v)]


def test_what_it_does_not_compute_is_said_and_dropout_takes_the_loop():
    q = torch.randn(1, 2, 6, 16)
    for inputs, options, why in (
        (q, {}, "16 bit only"),
        (q.bfloat16(), {"softcap": 50.0}, "no capped scores"),
        (q[..., :12].bfloat16(), {}, "no heads of 12 features"),
    ):
        with pytest.raises(Unsuited, match=why):
            varlen_document_attention(None, inputs, inputs, inputs, None, seq_lens=(6,), **options)
    torch.manual_seed(0)
    dropped, _ = varlen_document_attention(None, q, q, q, None, seq_lens=(4, 2), dropout=0.5)
    torch.manual_seed(0)
    assert torch.equal(dropped, attention.document_attention(None, q, q, q, None, seq_lens=(4, 2), dropout=0.5)[0])


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ((7, 0), (NAME,)),
        ((7, 5), (FLEX, NAME)),
        ((8, 0), (VARLEN, FLEX, NAME)),
        ((8, 6), (VARLEN, FLEX, NAME)),
        ((8, 9), (VARLEN, FLEX, NAME)),
        ((9, 0), (VARLEN, FLEX, NAME)),
        ((10, 0), (FLEX, VARLEN, NAME)),
        ((10, 3), (FLEX, VARLEN, NAME)),
        ((12, 0), (VARLEN, FLEX, NAME)),
        ((12, 1), (VARLEN, FLEX, NAME)),
    ],
)
def test_the_order_is_that_of_the_gpus_generation(monkeypatch: pytest.MonkeyPatch, capability, expected):
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert implementations_for(gpu) == expected
    monkeypatch.setattr(torch.version, "hip", "6.4")  # AMD numbers its generations otherwise
    assert implementations_for(gpu) == (FLEX, NAME)
    assert implementations_for(CPU) == (NAME,)


@pytest.mark.parametrize(
    ("family", "autocast", "taken", "why"),
    [
        ("Llama", torch.bfloat16, VARLEN, None),
        ("Mistral", torch.bfloat16, VARLEN, None),  # a window shorter than a document
        (
            "Llama",
            None,
            NAME,
            "attention by varlen_attn: it computes in 16 bit only; attention by FlexAttention: NotImplementedError",
        ),
        (
            "Gemma2",
            torch.bfloat16,
            NAME,
            "attention by varlen_attn: it has no capped scores; attention by FlexAttention: NotImplementedError",
        ),
    ],
)
def test_the_first_that_computes_what_the_model_does_is_taken(by_contract, monkeypatch, family, autocast, taken, why):
    """On a CPU, where FlexAttention has no backward pass: two reasons, in their order."""
    torch._dynamo.reset()
    monkeypatch.setattr(documents, "implementations_for", lambda device: (VARLEN, FLEX, NAME))
    _, model = build(family)
    path, reason = select_forward_path(model, CPU, autocast=autocast, kernels="portable", longest=60)
    assert path is not None
    assert path.model.config._attn_implementation == taken
    assert path.chosen is not None
    assert path.chosen.en == f"attention by {attention.LABELS[taken].en}"
    assert reason is not None
    assert reason.en.startswith("as requested; " + why if why else "as requested")
    path.close()


def test_on_a_gpu_everything_it_is_given_lies_there(by_contract, monkeypatch: pytest.MonkeyPatch):
    """A virtual one: one tensor that stayed on the CPU, and the path would not be taken."""
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(documents, "implementations_for", lambda device: (VARLEN, NAME))
    monkeypatch.setattr(attention, "send", lambda tensor, device: tensor.to(device))  # no driver pins memory here
    model = build_model("llama").to(torch.bfloat16)
    with virtual_devices() as places:
        model.to(gpu)
        path, reason = select_forward_path(model, gpu, autocast=None, kernels="portable")
        assert path is not None
        assert path.model.config._attn_implementation == VARLEN, reason
        assert places.of(attention._ends((7, 12), gpu)) == gpu
        path.close()
    assert reason is not None
    assert "the loss stays in plain torch: " in reason.en  # it has no Triton


def test_a_torch_without_it_takes_the_next_one(monkeypatch: pytest.MonkeyPatch):
    def absent():
        raise ModuleNotFoundError("No module named 'torch.nn.attention.varlen'")

    monkeypatch.setattr(attention, "_varlen", absent)
    monkeypatch.setattr(documents, "implementations_for", lambda device: (VARLEN, NAME))
    _, model = build("Llama")
    path, reason = select_forward_path(model, CPU, autocast=torch.bfloat16, kernels="portable")
    assert path is not None
    assert path.model.config._attn_implementation == NAME
    assert "torch.nn.attention.varlen" in str(reason)
    path.close()


@pytest.mark.parametrize("name", [NAME, VARLEN])
@pytest.mark.parametrize("family", ["Llama", "Qwen3", "Mistral"])
def test_full_fine_tuning_under_autocast_hands_over_one_dtype(by_contract, monkeypatch, family: str, name: str):
    """fp32 weights rotate queries and keys by fp32 tables; values come out of their product in bf16."""
    wrapped, model = build(family)
    wrapped.train()
    loss, expected = reference(wrapped)
    seen, given = set(), set()
    hand_over = attention._as_values

    def noted(query, key, value):
        given.add((query.dtype, value.dtype))
        obtained = hand_over(query, key, value)
        seen.add((obtained[0].dtype, obtained[1].dtype, value.dtype))
        return obtained

    monkeypatch.setattr(attention, "_as_values", noted)
    monkeypatch.setattr(documents, "implementations_for", lambda device: (name,))
    _, got, mine = step(wrapped, model, autocast=torch.bfloat16, kernels="portable")
    assert given == {(torch.float32, torch.bfloat16)}
    assert seen == {(torch.bfloat16,) * 3}
    assert got == pytest.approx(loss, rel=2e-3)
    assert distance(mine, expected) < 3e-2
