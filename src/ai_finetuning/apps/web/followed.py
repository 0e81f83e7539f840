"""What a server remembers of a batch of answers while somebody follows it."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Followed:
    """What a server remembers of a job while it is followed: nothing that its folder does not tell.

    Attributes:
        questions: rows of questions.jsonl.
        answers: by the place of the question; None where it could not be asked.
        seen: of the file that they come from.
        began: when somebody looked first, and how many were answered then.
        measured: by place the answer that was compared with the expected ones, and how near it is by each metric.
        lock: of whoever reads or changes the rest: a page asks for progress and rows at once.
    """

    questions: list[dict[str, Any]]
    answers: dict[int, str | None] = field(default_factory=dict)
    seen: tuple[str, int, int] = ("", 0, 0)
    began: tuple[float, int] = (0.0, -1)
    measured: dict[int, tuple[str | None, dict[str, float]]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def compare(self) -> None:
        """Measures the answers that are new."""
        from ...evaluation.answers import best_of, metrics_for

        every = [item["expected"][0] for item in self.questions if item.get("expected")]
        metrics = dict.fromkeys(("exact", *metrics_for(every)))
        for place, told in self.answers.items():
            expected = self.questions[place].get("expected")
            if told is not None and expected and self.measured.get(place, (None, {}))[0] != told:
                self.measured[place] = (told, {name: best_of(name, told, expected) for name in metrics})
