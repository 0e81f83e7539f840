"""One run in this process: folder, plan, build, fit, what stays of it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from ..config.run_folder import LAUNCH, METRICS
from ..engine.checkpoint.store import LoadedCheckpoint
from ..engine.checkpoint.store import load as load_checkpoint
from ..engine.faults import Faults
from ..engine.hooks import SignalFlags
from ..engine.loop import POSITION, fit, last_checkpoint, load
from ..engine.metrics import read_metrics
from ..engine.state import Run
from ..errors import DivergedError, PreemptedError, StorageError
from ..messages import argument, described, notice, speak, warn
from ..models.adapters import remember_origin
from ..parallel.plan import warn_of_idle_ranks
from ..parallel.processes import STORE, Peers, all_peers, gather, launched, process_group, wait_for
from ..parallel.watchdog import Watchdog
from ..planner.plan import Plan
from ..planner.speed import remember, speed_of
from ..runs.devices import CPU, occupying
from ..runs.folder import TRACKERS
from ..runs.phase import tell_phase
from ..system.cores import tell_load, threads_kept, use_physical_cores
from ..system.gpu import computing_on, get_available_device, let_segments_grow, peak_bytes
from . import artifacts as saving
from . import best, resume
from .adapter_start import parent_of
from .base_facts import speed_key
from .build import Built, build
from .final_verdict import RunVerdict, run_seconds
from .fixed_questions import fixed_questions
from .followed import Followed
from .leakage import warn_of_leakage
from .output_folder import OutputFolder
from .preference import give_references
from .processes import as_plain, remove_rows, resolved, run_processes, settled_of
from .progress import progress, saying_that_it_prepares, speaking_main_process
from .reporting import RunReport, few_steps_unless_better
from .request import TrainRequest
from .resolve import RunPlan, resolve, validate_strategy
from .result import Result
from .self_check.first_use import check_unknown_gpu
from .settle import settled, tell_choice
from .system_prompt import keep_system, take_system
from .trackers import Tracker

if TYPE_CHECKING:
    from ..planner.phases import Timeline
    from .simulation import MeasuredStep


def execute(request: TrainRequest, faults: Faults | None = None) -> Result:
    """Trains and saves; the request's model object then holds the trained module.

    Args:
        faults: to inject; None: those that the environment plans.

    Raises:
        ToolkitError: with reason and way out; see errors.py for the kinds.
    """
    faults = Faults.from_environment() if faults is None else faults
    with _told_to_others(request):
        return _execute(request, faults)


def _told_to_others(request: TrainRequest) -> contextlib.AbstractContextManager[None]:
    """Says to runs that wait for a device that this one computes; once for all processes of a run."""
    if STORE in os.environ or not launched().is_main:
        return contextlib.nullcontext()
    folder, device = Path(request.config.training.output_dir), request.model.device
    tell_phase(folder, "data")
    return occupying((CPU,) if device is not None and torch.device(device).type == "cpu" else None, folder.absolute())


def _execute(request: TrainRequest, faults: Faults) -> Result:
    let_segments_grow()
    if launched().size == 1:
        plan = _simulated(resolve(request))
        tell_choice(plan)
        _warn_of_leakage(plan)
        if plan.processes_to_start > 1:
            result = _run_in_processes(plan)
        else:
            use_physical_cores()
            tell_load()
            result = _run_here(plan, Peers(), faults)
    else:
        validate_strategy(request)  # on every rank, before any of them waits for another
        with process_group(_device_of_rank(request)), speaking_main_process():
            peers = all_peers()
            plan = _resolve_in_turn(request, peers)
            plan = plan if request.resolved_strategy is not None else _simulated(plan)
            if peers.is_main:
                tell_choice(plan)
            result = _run_here(plan, peers, faults)
    request.model.model = result.model  # type: ignore[assignment]
    take_system(request.model.tokenizer, result.folder)
    return result


def _simulated(plan: RunPlan) -> RunPlan:
    """The plan with the simulated bytes of a step, where somebody asks, or on a GPU where memory is short by the formula;
    others start at once.
    """
    short = plan.device.type == "cuda" and plan.summary.is_tight
    if not (short or plan.request.exact_plan):
        return plan
    if launched().size == 1:
        return settled(plan)
    if plan.request.resolved_strategy is not None:  # whoever started this process has simulated
        return plan
    from .simulation import with_timeline

    return with_timeline(plan)  # of its own place; what processes compute is agreed on, and nothing is chosen here


def _second_step(plan: RunPlan) -> Timeline | None:
    """The simulated bytes of the run's second step, in its first process; None without a simulation."""
    if plan.summary.timeline is None:
        told = plan.request.resolved_strategy
        return told.second_step if told is not None and launched().is_main else None
    from .simulation import of_second_step

    return of_second_step(plan)


def _measured(plan: RunPlan) -> MeasuredStep | None:
    """What compares the second step with its simulation, where there is one."""
    timeline = _second_step(plan)
    if timeline is None:
        return None
    from .simulation import MeasuredStep

    return MeasuredStep(plan.device, timeline)


def _device_of_rank(request: TrainRequest) -> torch.device:
    device = request.model.device or get_available_device()
    return torch.device("cuda", launched().local_rank) if device.type == "cuda" else device


def _warn_of_leakage(plan: RunPlan) -> None:
    warn_of_leakage(plan.request.train, plan.request.eval_data, plan.data, plan.request.config.data)


def _resolve_in_turn(request: TrainRequest, peers: Peers) -> RunPlan:
    """The main process tokenizes first; the others find its cache. What the process that started this one has already
    reported
    is not repeated.
    """
    with _silence() if request.resolved_strategy is not None else contextlib.nullcontext():
        plan = resolve(request) if peers.is_main else None
        # What GPUs compute follows from their free memory, which every process would see otherwise.
        chosen = as_plain(settled_of(plan)) if plan is not None and plan.summary.choice is not None else None
        chosen = gather(chosen, peers)[0]
        if plan is not None:
            return plan
        return resolve(request if chosen is None else replace(request, resolved_strategy=resolved(chosen)))


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
    _warn_of_memory(plan.summary)
    run_processes(plan, _second_step(plan))
    folder = Path(plan.summary.output_dir)
    plan.request.model.model = None  # what was loaded before the run has made room for what it trained
    model = saving.load_saved(plan, folder)
    return Result(model, folder, None, read_metrics(folder / METRICS), time.perf_counter() - began)


def _run_here(plan: RunPlan, peers: Peers, faults: Faults) -> Result:
    """One process's part of a run."""
    options = plan.request.config.training.checkpoint
    keep = options.save_total_limit
    output = OutputFolder(plan.summary.output_dir, keep=keep, peers=peers, faults=faults)
    with threads_kept(), output as folder:
        if peers.size == 1:  # what a run of several processes left here when the machine stopped
            remove_rows(folder.path / LAUNCH)
        start = resume.find(folder, options)
        plan = _with_resume(plan, start)
        if start is not None:
            done = resume.is_done(start, plan.fingerprint, allowed=options.allow_changed)
            said = resume.describe(start, done=done, total_steps=plan.summary.total_steps)
            if done:
                notice(said.ja, said.en)
                return _completed(plan, folder, start.fingerprint)
            if start.finished is not None:
                notice(said.ja, said.en)
        if peers.is_main:
            folder.validate_disk_space(plan.summary.disk_bytes)
            tell_phase(folder.path, "model")
            if (
                peers.size > 1 and plan.request.resolved_strategy is None
            ):  # else the process that started these has done it
                _warn_of_leakage(plan)
            check_unknown_gpu(plan.device)
        if plan.request.resolved_strategy is None:  # else the process that started these knows it better
            _warn_of_memory(plan.summary)
        for one in plan.summary.notes():
            warn(one.ja, one.en)
        warn_of_idle_ranks(plan.parallel, plan.summary.rows_per_step)
        for line in plan.data.lines:
            notice(line, line)
        with computing_on(plan.device, mixed_precision=plan.precision.autocast is not None):
            return _train(plan, folder, peers)


def _completed(plan: RunPlan, folder: OutputFolder, saved: dict[str, Any]) -> Result:
    """What a run that is complete already gave."""
    seconds = float((folder.run().get("result") or {}).get("seconds") or 0.0)
    renamed = saved["model"] != plan.fingerprint["model"] and not plan.request.full
    model = saving.load_saved(plan, folder.path, saved.get("weights") if renamed else None)
    content = folder.run()
    if launched().is_main and (content.get("verdict") or {}).get("pending"):  # killed behind the save
        step = int(content["result"]["saved_step"])
        RunVerdict(plan, folder, model.config).finish(model, step, run_seconds(folder.path))
    return Result(model, folder.path, history=read_metrics(folder.path / METRICS), seconds=seconds)


def _with_resume(plan: RunPlan, start: resume.ResumePoint | None) -> RunPlan:
    """The plan for the verified checkpoint; made again if it was made for another one."""
    had = plan.resume.derived if plan.resume is not None else {}
    if (start.derived if start is not None else {}) == had:
        return replace(plan, resume=start)
    return replace(_simulated(resolve(plan.request, start or resume.ResumePoint())), resume=start)


def _warn_of_memory(plan: Plan) -> None:
    """The estimate is a formula: it warns, the run decides."""
    if plan.fits:
        return
    need, free = plan.memory.text(), plan.free_text()
    if plan.timeline is not None:
        need = f"{plan.needed_bytes / 2**30:.2f} GiB"
    warn(
        f"メモリーが足りない見込みです（見積もり {need}、空き {free}）。data.max_length か batch_size を下げるか、method: qlora を使ってください。",
        f"memory may not suffice (estimate {need}, free {free}); lower data.max_length or batch_size, or use "
        "method: qlora.",
    )


def _warn_of_few_steps(plan: Plan) -> None:
    advice = plan.few_steps()
    if advice is not None:
        warn(advice.ja, advice.en)


def _train(plan: RunPlan, folder: OutputFolder, peers: Peers) -> Result:
    training, start = plan.request.config.training, plan.resume
    measured = _measured(plan)
    with saying_that_it_prepares():
        built = build(plan, folder.store, folder.path / METRICS, measured)
    run = built.run
    if plan.request.config.method != "pretrain":  # before anything saves the tokenizer
        keep_system(plan.tokenizer, plan.request.config.data.system_prompt, plan.data.report.system)
    if folder.store.agree(plan.summary.keeps_best):  # each process has looked at the disk by itself
        folder.store.export = best.keeper(plan, built.model, built.save_dtype, folder.store.best)
        run.keep_best_from = 0 if training.checkpoint.load_best else 1
    loaded = None
    if start is not None and start.checkpoint is not None:
        with resume.readable(start.checkpoint):
            loaded = load_checkpoint(start.checkpoint, run.strategy.layouts)
    if start is not None:
        resume.validate_weights(start.fingerprint, run.fingerprint, allowed=training.checkpoint.allow_changed)
    if peers.is_main:
        saving.rehearse(plan, folder, built)
    folder.begin(
        resuming=start is not None and start.inside,
        files=saving.descriptions(plan, built.derived) if peers.is_main else {},
        fingerprint=run.fingerprint,
        derived=asdict(built.derived),
        total_steps=plan.summary.total_steps,
        parent=parent_of(plan.request.config),
    )
    report = RunReport(plan, built, folder.path) if peers.is_main else None
    verdict = RunVerdict(plan, folder, built.model.config)
    with _reported(folder):
        if report is not None:
            saving.write_beside(plan, folder, built.model, built.save_dtype)
            run.callbacks = [
                report,
                *fixed_questions(plan, built, folder.path),
                *([progress(training.logging_steps, _eval_every(run))] if training.runtime.progress else []),
                *(
                    Tracker(name, folder.path / TRACKERS, folder.path.resolve().name)
                    for name in training.runtime.report_to
                ),
            ]
        if measured is not None:
            run.callbacks = [*run.callbacks, measured.of(run)]
        if plan.request.hooks.callbacks:
            from .callbacks import TransformersCallbacks  # transformers' side, which only a run with callbacks imports

            run.callbacks = [*run.callbacks, TransformersCallbacks(plan, run)]
        if peers.is_main:
            run.callbacks = [*run.callbacks, Followed(folder.path)]
        _restore(run, loaded, start)
        give_references(plan, built, folder.path, start)
        verdict.before_training(built)
        notice(plan.precision.reason_ja, plan.precision.reason_en)
        result = _fit(plan, built, folder, report, verdict)
        wait_for(peers)
        return result


@contextlib.contextmanager
def _reported(folder: OutputFolder) -> Iterator[None]:
    """Whatever ends the run before its model is in place stands in run.json."""
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(OSError):
            folder.write_run(status="stopped", reason=described(error, for_files=True)[:300])
        raise


def _fit(plan: RunPlan, built: Built, folder: OutputFolder, report: RunReport | None, verdict: RunVerdict) -> Result:
    run, began = built.run, time.perf_counter()
    with contextlib.closing(run.strategy):  # after the model is saved, which may take a last checkpoint
        try:
            with _watched(plan, run, folder):
                state = fit(run)
                verdict.after_steps(built)
        except Exception as error:
            _rescue(run, error)
            raise
        finally:
            if built.path is not None:
                built.path.close()
        seconds = time.perf_counter() - began
        result = Result(built.model, folder.path, state, seconds=seconds, peak_memory_bytes=peak_bytes(plan.device))
        problem: Exception | None = None
        with SignalFlags():  # a run that is asked to stop now is as good as done
            try:
                _finish(plan, folder, built, result, report, verdict.pending)
            except Exception as error:
                problem = error
        if not run.store.agree(problem is None):
            _not_saved(run, problem)
        if run.strategy.is_main:
            _remember_speed(plan, folder, report)
            verdict.finish(result.model, result.saved_step or state.step, run_seconds(folder.path))
            if not verdict.improved and few_steps_unless_better(plan, result.history, result.saved_step) is not None:
                _warn_of_few_steps(plan.summary)
    return result


def _remember_speed(plan: RunPlan, folder: OutputFolder, report: RunReport | None) -> None:
    """Keeps how fast the run was, and its answers, for the plans of the next ones."""
    speed = speed_of(read_metrics(folder.path / METRICS))
    if speed is not None:
        answering = None if report is None else report.pace.seconds
        remember(*speed_key(plan.request, plan.device, plan.parallel), speed, answering)


def _eval_every(run: Run) -> float | None:
    """Steps between evaluations; None without any."""
    if run.evaluation is None:
        return None
    return run.loader.steps(0) / run.evals_per_epoch if run.evals_per_epoch else run.eval_steps


def _rescue(run: Run, error: Exception) -> None:
    """After a failure between two steps: keeps the state as it is, and says which checkpoint is the newest.

    Of several processes, of which only one may have failed, none can take a checkpoint any more.
    """
    if isinstance(error, PreemptedError | StorageError | DivergedError) or run.state.step == 0:
        return
    checkpoint = run.store.newest()
    if not run.in_step and launched().size == 1:
        with contextlib.suppress(OSError):
            checkpoint = last_checkpoint(run, whole=True)
    if checkpoint is not None:
        command = f"aift resume {argument(run.store.folder.parent)}"
        warn(
            f"ステップ {run.state.step} でエラーのため止まりました。チェックポイント: {checkpoint}。再開: {command}",
            f"stopped by an error at step {run.state.step}. Checkpoint: {checkpoint}. To go on: {command}",
        )


def _not_saved(run: Run, problem: Exception | None) -> NoReturn:
    """Leaves the trained weights in a checkpoint, where the model could not be saved.

    Args:
        problem: what went wrong in this process; None: in another one.

    Raises:
        StorageError: with the checkpoint, and how to go on.
    """
    checkpoint = run.store.newest()
    with contextlib.suppress(OSError):
        checkpoint = last_checkpoint(run, whole=True)
    if isinstance(problem, OSError):  # of the disk: the output folder tells it
        raise problem
    reason = described(problem, for_files=False)[:300] if problem is not None else "rank 0"
    command = f"aift resume {argument(run.store.folder.parent)}"
    raise StorageError(
        f"学習は終わりましたが、モデルを保存できませんでした（{reason}）。学習した重みはチェックポイント {checkpoint} にあります。原因を直してから再開してください: {command}",
        f"training is done, but the model could not be saved ({reason}). The trained weights are in the checkpoint "
        f"{checkpoint}; remove the cause, then: {command}",
    ) from problem


def _watched(plan: RunPlan, run: Run, folder: OutputFolder) -> contextlib.AbstractContextManager[Any]:
    """A watchdog where there are several processes."""
    if plan.parallel.processes == 1:
        return contextlib.nullcontext()
    strategy, limit = run.strategy, plan.request.config.parallel.timeout_seconds
    return Watchdog(lambda: strategy.exchanges, timeout_seconds=limit, folder=folder.path)


def _finish(
    plan: RunPlan,
    folder: OutputFolder,
    built: Built,
    result: Result,
    report: RunReport | None,
    pending: dict[str, Any],
) -> None:
    """Saves the model, the best or the last; where its parts lie in several processes, out of a checkpoint."""
    run, dtype = built.run, built.save_dtype
    if report is not None:
        tell_phase(folder.path, "saving")
    returns_best = plan.request.config.training.checkpoint.load_best or run.return_best
    if run.return_best and run.state.best_step is None and report is not None:
        warn(
            "評価データがないため最良の重みが分かりません。最後の重みを結果とします。",
            "without evaluation data no weights are the best ones; the last ones are the result.",
        )
    wanted = returns_best and run.state.best_step not in (None, run.state.step)
    returned = wanted and best.put_back(plan, run)
    if returned:
        result.saved_step = run.state.best_step
    export = None
    if plan.parallel.in_parts:
        export = best.copy_of(run.store) if returned else saving.export_of(plan, run.model, last_checkpoint(run), dtype)
    if report is None:
        return
    found = best.describe(run, read_metrics(folder.path / METRICS))
    folder.write_run(best=found)
    saving.finish(plan, folder, result, dtype, report, export, pending)
    if not plan.request.full and not plan.parallel.in_parts:
        remember_origin(result.model, folder.path, plan.source.name)
    best.tell(found, plan, run, returned=returned)
    if plan.parallel.in_parts:
        plan.request.model.model = None
        result.model = saving.load_saved(plan, folder.path)


def _restore(run: Run, loaded: LoadedCheckpoint | None, start: resume.ResumePoint | None) -> None:
    if loaded is not None:
        with resume.readable(start.checkpoint if start is not None and start.checkpoint is not None else "checkpoint"):
            load(run, loaded.tensors, loaded.state)
            steps = run.loader.steps(run.state.epoch)
            saved, streams = loaded.state["fingerprint"], loaded.state.get(POSITION) is not None
            resume.rescale_data_position(run.state, saved, run.fingerprint, steps, streams=streams)
        notice(f"ステップ {run.state.step} から再開します。", f"resuming from step {run.state.step}.")
    elif start is not None and start.foreign is not None:
        resume.load_foreign(run, start.foreign)
    elif start is not None and start.finished is not None:
        resume.load_finished(run, start.finished)
