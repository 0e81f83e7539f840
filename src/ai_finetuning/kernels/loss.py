"""Cross entropy, and the divergence from a base, straight from hidden states: all logits never exist at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import Reason
from . import native
from ._upstream import graph_is_kept
from .autograd import Function
from .checked import Pairs, why_not_taken
from .products import products_of
from .stand_in import kernels_of

# (logits [rows, vocabulary], targets [rows], cap, with_gradient) -> losses [rows] fp32; logits become their gradient.
RowKernel = Callable[..., Tensor]


def plain_cross_entropy(logits: Tensor, targets: Tensor, *, cap: float, with_gradient: bool) -> Tensor:
    """The row kernel in plain torch: any device and dtype, computed in fp32."""
    scores = logits.float()
    if cap:
        scores = torch.tanh(scores / cap) * cap
    log_sum = torch.logsumexp(scores, dim=-1)
    losses = log_sum - scores.gather(1, targets[:, None])[:, 0]
    if with_gradient:
        gradient = (scores - log_sum[:, None]).exp_()
        gradient[torch.arange(len(targets), device=targets.device), targets] -= 1
        logits.copy_(gradient.mul_(1 - (scores / cap).square()) if cap else gradient)
    return losses


@torch.library.custom_op("ai_finetuning::cross_entropy_rows", mutates_args=("logits",))
def one_kernel_cross_entropy(logits: Tensor, targets: Tensor, *, cap: float, with_gradient: bool) -> Tensor:
    """The row kernel of GPUs (kernels/triton_loss.py), as an operator that simulations and counts see."""
    from .triton_loss import cross_entropy

    return cross_entropy(logits, targets, cap, with_gradient)


@one_kernel_cross_entropy.register_fake
def _(logits: Tensor, targets: Tensor, *, cap: float, with_gradient: bool) -> Tensor:
    return logits.new_empty(logits.shape[0], dtype=torch.float32)


def row_kernel(dtype: torch.dtype, device: torch.device, *, compiled: bool) -> RowKernel:
    """The kernel for logits of this dtype and place."""
    kind = kernels_of(device) if compiled else None
    if kind == "cuda":
        return one_kernel_cross_entropy
    by_cpu = kind == "cpu" and dtype in (torch.bfloat16, torch.float32)
    return native.cross_entropy if by_cpu else plain_cross_entropy


# Relative difference between the two kernels beyond which the plain one is taken, by the dtype of the logits.
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 2e-2}


@torch.no_grad()
def why_not_one_kernel(dtype: torch.dtype, device: torch.device, cap: float) -> Reason | None:
    """None where the row kernel of GPUs compiles on a device and computes what plain torch does there, gradient
    included; else the reason.
    """
    generator = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(4, 3000, generator=generator)).to(device, dtype)
    targets = torch.tensor([0, 2999, 7, 1500], device=device)
    theirs, mine = logits.clone(), logits

    def both() -> Pairs:
        expected = plain_cross_entropy(theirs, targets, cap=cap, with_gradient=True)
        obtained = one_kernel_cross_entropy(mine, targets, cap=cap, with_gradient=True)
        return (obtained, expected), (mine, theirs)

    return why_not_taken(both, _TOLERANCE[dtype])


class LinearCrossEntropy(Function):
    """Sum of the cross entropies of softmax(hidden W^T), without ever holding all logits.

    The gradients of hidden and W are made beside the loss, chunk by chunk (arXiv:2410.10989); the backward pass only
    scales them. hidden [rows, d]; weight [vocabulary, d], cast by `cast`; targets [rows] int64, none ignored; logits
    become cap * tanh(logit / cap) where cap is not 0.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        cap: float,
        chunk_bytes: int,
        cast: Any,
        compiled: bool,
    ) -> Tensor:
        compute, products = cast(weight), products_of(cast)
        hidden = hidden.to(compute.dtype)
        kernel = row_kernel(compute.dtype, hidden.device, compiled=compiled)
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        dhidden = torch.empty_like(hidden) if wants_hidden else None
        dweight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if wants_weight else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for part in _chunks(hidden, compute, kernel, chunk_bytes):
            rows = products.same_shapes(hidden[part], part.stop - part.start)
            logits = products.mm(rows, compute.t())
            wanted, real = targets[part], logits[: len(targets[part])]
            total += kernel(real, wanted, cap=cap, with_gradient=wants_hidden or wants_weight).sum()
            if dhidden is not None:
                dhidden[part] = products.mm(logits, compute)[: len(wanted)]
            if dweight is not None:
                if kernel is native.cross_entropy and compute.dtype is dweight.dtype:
                    products.add(dweight, logits.t(), rows)
                else:
                    dweight += torch.mm(logits.t(), rows)
            del logits, real  # before the next ones are made
        ctx.gradients = dhidden, dweight, weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        dhidden, dweight, dtype = ctx.gradients
        # Zero-bubble pipelines come twice, for the hidden states and later for the weight, and say so by retain_graph.
        again = graph_is_kept()
        scale = torch.Tensor.mul if again else torch.Tensor.mul_
        if not again:
            ctx.gradients = None
        return (
            None if dhidden is None else scale(dhidden, gradient),
            None if dweight is None else scale(dweight, gradient).to(dtype),
            None,
            None,
            None,
            None,
            None,
        )


@dataclass(frozen=True)
class HeadSettings:
    """How a head computes.

    Attributes:
        cap: logits become cap * tanh(logit / cap); 0 for none.
        chunk_bytes: of the logits that exist at a time.
        cast: a weight in the dtype of the products.
        compiled: whether a compiled row kernel may run.
    """

    cap: float
    chunk_bytes: int
    cast: Any
    compiled: bool


class LinearLogProbabilities(Function):
    """Sums by owner of the log-probabilities of targets under softmax(hidden W^T), without ever holding all logits: [owners]
    fp32, summed in fp64 where the device has it.

    hidden [rows, d]; weight [vocabulary, d]; targets, owner [rows] int64, owners below `owners`. A row's gradient is a factor, that of its owner's sum, times the gradient of
    its own log-probability. So a head that does not train needs no second product: the rows' gradients are made beside the
    sums, chunk by chunk, and scaled in the backward pass. The gradient of a head that trains is a sum over rows of which each
    has its factor, so its logits are computed again then.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        owner: Tensor,
        owners: int,
        head: HeadSettings,
    ) -> Tensor:
        compute, products = head.cast(weight), products_of(head.cast)
        hidden = hidden.to(compute.dtype)
        kernel = row_kernel(compute.dtype, hidden.device, compiled=head.compiled)
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        beside = wants_hidden and not wants_weight
        dhidden = torch.empty_like(hidden) if beside else None
        exact = torch.float32 if hidden.device.type == "mps" else torch.float64
        sums = torch.zeros(owners, dtype=exact, device=hidden.device)
        for part in _chunks(hidden, compute, kernel, head.chunk_bytes):
            logits = products.mm(products.same_shapes(hidden[part], part.stop - part.start), compute.t())
            wanted, real = targets[part], logits[: len(targets[part])]
            losses = kernel(real, wanted, cap=head.cap, with_gradient=beside)
            sums.index_add_(0, owner[part], losses.to(exact), alpha=-1)
            if dhidden is not None:
                dhidden[part] = products.mm(logits, compute)[: len(wanted)]
            del logits, real  # before the next ones are made
        if wants_weight:
            ctx.save_for_backward(hidden, weight, targets, owner)
        else:
            ctx.save_for_backward(owner, *(() if dhidden is None else (dhidden,)))
        ctx.head = head
        return sums.float()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        none = (None,) * 4
        if not ctx.needs_input_grad[1]:
            owner, dhidden = ctx.saved_tensors
            return ((dhidden * _factors(gradient, owner)).to(dhidden.dtype), None, *none)
        hidden, weight, targets, owner = ctx.saved_tensors
        head: HeadSettings = ctx.head
        compute, products = head.cast(weight), products_of(head.cast)
        kernel = row_kernel(compute.dtype, hidden.device, compiled=head.compiled)
        dhidden = torch.empty_like(hidden)
        dweight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        for part in _chunks(hidden, compute, kernel, head.chunk_bytes):
            rows = products.same_shapes(hidden[part], part.stop - part.start)
            logits = products.mm(rows, compute.t())
            wanted, real = targets[part], logits[: len(targets[part])]
            kernel(real, wanted, cap=head.cap, with_gradient=True)
            real *= _factors(gradient, owner[part])
            dhidden[part] = products.mm(logits, compute)[: len(wanted)]
            dweight += torch.mm(logits.t(), rows)
            del logits, real
        return (dhidden, dweight.to(weight.dtype), *none)


def _factors(gradient: Tensor, owner: Tensor) -> Tensor:
    """[rows, 1] fp32: what the gradients of rows' losses, which are minus their log-probabilities, are multiplied by."""
    return gradient[owner].neg()[:, None]


def _chunks(hidden: Tensor, weight: Tensor, kernel: RowKernel, chunk_bytes: int) -> list[slice]:
    """Rows whose logits exist at a time."""
    # Other kernels need the logits in fp32 beside them.
    width = weight.element_size() if kernel is one_kernel_cross_entropy else 4
    rows = max(1, chunk_bytes // (width * weight.shape[0]))
    return [slice(start, start + rows) for start in range(0, hidden.shape[0], rows)]


class LinearDivergence(Function):
    """Sum over rows of KL(softmax(base W^T) || softmax(hidden W^T)), for a W that does not train.

    The gradient of hidden is made beside it, chunk by chunk, as in LinearCrossEntropy. hidden, base [rows, d]; weight
    [vocabulary, d], cast by `cast`; logits become cap * tanh(logit / cap) where cap is not 0.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, base: Tensor, weight: Tensor, cap: float, chunk_bytes: int, cast: Any
    ) -> Tensor:
        compute = cast(weight)
        rows = max(1, chunk_bytes // (4 * 4 * weight.shape[0]))  # four arrays of logits are there at a time, in fp32
        dhidden = torch.empty(hidden.shape, dtype=compute.dtype, device=hidden.device)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for start in range(0, hidden.shape[0], rows):
            part = slice(start, start + rows)
            scores = [torch.mm(states[part].to(compute.dtype), compute.t()).float() for states in (base, hidden)]
            if cap:
                scores = [torch.tanh(item / cap) * cap for item in scores]
            expected, obtained = (item.log_softmax(dim=-1) for item in scores)
            chances = expected.exp()
            total += torch.dot(chances.flatten(), (expected - obtained).flatten())
            gradient = obtained.exp_().sub_(chances)
            if cap:
                gradient *= 1 - (scores[1] / cap).square()
            dhidden[part] = torch.mm(gradient.to(compute.dtype), compute)
        ctx.save_for_backward(dhidden)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (dhidden,) = ctx.saved_tensors
        return dhidden * gradient, None, None, None, None, None
