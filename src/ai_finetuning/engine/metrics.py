"""metrics.jsonl: one JSON object a line, the source of truth of a run's numbers."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

from ..messages import warn
from ..system.files import write_in_place

_FIGURES = frozenset(
    ("step", "total_steps", "epoch", "loss", "grad_norm", "learning_rate", "tokens", "label_tokens", "seconds", "time")
    + ("eval_loss", "eval_perplexity", "eval_bits_per_character", "eval_tokens", "tokens_per_second")
)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete lines of a metrics file; a half-written last line is left out, and what is no row of ours."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int) and all(map(_is_figure, row.items())):
            rows.append(row)
    return rows


def _is_figure(item: tuple[str, Any]) -> bool:
    """Whether an entry of a row is no figure of ours, or is one that a float can hold, or is missing."""
    key, value = item
    of_answers = key.removeprefix("eval_").startswith(("rewards/", "logps/"))
    if not (key in _FIGURES or of_answers) or value is None:
        return True
    return isinstance(value, int | float) and (isinstance(value, float) or abs(value) < 2**63)


class MetricsFile:
    """Appends rows; on resume the rows after the checkpoint's step are cut first.

    Where the disk is full, rows wait in memory until there is room again.

    Args:
        path: None for a process that writes nothing.
    """

    def __init__(self, path: Path | None, *, keep_until_step: int = 0) -> None:
        if path is None:
            path = Path(os.devnull)
            self._path, self._file, self._waiting, self._warned = path, path.open("ab", buffering=0), b"", True
            return
        kept = [row for row in read_metrics(path) if row["step"] <= keep_until_step]
        write_in_place(path, "".join(self._line(row) for row in kept).encode("utf-8"))
        self._path = path
        self._file = path.open("ab", buffering=0)
        self._waiting = b""
        self._warned = False

    @staticmethod
    def _line(row: dict[str, Any]) -> str:
        clean = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()
        }
        return json.dumps(clean, ensure_ascii=False) + "\n"

    def write(self, row: dict[str, Any]) -> None:
        """Appends one row with the time, in seconds since 1970; numbers that are not finite become null."""
        self._waiting += self._line(row | {"time": round(time.time(), 3)}).encode("utf-8")
        self._flush()

    def _flush(self) -> None:
        try:
            while self._waiting:
                self._waiting = self._waiting[self._file.write(self._waiting) or 0 :]
        except OSError as error:
            if not self._warned:
                warn(
                    f"{self._path} に書き込めません（{error}）。数値はメモリーに残し、学習を続けます。",
                    f"{self._path} cannot be written ({error}); its rows stay in memory and training continues.",
                )
            self._warned = True

    def close(self) -> None:
        """Closes the file."""
        self._flush()
        self._file.close()


def text_metrics(loss_sum: float, tokens: int, characters: int | None) -> dict[str, float | None]:
    """Evaluation metrics: nats per token, perplexity, and bits per character, which compares across tokenizers."""
    loss = loss_sum / max(1, tokens)
    return {
        "eval_loss": loss,
        "eval_perplexity": perplexity(loss),
        "eval_bits_per_character": bits_per_character(loss_sum, characters),
    }


def perplexity(loss: float) -> float:
    """exp of the mean loss in nats; infinite beyond what a float holds."""
    return math.exp(loss) if loss < 700 else math.inf


def bits_per_character(nats: float, characters: float | None) -> float | None:
    """Bits for each character of a text whose tokens lost so many nats in all; None where its length is not known."""
    return nats / math.log(2) / characters if characters else None
