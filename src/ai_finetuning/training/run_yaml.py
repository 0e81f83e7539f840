"""config.yaml of a run: what was given, and what was derived beside it as comments."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import yaml

from ..config.load import to_plain
from ..config.run import RunConfig

if TYPE_CHECKING:
    from .resolve import Derived, RunPlan


def given_yaml(config: RunConfig) -> str:
    """The settings that were given."""
    values = to_plain(config, given_only=True)
    values.setdefault("model", {})["name"] = config.model.name
    values["method"] = config.method
    if config.trains_all:
        values.pop("lora", None)  # without effect, and refused beside method: full
    return str(yaml.safe_dump(values, allow_unicode=True, sort_keys=False, width=120))


def run_yaml(plan: RunPlan, derived: Derived) -> str:
    """The same, and a comment for each setting that the run derived."""
    lines = [f"# derived: {name}: {value}" for name, value in asdict(derived).items() if name != "chat_template"]
    return given_yaml(plan.request.config) + "\n".join(lines) + "\n"
