"""What the data doctor costs, in CPU seconds of one thread: the rules for each 10,000 rows, near duplicates and leakage of
100,000 rows, and how much memory that takes.

OMP_NUM_THREADS=1 python -m benchmarks.doctor              # prints JSON
OMP_NUM_THREADS=1 python -m benchmarks.doctor --rows 10000 # a quicker look

The rows are those of dolly_ja_train; 100,000 are made from them by replacing a third of the characters, anew for each copy,
so that hardly two are near. CPU seconds of a machine that others use are up to a third too high.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ai_finetuning.data.doctor.duplicates import Pair, near_pairs
from ai_finetuning.data.doctor.examination import hits_of, pair_of, read_samples
from ai_finetuning.data.doctor.leakage import find_leakage
from ai_finetuning.data.doctor.rules import RULES

ROOT = Path(__file__).resolve().parents[1]
# The most that each may take (CPU seconds; MB).
GOALS = {"rules_per_10k": 5.0, "near_duplicates": 45.0, "leakage": 60.0, "megabytes": 500}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="rows of near duplicates and leakage")
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("AIFT_SHARED", ROOT.parent / "shared")))
    return parser.parse_args()


def seconds(work: Callable[[], Any]) -> float:
    """CPU seconds that some work takes."""
    began = time.process_time()
    work()
    return round(time.process_time() - began, 2)


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
    per_rule = {
        rule.key: seconds(lambda rule=rule: hits_of(samples, [rule])) for rule in RULES if rule.find is not None
    }
    rules = seconds(lambda: hits_of(samples))
    pairs = made([pair_of(sample) for sample in samples], given.rows)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    duplicates = seconds(lambda: near_pairs(pairs))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    evaluated = max(1, given.rows // 10)
    leakage = seconds(lambda: find_leakage(pairs[evaluated:], pairs[:evaluated]))
    result = {
        "rows": given.rows,
        "characters_of_an_answer": round(sum(len(item.answer) for item in pairs) / len(pairs)),
        "rules_per_10k": round(rules * 10_000 / len(samples), 2),
        "near_duplicates": duplicates,
        "leakage": leakage,
        "megabytes": grown // 1024,
        "rules": per_rule,
        "goals": GOALS,
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
