"""Several processes over streamed data: every row once, no process idle or waiting, and the losses of one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from tests.support.ranks import run_ranks
from tests.support.runs import ROWS, losses, train_lora

from ai_finetuning import DataConfig
from ai_finetuning.config.parallel import ParallelConfig
from ai_finetuning.data.collate import Batch
from ai_finetuning.data.streamed_loader import StreamedLoader

STEPS = 8  # a pass of six, whose last step has two rows, and two steps of the next


def train(rank: int, model: Path, folder: Path, ranks: int) -> list[list[list[int]]]:
    """One rank of a run; the rows that it has trained on, by step."""
    taken: list[list[list[int]]] = []
    usual = StreamedLoader.micro_batches

    def noted(self: StreamedLoader, epoch: int, index: int, size: int) -> list[Batch]:
        batches = usual(self, epoch, index, size)
        rows = [
            ids[mask.bool()].tolist()
            for batch in batches
            if batch.num_label_tokens and batch.attention_mask is not None
            for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)
        ]
        assert batches  # something to compute in every step, if only for the others
        taken.append(rows)
        return batches

    with mock.patch.object(StreamedLoader, "micro_batches", noted):
        extra: dict[str, Any] = {} if ranks == 1 else {"parallel": ParallelConfig(strategy="ddp")}
        train_lora(
            model,
            folder,
            rows=folder.parent / "rows.jsonl",
            data=DataConfig(max_length=64, streaming=True),
            lora={"lora_dropout": 0.0},
            schedule={"max_steps": STEPS},
            **extra,
        )
    return taken


@pytest.mark.parametrize("ranks", [2, 3])
def test_every_row_is_trained_on_once_and_the_losses_are_those_of_one_process(
    ranks: int, tiny_model_dir: Path, tmp_path: Path
):
    rows = "".join(json.dumps(row | {"note": "x" * 2**18}, ensure_ascii=False) + "\n" for row in ROWS)
    (tmp_path / "rows.jsonl").write_text(rows, encoding="utf-8")
    alone = train(0, tiny_model_dir, tmp_path / "alone", 1)
    parts = run_ranks(ranks, train, tiny_model_dir, tmp_path / "out", ranks, folder=tmp_path)
    assert [len(part) for part in parts] == [STEPS] * ranks
    for step, whole in enumerate(alone):
        assert sorted(row for part in parts for row in part[step]) == sorted(whole)
    assert [len(step) for step in alone] == [4, 4, 4, 4, 4, 2, 4, 4]
    assert len({tuple(row) for step in alone[:6] for row in step}) == len(ROWS)
    obtained, expected = ([float.fromhex(loss) for loss in losses(tmp_path / name)] for name in ("out", "alone"))
    assert obtained == pytest.approx(expected, abs=2e-6)
    saved, plain = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("out", "alone"))
    assert max(float((saved[name] - plain[name]).abs().max()) for name in plain) < 5e-5
    assert all(torch.isfinite(tensor).all() for tensor in saved.values())
