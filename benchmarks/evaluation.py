"""What an evaluation costs on one thread, in CPU seconds: JCommonsenseQA with three examples, the same with a forward pass for
each choice, the start of the command, and a model before and after in one command.

OMP_NUM_THREADS=1 python -m benchmarks.evaluation                 # prints JSON
OMP_NUM_THREADS=1 python -m benchmarks.evaluation --json FILE     # and writes it
OMP_NUM_THREADS=1 python -m benchmarks.evaluation --questions 200 # a quicker look

kotoha-tiny in fp32 and the questions of AIFT_SHARED. The adapter of the last part is trained for 100 steps on kotoha-qa first, which
is not counted. What the libraries alone take to import is measured beside the start. CPU seconds of a machine that others use are up to a third too high;
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

from ai_finetuning import embedded
from ai_finetuning.evaluation.before_after import plan, sides_of
from ai_finetuning.evaluation.likelihood import QuestionScorer
from ai_finetuning.evaluation.tasks import Asked, find_tasks
from ai_finetuning.inference.session import open_model

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
    """Seconds of `aift COMMAND` in a process of its own."""
    return of_python("-m", "ai_finetuning", *command)


def of_python(*arguments: str) -> Spent:
    """Seconds of another Python, its children included."""

    def run() -> None:
        done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"python {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr[-2000:]}")

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


def main() -> None:
    """Measures, prints, and writes where asked."""
    given = arguments()
    found: dict[str, Any] = {"machine": machine(), **choices(given.shared, given.questions)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        libraries = of_python("-c", "import torch, transformers, peft, transformers.models.llama.modeling_llama")
        found |= {"importing_libraries_cpu_s": libraries.cpu}
        first = of_command("eval", MODEL, "--tasks", "prose", "--limit", "1", "--out", str(folder / "first"))
        found |= {"start_to_first_score_cpu_s": first.cpu, "start_to_first_score_wall_s": first.wall}
        of_command(
            "train", f"model={MODEL}", "method=lora", "lora.r=64", "data.train=embedded:kotoha-qa", "data.max_length=96",
            "learning_rate=3e-3", "training.schedule.max_steps=100", "training.batch_size=32",
            "training.gradient_accumulation_steps=1", f"training.output_dir={folder / 'run'}",
        )  # fmt: skip
        whole = of_command(
            "eval", str(folder / "run"), "--data", str(embedded.data_file("embedded:kotoha-qa/held_out_phrasings")),
            "--tasks", "data,prose,jcommonsenseqa,jnli", "--tasks-from", str(given.shared / "data" / "eval"),
            "--limit", "300", "--out", str(folder / "both"),
        )  # fmt: skip
        found |= {"before_and_after_cpu_s": whole.cpu, "before_and_after_wall_s": whole.wall}
    report({**found, "goals": GOALS}, given.json)


if __name__ == "__main__":
    main()
