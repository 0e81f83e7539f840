"""How far a long command is: a bar in a terminal, lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from ...messages import notice

# Seconds between two lines where there is no terminal.
_SECONDS = 30.0


@contextlib.contextmanager
def progress_bar(ja: str = "回答済み", en: str = "answered") -> Iterator[Callable[[int, int], None]]:
    """A bar with the time left in a terminal, a line now and then elsewhere; what it gives is told what is done, and all.

    Args:
        ja, en: what a line says of what is done.
    """
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TimeRemainingColumn

        with Progress(
            BarColumn(), TaskProgressColumn(), TimeRemainingColumn(), console=Console(stderr=True)
        ) as progress:
            task = progress.add_task("", total=None)
            yield lambda done, whole: progress.update(task, completed=done, total=whole)
        return
    began, said, first = time.monotonic(), time.monotonic(), None

    def say(done: int, whole: int) -> None:
        nonlocal said, first
        first = done if first is None else first
        now = time.monotonic()
        if now - said < _SECONDS or done == first:
            return
        said = now
        minutes = (whole - done) * (now - began) / (done - first) / 60
        notice(
            f"{done / whole:.0%} {ja}、残り約 {max(1, round(minutes))} 分",
            f"{done / whole:.0%} {en}, about {max(1, round(minutes))} min left",
        )

    yield say
