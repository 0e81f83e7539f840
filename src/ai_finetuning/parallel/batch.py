"""What crosses the seam: micro-batches, and the loss of one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn


class Documents(Protocol):
    """A micro-batch as one row of documents without padding."""

    @property
    def input_ids(self) -> Tensor:
        """[1, tokens] int64."""

    @property
    def position_ids(self) -> Tensor:
        """[1, tokens] int64; restarts at every document."""

    @property
    def targets(self) -> Tensor:
        """[tokens] int64: what each token has to predict; -100 takes no loss."""

    @property
    def lengths(self) -> tuple[int | tuple[int, ...], ...]:
        """Of the documents, in order; of one with a fork those of its prefix and of its branches."""


class Answers(Protocol):
    """The labels of pairs, or of marked answers (data/answers.py, which tells them)."""

    @property
    def index(self) -> Tensor:
        """[labels] int64, where in the row of documents each is predicted."""

    @property
    def targets(self) -> Tensor:
        """[labels] int64."""

    @property
    def owner(self) -> Tensor:
        """[labels] int64, 2 * (sides * unit + side) + part."""

    @property
    def counts(self) -> Tensor:
        """[units, sides] int64."""

    @property
    def padded(self) -> Tensor | None:
        """[labels] int64, where in padded rows; None where documents fork."""

    @property
    def good(self) -> Tensor | None:
        """[units] bool, marks; None for pairs."""

    @property
    def reference(self) -> Tensor | None:
        """[units, sides, 2] fp32."""


class Rows(Protocol):
    """What a loss reads of a micro-batch.

    Numbers that the host needs are Python integers: to read one never waits for a device.
    """

    @property
    def input_ids(self) -> Tensor:
        """[rows, tokens] int64."""

    @property
    def labels(self) -> Tensor:
        """[rows, tokens] int64, unshifted; -100 takes no loss."""

    @property
    def position_ids(self) -> Tensor:
        """[rows, tokens] int64; in packed rows they restart at every document."""

    @property
    def attention_mask(self) -> Tensor | None:
        """[rows, tokens] int64, 1 on tokens; None for packed rows."""

    @property
    def num_label_tokens(self) -> int:
        """Labels that take loss after the shift."""

    @property
    def num_label_columns(self) -> int:
        """Columns in which any row has such a label."""

    @property
    def answers(self) -> Answers | None:
        """Pairs, or marked answers; None where labels alone count."""

    @property
    def row_lengths(self) -> tuple[tuple[int, ...], ...]:
        """Of the documents of each row, in order."""

    def documents(self) -> Documents:
        """All documents in one row, without padding."""


class Batch(Rows, Protocol):
    """A micro-batch; the loader makes them (data/collate.py), the step hands a group of them to the strategy."""

    @property
    def num_tokens(self) -> int:
        """Tokens that are not padding."""

    @property
    def num_units(self) -> int:
        """What a step's loss is a mean over: pairs or marked answers, else label tokens."""

    def to(self, device: torch.device) -> Batch:
        """The batch on a device."""

    def pinned(self) -> Batch:
        """The batch in memory that a GPU copies from by itself."""

    def without_labels(self) -> Batch:
        """The same batch without loss."""


# (model, rows) -> sum of the token losses of the rows' labels, a scalar tensor on the model's device.
LossFunction = Callable[[nn.Module, Rows], Tensor]
