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
    def lengths(self) -> tuple[int, ...]:
        """Of the documents, in order."""


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
    def row_lengths(self) -> tuple[tuple[int, ...], ...]:
        """Of the documents of each row, in order."""

    def documents(self) -> Documents:
        """All documents in one row, without padding."""


class Batch(Rows, Protocol):
    """A micro-batch; the loader makes them (data/collate.py), the step hands a group of them to the strategy."""

    @property
    def num_tokens(self) -> int:
        """Tokens that are not padding."""

    def to(self, device: torch.device) -> Batch:
        """The batch on a device."""

    def pinned(self) -> Batch:
        """The batch in memory that a GPU copies from by itself."""

    def without_labels(self) -> Batch:
        """The same batch without loss."""


# (model, rows) -> sum of the token losses of the rows' labels, a scalar tensor on the model's device.
LossFunction = Callable[[nn.Module, Rows], Tensor]
