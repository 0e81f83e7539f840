"""The first day of a newcomer, step by step in a terminal: tries, seconds until the first character, seconds until the end.

    python -m benchmarks.first_day [--language ja|en] [--columns 80] [--json FILE]

Every step is a command as the README shows it, typed once; a step that fails is a failure of this benchmark. Beside other
work the seconds mean little: run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.journeys.desk import furnish
from tests.support.terminal import Seen, Terminal

from ai_finetuning import embedded

RUN = ["model=my-model", "method=lora", "data.train=faq.csv", "data.eval=0.1", "learning_rate=3e-3"]
# (what a newcomer wants, what is typed); later steps use what earlier ones left.
STEPS: list[tuple[str, list[str]]] = [
    ("look around", []),
    ("version", ["version"]),
    ("help", ["--help"]),
    ("help of a verb", ["train", "-h"]),
    ("which models fit", ["models"]),
    ("plan of a CP932 table", ["plan", *RUN, "num_epochs=10"]),
    ("train on it", ["train", *RUN, "num_epochs=10", "training.output_dir=outputs/faq"]),
    ("ask with and without", ["generate", "outputs/faq", "送料について教えてください。", "--compare", "--greedy"]),
    (
        "answer a file",
        ["answer", "outputs/faq", "質問一覧.csv", "--out", "回答.csv", "--greedy", "--max-new-tokens", "32"],
    ),
    (
        "start from a workbook",
        ["start", "社内 FAQ.xlsx", "--yes", "--model", "my-model", "--preset", "quick", "--out", "outputs/book"],
    ),
    ("longer", ["resume", "outputs/faq", "num_epochs=12"]),
    (
        "go on with new rows",
        ["train", "--from", "outputs/faq", "data.train=追加.csv", "training.output_dir=outputs/more"],
    ),
    ("merge", ["merge", "outputs/faq", "--out", "merged"]),
    ("for vLLM", ["export", "vllm", "merged", "--out", "for-vllm"]),
    ("quantize", ["quantize", "merged", "--bits", "8", "--out", "small"]),
    ("carry a model", ["bundle", "my-model", "--out", "carried"]),
    ("check it there", ["bundle", "verify", "carried"]),
    ("two processes", ["train", *RUN, "max_steps=3", "--cpu-processes", "2", "training.output_dir=outputs/two"]),
    ("a slip: model", ["chat", "my-modl"]),
    ("a slip: file", ["train", "model=my-model", "data.train=faqq.csv"]),
]
SLIPS = {"a slip: model", "a slip: file"}


def main() -> None:
    """Types every step and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--language", choices=("ja", "en"), default="ja")
    parser.add_argument("--columns", type=int, default=80)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="aift-first-day-") as name:
        desk = furnish(Path(name) / "desk")
        shutil.copytree(embedded.model_folder(embedded.MODEL), desk / "my-model")
        with (desk / "追加.csv").open("w", encoding="cp932", newline="") as file:
            csv.writer(file).writerows(
                [["質問", "回答"], *([f"新しい質問{n}？", f"新しい答え{n}。"] for n in range(8))]
            )
        terminal = Terminal(desk, columns=options.columns, language=options.language, cache=Path(name) / "cache")
        for what, typed in STEPS:
            seen = terminal.run(*typed, seconds=900)
            rows.append(described(what, typed, seen))
            print(f"{what:24} first {seen.first:5.2f} s  whole {seen.seconds:6.1f} s  exit {seen.code}", flush=True)
    failed = [row["step"] for row in rows if (row["exit"] == 0) == (row["step"] in SLIPS)]
    if options.json is not None:
        report = {
            "python": platform.python_version(),
            "machine": platform.platform(),
            "language": options.language,
            "steps": rows,
        }
        options.json.write_text(json.dumps(report, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    if failed:
        sys.exit(f"not at the first try: {', '.join(failed)}")


def described(what: str, typed: list[str], seen: Seen) -> dict[str, Any]:
    """A step as a row of the report."""
    return {
        "step": what,
        "typed": " ".join(["aift", *typed]),
        "exit": seen.code,
        "tries": 1,
        "first_character_s": round(seen.first, 3),
        "seconds": round(seen.seconds, 2),
    }


if __name__ == "__main__":
    main()
