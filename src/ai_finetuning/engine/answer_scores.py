"""Log-probabilities of answers, as sums over their labels, on every way of computing a step."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from ..kernels.loss import HeadSettings, LinearLogProbabilities
from ..parallel.batch import Answers, Rows
from ..parallel.weights.gathered import gathers_for_work, while_gathered
from . import loss as token_loss
from .loss import DocumentModel

# (model, rows with answers) -> [units, sides, 2] fp32: sums over an answer's first m labels and over the rest (data/answers.py).
AnswerScores = Callable[[nn.Module, Rows], Tensor]


def make_document_scores(model: DocumentModel) -> AnswerScores:
    """Of documents in one row without padding, pairs forked or not; the head runs on positions with a label only."""

    def scores(_: nn.Module, batch: Rows) -> Tensor:
        answers, documents = _answers_of(batch), batch.documents()
        hidden = model.hidden(documents.input_ids, documents.position_ids, documents.lengths)
        kept, owners = hidden[answers.index], 2 * answers.counts.numel()
        settings = HeadSettings(model.cap, token_loss.CHUNK_BYTES, model.cast, model.compiled)
        if isinstance(model.head.weight, DTensor) and not gathers_for_work(model.head):
            # Cut along `tp`: only the head itself knows how to put its parts together.
            return _shaped(_sums(lambda part: _capped(model.head(part), model.cap), kept, answers), answers)

        def sums_of(states: Tensor) -> Tensor:
            sums: Tensor = LinearLogProbabilities.apply(
                states, model.head.weight, answers.targets, answers.owner, owners, settings
            )
            return sums

        return _shaped(while_gathered(model.head, sums_of, kept), answers)

    return scores


def make_padded_scores(*, positions: bool = True) -> AnswerScores:
    """Of padded rows, one for each answer; the model computes all logits.

    Args:
        positions: whether the model is told the positions, or numbers its tokens itself.
    """

    def scores(model: nn.Module, batch: Rows) -> Tensor:
        answers = _answers_of(batch)
        if answers.padded is None:
            raise ValueError("padded rows hold no documents with a fork")
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "use_cache": False}
        if positions:
            inputs["position_ids"] = batch.position_ids
        logits = model(**inputs).logits.flatten(0, 1)[answers.padded]
        return _shaped(_sums(lambda part: part, logits, answers), answers)

    return scores


def _answers_of(batch: Rows) -> Answers:
    if batch.answers is None:
        raise ValueError("the batch holds no answers")
    return batch.answers


def _shaped(sums: Tensor, answers: Answers) -> Tensor:
    return sums.view(*answers.counts.shape, 2)


def _capped(logits: Tensor, cap: float) -> Tensor:
    return torch.tanh(logits.float() / cap) * cap if cap else logits


def _sums(logits_of: Callable[[Tensor], Tensor], rows: Tensor, answers: Answers) -> Tensor:
    """[owners] fp32 from rows of which `logits_of` makes logits; those of a chunk exist at a time, and again in the backward
    pass.
    """

    def of_chunk(part: Tensor, targets: Tensor) -> Tensor:
        return -F.cross_entropy(logits_of(part).float(), targets, reduction="none")

    owners = 2 * answers.counts.numel()
    with torch.no_grad():
        width = logits_of(rows[:1]).shape[-1] if len(rows) else 1
    size = max(1, token_loss.CHUNK_BYTES // (4 * width))
    parts = [
        checkpoint(of_chunk, part, targets, use_reentrant=False)
        for part, targets in zip(torch.split(rows, size), torch.split(answers.targets, size), strict=True)
    ]
    sums = torch.zeros(owners, dtype=torch.float32, device=rows.device)
    return sums.index_add(0, answers.owner, torch.cat(parts)) if len(rows) else sums + 0 * rows.float().sum()
