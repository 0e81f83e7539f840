"""The same work on smaller batches where memory runs out."""

from __future__ import annotations

import pytest
import torch

from ai_finetuning.system.out_of_memory import with_smaller_batches


def fitting(limit: int, seen: list[int]):
    def work(size: int) -> str:
        seen.append(size)
        if size > limit:
            raise torch.OutOfMemoryError("too large\nand more")
        return f"done by {size}"

    return work


def test_the_size_is_halved_until_it_fits():
    seen: list[int] = []
    reported: list[tuple[int, str]] = []
    assert with_smaller_batches(fitting(3, seen), 13, lambda *halved: reported.append(halved)) == "done by 3"
    assert seen == [13, 6, 3]
    assert reported == [(6, "too large"), (3, "too large")]


def test_one_row_that_does_not_fit_is_an_error():
    with pytest.raises(torch.OutOfMemoryError):
        with_smaller_batches(fitting(0, []), 4, lambda *_: None)


def test_an_error_without_a_text_has_its_name_for_a_reason():
    reported: list[str] = []

    def work(size: int) -> int:
        if size > 1:
            raise MemoryError
        return size

    assert with_smaller_batches(work, 2, lambda _, reason: reported.append(reason)) == 1
    assert reported == ["MemoryError"]


def test_other_errors_pass():
    def work(size: int) -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        with_smaller_batches(work, 4, lambda *_: None)
