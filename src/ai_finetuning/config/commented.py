"""A run.yaml for people: what is set, with what it means above it, and what else is often changed as comments."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import prefers_japanese
from .describe import Setting, settings
from .yaml_text import dump_yaml

# Settings that are shown as comments with their defaults where they are not set.
OFTEN_CHANGED = (
    "model.chat_template",
    "data.eval",
    "data.max_length",
    "data.columns",
    "data.sheet",
    "data.system_prompt",
    "data.packing",
    "data.skip_bad_rows",
    "training.learning_rate",
    "training.batch_size",
    "training.gradient_accumulation_steps",
    "training.num_epochs",
    "training.output_dir",
    "training.evals_per_epoch",
    "training.schedule.max_steps",
    "training.checkpoint.load_best",
    "training.runtime.early_stopping_patience",
    "training.runtime.seed",
    "lora.r",
    "lora.lora_alpha",
    "lora.lora_dropout",
)
# Those of a run that learns from pairs of answers, or from marked ones.
OFTEN_CHANGED_OF = {
    "preference": ("preference.loss", "preference.beta", "preference.sft_weight"),
    "kto": ("preference.beta", "preference.desirable_weight", "preference.undesirable_weight"),
}
_WIDTH = 100


def commented_yaml(values: Mapping[str, Any], head: Sequence[str] = ()) -> str:
    """YAML that load_config reads back to these settings, in the order and with the texts of the settings themselves, in
    the user's language.

    Args:
        values: by dotted name (`training.num_epochs`).
        head: lines above everything, without their #.
    """
    every = settings()
    often = OFTEN_CHANGED + OFTEN_CHANGED_OF.get(str(values.get("objective")), ())
    shown = [item for item in every if not item.is_section and (item.key in values or item.key in often)]
    lines = [f"# {line}" for line in head]
    opened: set[str] = set()
    for item in shown:
        parts = item.key.split(".")
        for depth in range(1, len(parts)):
            section = ".".join(parts[:depth])
            if section not in opened:
                opened.add(section)
                live = any(key.startswith(f"{section}.") for key in values)
                lines += [*([""] if depth == 1 else []), _line(depth - 1, f"{parts[depth - 1]}:", live=live)]
        if len(parts) == 1:
            lines.append("")
        lines += _setting(item, len(parts) - 1, values)
    return "\n".join(lines).lstrip("\n") + "\n"


def _setting(item: Setting, depth: int, values: Mapping[str, Any]) -> list[str]:
    name = item.key.split(".")[-1]
    text = item.text(japanese=prefers_japanese())
    about = textwrap.wrap(text, _WIDTH, break_long_words=False, break_on_hyphens=False)
    lines = ["  " * depth + f"# {line}" for line in about]
    if item.key not in values:
        return [*lines, _line(depth, f"{name}: {item.default}", live=False)]
    return lines + [_line(depth, line, live=True) for line in dump_yaml({name: values[item.key]}).splitlines()]


def _line(depth: int, text: str, *, live: bool) -> str:
    return "  " * depth + ("" if live else "# ") + text
