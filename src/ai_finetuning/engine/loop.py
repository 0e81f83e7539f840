"""The one training loop."""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor

from ..errors import DivergedError, PreemptedError, StorageError
from ..messages import argument, notice, warn
from ..parallel.weights.layout import Layout
from ..system.out_of_memory import with_smaller_batches
from . import rng
from .checkpoint.background import Snapshot
from .checkpoint.store import WEIGHTS_ONLY
from .hooks import Request, SignalFlags, take_request
from .metrics import MetricsFile, text_metrics
from .preference_loss import PreferenceLoss
from .state import Evaluation, Run
from .step import StepOutcome, make_optimizer_state, next_step, step_with_retry
from .train_state import TrainState

MAX_BAD_STEPS = 3
_PROGRESS = frozenset(field.name for field in fields(TrainState))
SPIKE_SIGMAS = 8.0
# Where the rows of the next step stand, in the state of a checkpoint; only streamed data has it.
POSITION = "data_position"


def fit(run: Run) -> TrainState:
    """Trains until the steps are done, evaluation loss stops falling, or a signal or a callback asks to stop.

    Raises:
        DivergedError: three steps in a row had no finite loss or gradient.
        OutOfMemoryError: one row, or the optimizer's state, does not fit.
        PreemptedError: SIGTERM, SIGINT or a callback; the state is saved, unless the callback asked to leave.
    """
    state = run.state
    run.model.train()
    make_optimizer_state(run)
    fresh = state.step == 0 and state.best_loss is None
    metrics = MetricsFile(run.metrics_path, keep_until_step=-1 if fresh else state.step)
    run.control.should_evaluate = fresh and run.evaluation is not None
    started = time.perf_counter()
    try:
        with SignalFlags() as signals, run.writer:
            run.tell("on_train_begin")
            if state.index > 0:  # resumed within an epoch
                run.tell("on_epoch_begin")
            while True:
                data, request = next_step(run, take_request(run.control, signals))
                if between_steps(run, metrics, signals, request) or state.step >= run.total_steps:
                    break
                if state.index == 0:
                    run.tell("on_epoch_begin")
                run.tell("on_step_begin")
                run.in_step = True
                outcome = step_with_retry(run, data)
                advance(run, outcome)
                run.in_step = False
                record(run, metrics, outcome, time.perf_counter() - started)
                validate_finite(run, outcome)
        if state.index > 0:
            run.tell("on_epoch_end")
        run.tell("on_train_end")
    finally:
        metrics.close()
        for callback in run.callbacks:
            callback.close()
    return state


def between_steps(run: Run, metrics: MetricsFile, signals: SignalFlags, request: Request) -> bool:
    """Does what the processes have agreed on; True where training ends here.

    Raises:
        PreemptedError: a signal or a callback has asked for it; the state is saved, or nothing where it asked to leave.
    """
    run.writer.tell()
    if request.leave:
        run.writer.wait()
        leave(run)
    run.return_best |= request.best
    if request.evaluate and run.evaluation is not None:
        evaluate(run, metrics, run.evaluation)
        # What is asked for in consequence, such as to keep the best weights, belongs to this step too.
        _, flags = run.strategy.agree((), take_request(run.control, signals))
        request = Request(*(before or after for before, after in zip(request, flags, strict=True)))
    if request.keep_best:
        run.writer.save(best_weights(run))
    if request.save or request.interrupt:
        save(run, whole=request.interrupt)
    if request.interrupt:
        run.writer.wait()
        stop_preempted(run)
    return request.stop


def stop_preempted(run: Run) -> NoReturn:
    """Leaves the loop after a signal, with what is saved.

    Raises:
        PreemptedError: the state is saved, of this step or of an earlier one. StorageError: nothing could be saved.
    """
    own = run.store.folder / f"checkpoint-{run.state.step}"
    newest = own if own.is_dir() else run.store.newest()
    if newest is None:
        raise StorageError(
            f"中断しましたが、ステップ {run.state.step} の状態を {run.store.folder} に保存できず、ほかのチェックポイントもありません。空きと書き込み権限を確かめてください。",
            f"interrupted, but the state of step {run.state.step} could not be saved in {run.store.folder} and there is no "
            "other checkpoint; check free space and permissions.",
        )
    step = newest.name.rpartition("-")[2]
    command = f"aift resume {argument(run.store.folder.parent)}"
    raise PreemptedError(
        f"中断しました。ステップ {step} まで保存済みです。再開: {command}",
        f"interrupted: saved up to step {step}. To go on: {command}",
    )


def leave(run: Run) -> NoReturn:
    """Leaves the loop without saving.

    Raises:
        PreemptedError: with the newest checkpoint.
    """
    newest, command = run.store.newest(), f"aift resume {argument(run.store.folder.parent)}"
    if newest is None:
        raise PreemptedError("中断しました。まだ何も保存していません。", "interrupted: nothing is saved yet.")
    step = newest.name.rpartition("-")[2]
    raise PreemptedError(
        f"保存せずに中断しました。ステップ {step} まで保存済みです。再開: {command}",
        f"interrupted without saving: saved up to step {step}. To go on: {command}",
    )


def advance(run: Run, outcome: StepOutcome) -> None:
    """Moves the position in the data on; a skipped step has used its rows."""
    state = run.state
    state.step += 1
    state.index += 1
    state.tokens += outcome.tokens
    if state.index >= run.loader.steps(state.epoch):
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
            "the learning rate may be too high, or a row may be abnormal.",
        )
    keep = 0.0 if state.step <= 1 else 0.95
    state.loss_mean = keep * state.loss_mean + (1 - keep) * loss
    state.loss_square = keep * state.loss_square + (1 - keep) * loss * loss


def record(run: Run, metrics: MetricsFile, outcome: StepOutcome, seconds: float) -> None:
    """Writes the step's row, raises the flags that are due, and calls the callbacks."""
    state, control = run.state, run.control
    row = {
        "step": state.step,
        "total_steps": run.total_steps,
        "epoch": round(state.epoch + state.index / run.loader.steps(state.epoch), 6),
        "loss": outcome.loss,
        "grad_norm": outcome.grad_norm,
        "learning_rate": outcome.learning_rate,
        "label_tokens": outcome.label_tokens,
        "tokens": state.tokens,
        "skipped": state.skipped,
        "micro_batch_size": state.micro_batch_size,
        "seconds": round(seconds, 3),
    } | outcome.extra
    if run.preference is not None:
        run.preference.watch.look(state.step, outcome.extra)
    metrics.write(row)
    last = state.step == run.total_steps
    control.should_log |= last or state.step % run.logging_steps == 0
    control.should_evaluate |= run.evaluation is not None and (last or run.due(run.eval_steps, run.evals_per_epoch))
    control.should_save |= run.due(run.save_steps, run.saves_per_epoch)
    run.tell("on_step_end", row)
    if control.should_log:
        control.should_log = False
        run.tell("on_log", row)
    if state.index == 0:
        run.tell("on_epoch_end")


def validate_finite(run: Run, outcome: StepOutcome) -> None:
    """Reports a skipped step; stops the run at the third in a row."""
    state = run.state
    if outcome.finite:
        return
    warn(
        f"ステップ {state.step} の損失または勾配が有限でないため、このステップの更新を見送りました（累計 {state.skipped} 回）。",
        f"step {state.step} has a loss or gradient that is not finite; the update was skipped "
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


def evaluate(run: Run, metrics: MetricsFile, evaluation: Evaluation) -> None:
    """Evaluates; asks to keep the best weights, and to stop where patience has run out."""
    state, control = run.state, run.control
    random_state = rng.DeviceRandomState()
    loss_sum, units, batches = _evaluate_in_memory(run, evaluation)
    random_state.restore()
    row: dict[str, Any] = {"step": state.step, "total_steps": run.total_steps}
    if run.preference is None:
        row |= {"eval_tokens": units} | text_metrics(loss_sum, units, evaluation.characters)
    else:
        extra = run.preference.take(run.strategy)
        row |= {"eval_loss": loss_sum / max(1, units)} | {f"eval_{name}": value for name, value in extra.items()}
    if evaluation.predictions is not None:
        row |= evaluation.predictions.metrics(run.strategy, batches)
    metrics.write(row)
    run.tell("on_evaluate", row)  # `state` still holds what was best before
    loss = row["eval_loss"]
    if not math.isfinite(loss):
        warn(
            f"評価損失が有限ではありません（ステップ {state.step}）。",
            f"evaluation loss is not finite (step {state.step}).",
        )
    elif state.best_loss is None or loss < state.best_loss - run.threshold:
        state.best_loss, state.best_step, state.stale_evaluations = loss, state.step, 0
        control.should_keep_best |= run.keep_best_from is not None and state.step >= run.keep_best_from
    else:
        state.stale_evaluations += 1
        if run.patience is not None and state.stale_evaluations >= run.patience:
            control.should_training_stop = True
            notice(
                f"評価損失が {run.patience} 回続けて改善しなかったので、ステップ {state.step} で終わります（最良はステップ {state.best_step}）。",
                f"evaluation loss has not improved {run.patience} times in a row: stopping at step {state.step} (best "
                "at "
                f"{state.best_step}).",
            )


def _evaluate_in_memory(run: Run, evaluation: Evaluation) -> tuple[float, int, int]:
    """The sums, and the number of batches; where memory runs out, the evaluation's own batch size is halved and training is left alone."""
    state = run.state
    state.eval_batch_size = state.eval_batch_size or state.micro_batch_size

    def work(size: int) -> tuple[float, int, int]:
        run.faults.inject("eval", state.step)
        batches = evaluation.batches(size)
        if run.preference is not None:
            _begin_preference(run, run.preference, evaluation, size)
        with evaluation.predictions.collect() if evaluation.predictions is not None else contextlib.nullcontext():
            return *run.strategy.evaluate(batches), len(batches)

    def on_halved(size: int, _: str) -> None:
        state.eval_batch_size = size
        warn(
            f"評価でメモリーが足りないため、評価のバッチを {size} 行にします。",
            f"out of memory during evaluation: retrying with batches of {size} rows.",
        )

    if not run.retry_smaller:
        return work(state.eval_batch_size)
    return with_smaller_batches(work, state.eval_batch_size, on_halved)


def _begin_preference(run: Run, preference: PreferenceLoss, evaluation: Evaluation, size: int) -> None:
    """The metrics of answers begin anew; KTO's reference point is one number for the whole evaluation."""
    preference.begin(evaluating=True)
    if preference.has_rest and evaluation.others is not None:
        others = evaluation.others(size)
        preference.find_rest(run.strategy, lambda: run.strategy.evaluate(others))


def save(run: Run, *, whole: bool) -> None:
    """Takes a checkpoint of the state as it is now; it is written beside the training.

    Args:
        whole: with the optimizer's state, also where the run is to keep weights only: what a signal saves is there to
            go on from.
    """
    run.writer.save(snapshot(run, whole=whole))


def snapshot(run: Run, *, whole: bool = False) -> Snapshot:
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
    position = run.loader.position(state.epoch, state.index)
    if position is not None:
        content[POSITION] = position
    tensors, layouts = owned_tensors(run)
    if run.save_only_model and not whole:
        tensors, content[WEIGHTS_ONLY] = {"model": tensors["model"]}, True
    return Snapshot(state.step, tensors, content, layouts)


def best_weights(run: Run) -> Snapshot:
    """The weights of this moment alone, to be kept as the best ones; every process has to ask."""
    tensors, layouts = owned_tensors(run)
    note = {"step": run.state.step, "eval_loss": run.state.best_loss}
    return Snapshot(run.state.step, {"model": tensors["model"]}, note, layouts, best=True)


def last_checkpoint(run: Run, *, whole: bool = False) -> Path:
    """The checkpoint of the weights as the loop left them; written now where there is none.

    Args:
        whole: with the optimizer's state in any case.

    Raises:
        OSError: it cannot be written.
    """
    folder = run.store.folder / f"checkpoint-{run.state.step}"
    if not run.store.agree(folder.is_dir()):
        taken = snapshot(run, whole=whole)
        run.store.save(taken.step, tensors=taken.tensors, state=taken.state, layouts=taken.layouts)
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
        if not isinstance(value, int | float | None) or (value is not None and not 0 <= value < 2**62):
            raise ValueError(f"{name} is {str(value)[:40]}")
        if name not in _PROGRESS:
            raise ValueError(f"a progress called {name[:40]} is not known")
        setattr(run.state, name, value)
    run.loader.go_to(run.state.epoch, run.state.index, content.get(POSITION))
    run.strategy.load_state_dict(content["strategy"])
    rng.restore(rng.state_of_rank(content["rng"], run.strategy.rank))
