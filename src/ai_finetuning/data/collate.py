"""Rows of Examples to tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..labels import IGNORED
from .answers import AnswerRows, Answers, positions_of
from .example import Example


@dataclass(frozen=True)
class Documents:
    """A micro-batch as one row of documents.

    Attributes:
        input_ids, position_ids: [1, tokens] int64; positions restart at every document.
        targets: [tokens] int64, what each token has to predict; -100 takes no loss. Answers have lists instead (Answers).
        lengths: of the documents, in order; their sum is `tokens`. A pair with a fork has those of its prefix and of both
            answers; positions run on from the prefix in each.
    """

    input_ids: Tensor
    position_ids: Tensor
    targets: Tensor
    lengths: tuple[int | tuple[int, ...], ...]


@dataclass
class Batch:
    """A micro-batch.

    Attributes:
        input_ids: [rows, tokens] int64.
        labels: [rows, tokens] int64, unshifted; -100 on padding, prompts and the first token of every document.
        position_ids: [rows, tokens] int64; in packed rows they restart at every document.
        attention_mask: [rows, tokens] int64, 1 on tokens; None for packed rows, where the restarts part the documents.
        num_label_tokens: labels that carry loss after the shift.
        num_label_columns: columns of the shifted labels in which any row has one of them.
        num_tokens: tokens that are not padding.
        lengths: of the documents of each row, in order.
        answers: the labels of pairs or marked answers; None where labels alone count.
        forks: of each document its fork, or none at all.
    """

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    attention_mask: Tensor | None
    num_label_tokens: int
    num_label_columns: int
    num_tokens: int
    lengths: tuple[tuple[int, ...], ...]
    answers: Answers | None = None
    forks: tuple[tuple[int, ...], ...] = ()

    @property
    def num_units(self) -> int:
        """What a step's loss is a mean over: pairs or marked answers, else label tokens."""
        return self.num_label_tokens if self.answers is None else self.answers.num_units

    @property
    def row_lengths(self) -> tuple[tuple[int, ...], ...]:
        """The same lengths; `documents()` has them in one row."""
        return self.lengths

    def without_labels(self) -> Batch:
        """The same batch without loss: what a rank computes that has nothing left while others have."""
        nothing = torch.full_like(self.labels, IGNORED)
        answers = None if self.answers is None else self.answers.without_labels()
        return replace(self, labels=nothing, num_label_tokens=0, num_label_columns=0, num_tokens=0, answers=answers)

    def documents(self) -> Documents:
        """All documents in one row, without padding."""
        real = [slice(0, sum(row)) for row in self.lengths]
        ids, positions, labels = (
            torch.cat([tensor[index, kept] for index, kept in enumerate(real)])
            for tensor in (self.input_ids, self.position_ids, self.labels)
        )
        targets = torch.full_like(labels, IGNORED)
        targets[:-1] = labels[1:]  # the first label of a document is ignored, so nothing crosses a border
        lengths = tuple(size for row in self.lengths for size in row)
        if self.forks:
            return Documents(
                ids[None],
                positions[None],
                targets,
                tuple(fork or size for fork, size in zip(self.forks, lengths, strict=True)),
            )
        return Documents(ids[None], positions[None], targets, lengths)

    def to(self, device: torch.device) -> Batch:
        """The batch on a device; from pinned() memory beside what the device computes."""
        return self._changed(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """The batch in memory that a GPU copies from by itself."""
        return self._changed(Tensor.pin_memory)

    def _changed(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return replace(
            self,
            input_ids=change(self.input_ids),
            labels=change(self.labels),
            position_ids=change(self.position_ids),
            attention_mask=None if self.attention_mask is None else change(self.attention_mask),
            answers=None if self.answers is None else self.answers.changed(change),
        )


def collate(rows: Sequence[Sequence[Example]], *, pad_token_id: int, packed: bool) -> Batch:
    """One tensor row for each row of documents, padded at the right to the longest.

    Packed rows have no attention mask: transformers parts documents where position_ids restart, if there is no mask and
    no cache (docs/design/training-step.md). Their padding is a document of its own.
    """
    width = max(sum(map(len, row)) for row in rows)
    shape = (len(rows), width)
    ids = torch.full(shape, pad_token_id, dtype=torch.int64)
    labels = torch.full(shape, IGNORED, dtype=torch.int64)
    positions = torch.zeros(shape, dtype=torch.int64)
    mask = torch.zeros(shape, dtype=torch.int64)
    for index, row in enumerate(rows):
        start = 0
        for document in row:
            stop = start + len(document)
            ids[index, start:stop] = torch.from_numpy(document.input_ids)
            labels[index, start:stop] = torch.from_numpy(document.labels)
            labels[index, start] = IGNORED
            positions[index, start:stop] = torch.from_numpy(positions_of(document))
            mask[index, start:stop] = 1
            start = stop
        positions[index, start:] = torch.arange(width - start)
    loss_mask = labels[:, 1:] != IGNORED
    return Batch(
        ids,
        labels,
        positions,
        None if packed else mask,
        int(loss_mask.sum()),
        int(loss_mask.any(dim=0).sum()),
        int(mask.sum()),
        tuple(tuple(map(len, row)) for row in rows),
    )


def collate_answers(
    examples: Sequence[Example], places: Sequence[int], rows: AnswerRows, *, pad_token_id: int, other: bool = False
) -> Batch:
    """A micro-batch of pairs or marked answers: one row for each, or for each side where they are not shared.

    Args:
        examples: pairs, or marked answers.
        places: theirs in the data.
        rows: how they become a batch.
        other: they are those of `rows.others`.
    """
    documents = rows.documents(examples)
    batch = collate([[document] for document in documents], pad_token_id=pad_token_id, packed=False)
    answers = rows.of(examples, places, batch.input_ids.shape[1], other=other)
    forks = tuple(document.fork for document in documents) if any(document.fork for document in documents) else ()
    return replace(batch, answers=answers, forks=forks, num_label_tokens=len(answers.index))
