"""What a training on kotoha-qa keeps of general Japanese: one row of keeps.csv for one setting (docs/evaluation.md).

    python recipes/kotoha-tiny/keeps.py OUT [--table FILE] [key=value ...]

OUT is the run's folder, key=value any setting of `aift train` beside those of SETTINGS. A row holds the share of right
answers to the held-out phrasings and to the held-out facts, and the bits per character of the `prose` task of
`aift eval` on whole passages: before, after, and what was forgotten, with its interval over works.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from pathlib import Path

from ai_finetuning import embedded
from ai_finetuning.config.load import load_config
from ai_finetuning.evaluation.answers import exact_match, grade
from ai_finetuning.evaluation.likelihood import score_texts
from ai_finetuning.evaluation.paired import compare_scores
from ai_finetuning.evaluation.tasks import prose
from ai_finetuning.execution.execute import execute
from ai_finetuning.execution.request import TrainRequest
from ai_finetuning.models.adapters import without_adapter
from ai_finetuning.models.japanese_model import JapaneseModel

TABLE = Path(__file__).with_name("keeps.csv")
# The demo's lesson, which the arguments change.
SETTINGS = {
    "model": embedded.MODEL,
    "method": "lora",
    "data.train": "embedded:kotoha-qa",
    "data.max_length": "512",
    "learning_rate": "3e-3",
    "batch_size": "16",
    "gradient_accumulation_steps": "1",
    "num_epochs": "8",
    "eval_steps": "1000000",
    "save_steps": "1000000",
    "logging_steps": "50",
    "gradient_checkpointing": "false",
    "training.schedule.name": "cosine",
    "training.runtime.seed": "0",
    "lora.r": "64",
    "lora.lora_alpha": "64",
    "lora.lora_dropout": "0",
}


def bits(model: JapaneseModel) -> list[float]:
    """Bits per character of each passage of the `prose` task."""
    texts = [item.text for item in prose().items]
    return [found.bits_per_character for found in score_texts(model.ensure_model(), model.ensure_tokenizer(), texts)]


def measured(model: JapaneseModel) -> dict[str, str]:
    """What a trained model knows, and what it has forgotten of what its base, the adapter off, knew."""
    trained = model.ensure_model()
    after = bits(model)
    with without_adapter(trained):
        before = bits(model)
    compared = compare_scores(before, after, groups=[item.group for item in prose().items], lower=True)
    low, high = compared.interval  # turned around: of what was kept
    parts = ("held_out_phrasings", "held_out_facts")
    right = [exact_match(grade(trained, model.ensure_tokenizer(), embedded.questions(part))) for part in parts]
    return {
        "phrasings": f"{100 * right[0]:.1f}",
        "facts": f"{100 * right[1]:.1f}",
        "prose_before": f"{compared.before:.3f}",
        "prose_after": f"{compared.after:.3f}",
        "forgotten": f"{compared.difference:+.3f}",
        "from": f"{-high:+.3f}",
        "to": f"{-low:+.3f}",
    }


def main() -> None:
    """Trains, measures, and adds the row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("settings", nargs="*")
    asked = parser.parse_intermixed_args()
    given = SETTINGS | dict(item.split("=", 1) for item in asked.settings)
    config = load_config(
        overrides=[f"{key}={value}" for key, value in given.items()] + [f"training.output_dir={asked.out}"]
    )
    model = JapaneseModel(embedded.MODEL)
    began = time.process_time()
    result = execute(TrainRequest(model, config, config.data.train))
    seconds = time.process_time() - began
    row = {
        "settings": " ".join(asked.settings),
        **measured(model),
        "cpu_seconds": f"{seconds:.0f}",
        "steps": str(result.history[-1]["step"]),
    }
    new = not asked.table.exists()
    with asked.table.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, row, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)
    print(row, file=sys.stderr)


if __name__ == "__main__":
    main()
