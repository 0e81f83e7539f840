"""Every kernel of a training step against the same in fp32 on the CPU: forward pass and gradients.

The references are written out here, by masks and whole matrices: nothing of what is checked computes them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import Reason
from ...kernels.attention import IMPLEMENTATIONS, NAME, implementations_for
from ...kernels.build import why_unavailable
from ...kernels.loss import LinearCrossEntropy, why_not_one_kernel
from ...system.gpu import dtype_name, sixteen_bit
from .four_bit import four_bit_layer
from .results import Check, Measured, NotHere

CPU = torch.device("cpu")
# Relative L2 distance to fp32, by what is computed in.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3}


def dtypes(device: torch.device) -> tuple[torch.dtype, ...]:
    """What a run may compute in on a device."""
    best = sixteen_bit(device)
    more = (torch.float16,) if device.type == "cuda" and best is torch.bfloat16 else ()
    return (torch.float32, *([] if best is None else [best]), *more)


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """Without TF32 in fp32 products."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def apart(obtained: Tensor, expected: Tensor) -> float:
    """Relative L2 distance; infinity where a number is none."""
    got = obtained.detach().float().cpu()
    distance = (got - expected.detach()).norm() / expected.detach().norm().clamp_min(1e-12)
    return float(distance.nan_to_num(float("inf"), float("inf"), float("inf")))


def _compared(
    obtained: Callable[..., Tensor], expected: Callable[..., Tensor], inputs: Sequence[Tensor], place: _Place
) -> Measured:
    """Largest distance of an output and of the gradients of its inputs, on numbers that the type can hold."""
    held = [value.to(place.dtype) for value in inputs]
    wide = [value.float().clone().requires_grad_() for value in held]
    leaves = [value.to(place.device).requires_grad_() for value in held]
    with exact():
        reference, output = expected(*wide), obtained(*leaves)
        seed = torch.randn(reference.shape, generator=_random(1))
        theirs = torch.autograd.grad(reference, wide, seed)
        mine = torch.autograd.grad(output, leaves, seed.to(place.device, output.dtype))
    pairs = zip((output, *mine), (reference, *theirs), strict=True)
    return Measured(max(apart(one, other) for one, other in pairs), TOLERANCE[place.dtype])


@dataclass(frozen=True)
class _Place:
    device: torch.device
    dtype: torch.dtype


def _random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- attention


@dataclass(frozen=True)
class Documents:
    """A row of documents for an attention.

    Attributes:
        lengths: of the documents. rest: tokens of padding behind them.
        width: of a head. window, cap: as kernels.attention takes them.
    """

    name: str
    lengths: tuple[int, ...]
    width: int
    rest: int = 0
    window: int | None = None
    cap: float | None = None

    @property
    def tokens(self) -> int:
        """Of the row."""
        return sum(self.lengths) + self.rest


# The long document crosses every block of a GPU's kernels; a CPU's have smaller ones, and its reference is slow.
_LENGTHS, _ON_CPU, _SHORT = (1, 7, 130, 2000), (1, 7, 130, 400), (1, 7, 130)
WIDTHS, _QUICK_WIDTHS = (64, 80, 128, 256), (64, 128)


def rows(device: torch.device, *, quick: bool) -> list[Documents]:
    """The rows to try."""
    lengths = _SHORT if quick else _LENGTHS if device.type == "cuda" else _ON_CPU
    obtained = []
    for width in _QUICK_WIDTHS if quick else WIDTHS:
        obtained += [
            Documents("documents", lengths, width),
            Documents("padding", lengths, width, rest=20),
            Documents("window", lengths, width, window=100),
            Documents("softcap", lengths, width, cap=30.0),
        ]
        obtained += [] if quick else [Documents("one", (sum(lengths),), width)]
    return obtained


def attention_checks(device: torch.device, *, quick: bool = False) -> list[Check]:
    """Every attention that a run may take on a device, over documents, with groups of queries to a key; and that nothing
    of one document reaches another, not a bit.
    """
    choices = implementations_for(device)
    checks = []
    for name in IMPLEMENTATIONS:
        if name not in choices:
            checks.append(Check(f"attention/{name}", partial(_not_chosen, device)))
            continue
        for dtype in dtypes(device):
            title, place, refuses = f"attention/{name}/{dtype_name(dtype)}", _Place(device, dtype), name != NAME
            checks += [
                Check(f"{title}/{row.name}/{row.width}", partial(_attention, name, row, place), refuses)
                for row in rows(device, quick=quick)
                if name == NAME or _compiled_for(row, dtype, device, quick=quick)
            ]
            if name == NAME or dtype is sixteen_bit(device):
                checks.append(Check(f"{title}/leak", partial(_leak, name, place), refuses))
    return checks


def _compiled_for(row: Documents, dtype: torch.dtype, device: torch.device, *, quick: bool) -> bool:
    """Whether a kernel that takes seconds to compile is tried on a row: all rows in the type that runs compute in (of one
    width in the short part), one row in the others.
    """
    if dtype is sixteen_bit(device):
        return row.width == 128 or not quick
    return row.name == "documents" and row.width == 128 and not quick


def _not_chosen(device: torch.device) -> Measured:
    raise NotHere(f"{device.type} では使いません", f"no choice on {device.type}")


def _attention(name: str, row: Documents, place: _Place) -> Measured:
    inputs = [torch.randn(1, heads, row.tokens, row.width, generator=_random(heads)) for heads in (4, 2, 2)]
    if (
        row.name == "documents" and place.device.type == "cuda"
    ):  # of each width the first: torch compiles a function anew only a few times
        torch.compiler.reset()
    options: dict[str, Any] = {"seq_lens": row.lengths, "sliding_window": row.window, "softcap": row.cap}

    def obtained(*leaves: Tensor) -> Tensor:
        try:
            return IMPLEMENTATIONS[name](None, *leaves, None, **options)[0]
        except ValueError as error:  # its way to say that another one has to take this
            raise NotHere(f"{name} はこの形を扱いません（{error}）", f"{name} does not take this ({error})") from error

    return _compared(obtained, partial(by_mask, row=row), inputs, place)


def by_mask(query: Tensor, key: Tensor, value: Tensor, row: Documents) -> Tensor:
    """Causal attention inside each document through a mask of tokens x tokens: [1, tokens, heads, d]."""
    number = torch.repeat_interleave(torch.arange(len(row.lengths)), torch.tensor(row.lengths))
    number = F.pad(number, (0, row.rest), value=-1)
    at = torch.arange(row.tokens)
    seen = (number[:, None] == number[None, :]) & (number >= 0) & (at[:, None] >= at[None, :])
    if row.window is not None:
        seen &= at[:, None] - at[None, :] < row.window
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    scores = query @ key.transpose(2, 3) * query.shape[-1] ** -0.5
    if row.cap is not None:
        scores = row.cap * torch.tanh(scores / row.cap)
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1).nan_to_num(0.0)  # padding sees nothing
    mixed: Tensor = weights @ value
    return mixed.transpose(1, 2)


def _leak(name: str, place: _Place) -> Measured:
    """Largest change of a document when the one before it changes."""
    second = [torch.randn(1, heads, 70, 64, generator=_random(heads)) for heads in (4, 2, 2)]
    answers = []
    for seed in (11, 12):
        first = [torch.randn(1, x.shape[1], 60, 64, generator=_random(seed)) for x in second]
        row = [torch.cat(pair, dim=2).to(place.device, place.dtype) for pair in zip(first, second, strict=True)]
        answers.append(IMPLEMENTATIONS[name](None, *row, None, seq_lens=(60, 70))[0][:, 60:])
    return Measured(float((answers[0] - answers[1]).abs().max()), 0.0)


# --- loss, norms, 4-bit layers


def loss_checks(device: torch.device) -> list[Check]:
    """The loss from hidden states, with and without a cap of the logits, in several chunks."""
    checks = []
    for dtype in dtypes(device):
        for compiled in (False, True):
            for cap in (0.0, 30.0):
                title = (
                    f"loss/{'compiled' if compiled else 'plain'}/{dtype_name(dtype)}/{'softcap' if cap else 'logits'}"
                )
                checks.append(Check(title, partial(_loss, cap, compiled, _Place(device, dtype))))
    return checks


def _loss(cap: float, compiled: bool, place: _Place) -> Measured:
    if compiled:
        if place.device.type == "cuda":
            reason = why_not_one_kernel(place.dtype, place.device, cap)
        elif place.dtype not in (torch.bfloat16, torch.float32):
            reason = Reason("bf16 と fp32 専用です", "bf16 and fp32 only")
        else:
            reason = why_unavailable(place.device, place.dtype)
        if reason is not None:
            raise NotHere(f"コンパイルした損失は使えません（{reason.ja}）", f"no compiled loss here ({reason.en})")
    hidden, weight = 0.3 * torch.randn(96, 64, generator=_random(0)), torch.randn(1000, 64, generator=_random(1))
    targets = torch.randint(0, 1000, (96,), generator=_random(2))

    def obtained(states: Tensor, head: Tensor) -> Tensor:
        chunk = 40 * 4 * head.shape[0]
        total: Tensor = LinearCrossEntropy.apply(
            states, head, targets.to(place.device), cap, chunk, lambda held: held.to(place.dtype), compiled
        )
        return total

    def expected(states: Tensor, head: Tensor) -> Tensor:
        logits = states @ head.t()
        return F.cross_entropy(cap * torch.tanh(logits / cap) if cap else logits, targets, reduction="sum")

    return _compared(obtained, expected, [hidden, weight], place)


def norm_checks(device: torch.device) -> list[Check]:
    """The norms of the families, as their models compute them on the device."""
    return [
        Check(f"norm/{name}/{dtype_name(dtype)}", partial(_norm, name, _Place(device, dtype)))
        for name in ("llama", "gemma2", "layer")
        for dtype in dtypes(device)
    ]


def _norm(name: str, place: _Place) -> Measured:
    from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    build: dict[str, Callable[[], nn.Module]] = {
        "llama": lambda: LlamaRMSNorm(256, eps=1e-6),
        "gemma2": lambda: Gemma2RMSNorm(256, eps=1e-6),
        "layer": lambda: nn.LayerNorm(256),
    }
    here = build[name]().to(place.device, place.dtype)
    inputs = [torch.randn(64, 256, generator=_random(0)), 1 + 0.1 * torch.randn(256, generator=_random(1))]

    def expected(states: Tensor, weight: Tensor) -> Tensor:
        if name == "layer":
            return F.layer_norm(states, (256,), weight, torch.zeros(256))
        normed = states * torch.rsqrt(states.square().mean(-1, keepdim=True) + 1e-6)
        return normed * (1 + weight if name == "gemma2" else weight)

    def obtained(states: Tensor, weight: Tensor) -> Tensor:
        output: Tensor = torch.func.functional_call(here, {"weight": weight}, (states,))
        return output

    return _compared(obtained, expected, inputs, place)


def four_bit_checks(device: torch.device) -> list[Check]:
    """A 4-bit layer against the product with its dequantized weight."""
    return [
        Check(f"four_bit/{dtype_name(dtype)}", partial(_four_bit, _Place(device, dtype))) for dtype in dtypes(device)
    ]


def _four_bit(place: _Place) -> Measured:
    weight = torch.randn(192, 256, generator=_random(0)).to(place.dtype)
    layer, dequantized = four_bit_layer(weight, place.device)
    expected = dequantized().float().cpu()
    inputs = [torch.randn(64, 256, generator=_random(1))]
    return _compared(layer, lambda states: states @ expected.t(), inputs, place)


def checks(device: torch.device, *, quick: bool = False) -> list[Check]:
    """All of them."""
    return [
        *attention_checks(device, quick=quick),
        *loss_checks(device),
        *norm_checks(device),
        *four_bit_checks(device),
    ]
