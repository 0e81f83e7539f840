"""Training beside other processes: what is left of its speed, as a share of what the system gives it.

python benchmarks/loaded.py              # seven minutes on two quiet cores; prints and writes the result
python benchmarks/loaded.py --waiting passive --steps 10        # two minutes: only what has the limit

Ten processes that never rest run beside a LoRA run of embedded:kotoha-tiny with packing. Its fair share of its quiet
speed is what the scheduler gives its threads: processors / (threads + busy processes). With OpenMP's threads that sleep
while they wait, as `aift` has them, it keeps at least 80 % of that; with threads that spin, a fifth.
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
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 0.8
STEPS, WARM_UP = 14, 4
WAITING = ("passive", "active")
RESULTS = ROOT / "benchmarks" / "results"


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """So many that never rest."""
    began = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in began:
            process.kill()
            process.wait()


def speed(policy: str, threads: int, steps: int) -> float:
    """Tokens a second of the steps after the warm-up, from the run's own record."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": str(threads)}
    environment["OMP_WAIT_POLICY"] = policy
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        settings = ["data.train=embedded:kotoha-qa", "data.packing=true", "data.max_length=256"]
        settings += [f"training.schedule.max_steps={steps}", f"training.output_dir={out}", "data.eval=null"]
        settings += ["training.batch_size=4", "training.gradient_accumulation_steps=1"]
        settings += ["training.runtime.report_samples=0", "training.runtime.progress=false"]
        command = [sys.executable, "-m", "ai_finetuning", "train", *settings]
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if "seconds" in row]
    pairs = zip(rows, rows[1:], strict=False)
    rates = [(row["tokens"] - before["tokens"]) / row["seconds"] for before, row in pairs]
    return statistics.median(rates[WARM_UP - 1 :])


def measure(busy: int, threads: int, policies: Sequence[str], steps: int) -> dict[str, object]:
    """Quiet and loaded speeds of each way of waiting, which take turns."""
    fair = min(1.0, (os.cpu_count() or 1) / (threads + busy))
    rows = {}
    for policy in policies:
        quiet = speed(policy, threads, steps)
        with busy_processes(busy):
            beside = speed(policy, threads, steps)
        rows[policy] = {
            "quiet_tokens_per_second": round(quiet),
            "loaded_tokens_per_second": round(beside),
            "of_fair_share": round(beside / (quiet * fair), 3),
        }
    return {
        "busy_processes": busy,
        "threads": threads,
        "processors": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "waiting": rows,
        "python": platform.python_version(),
        "processor": platform.processor() or platform.machine(),
    }


def main() -> int:
    """Measures, writes the result, and says whether the limit holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--busy", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of a run, of which {WARM_UP} are not counted")
    parser.add_argument(
        "--waiting", nargs="+", choices=WAITING, default=WAITING, help="how threads wait for each other"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "loaded.json")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    if load > 1:
        print(f"load {load:.1f} before the first run: the figures are not those of a quiet machine", file=sys.stderr)
    if options.steps <= WARM_UP or "passive" not in options.waiting:
        parser.error(f"--steps has to be above {WARM_UP}, and `passive` among --waiting: it has the limit")
    found = measure(options.busy, options.threads, options.waiting, options.steps)
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))
    waiting = found["waiting"]
    assert isinstance(waiting, dict)
    holds = waiting["passive"]["of_fair_share"] >= LIMIT
    print("within the limit" if holds else "below the limit")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
