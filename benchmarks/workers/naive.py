"""The way most tutorials document: every row padded to 512 tokens, fp32, a loop written by hand."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.corpus import PAD
from benchmarks.inputs import read_documents
from benchmarks.workers.channel import Channel, TokenCounter, read_spec
from benchmarks.workers.subject import LEARNING_RATE, load, with_adapter

WIDTH, MICRO_BATCH = 512, 4


def main() -> None:
    """Steps as the driver asks."""
    spec = read_spec()
    channel = Channel(spec.device)
    model = with_adapter(load(spec, dtype=torch.float32), spec)
    model.train()
    counter = TokenCounter(model, PAD)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=LEARNING_RATE)
    corpus = read_documents(Path(spec.documents))
    ids = torch.full((len(corpus), WIDTH), PAD)
    labels = torch.full((len(corpus), WIDTH), -100)
    for row, item in enumerate(corpus):
        kept = min(WIDTH, len(item))
        ids[row, :kept] = torch.tensor(item.ids[:kept])
        labels[row, :kept] = torch.tensor(item.labels[:kept])
    mask = (ids != PAD).long()
    channel.ready()
    for step in spec.steps:
        micro_batches = torch.arange(step * spec.per_step, (step + 1) * spec.per_step).split(MICRO_BATCH)
        total = 0.0
        for rows in micro_batches:
            batch = {"input_ids": ids[rows], "attention_mask": mask[rows], "labels": labels[rows]}
            loss = model(**{name: tensor.to(spec.device) for name, tensor in batch.items()}).loss / len(micro_batches)
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        channel.lap(**counter.take(), loss=total)


if __name__ == "__main__":
    main()
