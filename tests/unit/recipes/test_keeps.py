"""The table of what replay keeps: the demo trains by a row of it that holds both goals, and both pages have all rows."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from tests.support.scripts import script

from ai_finetuning import embedded
from ai_finetuning.config.load import load_config
from ai_finetuning.trainers.demo import KEEPING_EPOCHS, lesson

ROOT = Path(__file__).resolve().parents[3]
KEEPS = script("recipes/kotoha-tiny/keeps.py")
with KEEPS.TABLE.open(encoding="utf-8", newline="") as file:
    ROWS = list(csv.DictReader(file))


def settings_of(row: dict[str, str]) -> dict[str, str]:
    return KEEPS.SETTINGS | dict(item.split("=", 1) for item in row["settings"].split())


def test_the_demo_trains_by_the_row_that_holds_both_goals(tmp_path: Path):
    (row,) = [row for row in ROWS if float(row["phrasings"]) >= 90 and float(row["to"]) <= 0.05]
    asked = load_config(None, [f"{key}={value}" for key, value in settings_of(row).items()])
    demo = lesson("lora", embedded.MODEL, tmp_path, epochs=KEEPING_EPOCHS, keeps=True)
    assert (asked.method, asked.lora.r, asked.lora.lora_alpha) == (demo.method, demo.lora.r, demo.lora.lora_alpha)
    assert asked.lora.lora_dropout == demo.lora.lora_dropout
    for name in ("path", "share", "distill"):
        assert getattr(asked.data.replay, name) == getattr(demo.data.replay, name)
    assert (asked.data.max_length, asked.data.on_long) == (demo.data.max_length, demo.data.on_long)
    for name in ("learning_rate", "batch_size", "gradient_accumulation_steps", "num_epochs"):
        assert getattr(asked.training, name) == getattr(demo.training, name)
    assert asked.training.schedule.name == demo.training.schedule.name
    assert asked.training.runtime.seed == demo.training.runtime.seed


@pytest.mark.parametrize("page", ["docs/evaluation.md", "docs/evaluation.ja.md"])
def test_both_pages_have_every_row(page: str):
    lines = [line.replace("**", "") for line in (ROOT / page).read_text(encoding="utf-8").splitlines()]
    for row in ROWS:
        given = settings_of(row)
        start = [given["data.replay.share"], given.get("data.replay.distill", "–"), given["learning_rate"]]
        start += [given["lora.r"], given["num_epochs"]]
        rest = f"{row['forgotten']} [{row['from']}, {row['to']}] | {row['phrasings']} % | {row['facts']} % | "
        assert f"| {' | '.join(start)} | {rest}{row['cpu_seconds']} |" in lines
