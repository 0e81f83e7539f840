"""The batches of a command that answers a file of questions, counted, and stopped between two of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest


@contextlib.contextmanager
def batches(most: int | None = None) -> Iterator[list[int]]:
    """A list that gets the number of conversations of every batch; behind `most` of them Ctrl-C is pressed."""
    from ai_finetuning.inference import answering

    original, asked = answering.generate_answers, []

    def counted(model: Any, tokenizer: Any, conversations: Any, **options: Any) -> Any:
        if len(asked) == most:
            raise KeyboardInterrupt
        asked.append(len(conversations))
        return original(model, tokenizer, conversations, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answering, "generate_answers", counted)
        yield asked
