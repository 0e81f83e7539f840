"""One optimizer step: gradients, clipping, update; what goes wrong never reaches the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from ..errors import OutOfMemoryError
from ..hardware.gpu import is_out_of_memory
from ..notices import warn
from .faults import trigger
from .optimizer import set_learning_rate
from .rng import DeviceRandomState
from .schedule import lr_factor

if TYPE_CHECKING:
    from .loop import Run


@dataclass(frozen=True)
class StepOutcome:
    """What one step did.

    Attributes:
        loss: nats per label token over the whole step.
        grad_norm: global gradient norm before clipping.
        label_tokens: tokens that carried loss.
        tokens: real tokens that went through the model.
        learning_rate: read back from the optimizer.
        updated: whether the weights changed.
        finite: whether loss and gradients were finite.
    """

    loss: float
    grad_norm: float
    label_tokens: int
    tokens: int
    learning_rate: float
    updated: bool
    finite: bool


def train_step(run: Run) -> StepOutcome:
    """The four verbs of ARCHITECTURE.md on one group of micro-batches."""
    state, strategy, optimizer = run.state, run.strategy, run.optimizer
    fault = trigger("step", state.step + 1)
    group = run.loader.micro_batches(state.epoch, state.index, state.micro_batch_size)
    set_learning_rate(optimizer, lr_factor(state.step, run.schedule, total=run.total_steps))
    num_valid = strategy.sum(sum(batch.num_label_tokens for batch in group))
    loss = strategy.forward_backward(group, max(1.0, num_valid))
    if fault is not None:
        loss = _spoil(run, fault, loss)
    norm = strategy.clip_grad_norm(run.max_grad_norm)
    finite = math.isfinite(loss) and math.isfinite(norm)
    # An fp16 scaler has to see the overflow to lower its scale; it skips the update by itself.
    updated = strategy.step() if finite or run.scaled else False
    optimizer.zero_grad(set_to_none=True)
    return StepOutcome(
        loss=loss,
        grad_norm=norm,
        label_tokens=int(num_valid),
        tokens=int(strategy.sum(sum(batch.num_tokens for batch in group))),
        learning_rate=optimizer.param_groups[0]["lr"],
        updated=updated,
        finite=finite or (run.scaled and math.isfinite(loss)),
    )


def _spoil(run: Run, fault: str, loss: float) -> float:
    """Applies an injected fault to the loss and the gradients."""
    factor = math.nan if fault == "nan" else 100.0
    for group in run.optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.grad.mul_(factor)
    return loss * factor


def step_with_retry(run: Run) -> StepOutcome:
    """train_step; where memory runs out, the micro-batch is halved and the step is done again from its start.

    The rows of the step stay the same, and so do the random numbers: with dropout 0 the gradients agree with those of
    the larger micro-batch up to the order of summation.

    Raises:
        OutOfMemoryError: a micro-batch of one row does not fit; of several processes, any.
    """
    random_state = DeviceRandomState()
    while True:
        try:
            return train_step(run)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).splitlines()[0][:200]
        # Outside the except block, so that the traceback no longer holds the tensors of the failed step.
        if not run.retry_smaller:
            refuse_out_of_memory(run, reason)
        run.optimizer.zero_grad(set_to_none=True)
        run.release_memory()
        halve_micro_batch(run, reason)
        random_state.restore()


def refuse_out_of_memory(run: Run, reason: str) -> NoReturn:
    """Gives up where processes work together: those with memory left are in the midst of the step, with their
    micro-batches.

    Raises:
        OutOfMemoryError: always.
    """
    rank, size = run.strategy.rank, run.state.micro_batch_size
    raise OutOfMemoryError(
        f"ランク {rank} でマイクロバッチ {size} 行のメモリーが足りません（{reason}）。複数プロセスでは自動で小さくしないので、training.batch_size を下げて "
        f"gradient_accumulation_steps を増やしてください。{run.memory_hint_ja}",
        f"on rank {rank} a micro-batch of {size} rows does not fit in memory ({reason}). With several processes "
        "it is not made smaller by itself: lower training.batch_size and raise gradient_accumulation_steps. "
        f"{run.memory_hint_en}",
    )


def halve_micro_batch(run: Run, reason: str) -> None:
    """Halves the micro-batch in force, or gives up at one row."""
    size = run.state.micro_batch_size
    if size == 1:
        raise OutOfMemoryError(
            f"マイクロバッチ 1 行でもメモリーが足りません（{reason}）。{run.memory_hint_ja}",
            f"a micro-batch of one row does not fit in memory ({reason}). {run.memory_hint_en}",
        )
    run.state.micro_batch_size = size // 2
    warn(
        f"メモリーが足りないため、マイクロバッチを {size} 行から {size // 2} 行にしてやり直します（1 ステップの行数は変わりません）。",
        f"out of memory: the micro-batch goes from {size} to {size // 2} rows and the step is done again (rows "
        "per step stay).",
    )
