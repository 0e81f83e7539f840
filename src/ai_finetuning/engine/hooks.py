"""What the loop listens to and talks to: signals, callbacks, memory errors."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any


class Callback:
    """Listens to a run; progress bars and trackers are callbacks."""

    def on_step(self, row: dict[str, Any]) -> None:
        """After every optimizer step, with its row of metrics.jsonl."""

    def on_evaluation(self, row: dict[str, Any]) -> None:
        """After every evaluation, with its row."""

    def on_save(self, folder: Path) -> None:
        """After every checkpoint."""

    def on_end(self) -> None:
        """When the loop is left, also by an error."""


class SignalFlags:
    """SIGTERM and the first SIGINT ask for a stop at the step's end, SIGUSR1 for a checkpoint; a second SIGINT aborts.

    Handlers exist only inside the `with` block, and only in the main thread (Python allows them nowhere else).
    """

    def __init__(self) -> None:
        self.stop: str | None = None
        self.save = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> SignalFlags:
        if threading.current_thread() is threading.main_thread():
            handlers = {"SIGTERM": self._ask_stop, "SIGINT": self._ask_stop, "SIGUSR1": self._ask_save}
            for name, handler in handlers.items():
                number = getattr(signal, name, None)
                if number is not None:
                    self._previous[number] = signal.signal(number, handler)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _ask_stop(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.stop == "SIGINT":
            raise KeyboardInterrupt
        self.stop = signal.Signals(number).name

    def _ask_save(self, number: int, frame: FrameType | None) -> None:
        self.save = True
