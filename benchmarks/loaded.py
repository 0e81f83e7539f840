"""Training beside other processes: what is left of its speed, as a share of what the system gives it.

python benchmarks/loaded.py              # seven minutes on two cores; prints and writes the result
python benchmarks/loaded.py --waiting passive         # a third of that: only what has the limit

Ten processes that never rest begin in the middle of a LoRA run of embedded:kotoha-tiny with packing; its start is not
counted. The fair share of its quiet speed is what the scheduler gives its threads: processors / (threads + busy processes).
With OpenMP's threads that sleep while they wait, as `aift` has them on a busy machine, it has to keep 80 % of that; with
threads that spin it keeps a fifth to a quarter.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 0.8
# Steps of the quiet part of a run, of them not counted; of the part beside the others, whose first is not counted.
STEPS, WARM_UP, LOADED, ROUNDS = 12, 4, 5, 3
WAITING = ("passive", "active")
_BUSY = "import os, sys\nwhile os.getppid() == int(sys.argv[1]):\n    sum(range(1_000_000))"
RESULTS = ROOT / "benchmarks" / "results"


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """So many that never rest, for as long as this process lives."""
    began = [subprocess.Popen([sys.executable, "-c", _BUSY, str(os.getpid())]) for _ in range(count)]
    try:
        yield
    finally:
        for process in began:
            process.kill()
            process.wait()


def rates(rows: Sequence[dict[str, Any]]) -> list[float]:
    """Tokens a second of all steps but the first."""
    pairs = zip(rows, rows[1:], strict=False)
    return [(row["tokens"] - before["tokens"]) / row["seconds"] for before, row in pairs]


def steps_of(out: Path) -> list[dict[str, Any]]:
    """The steps that a run has recorded so far."""
    metrics = out / "metrics.jsonl"
    lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True) if metrics.is_file() else []
    return [row for row in (json.loads(line) for line in lines if line.endswith("\n")) if "seconds" in row]


def speeds(policy: str, threads: int, busy: int, steps: int, loaded: int) -> tuple[float, float]:
    """Tokens a second of one run, medians of its steps: quiet, and then beside busy processes."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": str(threads)}
    environment["OMP_WAIT_POLICY"] = policy
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        settings = ["data.train=embedded:kotoha-qa", "data.packing=true", "data.max_length=256"]
        settings += [f"training.schedule.max_steps={steps + loaded}", f"training.output_dir={out}", "data.eval=null"]
        settings += ["training.batch_size=4", "training.gradient_accumulation_steps=1"]
        settings += ["training.runtime.report_samples=0", "training.runtime.progress=false"]
        command = [sys.executable, "-m", "ai_finetuning", "train", *settings]
        run = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while len(steps_of(out)) < steps and run.poll() is None:
                time.sleep(0.05)
            quiet = len(steps_of(out))
            with busy_processes(busy):
                while len(rows := steps_of(out)) < steps + loaded and run.poll() is None:
                    time.sleep(0.2)
            if run.wait() or not quiet:
                raise RuntimeError(f"the run ended with {run.returncode}")
        finally:
            run.kill()
            run.wait()
    # Of the steps beside the others the first one began before they did.
    return statistics.median(rates(rows[WARM_UP - 1 : quiet])), statistics.median(rates(rows[quiet:]))


def measure(
    busy: int, threads: int, policies: Sequence[str], steps: int, loaded: int, rounds: int
) -> dict[str, object]:
    """Quiet and loaded speeds of each way of waiting, which take turns: medians of the rounds, and every share."""
    fair = min(1.0, (os.cpu_count() or 1) / (threads + busy))
    before = os.getloadavg()[0]
    found: dict[str, list[tuple[float, float]]] = {policy: [] for policy in policies}
    for _ in range(rounds):
        for policy in policies:
            found[policy].append(speeds(policy, threads, busy, steps, loaded))
    rows = {}
    for policy, pairs in found.items():
        shares = [beside / (quiet * fair) for quiet, beside in pairs]
        rows[policy] = {
            "quiet_tokens_per_second": round(statistics.median(quiet for quiet, _ in pairs)),
            "loaded_tokens_per_second": round(statistics.median(beside for _, beside in pairs)),
            "of_fair_share": round(statistics.median(shares), 3),
            "of_fair_share_in_each_round": [round(share, 3) for share in shares],
        }
    return {
        "busy_processes": busy,
        "threads": threads,
        "processors": os.cpu_count(),
        "load_before": round(before, 2),
        "waiting": rows,
        "python": platform.python_version(),
        "processor": platform.processor() or platform.machine(),
    }


def main() -> int:
    """Measures, writes the result, and says whether the limit holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--busy", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=STEPS, help=f"quiet ones, of which {WARM_UP} are not counted")
    parser.add_argument("--loaded", type=int, default=LOADED, help="beside the others, of which one is not counted")
    parser.add_argument(
        "--waiting", nargs="+", choices=WAITING, default=WAITING, help="how threads wait for each other"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, default=RESULTS / "loaded.json")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    if load > 1:
        print(f"load {load:.1f} before the first run: the figures are not those of a quiet machine", file=sys.stderr)
    if options.steps <= WARM_UP or min(options.loaded - 1, options.rounds) < 1 or "passive" not in options.waiting:
        parser.error(
            f"--steps above {WARM_UP}, --loaded above 1, --rounds above 0 and `passive` among --waiting: it has the limit"
        )
    found = measure(options.busy, options.threads, options.waiting, options.steps, options.loaded, options.rounds)
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))
    waiting = found["waiting"]
    assert isinstance(waiting, dict)
    holds = waiting["passive"]["of_fair_share"] >= LIMIT
    print("within the limit" if holds else "below the limit")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
