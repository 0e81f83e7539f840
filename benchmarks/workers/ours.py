"""This project: `aift train` with packing, or on pairs, one step of its loop at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.corpus import PAD
from benchmarks.own import train
from benchmarks.workers.channel import Channel, Spec, TokenCounter, read_spec


def main() -> None:
    """Steps as the driver asks."""
    from ai_finetuning.engine.step import next_step

    spec = read_spec()
    channel = Channel(spec.device)
    waiting = list(spec.steps)
    reference = time_references() if spec.pairs else {}
    worth: dict[int, int] = {}
    counted: list[TokenCounter] = []

    def step(run: Any, original: Callable[[Any, Any], Any]) -> Any:
        # What the loop does between two steps (records, the next batch) belongs to the step's time, as with the peers.
        if len(waiting) == len(spec.steps):
            counted.append(TokenCounter(run.model, PAD))
            facts: dict[str, Any] = {"device_name": str(run.strategy.device)}
            if spec.pairs:
                facts |= {"order": pairs_of_steps(run, spec, worth), "reference": reference}
            channel.ready(**facts)
        else:
            channel.lap(**pending)
        run.state.index = index = waiting.pop(0) % run.loader.steps(0)
        data, _ = next_step(run)
        outcome = original(run, data)
        pending.update(
            tokens=worth[index] if spec.pairs else outcome.tokens,
            slots=counted[0].take()["slots"],  # not the batches' own: their padding is not computed
            loss=outcome.loss,
        )
        if not waiting:
            channel.lap(**pending)
        return outcome

    pending: dict[str, Any] = {}
    code = train(spec, step)
    raise SystemExit(code or "the driver asked for more steps than the spec names")


def time_references() -> dict[str, float]:
    """What the log-probabilities before step 1 take; filled when they are computed."""
    from ai_finetuning.execution import preference

    original, taken = preference.reference_scores, dict.fromkeys(("wall", "cpu"), 0.0)

    def timed(*given: Any) -> Any:
        began = time.perf_counter(), time.process_time()
        scores = original(*given)
        taken["wall"] += time.perf_counter() - began[0]
        taken["cpu"] += time.process_time() - began[1]
        return scores

    preference.reference_scores = timed
    return taken


def pairs_of_steps(run: Any, spec: Spec, worth: dict[int, int]) -> list[Sequence[int]]:
    """Which pairs each step has, found by their tokens: a step that holds others than the driver wrote is refused here.

    Args:
        worth: gets the tokens of each step's pairs.
    """
    from benchmarks.pairs import read_pairs

    known = read_pairs(Path(spec.documents))
    places = {tuple(token for side in pair.sides() for token in side): place for place, pair in enumerate(known)}
    obtained = []
    for step in spec.steps:
        found = []
        for batch in run.loader.micro_batches(0, step, spec.per_step):
            documents = batch.documents()
            rest = documents.input_ids[0].tolist()
            for prefix, chosen, rejected in documents.lengths:
                shared, rest = rest[:prefix], rest[prefix:]
                sides = [*shared, *rest[:chosen], *shared, *rest[chosen : chosen + rejected]]
                found.append(places[tuple(sides)])
                rest = rest[chosen + rejected :]
        worth[step] = sum(known[place].tokens for place in found)
        obtained.append(found)
    return obtained


if __name__ == "__main__":
    main()
