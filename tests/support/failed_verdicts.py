"""Verdicts that fail in a test which does not ask for it: a run survives that with a warning, so that nothing else shows it."""

from __future__ import annotations

import logging

# How the warning begins (execution/final_verdict.py).
SAID = ("there is no verdict (", "判定できませんでした（")

# The warnings since the last test, of this process and of those that it waited for.
FOUND: list[str] = []


def hear(text: str) -> None:
    """Keeps the lines of an output that say so."""
    FOUND.extend(line for line in text.splitlines() if any(said in line for said in SAID))


class _Ear(logging.Filter):
    """Passes everything on; a handler would change what the toolkit finds configured."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno == logging.WARNING:
            hear(record.getMessage())
        return True


def listen() -> None:
    """Hears the toolkit's warnings from now on."""
    logging.getLogger("ai_finetuning").addFilter(_Ear())
