"""One optimizer step: gradients, clipping, update; what goes wrong never reaches the weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NoReturn

from torch import Tensor

from ..errors import OutOfMemoryError
from ..messages import warn
from ..parallel.batch import Batch
from ..parallel.strategy import Update
from ..system.gpu import is_out_of_memory
from ..system.out_of_memory import first_line, with_smaller_batches
from .hooks import NOTHING, Request
from .optimizer import make_state, set_learning_rate
from .rng import DeviceRandomState
from .schedule import lr_factor
from .state import Run


@dataclass(frozen=True)
class StepData:
    """The rows of one optimizer step.

    Attributes:
        group: this rank's micro-batches.
        units: what the loss is a mean over: label tokens, pairs or marked answers; over all ranks.
        label_tokens: that take loss, over all ranks.
        tokens: that go through the model, over all ranks.
    """

    group: Sequence[Batch]
    units: int
    label_tokens: int
    tokens: int


@dataclass(frozen=True)
class StepOutcome:
    """What one step did.

    Attributes:
        loss: over the whole step: nats per label token, or the loss of a pair or marked answer.
        grad_norm: global gradient norm before clipping.
        label_tokens: tokens that contribute to the loss.
        tokens: real tokens that went through the model.
        learning_rate: read back from the optimizer.
        updated: whether the weights changed.
        finite: whether loss and gradients were finite.
        extra: other numbers of the step, for its row in metrics.jsonl.
    """

    loss: float
    grad_norm: float
    label_tokens: int
    tokens: int
    learning_rate: float
    updated: bool
    finite: bool
    extra: dict[str, float] = field(default_factory=dict)


def next_step(run: Run, request: Request = NOTHING) -> tuple[StepData, Request]:
    """The rows of the step that comes next (none after the last), counted over all ranks, and what any rank asks for.

    This is the step's one reduction between the hosts.
    """
    state = run.state
    more = state.step < run.total_steps
    group = run.loader.micro_batches(state.epoch, state.index, state.micro_batch_size) if more else []
    counts = [
        sum(batch.num_units for batch in group),
        sum(batch.num_label_tokens for batch in group),
        sum(batch.num_tokens for batch in group),
    ]
    (units, label_tokens, tokens), flags = run.strategy.agree(counts, request)
    return StepData(group, int(units), int(label_tokens), int(tokens)), Request(*flags)


def train_step(run: Run, data: StepData) -> StepOutcome:
    """The verbs of ARCHITECTURE.md on one group of micro-batches."""
    state, strategy, optimizer = run.state, run.strategy, run.optimizer
    fault = run.faults.inject("step", state.step + 1)
    set_learning_rate(optimizer, lr_factor(state.step, run.schedule, total=run.total_steps))
    _begin_preference(run)
    loss = strategy.forward_backward(data.group, max(1.0, data.units))
    if fault is not None:
        loss = _spoil(run, fault, loss)
    preference = run.preference
    update = _update(run, loss, None if preference is None else preference.sums(loss.device))
    optimizer.zero_grad(set_to_none=True)
    return StepOutcome(
        loss=update.loss,
        grad_norm=update.grad_norm,
        label_tokens=data.label_tokens,
        tokens=data.tokens,
        learning_rate=optimizer.param_groups[0]["lr"],
        updated=update.applied,
        finite=math.isfinite(update.loss) and (update.scaled or math.isfinite(update.grad_norm)),
        extra={} if preference is None else preference.metrics(update.also),
    )


def _begin_preference(run: Run) -> None:
    """The metrics of answers begin anew; KTO's reference point is one number for the whole step."""
    state, preference = run.state, run.preference
    if preference is None:
        return
    preference.begin()
    if preference.has_rest:
        others = run.loader.other_answers(state.epoch, state.index, state.micro_batch_size)
        preference.find_rest(run.strategy, lambda: run.strategy.score(others))


def make_optimizer_state(run: Run) -> None:
    """Makes the optimizer's state before the first step: what does not fit then would not fit in any step.

    Raises:
        OutOfMemoryError: it does not fit; fewer rows in a micro-batch would not help.
    """
    if not run.strategy.steps_optimizer:
        return
    try:
        host = run.strategy.host_states
        make_state(run.optimizer, None if host is None else host.park)
        return
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = first_line(error)
    weights = sum(parameter.numel() for group in run.optimizer.param_groups for parameter in group["params"])
    raise OutOfMemoryError(
        f"オプティマイザーの状態がメモリーに入りません（ランク {run.strategy.rank}、学習する重み {weights:,} 個、{reason}）。バッチを小さくしても減りません。"
        "training.method を lora か qlora にする、training.optimizer.name を adamw_8bit にする、または strategy: fsdp で複数の GPU "
        f"に分けてください。{run.memory_hint_ja}",
        f"the optimizer's state does not fit in memory (rank {run.strategy.rank}, {weights:,} weights that train; {reason}). "
        "Smaller batches do not lower it: set training.method to lora or qlora, or training.optimizer.name to "
        f"adamw_8bit, or share it over several GPUs with strategy: fsdp. {run.memory_hint_en}",
    )


def _update(run: Run, loss: Tensor, also: Tensor | None) -> Update:
    """The strategy's update, which also sums and reads what is to be logged (`also`). Where memory runs out in it the step is not done again: some weights may have moved.

    Raises:
        OutOfMemoryError: memory ran out.
    """
    try:
        return run.strategy.update(loss, run.max_grad_norm, also)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = first_line(error)
    raise OutOfMemoryError(
        f"重みの更新（オプティマイザー）でメモリーが足りません（ランク {run.strategy.rank}、{reason}）。一部の重みが変わっている可能性があるので、"
        "やり直さずに止めました。最後のチェックポイントから再開できます。training.optimizer.name を変えるか、training.batch_size を下げて gradient_accumulation_steps "
        f"を増やしてください。{run.memory_hint_ja}",
        f"memory ran out while the optimizer updated the weights (rank {run.strategy.rank}; {reason}). Some weights may have "
        "changed, so the step is not done again; the last checkpoint is there to resume from. Change "
        "training.optimizer.name, or lower training.batch_size and raise gradient_accumulation_steps. "
        f"{run.memory_hint_en}",
    )


def _spoil(run: Run, fault: str, loss: Tensor) -> Tensor:
    """Applies an injected fault to the loss and the gradients."""
    factor = math.nan if fault == "nan" else 100.0
    for group in run.optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.grad.mul_(factor)
    return loss * factor


def step_with_retry(run: Run, data: StepData) -> StepOutcome:
    """train_step; where memory runs out, the micro-batch is halved and the step is done again from its start.

    The rows of the step stay the same, and so do the random numbers: with dropout 0 the gradients agree with those of
    the larger micro-batch up to the order of summation.

    Raises:
        OutOfMemoryError: a micro-batch of one row does not fit; of several processes, any; or an update does not.
    """
    state, random_state = run.state, DeviceRandomState()

    def work(size: int) -> StepOutcome:
        if size == state.micro_batch_size:
            return train_step(run, data)
        state.micro_batch_size = size
        random_state.restore()
        return train_step(run, replace(data, group=run.loader.micro_batches(state.epoch, state.index, size)))

    def on_halved(size: int, reason: str) -> None:
        run.optimizer.zero_grad(set_to_none=True)
        warn(
            f"メモリーが足りないため、マイクロバッチを {state.micro_batch_size} 行から {size} 行にしてやり直します（1 ステップの行数は変わりません）。",
            f"out of memory: retrying the step with micro-batches of {size} instead of {state.micro_batch_size} rows "
            "(rows "
            "per step do not change).",
        )

    try:
        if run.retry_smaller:
            return with_smaller_batches(work, state.micro_batch_size, on_halved)
        return train_step(run, data)
    except OutOfMemoryError:  # of the update
        raise
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = first_line(error)
    raise_out_of_memory(run, reason)


def raise_out_of_memory(run: Run, reason: str) -> NoReturn:
    """Gives up: one row does not fit, or processes work together, and those with memory left are in the midst of the
    step with their micro-batches.

    Raises:
        OutOfMemoryError: always.
    """
    rank, size = run.strategy.rank, run.state.micro_batch_size
    if run.retry_smaller:
        raise OutOfMemoryError(
            f"マイクロバッチ 1 行でもメモリーが足りません（{reason}）。{run.memory_hint_ja}",
            f"a micro-batch of one row does not fit in memory ({reason}). {run.memory_hint_en}",
        )
    raise OutOfMemoryError(
        f"ランク {rank} でマイクロバッチ {size} 行のメモリーが足りません（{reason}）。複数プロセスでは自動で小さくしないので、training.batch_size を下げて "
        f"gradient_accumulation_steps を増やしてください。{run.memory_hint_ja}",
        f"on rank {rank} a micro-batch of {size} rows does not fit in memory ({reason}). With several "
        "processes the toolkit does not reduce it automatically: lower training.batch_size and raise "
        "gradient_accumulation_steps. "
        f"{run.memory_hint_en}",
    )
