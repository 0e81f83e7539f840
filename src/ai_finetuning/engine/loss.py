"""Next-token cross entropy, summed over label tokens, and the divergence from the base where a label says so; the one place
where labels are shifted.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from ..kernels.loss import LinearCrossEntropy, LinearDivergence
from ..labels import FROM_BASE, IGNORED
from ..parallel.batch import Documents, LossFunction, Rows
from ..parallel.limits import LOGIT_CHUNK_BYTES
from ..parallel.weights.gathered import gathers_for_work, while_gathered
from .predictions import Collects, RowLogits

# Most bytes of fp32 logits that exist at a time; larger batches recompute them in the backward pass.
CHUNK_BYTES = LOGIT_CHUNK_BYTES


def _sum_of_chunk(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="sum")


def cross_entropy_sum(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum of the cross entropies in fp32.

    Args:
        logits: [positions, vocabulary] in any dtype.
        targets: [positions] token ids; -100 takes no loss.
    """
    rows = max(1, CHUNK_BYTES // (4 * logits.shape[-1]))
    if logits.shape[0] <= rows:
        return _sum_of_chunk(logits, targets)
    pieces = [
        checkpoint(_sum_of_chunk, part, expected, use_reentrant=False)
        for part, expected in zip(torch.split(logits, rows), torch.split(targets, rows), strict=True)
    ]
    return torch.stack(pieces).sum()


def _positions(mask: Tensor, count: int) -> tuple[Tensor, ...]:
    """Where a mask is true, by dimension, in order; with their number known, a device need not tell it to the host."""
    obtained = torch.nonzero_static(mask, size=count) if mask.device.type in ("cpu", "cuda") else mask.nonzero()
    return obtained.unbind(1)


class DocumentModel(Protocol):
    """What the document loss knows of a model (models/documents.py)."""

    head: nn.Linear
    cap: float
    compiled: bool

    @property
    def cast(self) -> Callable[[Tensor], Tensor]:
        """A weight in the dtype of the products."""

    def hidden(self, input_ids: Tensor, position_ids: Tensor, lengths: tuple[int | tuple[int, ...], ...]) -> Tensor:
        """Last hidden states [tokens, d]."""


@dataclass(frozen=True)
class Base:
    """What rows with the label FROM_BASE are held to.

    Attributes:
        weight: of a token's KL(base || trained), against the cross entropy of a label token.
        answers: a context inside which the model computes what its base does.
    """

    weight: float
    answers: Callable[[], AbstractContextManager[None]]


def make_document_loss(
    model: DocumentModel, predictions: Collects | None = None, base: Base | None = None
) -> LossFunction:
    """The loss over documents in one row without padding; the head runs on positions with a label only.

    Args:
        predictions: what collects predictions in an evaluation, beside the loss and without a change to it.
        base: for rows with the label FROM_BASE.
    """

    def token_loss_sum(_: nn.Module, batch: Rows) -> Tensor:
        documents = batch.documents()
        hidden = model.hidden(documents.input_ids, documents.position_ids, documents.lengths)
        if predictions is not None and predictions.collecting:
            predictions.add(batch, _head_logits(model, hidden, batch.row_lengths))
        count, apart = batch.num_label_tokens, None
        if base is not None:
            told = documents.targets == FROM_BASE
            number = int(told.sum())
            if number:
                apart = base.weight * _divergence(model, documents, hidden, told, base)
                documents.targets[told] = IGNORED
                count -= number
                if not count:
                    return apart
        loss_mask = _positions(documents.targets != IGNORED, count)
        kept, targets = hidden[loss_mask], documents.targets[loss_mask]
        if isinstance(model.head.weight, DTensor) and not gathers_for_work(model.head):
            # Cut along `tp`: only the head itself knows how to put its parts together.
            logits = model.head(kept)
            return cross_entropy_sum(
                torch.tanh(logits.float() / model.cap) * model.cap if model.cap else logits, targets
            )

        def loss_of(states: Tensor) -> Tensor:
            loss: Tensor = LinearCrossEntropy.apply(
                states, model.head.weight, targets, model.cap, CHUNK_BYTES, model.cast, model.compiled
            )
            return loss

        own = while_gathered(model.head, loss_of, kept)
        return own if apart is None else own + apart

    return token_loss_sum


def _divergence(model: DocumentModel, documents: Documents, hidden: Tensor, told: Tensor, base: Base) -> Tensor:
    """Sum of KL(base || trained) over the tokens that are told to; the base computes the documents that hold them, and no
    others.
    """
    whole = [size for size in documents.lengths if isinstance(size, int)]
    assert len(whole) == len(documents.lengths), "pairs of answers are not held to a base by token"
    held = [bool(part.any()) for part in torch.split(told.cpu(), whole)]
    lengths = tuple(size for size, holds in zip(whole, held, strict=True) if holds)
    of_them = torch.repeat_interleave(torch.tensor(held), torch.tensor(whole)).to(told.device)
    with torch.no_grad(), base.answers():
        expected = model.hidden(documents.input_ids[:, of_them], documents.position_ids[:, of_them], lengths)
    total: Tensor = LinearDivergence.apply(
        hidden[told], expected[told[of_them]], model.head.weight, model.cap, CHUNK_BYTES, model.cast
    )
    return total


def _head_logits(model: DocumentModel, hidden: Tensor, lengths: tuple[tuple[int, ...], ...]) -> RowLogits:
    """Logits of any positions of a row, from the hidden states of all documents in one row."""
    starts = [0, *accumulate(map(sum, lengths))]

    def logits(row: int, start: int, stop: int) -> Tensor:
        part = hidden[starts[row] + start : starts[row] + stop]
        if isinstance(model.head.weight, DTensor):
            obtained = model.head(part).float()
        else:
            weight = model.cast(model.head.weight)
            obtained = F.linear(part.to(weight.dtype), weight).float()
        return torch.tanh(obtained / model.cap) * model.cap if model.cap else obtained

    return logits


def make_loss(
    *,
    logits_to_keep: bool,
    predictions: Collects | None = None,
    positions: bool = True,
    base: Base | None = None,
) -> LossFunction:
    """The loss function for a model.

    Args:
        logits_to_keep: whether the model computes its head on given positions only (transformers' argument of that
            name); then the head skips positions at which no row has a label token.
        predictions: what collects predictions in an evaluation; a head that computes given positions only then runs
            the model a second time for them, so that the loss keeps its bits.
        positions: whether the model is told the positions, or numbers its tokens itself.
        base: for rows with the label FROM_BASE.
    """

    def token_loss_sum(model: nn.Module, batch: Rows) -> Tensor:
        targets = batch.labels[:, 1:]
        inputs: dict[str, Any] = {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
            # With a cache, packed documents leak into each other silently (docs/design/training-step.md).
            "use_cache": False,
        }
        if positions:
            inputs["position_ids"] = batch.position_ids
        if base is not None and bool((told := targets == FROM_BASE).any()):
            return _with_base(model, inputs, targets, told, base)
        if logits_to_keep:
            (kept,) = _positions((targets != IGNORED).any(dim=0), batch.num_label_columns)
            logits = model(**inputs, logits_to_keep=kept).logits
            targets = targets[:, kept]
            if predictions is not None and predictions.collecting:
                predictions.add(batch, _logits_of(model(**inputs).logits))
        else:
            whole = model(**inputs).logits
            logits = whole[:, :-1]
            if predictions is not None and predictions.collecting:
                predictions.add(batch, _logits_of(whole))
        if 2 * batch.num_label_tokens >= targets.numel():
            # Mostly label tokens: selecting their rows would copy the logits, and their gradient, once more.
            return cross_entropy_sum(logits.flatten(0, 1), targets.flatten())
        loss_mask = _positions(targets != IGNORED, batch.num_label_tokens)
        return cross_entropy_sum(logits[loss_mask], targets[loss_mask])

    return token_loss_sum


def _with_base(model: nn.Module, inputs: dict[str, Any], targets: Tensor, told: Tensor, base: Base) -> Tensor:
    """The loss of padded rows, some of whose label tokens are held to the base."""
    logits = model(**inputs).logits[:, :-1]
    with torch.no_grad(), base.answers():
        expected = model(**inputs).logits[:, :-1][told]
    obtained, expected = (item.float().log_softmax(dim=-1) for item in (logits[told], expected))
    apart = F.kl_div(obtained, expected, reduction="sum", log_target=True)
    return base.weight * apart + cross_entropy_sum(logits.flatten(0, 1), targets.masked_fill(told, IGNORED).flatten())


def _logits_of(whole: Tensor) -> RowLogits:
    """Logits of any positions of a row, from all of a padded batch."""
    return lambda row, start, stop: whole[row, start:stop].float()
