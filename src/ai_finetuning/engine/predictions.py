"""What the model predicts on the evaluation rows, for metrics of the user's own; read off the forward pass of the loss."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError
from ..labels import IGNORED
from ..parallel.batch import Rows
from ..parallel.strategy import Strategy

# (row of the micro-batch, first position, end) -> logits [positions, vocabulary] in fp32.
RowLogits = Callable[[int, int, int], Tensor]
# (predictions, labels), both by row -> metrics by name.
Metrics = Callable[[Any, np.ndarray], Any]
# Positions whose logits exist at a time where only the largest is wanted.
SPAN = 256
OWN_METRICS = ("eval_loss", "eval_perplexity", "eval_bits_per_character", "eval_tokens")


class Predictions:
    """Predictions of one evaluation, a row for each document, in the order of the evaluation data whatever the batches
    were.

    Args:
        order: for each document of the evaluation's batches, in their order, its place in the evaluation data.
        labels: of each document, by its place.
        compute: the user's metrics.
        preprocess: (logits [1, tokens, vocabulary], labels [1, tokens]) -> what to keep; None keeps the ids of the
            largest logits.
    """

    def __init__(
        self,
        order: Sequence[int],
        labels: Sequence[np.ndarray],
        compute: Metrics,
        preprocess: Callable[[Tensor, Tensor], Any] | None = None,
    ) -> None:
        self._order, self._labels = order, labels
        self._compute, self._preprocess = compute, preprocess
        self._found: list[list[Any]] = []
        self.collecting = False

    @contextlib.contextmanager
    def collect(self) -> Iterator[None]:
        """Inside, every micro-batch that the loss sees is one of the evaluation; begins anew each time."""
        self._found, self.collecting = [], True
        try:
            yield
        finally:
            self.collecting = False

    def add(self, batch: Rows, logits: RowLogits) -> None:
        """The predictions of a micro-batch, in host memory; only what preprocess keeps outlives a document."""
        keep = self._largest if self._preprocess is None else self._preprocessed
        places = []
        for row, documents in enumerate(batch.row_lengths):
            start = 0
            for length in documents:
                places.append((row, start, start + length))
                start += length
        self._found.append(keep(batch, logits, places))

    def _largest(self, batch: Rows, logits: RowLogits, places: list[tuple[int, int, int]]) -> list[Any]:
        ids = [
            logits(row, first, min(first + SPAN, stop)).argmax(dim=-1)
            for row, start, stop in places
            for first in range(start, stop, SPAN)
        ]
        # One copy to the host for the micro-batch.
        together = torch.cat(ids).to(torch.int32).cpu().numpy()
        ends = np.cumsum([stop - start for _, start, stop in places])
        return np.split(together, ends[:-1])

    def _preprocessed(self, batch: Rows, logits: RowLogits, places: list[tuple[int, int, int]]) -> list[Any]:
        assert self._preprocess is not None
        obtained = []
        for row, start, stop in places:
            values = logits(row, start, stop)[None]
            with torch.autocast(values.device.type, enabled=False):
                obtained.append(_on_host(self._preprocess(values, batch.labels[row, start:stop][None])))
        return obtained

    def metrics(self, strategy: Strategy, batches: int) -> dict[str, Any]:
        """The user's metrics over all ranks' predictions, computed on every rank; every process has to call it.

        Args:
            batches: how many micro-batches the evaluation had over all data ranks; a rank may have scored one more,
                without rows of its own, so that all ranks make the same calls.

        Raises:
            ConfigError: they are no dictionary of numbers, or have a name that the evaluation gives itself.
        """
        gathered: dict[int, Any] = {}
        for rank, found in strategy.gather((strategy.data_rank, self._found)):
            # Equal where ranks see the same rows; of the stages of a pipeline only the last one has any.
            if found or rank not in gathered:
                gathered[rank] = found
        self._found = []
        size = strategy.data_size
        documents = [row for number in range(batches) for row in gathered[number % size][number // size]]
        rows: list[Any] = [None] * len(self._order)
        for place, row in zip(self._order, documents, strict=True):
            rows[place] = row
        predictions = stacked(rows)
        if self._preprocess is None:
            predictions = predictions.astype(np.int64)
        return named(self._compute(predictions, stacked([without_first(labels) for labels in self._labels])))


class PredictionSlot:
    """What a loss is built with where different predictions are collected at different times: those of an evaluation, and
    others inside `using`.
    """

    def __init__(self, usual: Predictions | None) -> None:
        self._current = usual

    @property
    def collecting(self) -> bool:
        """Whether the micro-batches that the loss sees now are collected."""
        return self._current is not None and self._current.collecting

    def add(self, batch: Rows, logits: RowLogits) -> None:
        """See Predictions.add."""
        assert self._current is not None
        self._current.add(batch, logits)

    @contextlib.contextmanager
    def using(self, others: Predictions) -> Iterator[None]:
        """Inside, these are collected where they say so."""
        usual, self._current = self._current, others
        try:
            yield
        finally:
            self._current = usual


Collects = Predictions | PredictionSlot


def without_first(labels: np.ndarray) -> np.ndarray:
    """A document's labels as the loss reads them: nothing predicts its first token."""
    labels = np.array(labels, dtype=np.int64)
    labels[:1] = IGNORED
    return labels


def stacked(rows: Sequence[Any]) -> Any:
    """Rows in one array, -100 behind the shorter ones; tuples stay tuples."""
    first = rows[0]
    if isinstance(first, tuple):
        return tuple(stacked([row[index] for row in rows]) for index in range(len(first)))
    if first.ndim == 0:
        return np.stack(rows)
    whole = np.full((len(rows), max(map(len, rows)), *first.shape[1:]), IGNORED, dtype=first.dtype)
    for index, row in enumerate(rows):
        whole[index, : len(row)] = row
    return whole


def _on_host(kept: Any) -> Any:
    """What preprocess has returned for one document, without its dimension of rows.

    Raises:
        ConfigError: it is no tensor with one row, nor several.
    """
    if isinstance(kept, tuple | list):
        return tuple(_on_host(item) for item in kept)
    if not isinstance(kept, Tensor) or kept.ndim == 0 or kept.shape[0] != 1:
        got = f"{type(kept).__name__} {list(kept.shape)}" if isinstance(kept, Tensor) else type(kept).__name__
        raise ConfigError(
            f"preprocess_logits_for_metrics が {got} を返しました。1 行ずつ呼ばれるので、最初の次元が 1 のテンソル（またはそのタプル）を返してください。",
            f"preprocess_logits_for_metrics returned {got}; it is called with one row at a time and has to return a "
            "tensor whose first dimension is 1, or a tuple of such tensors.",
        )
    value = kept[0].detach()
    return (value.float() if value.dtype is torch.bfloat16 else value).cpu().numpy()


def named(metrics: Any) -> dict[str, Any]:
    """The user's metrics as plain numbers under `eval_` names.

    Raises:
        ConfigError: no dictionary, or a name that the evaluation gives itself.
    """
    if not isinstance(metrics, Mapping):
        raise ConfigError(
            f"compute_metrics が {type(metrics).__name__} を返しました。名前から数値への辞書を返してください。",
            f"compute_metrics returned {type(metrics).__name__}; it has to return a dictionary of numbers by name.",
        )
    plain = {
        (name if str(name).startswith("eval_") else f"eval_{name}"): value.item() if hasattr(value, "item") else value
        for name, value in metrics.items()
    }
    taken = sorted(set(plain) & set(OWN_METRICS))
    if taken:
        raise ConfigError(
            f"compute_metrics が {', '.join(taken)} を返しましたが、これは評価そのものの名前です。別の名前にしてください。",
            f"compute_metrics returned {', '.join(taken)}, which the evaluation computes itself; choose another name.",
        )
    return plain
