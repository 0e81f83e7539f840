"""The one training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor, nn

from ..errors import DivergedError, PreemptedError
from ..hardware.gpu import is_out_of_memory
from ..notices import notice, warn
from ..parallel.layout import Layout
from ..parallel.strategy import Strategy
from . import rng
from .checkpoint import CheckpointStore
from .checkpoint_writer import CheckpointWriter, Snapshot
from .faults import trigger
from .hooks import Callback, SignalFlags
from .metrics import MetricsFile, text_metrics
from .schedule import Schedule
from .step import StepOutcome, step_with_retry

MAX_BAD_STEPS = 3
SPIKE_SIGMAS = 8.0


class LoaderLike(Protocol):
    """What the loop knows of the data."""

    def __len__(self) -> int:
        """Optimizer steps in an epoch."""

    def micro_batches(self, epoch: int, index: int, micro_batch_size: int) -> list[Any]:
        """This rank's batches of one optimizer step; a pure function of its arguments and the seed."""


@dataclass
class TrainState:
    """Where a run stands; part of every checkpoint."""

    micro_batch_size: int
    step: int = 0
    epoch: int = 0
    index: int = 0
    tokens: int = 0
    skipped: int = 0
    bad_in_a_row: int = 0
    best_loss: float | None = None
    best_step: int | None = None
    stale_evaluations: int = 0
    loss_mean: float = 0.0
    loss_square: float = 0.0
    eval_batch_size: int = 0


@dataclass
class Evaluation:
    """Held-out data: batches for a batch size, and the characters of the scored text (None where unknown)."""

    batches: Callable[[int], Sequence[Any]]
    characters: int | None


@dataclass
class Run:
    """Everything the loop works with; assembled once, in training/assemble.py."""

    model: nn.Module
    strategy: Strategy
    loader: LoaderLike
    optimizer: torch.optim.Optimizer
    state: TrainState
    store: CheckpointStore
    metrics_path: Path | None
    total_steps: int
    schedule: Schedule = Schedule()
    max_grad_norm: float = 1.0
    eval_steps: int = 100
    save_steps: int = 500
    evaluation: Evaluation | None = None
    keep_best: bool = False
    patience: int | None = None
    threshold: float = 0.0
    scaled: bool = False
    save_in_background: bool = True
    retry_smaller: bool = True
    fingerprint: dict[str, Any] = field(default_factory=dict)
    derived: dict[str, Any] = field(default_factory=dict)
    callbacks: Sequence[Callback] = ()
    memory_hint_ja: str = ""
    memory_hint_en: str = ""

    def __post_init__(self) -> None:
        self.writer = CheckpointWriter(self.store, background=self.save_in_background, on_saved=self._tell_saved)

    def _tell_saved(self, folder: Path) -> None:
        for callback in self.callbacks:
            callback.on_save(folder)

    def release_memory(self) -> None:
        """Returns cached GPU memory after a failed step."""
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def fit(run: Run) -> TrainState:
    """Trains until the steps are done, held-out loss stops falling, or a signal asks to stop.

    Raises:
        DivergedError: three steps in a row had no finite loss or gradient.
        OutOfMemoryError: one row does not fit.
        PreemptedError: SIGTERM or SIGINT; the state is saved.
    """
    state = run.state
    run.model.train()
    fresh = state.step == 0 and state.best_loss is None
    metrics = MetricsFile(run.metrics_path, keep_until_step=-1 if fresh else state.step)
    started, evaluated, stop_early = time.perf_counter(), -1, False
    try:
        with SignalFlags() as signals, run.writer:
            if fresh and run.evaluation is not None:
                evaluate(run, metrics)
                if run.keep_best:
                    save(run)  # the weights before training may turn out to be the best ones
            while state.step < run.total_steps and not stop_early:
                outcome = step_with_retry(run)
                advance(run, outcome)
                record(run, metrics, outcome, time.perf_counter() - started)
                refuse_divergence(run, outcome)
                if run.evaluation is not None and (state.step % run.eval_steps == 0 or state.step == run.total_steps):
                    stop_early = evaluate(run, metrics)
                    evaluated = state.step
                improved = run.keep_best and evaluated == state.step == state.best_step
                asked = run.strategy.any(signals.save or signals.stop is not None)
                if state.step % run.save_steps == 0 or improved or asked:
                    save(run)
                    signals.save = False
                if asked and run.strategy.any(signals.stop is not None):
                    run.writer.wait()
                    stop_preempted(state.step, signals.stop)
    finally:
        metrics.close()
        for callback in run.callbacks:
            callback.on_end()
    return state


def stop_preempted(step: int, signal: str | None) -> NoReturn:
    """Leaves the loop after a signal to this process or, without a name, to another of the run.

    Raises:
        PreemptedError: always.
    """
    name = signal or "SIGTERM"
    raise PreemptedError(
        f"{name} を受け取ったので、ステップ {step} で保存して止まりました。resume_from_checkpoint=auto で続きから再開できます。",
        f"{name} received: saved at step {step} and stopped. Go on with resume_from_checkpoint=auto.",
    )


def advance(run: Run, outcome: StepOutcome) -> None:
    """Moves the position in the data on; a skipped step has used its rows."""
    state = run.state
    state.step += 1
    state.index += 1
    state.tokens += outcome.tokens
    if state.index >= len(run.loader):
        state.epoch, state.index = state.epoch + 1, 0
    if outcome.finite:
        state.bad_in_a_row = 0
        _watch_spikes(state, outcome.loss)
    else:
        state.skipped += 1
        state.bad_in_a_row += 1


def _watch_spikes(state: TrainState, loss: float) -> None:
    """Warns of a loss far outside its running spread (decay 0.95)."""
    variance = max(0.0, state.loss_square - state.loss_mean**2)
    if state.step > 20 and loss > state.loss_mean + SPIKE_SIGMAS * math.sqrt(variance) + 0.5:
        warn(
            f"ステップ {state.step} の損失 {loss:.3f} が直近の平均 {state.loss_mean:.3f} から大きく跳ねました。学習率が高すぎるか、データに異常な行があるかもしれません。",
            f"the loss of step {state.step}, {loss:.3f}, is far above its recent mean of {state.loss_mean:.3f}: "
            "the learning rate may be too high, or a row odd.",
        )
    keep = 0.0 if state.step <= 1 else 0.95
    state.loss_mean = keep * state.loss_mean + (1 - keep) * loss
    state.loss_square = keep * state.loss_square + (1 - keep) * loss * loss


def record(run: Run, metrics: MetricsFile, outcome: StepOutcome, seconds: float) -> None:
    """Writes the step's row and tells the callbacks."""
    state = run.state
    row = {
        "step": state.step,
        "total_steps": run.total_steps,
        "epoch": round(state.epoch + state.index / len(run.loader), 6),
        "loss": outcome.loss,
        "grad_norm": outcome.grad_norm,
        "learning_rate": outcome.learning_rate,
        "label_tokens": outcome.label_tokens,
        "tokens": state.tokens,
        "skipped": state.skipped,
        "micro_batch_size": state.micro_batch_size,
        "seconds": round(seconds, 3),
    }
    metrics.write(row)
    for callback in run.callbacks:
        callback.on_step(row)


def refuse_divergence(run: Run, outcome: StepOutcome) -> None:
    """Says that a step was skipped; stops the run at the third in a row."""
    state = run.state
    if outcome.finite:
        return
    warn(
        f"ステップ {state.step} の損失または勾配が有限でないため、このステップは重みに反映しません（累計 {state.skipped} 回）。",
        f"step {state.step} has a loss or gradient that is not finite; it does not reach the weights "
        f"({state.skipped} so far).",
    )
    if state.bad_in_a_row < MAX_BAD_STEPS:
        return
    run.writer.wait()
    last = run.store.newest()
    raise DivergedError(
        f"有限でない損失または勾配が {MAX_BAD_STEPS} ステップ続いたので止めました。最後の正常なチェックポイント: {last or 'なし'}。学習率を下げるか fp32 を試してください。",
        f"{MAX_BAD_STEPS} steps in a row had no finite loss or gradient. Last good checkpoint: {last or 'none'}. "
        "Lower the learning rate or try fp32.",
    )


def evaluate(run: Run, metrics: MetricsFile) -> bool:
    """Scores the held-out data; True where patience has run out."""
    state = run.state
    assert run.evaluation is not None
    random_state = rng.DeviceRandomState()
    loss_sum, tokens = _evaluate_in_memory(run, run.evaluation)
    random_state.restore()
    row: dict[str, Any] = {"step": state.step, "total_steps": run.total_steps, "eval_tokens": tokens}
    row |= text_metrics(loss_sum, tokens, run.evaluation.characters)
    metrics.write(row)
    for callback in run.callbacks:
        callback.on_evaluation(row)
    loss = row["eval_loss"]
    if not math.isfinite(loss):
        warn(
            f"検証損失が有限ではありません（ステップ {state.step}）。",
            f"held-out loss is not finite (step {state.step}).",
        )
        return False
    if state.best_loss is None or loss < state.best_loss - run.threshold:
        state.best_loss, state.best_step, state.stale_evaluations = loss, state.step, 0
        return False
    state.stale_evaluations += 1
    if run.patience is None or state.stale_evaluations < run.patience:
        return False
    notice(
        f"検証損失が {run.patience} 回続けて改善しなかったので、ステップ {state.step} で終わります（最良はステップ {state.best_step}）。",
        f"held-out loss has not improved {run.patience} times in a row: stopping at step {state.step} (best at "
        f"{state.best_step}).",
    )
    return True


def _evaluate_in_memory(run: Run, evaluation: Evaluation) -> tuple[float, int]:
    """The sums; where memory runs out, the evaluation's own batch size is halved and training is left alone."""
    state = run.state
    state.eval_batch_size = state.eval_batch_size or state.micro_batch_size
    while True:
        try:
            trigger("eval", state.step)
            return run.strategy.evaluate(evaluation.batches(state.eval_batch_size))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or state.eval_batch_size == 1 or not run.retry_smaller:
                raise
        run.release_memory()
        state.eval_batch_size //= 2
        warn(
            f"評価でメモリーが足りないため、評価のバッチを {state.eval_batch_size} 行にします。",
            f"out of memory in the evaluation: its batch becomes {state.eval_batch_size} rows.",
        )


def save(run: Run) -> None:
    """Takes a checkpoint of the state as it is now; it is written beside the training."""
    run.writer.save(snapshot(run))


def snapshot(run: Run) -> Snapshot:
    """What a checkpoint of this moment holds; every process has to ask."""
    state = run.state
    states = run.strategy.gather(rng.capture())
    content = {
        "train": asdict(state),
        "rng": states[0] if len(states) == 1 else states,
        "strategy": run.strategy.state_dict(),
        "fingerprint": run.fingerprint,
        "derived": run.derived,
    }
    tensors, layouts = owned_tensors(run)
    protect = state.best_step if run.keep_best else None
    return Snapshot(state.step, tensors, content, protect, layouts)


def last_checkpoint(run: Run) -> Path:
    """The checkpoint of the weights as the loop left them; written now where there is none.

    Raises:
        OSError: it cannot be written.
    """
    folder = run.store.folder / f"checkpoint-{run.state.step}"
    if not run.store.agree(folder.is_dir()):
        taken = snapshot(run)
        run.store.save(
            taken.step, tensors=taken.tensors, state=taken.state, protect=taken.protect, layouts=taken.layouts
        )
    return folder


def owned_tensors(run: Run) -> tuple[dict[str, dict[str, Tensor]], dict[str, dict[str, Layout]] | None]:
    """What this process writes into a checkpoint by group, and of which whole each tensor is a part."""
    tensors = run.strategy.tensors(run.model, run.optimizer)
    layouts = run.strategy.layouts
    if layouts is None:
        return tensors, None
    weights = {name: tensor for name, tensor in tensors["model"].items() if layouts[name].owner}
    moments, parts = {}, {}
    for key, tensor in tensors["optimizer"].items():
        layout = layouts[key.rpartition("/")[0]]
        cut = tuple(tensor.shape) == layout.size and layout.size != ()
        if layout.owner and (cut or not any(layout.offset)):
            moments[key] = tensor
            if cut:
                parts[key] = layout
    return {"model": weights, "optimizer": moments}, {"model": layouts, "optimizer": parts}


def load(run: Run, tensors: dict[str, dict[str, Tensor]], content: dict[str, Any]) -> None:
    """Puts model, optimizer, position and random state of a checkpoint back."""
    run.strategy.load_tensors(run.model, run.optimizer, tensors)
    for name, value in content["train"].items():
        setattr(run.state, name, value)
    run.strategy.load_state_dict(content["strategy"])
    rng.restore(rng.state_of_rank(content["rng"], run.strategy.rank))
