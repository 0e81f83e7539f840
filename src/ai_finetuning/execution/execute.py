"""One run in this process: folder, plan, build, fit, what stays of it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from ..config.run_folder import METRICS
from ..engine.checkpoint.store import LoadedCheckpoint, verify
from ..engine.checkpoint.store import load as load_checkpoint
from ..engine.faults import Faults
from ..engine.loop import fit, last_checkpoint, load
from ..engine.metrics import read_metrics
from ..engine.state import Run
from ..messages import notice, speak, warn
from ..parallel.plan import warn_of_idle_ranks
from ..parallel.processes import Peers, all_peers, launched, process_group, wait_for
from ..parallel.watchdog import Watchdog
from ..planner.plan import Plan
from ..runs.folder import TRACKERS
from ..system.cores import use_physical_cores
from ..system.gpu import get_available_device, peak_memory_bytes
from . import artifacts as saving
from . import resume
from .build import Built, build
from .output_folder import OutputFolder
from .processes import run_processes
from .progress import progress, speaking_main_process
from .reporting import RunReport
from .request import TrainRequest
from .resolve import RunPlan, resolve, validate_strategy
from .result import Result
from .system_prompt import take_system
from .trackers import Tracker


def execute(request: TrainRequest, faults: Faults | None = None) -> Result:
    """Trains and saves; the request's model object then holds the trained module.

    Args:
        faults: to inject; None: those that the environment plans.

    Raises:
        ToolkitError: with reason and way out; see errors.py for the kinds.
    """
    faults = Faults.from_environment() if faults is None else faults
    if launched().size == 1:
        plan = resolve(request)
        if plan.processes_to_start > 1:
            result = _run_in_processes(plan)
        else:
            use_physical_cores()
            result = _run_here(plan, Peers(), faults)
    else:
        validate_strategy(request)  # on every rank, before any of them waits for another
        with process_group(_device_of_rank(request)), speaking_main_process():
            peers = all_peers()
            result = _run_here(_resolve_in_turn(request, peers), peers, faults)
    request.model.model = result.model  # type: ignore[assignment]
    take_system(request.model.tokenizer, result.folder)
    return result


def _device_of_rank(request: TrainRequest) -> torch.device:
    device = request.model.device or get_available_device()
    return torch.device("cuda", launched().local_rank) if device.type == "cuda" else device


def _resolve_in_turn(request: TrainRequest, peers: Peers) -> RunPlan:
    """The main process tokenizes first; the others find its cache. What the process that started this one has already
    reported
    is not repeated.
    """
    with _silence() if request.resolved_strategy is not None else contextlib.nullcontext():
        plan = resolve(request) if peers.is_main else None
        wait_for(peers)
        return plan or resolve(request)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    speak(only_errors=True)
    try:
        yield
    finally:
        speak(only_errors=not launched().is_main)


def _run_in_processes(plan: RunPlan) -> Result:
    """The run in processes that this one starts; its model, loaded from where they saved it."""
    began = time.perf_counter()
    run_processes(plan)
    folder = Path(plan.summary.output_dir)
    plan.request.model.model = None  # what was loaded before the run has made room for what it trained
    model = saving.load_saved(plan, folder)
    return Result(model, folder, None, read_metrics(folder / METRICS), time.perf_counter() - began)


def _run_here(plan: RunPlan, peers: Peers, faults: Faults) -> Result:
    """One process's part of a run."""
    options = plan.request.config.training.checkpoint
    keep = options.save_total_limit
    with OutputFolder(plan.summary.output_dir, keep=keep, peers=peers, faults=faults) as folder:
        start = resume.find(folder, options)
        plan = _with_resume(plan, start)
        if start is not None:
            differs = resume.validate_same_run(start.fingerprint, plan.fingerprint, allowed=options.allow_changed)
            if start.completed and not differs:
                notice(
                    f"{folder.path} の実行は完了しているので、そのモデルを返します。",
                    f"the run in {folder.path} is complete; returning its model.",
                )
                history = read_metrics(folder.path / METRICS)
                return Result(saving.load_saved(plan, folder.path), folder.path, history=history)
        if peers.is_main:
            folder.validate_disk_space(plan.summary.disk_bytes)
        _warn_of_memory(plan.summary)
        warn_of_idle_ranks(plan.parallel, plan.summary.rows_per_step)
        for line in plan.data.lines:
            notice(line, line)
        return _train(plan, folder, peers)


def _with_resume(plan: RunPlan, start: resume.ResumePoint | None) -> RunPlan:
    """The plan for the verified checkpoint; made again if it was made for another one."""
    had = plan.resume.derived if plan.resume is not None else {}
    if (start.derived if start is not None else {}) == had:
        return replace(plan, resume=start)
    return replace(resolve(plan.request, start or resume.ResumePoint()), resume=start)


def _warn_of_memory(plan: Plan) -> None:
    """The estimate is a formula: it warns, the run decides."""
    if plan.fits:
        return
    need, free = plan.memory.text(), f"{plan.free_memory_bytes / 2**30:.2f} GiB"
    warn(
        f"メモリーが足りない見込みです（見積もり {need}、空き {free}）。data.max_length か batch_size を下げるか、method: qlora を使ってください。",
        f"memory may not suffice (estimate {need}, free {free}); lower data.max_length or batch_size, or use "
        "method: qlora.",
    )


def _train(plan: RunPlan, folder: OutputFolder, peers: Peers) -> Result:
    training, start = plan.request.config.training, plan.resume
    built = build(plan, folder.store, folder.path / METRICS)
    run = built.run
    loaded = None
    if start is not None and start.checkpoint is not None:
        loaded = load_checkpoint(start.checkpoint, run.strategy.layouts)
        resume.validate_same_run(
            loaded.state["fingerprint"], run.fingerprint, allowed=training.checkpoint.allow_changed
        )
    folder.begin(
        resuming=start is not None and start.inside,
        files=saving.descriptions(plan, built.derived),
        fingerprint=plan.fingerprint,
        derived=asdict(built.derived),
        total_steps=plan.summary.total_steps,
    )
    report = RunReport(plan, built, folder.path) if peers.is_main else None
    if report is not None:
        saving.write_beside(plan, folder, built.model, built.save_dtype)
        run.callbacks = [
            report,
            *([progress(training.logging_steps)] if training.runtime.progress else []),
            *(Tracker(name, folder.path / TRACKERS, folder.path.name) for name in training.runtime.report_to),
        ]
    if plan.request.hooks.callbacks:
        from .callbacks import TransformersCallbacks  # transformers' side, which only a run with callbacks imports

        run.callbacks = [*run.callbacks, TransformersCallbacks(plan, run)]
    _restore(run, loaded, start)
    notice(plan.precision.reason_ja, plan.precision.reason_en)
    result = _fit(plan, built, folder, report)
    wait_for(peers)
    return result


def _fit(plan: RunPlan, built: Built, folder: OutputFolder, report: RunReport | None) -> Result:
    run, began = built.run, time.perf_counter()
    with contextlib.closing(run.strategy):  # after the model is saved, which may take a last checkpoint
        try:
            with _watched(plan, run, folder):
                state = fit(run)
        except BaseException as error:
            with contextlib.suppress(OSError):
                folder.write_run(status="stopped", reason=f"{type(error).__name__}: {str(error)[:300]}")
            raise
        finally:
            if built.path is not None:
                built.path.close()
        seconds = time.perf_counter() - began
        result = Result(built.model, folder.path, state, seconds=seconds, peak_memory_bytes=_peak(plan.device))
        _finish(plan, folder, built, result, report)
    return result


def _watched(plan: RunPlan, run: Run, folder: OutputFolder) -> contextlib.AbstractContextManager[Any]:
    """A watchdog where there are several processes."""
    if plan.parallel.processes == 1:
        return contextlib.nullcontext()
    strategy, limit = run.strategy, plan.request.config.parallel.timeout_seconds
    return Watchdog(lambda: strategy.exchanges, timeout_seconds=limit, folder=folder.path)


def _finish(plan: RunPlan, folder: OutputFolder, built: Built, result: Result, report: RunReport | None) -> None:
    """Saves the model, the best or the last; where its parts lie in several processes, out of a checkpoint."""
    run, dtype = built.run, built.save_dtype
    best = plan.request.config.training.checkpoint.load_best and run.state.best_step not in (None, run.state.step)
    checkpoint = folder.store.folder / f"checkpoint-{run.state.best_step}"
    if best:
        best = _back_to_best(run, checkpoint)
    result.saved_step = run.state.best_step if best else None
    if not plan.parallel.in_parts:
        if report is not None:
            saving.finish(plan, folder, result, dtype, report)
        return
    if not best:
        checkpoint = last_checkpoint(run)
    if report is not None:
        saving.finish(plan, folder, result, dtype, report, saving.export_of(plan, run.model, checkpoint, dtype))
        plan.request.model.model = None
        result.model = saving.load_saved(plan, folder.path)


def _back_to_best(run: Run, checkpoint: Path) -> bool:
    """Puts the weights of the best evaluation back; where its checkpoint could not be written, the last ones stay."""
    problems = verify(checkpoint)
    if problems:
        warn(
            f"最良の {checkpoint.name} が使えないため（{problems[0].ja}）、最後の重みを返します。",
            f"the best checkpoint, {checkpoint.name}, cannot be used ({problems[0].en}); returning the last weights.",
        )
        return False
    best = load_checkpoint(checkpoint, run.strategy.layouts).tensors["model"]
    run.strategy.load_tensors(run.model, run.optimizer, {"model": best})
    notice(
        f"最良のステップ {run.state.best_step} の重みに戻しました。",
        f"restored the best weights, from step {run.state.best_step}.",
    )
    return True


def _restore(run: Run, loaded: LoadedCheckpoint | None, start: resume.ResumePoint | None) -> None:
    if loaded is not None:
        load(run, loaded.tensors, loaded.state)
        resume.rescale_data_position(run.state, loaded.state["fingerprint"], run.fingerprint, len(run.loader))
        notice(f"ステップ {run.state.step} から再開します。", f"resuming from step {run.state.step}.")
    elif start is not None and start.foreign is not None:
        resume.load_foreign(run, start.foreign)


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return max(int(torch.cuda.max_memory_allocated(index)) for index in range(torch.cuda.device_count()))
    return peak_memory_bytes()
