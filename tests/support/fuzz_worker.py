"""Runs `aift` on hostile inputs of some readers, all in this process, with limits; one JSON line an input.

    python -m tests.support.fuzz_worker FOLDER SEED COUNT READER...

A line says the exit code, the CPU seconds, and what was printed where that is wrong. A hang inside a library ends the
process, after its stack.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import warnings
from pathlib import Path

# Of one input: CPU seconds until it is stopped, wall seconds until the process ends, and bytes of new address space.
CPU_SECONDS, WALL_SECONDS, BYTES = 10, 240, 2 << 30


class TooSlow(BaseException):
    """An input took its CPU seconds."""


def _stop(*_: object) -> None:
    raise TooSlow


def _limit_memory() -> None:
    status = Path("/proc/self/status")
    if status.is_file():
        now = next(
            int(line.split()[1])
            for line in status.read_text(encoding="utf-8").splitlines()
            if line.startswith("VmSize")
        )
        resource.setrlimit(resource.RLIMIT_AS, (now * 1024 + BYTES, resource.RLIM_INFINITY))


def run_one(arguments: list[str]) -> tuple[int | str, float, str]:
    """(exit code, CPU seconds, output) of a command."""
    from ai_finetuning.apps.cli.main import run

    output = io.StringIO()
    before = time.process_time()
    faulthandler.dump_traceback_later(WALL_SECONDS, exit=True)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    code: int | str
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output), warnings.catch_warnings():
            code = run(arguments)
    except TooSlow:
        code = "slow"
    except BaseException as error:
        code = f"raised {type(error).__name__}: {error}"[:300]
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.cancel_dump_traceback_later()
    return code, time.process_time() - before, output.getvalue()


def main(folder: Path, seed: int, count: int, names: list[str]) -> None:
    """Runs the readers one after another."""
    from .fuzz_readers import READERS, Place

    signal.signal(signal.SIGPROF, _stop)
    out, report = sys.stdout, os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    del out
    place = Place.at(folder)
    for name in names:
        reader = READERS[name]
        start = reader.prepare(place)
        for number in range(count):
            rng = random.Random(f"{name}-{seed + number}")
            work = folder / "input"
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            arguments = reader.make(rng, place, start, work)
            print(json.dumps({"reader": name, "seed": seed + number, "arguments": arguments}), file=report, flush=True)
            if number:  # the first one imports the libraries; anew for each, as memory of the ones before stays
                _limit_memory()
            code, seconds, text = run_one(arguments)
            wrong = not isinstance(code, int) or "Traceback" in text or code == 70
            print(
                json.dumps({"reader": name, "seed": seed + number, "code": code, "seconds": round(seconds, 3),
                            "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
                            "text": text[-3000:] if wrong else text[-400:]}),
                file=report, flush=True,
            )  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
