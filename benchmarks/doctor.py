"""What the data doctor costs, in CPU seconds of one thread: the rules for each 10,000 rows, near duplicates and leakage of
100,000 rows, and how much memory that takes.

OMP_NUM_THREADS=1 python -m benchmarks.doctor              # prints JSON
OMP_NUM_THREADS=1 python -m benchmarks.doctor --json FILE  # and writes it
OMP_NUM_THREADS=1 python -m benchmarks.doctor --rows 10000 # a quicker look

The rows are those of dolly_ja_train; 100,000 are made from them by replacing a third of the characters, anew for each copy,
so that hardly two are near. CPU seconds of a machine that others use are up to a third too high; wall seconds stand beside
them and say little there.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import random
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ai_finetuning.data.doctor.duplicates import Pair, near_pairs
from ai_finetuning.data.doctor.examination import hits_of, pair_of, read_samples
from ai_finetuning.data.doctor.leakage import find_leakage
from ai_finetuning.data.doctor.rules import RULES

ROOT = Path(__file__).resolve().parents[1]
# The most that each may take (CPU seconds; MB).
GOALS = {"rules_per_10k_cpu_s": 5.0, "near_duplicates_cpu_s": 45.0, "leakage_cpu_s": 60.0, "megabytes": 500}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="rows of near duplicates and leakage")
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("AIFT_SHARED", ROOT.parent / "shared")))
    parser.add_argument("--json", type=Path, default=None, help="file for the result")
    return parser.parse_args()


@dataclass(frozen=True)
class Spent:
    """Seconds of a processor, and of a clock."""

    cpu: float
    wall: float


def spent(work: Callable[[], Any]) -> Spent:
    """What some work takes in this process."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return Spent(round(time.process_time() - cpu, 2), round(time.perf_counter() - wall, 2))


def machine() -> dict[str, Any]:
    """What the figures depend on, and how busy it was."""
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "numpy")}
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "versions": versions,
    }


def report(result: dict[str, Any], path: Path | None) -> None:
    """Prints a result, and writes it where asked."""
    text = json.dumps(result, indent=1, ensure_ascii=False)
    print(text)
    if path is not None:
        path.write_text(text + "\n", encoding="utf-8")


def made(pairs: list[Pair], rows: int) -> list[Pair]:
    """So many rows of other words and the same lengths."""
    draw = random.Random(0)

    def other(text: str) -> str:
        letters = list(text)
        for _ in range(len(letters) // 3 + 1 if letters else 0):
            letters[draw.randrange(len(letters))] = chr(0x4E00 + draw.randrange(3000))
        return "".join(letters)

    chosen = (pairs[index % len(pairs)] for index in range(rows))
    return [Pair(other(item.question), other(item.material), other(item.answer)) for item in chosen]


def main() -> None:
    """Measures and prints."""
    given = arguments()
    samples = read_samples(given.shared / "data" / "instruct" / "dolly_ja_train.jsonl.gz").samples
    per_rule = {rule.key: spent(partial(hits_of, samples, [rule])).cpu for rule in RULES if rule.find is not None}
    rules = spent(lambda: hits_of(samples))
    pairs = made([pair_of(sample) for sample in samples], given.rows)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    duplicates = spent(lambda: near_pairs(pairs))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    evaluated = max(1, given.rows // 10)
    leakage = spent(lambda: find_leakage(pairs[evaluated:], pairs[:evaluated]))
    result = {
        "machine": machine(),
        "rows": given.rows,
        "characters_of_an_answer": round(sum(len(item.answer) for item in pairs) / len(pairs)),
        "rules_per_10k_cpu_s": round(rules.cpu * 10_000 / len(samples), 2),
        "rules_per_10k_wall_s": round(rules.wall * 10_000 / len(samples), 2),
        "near_duplicates_cpu_s": duplicates.cpu,
        "near_duplicates_wall_s": duplicates.wall,
        "leakage_cpu_s": leakage.cpu,
        "leakage_wall_s": leakage.wall,
        "megabytes": grown // 1024,
        "rules_cpu_s": per_rule,
        "goals": GOALS,
    }
    report(result, given.json)


if __name__ == "__main__":
    main()
