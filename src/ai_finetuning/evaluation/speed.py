"""How fast models answer, taken in turns: prefill and decoding apart, by CUDA events on a GPU."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

WARMUP = 2
NEW_TOKENS = 32
PERCENTILES = (50, 90, 95, 99)


class Clock:
    """Marks on the device's own time line; on a CPU the wall clock."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[Any] = []

    def mark(self) -> None:
        """Remembers this moment, on a GPU the moment at which the work given so far is done."""
        if self._device.type == "cuda":
            make: Callable[..., Any] = torch.cuda.Event
            event = make(enable_timing=True)
            event.record(torch.cuda.current_stream(self._device))
            self._marks.append(event)
            return
        if self._device.type == "mps":
            torch.mps.synchronize()
        self._marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Time between each mark and the next."""
        pairs = list(zip(self._marks, self._marks[1:], strict=False))
        if self._device.type != "cuda":
            return [after - before for before, after in pairs]
        torch.cuda.synchronize(self._device)
        return [before.elapsed_time(after) / 1e3 for before, after in pairs]


@dataclass
class Timing:
    """What was measured of one model; one entry a pass.

    Attributes:
        prefill: seconds of a prompt, up to its next token's logits.
        prompt_tokens: of the same passes.
        first_token: seconds from a prompt to its first new token, known on the device.
        per_token: seconds of every new token after the first.
        texts: greedy continuation, as token ids, by the prompt's number.
    """

    prefill: list[float] = field(default_factory=list)
    prompt_tokens: list[int] = field(default_factory=list)
    first_token: list[float] = field(default_factory=list)
    per_token: list[float] = field(default_factory=list)
    texts: dict[int, list[int]] = field(default_factory=dict)


@torch.no_grad()
def take_turns(
    models: Mapping[str, Any], prompts: Sequence[torch.Tensor], *, prefill_runs: int, decode_runs: int, room: int | None
) -> dict[str, Timing]:
    """Times every model on the same prompts, one pass at a time and in changing order, so that what else the machine
    does falls on all.

    Args:
        models: in eval mode.
        prompts: [1, tokens] each; pass i takes prompt i, beginning again after the last.
        prefill_runs, decode_runs: counted passes of each model; `WARMUP` more of each kind are dropped.
        room: most positions of the models; prompts are cut where NEW_TOKENS would not fit behind them.
    """
    obtained = {name: Timing() for name in models}
    for index in range(-WARMUP, max(prefill_runs, decode_runs)):
        ids = prompts[index % len(prompts)]
        turn = list(models.items())
        if index % 2:
            turn.reverse()
        kept = obtained if index >= 0 else {name: Timing() for name in models}
        if index < prefill_runs:
            for name, model in turn:
                prefill(model, ids, kept[name])
        if index < decode_runs:
            short = ids if room is None else ids[:, : max(1, room - NEW_TOKENS)]
            for name, model in turn:
                kept[name].texts[index % len(prompts)] = decode(model, short, kept[name])
    return obtained


def prefill(model: Any, ids: torch.Tensor, kept: Timing) -> None:
    """One pass over a prompt, as generation does it: with a cache, logits of the last position alone where the model
    can.
    """
    device = next(model.parameters()).device
    ids = ids.to(device)
    clock = Clock(device)
    clock.mark()
    model(input_ids=ids, use_cache=True, **_last_only(model))
    clock.mark()
    kept.prefill += clock.seconds()
    kept.prompt_tokens.append(ids.shape[1])


def decode(model: Any, ids: torch.Tensor, kept: Timing) -> list[int]:
    """NEW_TOKENS greedy tokens after a prompt; stop tokens do not stop it, so that every run is of the same length."""
    device = next(model.parameters()).device
    ids = ids.to(device)
    clock = Clock(device)
    clock.mark()
    output = model(input_ids=ids, use_cache=True, **_last_only(model))
    tokens = [output.logits[:, -1:].argmax(-1)]
    clock.mark()
    for _ in range(NEW_TOKENS - 1):
        output = model(input_ids=tokens[-1], past_key_values=output.past_key_values, use_cache=True)
        tokens.append(output.logits[:, -1:].argmax(-1))
        clock.mark()
    first, *rest = clock.seconds()
    kept.first_token.append(first)
    kept.per_token += rest
    return [int(token) for token in torch.cat(tokens, 1)[0]]


def _last_only(model: Any) -> dict[str, int]:
    return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """p50, p90, p95, p99, mean and standard deviation, in milliseconds."""
    values = torch.tensor(seconds, dtype=torch.float64) * 1e3
    obtained = {f"p{share}": float(values.quantile(share / 100)) for share in PERCENTILES}
    return obtained | {"mean": float(values.mean()), "stdev": float(values.std(unbiased=False))}
