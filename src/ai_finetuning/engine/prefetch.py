"""The rows of the next step, made by a thread while a device computes this one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import torch

from ..parallel.batch import Batch
from .state import LoaderLike


class Prefetched:
    """A loader that has the rows of the next step ready, in pinned memory where the device is a GPU.

    It gives what its loader gives: a function of epoch, step and micro-batch size. What was made ahead is dropped where
    something else is asked for (a resumed run, a smaller micro-batch), and an error of the thread is raised in the step
    that needs the rows. Two steps' rows are pinned at a time; torch keeps and reuses their memory.
    """

    def __init__(self, loader: LoaderLike, device: torch.device) -> None:
        self._loader = loader
        self._pinned = device.type == "cuda"
        start = None
        if (
            self._pinned
        ):  # a thread begins with the first GPU, whichever this process works on, and pinning would open it
            start = partial(
                torch.cuda.set_device, torch.cuda.current_device() if device.index is None else device.index
            )
        self._thread = ThreadPoolExecutor(1, "rows", start)
        self._ahead: tuple[tuple[int, int, int], Future[Sequence[Batch]]] | None = None

    def steps(self, epoch: int) -> int:
        """Optimizer steps in an epoch."""
        return self._loader.steps(epoch)

    def micro_batches(self, epoch: int, index: int, micro_batch_size: int) -> Sequence[Batch]:
        """This rank's micro-batches of step `index` of `epoch`; those of the epoch's next step are begun."""
        asked = (epoch, index, micro_batch_size)
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == asked:
            group = ahead[1].result()
        else:
            if ahead is not None:
                ahead[1].cancel()
            group = self._thread.submit(self._made, *asked).result()
        if index + 1 < self.steps(epoch):  # another epoch may never come, and its order takes a while
            behind = (epoch, index + 1, micro_batch_size)
            self._ahead = (behind, self._thread.submit(self._made, *behind))
        return group

    def other_answers(self, epoch: int, index: int, micro_batch_size: int) -> Sequence[Batch]:
        """The same questions, each with the answer to another one; made when asked for."""
        return self._thread.submit(self._loader.other_answers, epoch, index, micro_batch_size).result()

    def position(self, epoch: int, index: int) -> dict[str, Any] | None:
        """See LoaderLike."""
        return self._loader.position(epoch, index)

    def go_to(self, epoch: int, index: int, position: Mapping[str, Any] | None) -> None:
        """See LoaderLike."""
        self._thread.submit(self._loader.go_to, epoch, index, position).result()

    def behind(self, steps: int) -> tuple[int, int]:
        """See LoaderLike."""
        return self._thread.submit(self._loader.behind, steps).result()

    def _made(self, epoch: int, index: int, micro_batch_size: int) -> Sequence[Batch]:
        group = self._loader.micro_batches(epoch, index, micro_batch_size)
        return [batch.pinned() for batch in group] if self._pinned else group
