"""This project: `aift train` with packing, one step of its loop at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.own import train
from benchmarks.workers.channel import Channel, read_spec


def main() -> None:
    """Steps as the driver asks."""
    from ai_finetuning.engine.step import next_step

    spec = read_spec()
    channel = Channel(spec.device)
    waiting = list(spec.steps)

    def step(run: Any, original: Callable[[Any, Any], Any]) -> Any:
        # What the loop does between two steps (records, the next batch) belongs to the step's time, as with the peers.
        if len(waiting) == len(spec.steps):
            channel.ready(device_name=str(run.strategy.device))
        else:
            channel.lap(**pending)
        run.state.index = waiting.pop(0) % run.loader.steps(0)
        data, _ = next_step(run)
        outcome = original(run, data)
        pending.update(
            tokens=outcome.tokens, slots=sum(batch.input_ids.numel() for batch in data.group), loss=outcome.loss
        )
        if not waiting:
            channel.lap(**pending)
        return outcome

    pending: dict[str, Any] = {}
    code = train(spec, step)
    raise SystemExit(code or "the driver asked for more steps than the spec names")


if __name__ == "__main__":
    main()
