"""DPO on kotoha-qa from a supervised start, by the commands of docs/preference.md:

    python recipes/kotoha-qa/preference.py OUT [--seed N] [--learning-rate RATE] [--no-answers]

Sixty supervised steps, sixty steps over the pairs of pairs.py, then `aift eval` against the start: held-out pairs and
general prose, and, without --no-answers, exact match on the held-out phrasings. OUT must not exist.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # `recipes`, where this is run by its path

from recipes.sampling.round import aift

COMMON = (
    *("model=embedded:kotoha-tiny", "max_steps=60", "batch_size=16", "gradient_accumulation_steps=1"),
    *("data.max_length=128", "training.schedule.name=cosine", "warmup_ratio=0.1"),
)
START = ("data.train=embedded:kotoha-qa", "learning_rate=3e-3", "lora.lora_alpha=16", "lora.lora_dropout=0")
PREFERENCE = ("objective=preference", "preference.sft_weight=1")
# Three times the rate has one more pair in a hundred right, and costs general prose over 0.05 bits per character.
RATE = "1e-4"


def main() -> None:
    """The start, the preference run, the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learning-rate", default=RATE)
    parser.add_argument("--no-answers", action="store_true", help="leaves exact match out, the longest part")
    given = parser.parse_args()
    out, common = given.out, (*COMMON, f"training.runtime.seed={given.seed}")
    out.mkdir(parents=True)
    start, preferred, pairs = out / "start", out / "preferred", out / "pairs"
    subprocess.run([sys.executable, str(Path(__file__).with_name("pairs.py")), str(pairs)], check=True)
    aift("train", *common, *START, f"output_dir={start}")
    aift("train", *common, *PREFERENCE, f"lora.adapter={start}", f"data.train={pairs / 'pairs.jsonl'}",
         f"learning_rate={given.learning_rate}", f"output_dir={preferred}")  # fmt: skip
    compare = ("eval", preferred, "--before", start)
    aift(*compare, "--data", pairs / "held_out_pairs.jsonl", "--out", out / "eval")
    if not given.no_answers:
        aift(*compare, "--data", "embedded:kotoha-qa/held_out_phrasings", "--tasks", "data", "--out", out / "answers")


if __name__ == "__main__":
    main()
