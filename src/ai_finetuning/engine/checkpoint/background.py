"""Checkpoints written beside the training: a step waits for a copy in memory, not for the disk."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from ...messages import warn
from ...parallel.weights.state import Tensors
from .staging import Staging
from .store import CheckpointStore, Layouts
from .write import Cancelled


@dataclass(frozen=True)
class Snapshot:
    """What one checkpoint holds (CheckpointStore.save), or the best weights (keep_best), with a note about them."""

    step: int
    tensors: Tensors
    state: dict[str, Any]
    layouts: Layouts | None = None
    best: bool = False


def all_finite(tensors: Tensors) -> bool:
    """Whether no weight is infinite or no number."""
    weights = tensors["model"].values()
    return all(bool(torch.isfinite(tensor).all()) for tensor in weights if tensor.is_floating_point())


class HostCopy:
    """The copy that a checkpoint is written from beside the training.

    Its memory is kept between saves: filling fresh memory takes ten times as long as used memory. It comes from a GPU
    through pinned buffers, and the thread that trains waits for it alone.
    """

    _staged_types = ("cuda",)  # kinds of devices whose tensors are staged

    def __init__(self) -> None:
        self._copy: Tensors = {}
        self._staging: dict[torch.device, Staging] = {}

    @torch.no_grad()
    def of(self, tensors: Tensors) -> Tensors:
        """The tensors as they are now, in host memory."""
        staged: dict[torch.device, list[tuple[Tensor, Tensor]]] = {}
        for group, named in tensors.items():
            held = self._copy.setdefault(group, {})
            for name, tensor in named.items():
                if name not in held:
                    held[name] = torch.empty_like(tensor, device="cpu", memory_format=torch.contiguous_format)
                if tensor.device.type in self._staged_types:
                    staged.setdefault(tensor.device, []).append((tensor, held[name]))
                else:
                    held[name].copy_(tensor)
        for device, pairs in staged.items():
            if device not in self._staging:
                self._staging[device] = Staging(device)
            self._staging[device].copy(pairs)
        return {group: {name: self._copy[group][name] for name in named} for group, named in tensors.items()}


class CheckpointWriter:
    """Writes one checkpoint at a time; a save waits for the one before. Leaving its `with` block waits for the last.

    Args:
        store: where checkpoints go.
        background: write in a thread, from a copy in host memory; else at once, from the weights themselves.
        on_saved: told the folder of every checkpoint, in the thread that saves or waits.
    """

    def __init__(self, store: CheckpointStore, *, background: bool, on_saved: Callable[[Path], None]) -> None:
        self._store = store
        self._on_saved = on_saved
        self._thread = ThreadPoolExecutor(1, "checkpoint") if background else None
        self._copy = HostCopy()
        self._writing: Future[Path | None] | None = None
        self._cancelled = threading.Event()

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Waits for the checkpoint being written; a second Ctrl-C gives it up."""
        try:
            if error is None or isinstance(error, Exception):
                self.wait()
        finally:
            self._cancelled.set()
            if self._thread is not None:
                self._thread.shutdown()

    def save(self, snapshot: Snapshot) -> None:
        """Takes a checkpoint; a full disk is reported and training continues; weights that are not finite are never
        written.
        """
        self.wait()
        if self._thread is None:
            self._tell(self._write(snapshot))
            return
        copied = replace(snapshot, tensors=self._copy.of(snapshot.tensors))
        self._writing = self._thread.submit(self._write, copied)

    def wait(self) -> None:
        """Until no checkpoint is being written."""
        if self._writing is not None:
            folder = self._writing.result()
            self._writing = None
            self._tell(folder)

    def tell(self) -> None:
        """Reports a checkpoint that was written meanwhile, without waiting."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def _tell(self, folder: Path | None) -> None:
        if folder is not None:
            self._on_saved(folder)

    def _write(self, snapshot: Snapshot) -> Path | None:
        step = snapshot.step
        if not self._store.agree(all_finite(snapshot.tensors)):
            warn(
                f"ステップ {step} の重みに有限でない値があるため、チェックポイントを書きません。",
                f"weights of step {step} are not finite: skipping this checkpoint.",
            )
            return None
        write = self._store.keep_best if snapshot.best else self._store.save
        try:
            return write(
                step,
                tensors=snapshot.tensors,
                state=snapshot.state,
                cancelled=self._cancelled,
                layouts=snapshot.layouts,
            )
        except OSError as error:
            if snapshot.best:
                warn(
                    f"最良のステップ {step} の重みを書けませんでした（{error}）。学習は続けます。",
                    f"the best weights, of step {step}, could not be written ({error}); training continues.",
                )
                return None
            warn(
                f"ステップ {step} のチェックポイントを書けませんでした（{error}）。以前のものを残して学習を続けます。",
                f"the checkpoint of step {step} could not be written ({error}); earlier checkpoints are kept and "
                "training continues.",
            )
        except Cancelled:
            pass
        return None
