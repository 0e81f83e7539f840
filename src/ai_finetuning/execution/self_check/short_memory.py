"""Memory that runs out in the second step of a run: before it, in its backward pass, in its update."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import Any

import torch
from transformers import TrainerCallback

from ...engine.faults import Fault, Faults
from ...errors import OutOfMemoryError, Reason
from .results import Check, Measured
from .steps import Bench, losses

_STEP, _LIMIT = 2, 1e-4
_EXACT = "training.runtime.precision=fp32"


def checks(bench: Bench) -> list[Check]:
    """In each part of a step."""
    return [Check(f"out_of_memory/{part}", partial(_survives, bench, part)) for part in ("forward", "backward")] + [
        Check("out_of_memory/update", partial(_stops, bench))
    ]


class _Short(TrainerCallback):
    """Lets memory run out once in the backward pass or in the update of a step."""

    def __init__(self, part: str) -> None:
        self.part, self.happened = part, False

    def on_step_begin(self, args: Any, state: Any, control: Any, **held: Any) -> None:
        """Arms the step before which it stands."""
        if state.global_step != _STEP - 1 or self.happened:
            return
        if self.part == "update":
            held["optimizer"].register_step_pre_hook(lambda *_: self._fail())
            return
        weight = next(weight for weight in held["model"].parameters() if weight.requires_grad)
        weight.register_hook(lambda gradient: self._fail())

    def _fail(self) -> None:
        if not self.happened:
            self.happened = True
            raise torch.OutOfMemoryError(f"injected in the {self.part}")


def _survives(bench: Bench, part: str) -> Measured:
    """Largest difference of the losses: the step is done again with half the rows."""
    expected = losses(bench.train("llama", "lora", bench.device, _EXACT))
    short = _Short(part)
    if part == "forward":
        result = bench.train("llama", "lora", bench.device, _EXACT, faults=Faults([Fault("step", "oom", _STEP, 0, 1)]))
    else:
        result = bench.train("llama", "lora", bench.device, _EXACT, callbacks=(short,))
    if result.state is None or result.state.micro_batch_size != 1:
        raise AssertionError("the step was not done again with one row in a micro-batch")
    return Measured(max(abs(one - other) for one, other in zip(losses(result), expected, strict=True)), _LIMIT)


def _stops(bench: Bench) -> Measured:
    """0 where the run ends with the refusal that says so: some weights may have moved, so it is not done again."""
    short = _Short("update")
    with contextlib.suppress(OutOfMemoryError):
        bench.train("llama", "full", bench.device, _EXACT, callbacks=(short,))
        return Measured(1.0, 0.0, Reason("学習が止まりませんでした", "the run did not stop"))
    return Measured(0.0 if short.happened else 1.0, 0.0)
