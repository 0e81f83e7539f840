"""Memory of the order of a run whose shares count label tokens, and the CPU seconds that plan and steps wait for it.

python benchmarks/order_memory.py                       # 1, 10 and 50 million rows: minutes
python benchmarks/order_memory.py --millions 2 --kinds replay

No row is read: a store's numbers are made up where they are asked for. A fifth of the rows are old
ones, or another entry's, with a fifth of the label tokens. Each size has a process of its own, which plans an epoch, asks for
steps all over it, and for one in the middle of the next. Memory is the peak above what the process held with everything
imported, and of it what is the process's own (RssAnon, looked at a hundred times a second).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

KINDS = ("tokens", "replay")
_SHARE, _STEPS, _ROWS_PER_STEP = 0.2, 50, 16


def own_bytes() -> int:
    """What is this process's own memory."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def measured(kind: str, rows: int) -> dict[str, Any]:
    """Peak and CPU seconds of an order, in this process."""
    from ai_finetuning.config.mixture import Entry
    from ai_finetuning.data.examples import Joined
    from ai_finetuning.data.loader import Loader
    from ai_finetuning.data.mixed import Mixed
    from ai_finetuning.data.mixture import replay
    from ai_finetuning.data.store.mapped import StoredExamples

    class Made(StoredExamples):
        """Rows of which only numbers are asked."""

        def __init__(self, count: int) -> None:
            self._count = count

        def learnt_at(self, places: np.ndarray) -> np.ndarray:
            return 20 + (places * 2654435761 >> 7) % 500

        def lengths_at(self, places: np.ndarray) -> np.ndarray:
            return self.learnt_at(places) + 5

        @property
        def learnt(self) -> np.ndarray:
            return self.learnt_at(np.arange(self._count))

        @property
        def lengths(self) -> np.ndarray:
            return self.lengths_at(np.arange(self._count))

    sizes = (rows * 4 // 5, rows // 5)
    new, old = map(Made, sizes)
    peak, done = [own_bytes()], threading.Event()
    before = peak[0]

    def watch() -> None:
        while not done.wait(0.01):
            peak.append(max(peak.pop(), own_bytes()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    marks = [time.process_time()]
    examples: Any
    if kind == "replay":
        examples = replay(new, old, _SHARE, 3)
        examples.taken(1)
    else:
        entries = [Entry(("new",), epochs=1), Entry(("old",), weight=_SHARE, by="tokens")]
        examples = Mixed(Joined(new, old), sizes, entries, 3)
        examples.taken_first()
    loader = Loader(
        examples,
        rows_per_step=_ROWS_PER_STEP,
        seed=3,
        packing=False,
        max_length=1024,
        group_by_length=True,
        pad_token_id=0,
    )
    steps = loader.steps(0)
    marks.append(time.process_time())
    for step in range(0, steps, max(1, steps // _STEPS)):
        assert loader._documents(0, step * _ROWS_PER_STEP)
    marks.append(time.process_time())
    assert loader._documents(1, loader.steps(1) // 2 * _ROWS_PER_STEP)
    marks.append(time.process_time())
    done.set()
    watcher.join()
    plan, epoch, seek = np.diff(marks).round(1).tolist()
    return {
        "kind": kind,
        "rows": rows,
        "peak_mb": (peak[0] - before) // 10**6,
        "plan": plan,
        "steps": epoch,
        "seek": seek,
    }


def main(arguments: list[str] | None = None) -> int:
    """Prints a line of JSON for each kind and size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=int, nargs="+", default=[1, 10, 50])
    parser.add_argument("--kinds", choices=KINDS, nargs="+", default=list(KINDS))
    parser.add_argument("--here", action="store_true", help="measure in this process (one kind, one size)")
    options = parser.parse_args(arguments)
    if options.here:
        print(json.dumps(measured(options.kinds[0], options.millions[0] * 10**6)), flush=True)
        return 0
    for kind in options.kinds:
        for millions in options.millions:
            own = [sys.executable, __file__, "--here", "--kinds", kind, "--millions", str(millions)]
            subprocess.run(own, check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
