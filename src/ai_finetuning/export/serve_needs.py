"""The packages that `aift serve` needs beside the toolkit's own. Needs no torch."""

from __future__ import annotations

import importlib.util

from ..errors import ModelError

NEEDED = ("fastapi", "uvicorn", "openai")


def validate_server() -> None:
    """Raises ModelError with the way out where a package that the server needs is missing."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ModelError(
            f"aift serve には {', '.join(missing)} が必要です。`pip install 'ai-finetuning-toolkit[serve]'` してください。",
            f"aift serve needs {', '.join(missing)}: `pip install 'ai-finetuning-toolkit[serve]'`.",
        )
