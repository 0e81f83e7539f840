"""metrics.jsonl: one JSON object a line, the source of truth of a run's numbers."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete lines of a metrics file; a half-written last line is left out."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


class MetricsFile:
    """Appends rows; on resume the rows after the checkpoint's step are cut first."""

    def __init__(self, path: Path, *, keep_until_step: int = 0) -> None:
        self._path = path
        kept = [row for row in read_metrics(path) if row["step"] <= keep_until_step]
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text("".join(self._line(row) for row in kept), encoding="utf-8")
        os.replace(temporary, path)
        self._file = path.open("a", encoding="utf-8")

    @staticmethod
    def _line(row: dict[str, Any]) -> str:
        clean = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()
        }
        return json.dumps(clean, ensure_ascii=False) + "\n"

    def write(self, row: dict[str, Any]) -> None:
        """Appends one row; numbers that are not finite become null."""
        self._file.write(self._line(row))
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def text_metrics(loss_sum: float, tokens: int, characters: int | None) -> dict[str, float | None]:
    """Held-out numbers: nats per token, perplexity, and bits per character, which compares across tokenizers."""
    loss = loss_sum / max(1, tokens)
    return {
        "eval_loss": loss,
        "eval_perplexity": math.exp(loss) if loss < 700 else math.inf,
        "eval_bits_per_character": loss_sum / math.log(2) / characters if characters else None,
    }
