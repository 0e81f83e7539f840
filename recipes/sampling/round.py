"""One round of sampling on the model that ships, by the commands that docs/sampling.md explains.

    python recipes/sampling/round.py OUT [--seed N]

A start of few supervised steps on one part of `embedded:kotoha-qa`, then `aift sample`, `aift score --by exact`,
`aift train --from` on the right answers and `aift eval` on held-out phrasings. The questions that are sampled are of the
other part: their answers only judge, no training reads them. OUT must not exist.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ai_finetuning import embedded

START_ROWS, ASKED = 600, 900
START_STEPS, ROUND_STEPS = 100, 200
COMMON = (
    *("method=lora", "data.max_length=128", "batch_size=16", "gradient_accumulation_steps=1"),
    *("training.schedule.name=cosine", "save_steps=1000000", "gradient_checkpointing=false"),
    "training.evaluation.verdict=false",
)


def aift(*arguments: object) -> None:
    """Prints a command, runs it, and says what CPU time it took."""
    words = [str(item) for item in arguments]
    print("\n$ aift " + " ".join(words), flush=True)
    before = os.times()
    subprocess.run([sys.executable, "-m", "ai_finetuning", *words], check=True)
    after = os.times()
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    print(f"# {seconds:.0f} CPU seconds", flush=True)


def write(path: Path, pairs: Sequence[tuple[str, str]]) -> Path:
    """Questions with their answers as JSON lines."""
    lines = [json.dumps({"質問": question, "回答": answer}, ensure_ascii=False) + "\n" for question, answer in pairs]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def main() -> None:
    """The round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    out, seed = given.out, given.seed
    out.mkdir(parents=True)
    pairs = list(dict.fromkeys(embedded.questions("train")))
    random.Random(seed).shuffle(pairs)
    start = write(out / "start.jsonl", pairs[:START_ROWS])
    asked = write(out / "asked.jsonl", pairs[START_ROWS : START_ROWS + ASKED])
    tested = write(out / "held_out.jsonl", pairs[START_ROWS + ASKED :])

    chosen = ("training.runtime.seed=" + str(seed), *COMMON)
    aift("train", "model=embedded:kotoha-tiny", f"data.train={start}", f"output_dir={out / 'start'}", *chosen,
         "learning_rate=3e-3", "lora.r=64", "lora.lora_alpha=64", "lora.lora_dropout=0", f"training.schedule.max_steps={START_STEPS}")  # fmt: skip
    aift("sample", out / "start", asked, "--out", out / "samples.jsonl", "-k", 8, "--seed", seed,
         "--max-new-tokens", 32, "--batch-size", 64)  # fmt: skip
    aift("score", out / "samples.jsonl", "--by", "exact", "--sft", out / "right.jsonl", "--pairs", out / "pairs.jsonl")
    aift("train", "--from", out / "start", f"data.train={out / 'right.jsonl'}", f"output_dir={out / 'round'}", *chosen,
         "learning_rate=4e-4", f"training.schedule.max_steps={ROUND_STEPS}")  # fmt: skip
    aift("eval", out / "round", "--before", out / "start", "--data", tested, "--tasks", "data", "--out", out / "eval")


if __name__ == "__main__":
    main()
