"""TRL's DPOTrainer: at its defaults (gradient checkpointing, the reference in every step), and at its best (reference computed
once, no checkpointing, the micro-batch that the driver names).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file
from torch.utils.data import Sampler
from transformers import Trainer
from trl import DPOConfig, DPOTrainer

from benchmarks.pairs import read_pairs
from benchmarks.workers.channel import Channel, Spec, read_spec
from benchmarks.workers.subject import Stepper, arguments, load, lora


class _InOrder(Sampler[int]):
    """The pairs of the steps as the driver says."""

    def __init__(self, spec: Spec) -> None:
        self._places = [place for step in spec.order for place in step]

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[int]:
        return iter(self._places)


class _Told(Stepper):
    """Says when it is ready how long the reference took; a step has the tokens of its pairs, however they are computed."""

    def __init__(self, channel: Channel, spec: Spec, reference: dict[str, float]) -> None:
        super().__init__(channel, ready={"reference": reference})
        known = read_pairs(Path(spec.documents))
        self._worth = [sum(known[place].tokens for place in step) for step in spec.order]

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Reports the step and waits."""
        slots = self._counter.take()["slots"]
        self._channel.lap(tokens=self._worth[state.global_step - 1], slots=slots)


def trainer_of(spec: Spec, **given: Any) -> DPOTrainer:
    """The trainer on the spec's pairs.

    Raises:
        SystemExit: it has made other tokens of them than the driver wrote.
    """
    rows = [json.loads(line) for line in (Path(spec.documents) / "rows.jsonl").read_text("utf-8").splitlines()]
    half = "bf16=False" not in spec.settings
    config: dict[str, Any] = {"bf16": half}  # its own default is bf16
    if spec.best:
        config |= {"precompute_ref_log_probs": True, "gradient_checkpointing": False}
    trainer = DPOTrainer(
        # A path, as its documentation writes it, is loaded in fp32; a model keeps the dtype that it was saved in.
        model=load(spec) if spec.best and half else spec.model,
        args=DPOConfig(**arguments(spec, spec.per_step), **config),
        train_dataset=Dataset.from_list(rows),
        peft_config=lora(spec),
        **given,
    )
    for row, pair in zip(trainer.train_dataset, read_pairs(Path(spec.documents)), strict=True):
        if (row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) != (pair.prompt, pair.chosen, pair.rejected):
            raise SystemExit("TRL made other tokens of a pair")
    return trainer


def time_references() -> dict[str, float]:
    """What precomputing takes; filled when it is done."""
    original, taken = DPOTrainer._precompute_ref_logps, dict.fromkeys(("wall", "cpu"), 0.0)

    def timed(self: DPOTrainer, *given: Any) -> Any:
        began = time.perf_counter(), time.process_time()
        rows = original(self, *given)
        taken["wall"] += time.perf_counter() - began[0]
        taken["cpu"] += time.process_time() - began[1]
        return rows

    DPOTrainer._precompute_ref_logps = timed
    return taken


def compare(spec: Spec, channel: Channel) -> None:
    """The loss of the gate's pairs on the gate's weights, in fp32, and how far the gradient is from the plain one's."""
    trainer = trainer_of(spec)
    kept = load_file(spec.weights)
    named = dict(trainer.model.named_parameters())
    trained = {name: weight for name, weight in named.items() if weight.requires_grad}
    with torch.no_grad():
        for name, weight in trained.items():
            weight.copy_(kept[f"weight/{name}"])
    batch = trainer.data_collator([trainer.train_dataset[place] for place in range(spec.per_step)])
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    off = size = 0.0
    for name, weight in trained.items():
        expected = kept[f"gradient/{name}"].double()
        off += float((weight.grad.double() - expected).square().sum())
        size += float(expected.square().sum())
    channel.ready(loss=float(loss.detach()), gradient=(off / size) ** 0.5)


def main() -> None:
    """Steps as the driver asks."""
    spec = read_spec()
    channel = Channel(spec.device)
    if spec.weights is not None:
        compare(spec, channel)
        return
    Trainer._get_train_sampler = lambda self, *given: _InOrder(spec)
    reference = time_references()
    trainer_of(spec, callbacks=[_Told(channel, spec, reference)]).train()


if __name__ == "__main__":
    main()
