"""How soon `aift train` answers: a mistyped file name is refused, and a run says its first line.

python benchmarks/startup.py             # ten rounds; writes benchmarks/results/startup.json and fails above the limits

The limits are those of a quiet machine: 1 s of CPU time for the refusal, 0.3 s until the first line of either.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CPU_LIMIT_SECONDS, FIRST_LINE_LIMIT_SECONDS = 1.0, 0.3
RESULTS = ROOT / "benchmarks" / "results" / "startup.json"


def first_line(arguments: list[str], folder: Path, *, refused: bool = False) -> tuple[float, float, str]:
    """(seconds until the first line, CPU seconds until the process was ended, the line) of `aift` with arguments.

    Args:
        refused: wait for the end and give what was said after the first line.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "AIFT_LANG": "en", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "ai_finetuning", *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline().strip()
        seconds = time.perf_counter() - began
        if refused:
            line = process.stdout.read().strip()
        else:
            process.kill()  # the first line is all that is asked for
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, line


def measure(rounds: int) -> dict[str, object]:
    """Medians over rounds that take turns."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "rows.jsonl").write_text('{"instruction": "1+1は？", "output": "2です。"}\n', encoding="utf-8")
        refused, began = [], []
        for _ in range(rounds):
            refused.append(first_line(["train", "data.train=rows.jsnol"], folder, refused=True))
            began.append(first_line(["train", "data.train=rows.jsonl", "training.output_dir=out"], folder))
    assert all("rows.jsonl" in line for _, _, line in refused), refused
    assert all("getting ready" in line for _, _, line in began), began
    return {
        "refusal_first_line_seconds": round(statistics.median(seconds for seconds, _, _ in refused), 3),
        "refusal_cpu_seconds": round(statistics.median(cpu for _, cpu, _ in refused), 3),
        "run_first_line_seconds": round(statistics.median(seconds for seconds, _, _ in began), 3),
        "rounds": rounds,
        "python": platform.python_version(),
        "processor": platform.processor() or platform.machine(),
    }


def main() -> int:
    """Measures, writes the result, and says whether the limits hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    found = measure(options.rounds)
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))
    holds = (
        float(str(found["refusal_cpu_seconds"])) < CPU_LIMIT_SECONDS
        and float(str(found["refusal_first_line_seconds"])) < FIRST_LINE_LIMIT_SECONDS
        and float(str(found["run_first_line_seconds"])) < FIRST_LINE_LIMIT_SECONDS
    )
    print("within the limits" if holds else "above a limit")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
