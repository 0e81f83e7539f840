"""What an evaluation costs on one thread, in CPU seconds: JCommonsenseQA with three examples, the same with a forward pass for
each choice, the start of the command, and a model before and after in one command.

OMP_NUM_THREADS=1 python -m benchmarks.evaluation                 # prints JSON
OMP_NUM_THREADS=1 python -m benchmarks.evaluation --json FILE     # and writes it
OMP_NUM_THREADS=1 python -m benchmarks.evaluation --questions 200 # a quicker look

kotoha-tiny in fp32 and the questions of AIFT_SHARED. The adapter of the last part has learnt nothing, so that its answers are
as long as those of its base: trained ones end earlier. CPU seconds of a machine that others use are up to a third too high;
wall seconds stand beside them.
"""

from __future__ import annotations

import argparse
import math
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from ai_finetuning import embedded
from ai_finetuning.evaluation.before_after import plan, sides_of
from ai_finetuning.evaluation.likelihood import QuestionScorer
from ai_finetuning.evaluation.tasks import Asked, find_tasks
from ai_finetuning.inference.session import open_model
from ai_finetuning.models.adapters import add_lora

from .doctor import Spent, machine, report, spent

ROOT = Path(__file__).resolve().parents[1]
MODEL = "embedded:kotoha-tiny"
# Items that are scored one forward pass a choice.
PLAIN = 24
# The most that each may take (CPU seconds), the least that each has to reach.
GOALS = {
    "jcommonsenseqa_cpu_s": 25.0,
    "start_to_first_score_cpu_s": 5.0,
    "before_and_after_cpu_s": 60.0,
    "times_as_fast_as_plain": 10.0,
    "largest_difference_nats": 1e-4,
}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=None, help="of JCommonsenseQA; all of them where left out")
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("AIFT_SHARED", ROOT.parent / "shared")))
    parser.add_argument("--json", type=Path, default=None, help="file for the result")
    return parser.parse_args()


def of_command(*command: str) -> Spent:
    """Seconds of `aift COMMAND` in a process of its own, its children included."""

    def run() -> None:
        done = subprocess.run(
            [sys.executable, "-m", "ai_finetuning", *command], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"aift {' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    wall = spent(run)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Spent(round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2), wall.wall)


def choices(shared: Path, count: int | None) -> dict[str, Any]:
    """JCommonsenseQA in the shared way, and a few of its items in the plain one."""
    tasks, _ = find_tasks(Asked(tasks=("jcommonsenseqa",), folder=shared / "data" / "eval", limit=count))
    (task,) = plan(sides_of(MODEL, None), tasks).tasks
    opened = open_model(MODEL, dtype="float32")
    questions = task.questions(opened.tokenizer)
    scores: list[Any] = []

    def score() -> None:
        scores.extend(QuestionScorer(opened.model, opened.tokenizer, questions).score(range(len(questions))))

    whole = spent(score)
    plain = QuestionScorer(opened.model, opened.tokenizer, questions[:PLAIN], way="plain")
    one_by_one: list[Any] = []
    slow = spent(lambda: one_by_one.extend(plain.score(range(PLAIN))))
    pairs = [
        (mine, other)
        for ours, theirs in zip(scores[:PLAIN], one_by_one, strict=True)
        for mine, other in zip(ours, theirs, strict=True)
    ]
    rate, plain_rate = len(questions) / whole.cpu, PLAIN / slow.cpu
    return {
        "questions": len(questions),
        "jcommonsenseqa_cpu_s": whole.cpu,
        "jcommonsenseqa_wall_s": whole.wall,
        "questions_per_cpu_s": round(rate, 1),
        "plain_questions_per_cpu_s": round(plain_rate, 2),
        "times_as_fast_as_plain": round(rate / plain_rate, 1),
        "largest_difference_nats": max(math.fabs(mine.nats - other.nats) for mine, other in pairs),
        "same_greedy": all(mine.greedy == other.greedy for mine, other in pairs),
    }


def adapter(folder: Path) -> Path:
    """An adapter of kotoha-tiny that has learnt nothing."""
    torch.manual_seed(0)
    wrapped = add_lora(open_model(MODEL, dtype="float32").model, r=8, alpha=16, dropout=0.0)
    wrapped.save_pretrained(str(folder), safe_serialization=True)
    return folder


def main() -> None:
    """Measures, prints, and writes where asked."""
    given = arguments()
    found: dict[str, Any] = {"machine": machine(), **choices(given.shared, given.questions)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first = of_command("eval", MODEL, "--tasks", "prose", "--limit", "1", "--out", str(folder / "first"))
        found |= {"start_to_first_score_cpu_s": first.cpu, "start_to_first_score_wall_s": first.wall}
        whole = of_command(
            "eval", str(adapter(folder / "adapter")), "--data", str(embedded.data_file("embedded:kotoha-qa/held_out_phrasings")),
            "--tasks", "data,prose,jcommonsenseqa,jnli", "--tasks-from", str(given.shared / "data" / "eval"),
            "--limit", "300", "--out", str(folder / "both"),
        )  # fmt: skip
        found |= {"before_and_after_cpu_s": whole.cpu, "before_and_after_wall_s": whole.wall}
    report({**found, "goals": GOALS}, given.json)


if __name__ == "__main__":
    main()
