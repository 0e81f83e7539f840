"""What a run starts from: a checkpoint of ours, one of another trainer, a completed run, or nothing."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from ..config.run_folder import CHECKPOINTS, MANIFEST, RUN
from ..config.sections import CheckpointConfig
from ..engine.checkpoint.store import STATE, CheckpointStore, weights_only
from ..engine.state import Run
from ..engine.train_state import TrainState
from ..errors import CheckpointError, ConfigError, Reason, refusing
from ..messages import argument, notice, warn
from ..models.adapters import saved_name
from ..runs.folder import read_run
from ..runs.weights import INDEX, RETURNED, last_of, weight_names
from .fingerprint import differences
from .output_folder import OutputFolder


@dataclass(frozen=True)
class Finished:
    """The model of a run that was once completed.

    Attributes:
        folder: of the run; the model's files lie in it.
        steps, tokens: that it was trained for.
        weights: where those of its last step are, if the result are its best ones; None: in the folder.
    """

    folder: Path
    steps: int
    tokens: int
    weights: Path | None = None


@dataclass(frozen=True)
class ResumePoint:
    """Where a run starts.

    Attributes:
        checkpoint: a verified checkpoint's folder, or None.
        inside: whether the run continues in its own folder.
        completed: whether that run's model is there already.
        fingerprint: of the run that is resumed; empty where unknown.
        derived: what that run had derived; what it lacks (a checkpoint of an older version) is derived again.
        foreign: a checkpoint that another trainer wrote.
        finished: the model of the run that is resumed, where it was completed once; it may go on for more steps.
    """

    checkpoint: Path | None = None
    inside: bool = False
    completed: bool = False
    fingerprint: dict[str, Any] = field(default_factory=dict)
    derived: dict[str, Any] = field(default_factory=dict)
    foreign: Path | None = None
    finished: Finished | None = None

    @property
    def step(self) -> int:
        """The step that it goes on from."""
        if self.checkpoint is not None:
            with readable(self.checkpoint):
                return int(json.loads((self.checkpoint / MANIFEST).read_text(encoding="utf-8"))["step"])
        return self.finished.steps if self.finished is not None else 0


def peek(output_dir: str, options: CheckpointConfig) -> ResumePoint | None:
    """What a run would continue from, for a plan: nothing is locked or verified, damaged checkpoints are passed
    over.
    """
    expected = options.resume_from_checkpoint
    if expected is None:
        return None
    own = _is_own(expected, Path(output_dir))
    if not own and _is_foreign(Path(expected)):
        return ResumePoint(foreign=Path(expected))
    folder = Path(output_dir if own else expected)
    place = folder / CHECKPOINTS if own else folder
    folders = [place] if (place / MANIFEST).exists() else [path for _, path in CheckpointStore(place).candidates()]
    for checkpoint in [*folders, *(path for _, path in CheckpointStore(place / CHECKPOINTS).candidates())]:
        with contextlib.suppress(CheckpointError):
            if not weights_only(checkpoint):
                return _start(checkpoint, folder, Path(output_dir), own=own)
    return _start(None, folder, Path(output_dir), own=own)


def find(folder: OutputFolder, options: CheckpointConfig) -> ResumePoint | None:
    """What resume_from_checkpoint means here, verified; None starts from the beginning.

    Raises:
        CheckpointError: every checkpoint is damaged, and restart is not set.
        InputNotFoundError: a path that is not there.
    """
    expected = options.resume_from_checkpoint
    if expected is None:
        return None
    own = _is_own(expected, folder.path)
    if not own and _is_foreign(Path(expected)):
        return ResumePoint(foreign=Path(expected))
    place = folder.path if own else Path(expected)
    finished = _finished(place, read_run(place))
    try:
        checkpoint = folder.store.resolve("auto" if own else expected)
    except CheckpointError as error:
        if finished is None:
            if not options.restart:
                raise
            warn(
                f"{error.ja} restart=true なので最初から始めます。",
                f"{error.en} restart=true: starting from the beginning.",
            )
            return None
        checkpoint = None
    start = _start(checkpoint, place, folder.path, own=own)
    if checkpoint is None and start.finished is None:
        notice(
            f"{folder.path} に再開できるチェックポイントがまだないので、最初から始めます。",
            f"there is no complete checkpoint in {folder.path} yet: starting from the beginning.",
        )
    return start


def _is_own(expected: str, output_dir: Path) -> bool:
    return expected == "auto" or Path(expected).resolve() == output_dir.resolve()


def _is_foreign(folder: Path) -> bool:
    return (folder / "trainer_state.json").is_file() and not (folder / MANIFEST).exists()


def _start(checkpoint: Path | None, folder: Path, output_dir: Path, *, own: bool) -> ResumePoint:
    """The start from a checkpoint, from a finished model, or from nothing.

    Args:
        checkpoint: the one to go on from, or None.
        folder: of the run that is resumed.
        output_dir: of this run; own: they are the same.

    Raises:
        CheckpointError: what was written there cannot be read.
    """
    with readable(checkpoint or folder / RUN):
        run = read_run(folder)
        finished = _finished(folder, run)
        if finished is not None and (checkpoint is None or (own and run.get("status") == "completed")):
            fingerprint = dict(run["fingerprint"])
            derived = dict(run.get("derived") or _derived_of(fingerprint))
            if checkpoint is not None and "weights" not in fingerprint:  # run.json of an earlier version
                saved = _state_of(checkpoint)["fingerprint"]
                fingerprint = fingerprint | {key: saved[key] for key in ("weights",) if key in saved}
            completed = own and run.get("status") == "completed"
            return ResumePoint(checkpoint, own, completed, fingerprint, derived, finished=finished)
        if checkpoint is None:
            return ResumePoint(inside=own and bool(run))
        state = _state_of(checkpoint)
        fingerprint = dict(state["fingerprint"])
        derived = dict(state.get("derived") or _derived_of(fingerprint))
        inside = output_dir.resolve() in checkpoint.resolve().parents
        if finished is None and inside:
            finished = _finished(output_dir, read_run(output_dir))
        return ResumePoint(checkpoint, inside, False, fingerprint, derived, finished=finished)


def _state_of(checkpoint: Path) -> dict[str, Any]:
    return dict(json.loads((checkpoint / STATE).read_text(encoding="utf-8")))


def _finished(folder: Path, run: dict[str, Any]) -> Finished | None:
    """The finished model of a run; what a longer run that was broken off has left of it counts too."""
    result = run.get("result")
    if not isinstance(result, dict) or "fingerprint" not in run or not any(folder.glob("*.safetensors")):
        return None
    last = last_of(folder) if run.get(RETURNED) is not None and weight_names(last_of(folder)) else None
    return Finished(folder, int(result["steps"]), int(result.get("tokens") or 0), last)


def readable(checkpoint: Path | str) -> contextlib.AbstractContextManager[None]:
    """Refuses a checkpoint whose parts whoever reads them fails over: hashes say who wrote them only to the writer.

    Raises:
        CheckpointError: with the reason.
    """
    return refusing(
        CheckpointError,
        f"{checkpoint} の状態を読めません（{{reason}}）。最初から始めるには --restart を指定してください。",
        f"the state in {checkpoint} cannot be read ({{reason}}). To start anew, pass --restart.",
    )


def _derived_of(fingerprint: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint of a version that kept no `derived` says of it."""
    return {key: fingerprint[key] for key in ("precision", "warmup_steps") if key in fingerprint}


def is_done(start: ResumePoint, current: dict[str, Any], *, allowed: bool) -> bool:
    """Whether the run to resume is completed and has nothing left to do; else it goes on.

    A finished run goes on for more steps; everything else has to be as it was. A base under another name is looked at
    when its weights are loaded (validate_weights).

    Args:
        start: what the run would go on from.
        current: the fingerprint of this run.
        allowed: other differences are reported only.

    Raises:
        ConfigError: the runs differ, with every difference; or no step is left for what differs.
    """
    if not start.fingerprint:
        return False
    current = json.loads(json.dumps(current))
    changed = [item for item in differences(start.fingerprint, current) if not _left_for_later(start, *item)]
    finished = start.finished
    longer = finished is not None and current["total_steps"] > finished.steps
    if longer and current["total_steps"] > start.fingerprint["total_steps"]:
        changed = [item for item in changed if item[0] != "total_steps"]
        if not changed:
            return False
    if not changed:
        return start.completed
    lines = _listed(changed)
    if not allowed:
        raise _differs(start, {name for name, _, _ in changed}, lines)
    if finished is not None and not longer and (start.completed or start.checkpoint is None):
        raise _nothing_left(finished, lines)
    warn(
        f"再開する実行から変わった設定: {lines}（allow_changed=true なので続けます）。",
        f"settings that differ from the resumed run: {lines} (allowed by allow_changed=true).",
    )
    return False


def validate_weights(saved: dict[str, Any], current: dict[str, Any], *, allowed: bool) -> None:
    """Compares the weights of the base with those of the run to resume, whatever the base is called by now.

    Raises:
        ConfigError: they are others, and allow_changed is not set.
    """
    names = [name for name in ("model", "weights") if name in saved and saved[name] != current.get(name)]
    if "weights" not in names:
        return
    lines = _listed([(name, saved[name], current.get(name)) for name in names])
    if not allowed:
        raise _differs(ResumePoint(), set(names), lines)
    warn(
        f"再開する実行とは重みが違います: {lines}（allow_changed=true なので続けます）。",
        f"the weights differ from those of the resumed run: {lines} (allowed by allow_changed=true).",
    )


def _left_for_later(start: ResumePoint, name: str, old: Any, new: Any) -> bool:
    """Whether a difference is one of the base, which its weights tell, or of a folder that is written in two ways."""
    if name == "weights":
        return True
    same = isinstance(old, str) and Path(old).is_dir() and str(Path(old).resolve()) == new
    return name == "model" and (same or "weights" in start.fingerprint)


def _listed(changed: list[tuple[str, Any, Any]]) -> str:
    return "; ".join(f"{name}: {_short(old)} -> {_short(new)}" for name, old, new in changed)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:12] + "…"


def _differs(start: ResumePoint, names: set[str], lines: str) -> ConfigError:
    ja, en = "元に戻すか", "Change them back"
    if start.finished is not None and names & {"data", "rows"}:
        folder = argument(start.finished.folder)
        ja = (
            f"この実行は完了しています。新しいデータで学習を続けるには aift train --from {folder} data.train=FILE "
            "training.output_dir=NEW とします。同じ実行を続けるなら、データを元に戻すか"
        )
        en = (
            f"That run is complete; to train its model further on new data: aift train --from {folder} data.train=FILE "
            "training.output_dir=NEW. To go on with the same run, change them back"
        )
    return ConfigError(
        f"再開しようとする実行と設定が違います: {lines}。{ja}、承知のうえなら --allow-changed（checkpoint.allow_changed=true）を指定してください。",
        f"settings differ from the run to resume: {lines}. {en}, or pass --allow-changed "
        "(checkpoint.allow_changed=true) if the change is intended.",
    )


def _nothing_left(finished: Finished, lines: str) -> ConfigError:
    folder = argument(finished.folder)
    return ConfigError(
        f"{finished.folder} の実行は {finished.steps} ステップで完了していて、続きのステップがありません（変わった設定: {lines}）。num_epochs か max_steps "
        f"を増やすか、別の output_dir で aift train --from {folder} を使ってください。",
        f"the run in {finished.folder} is complete after {finished.steps} steps and has none left (settings that "
        f"differ: {lines}). Raise num_epochs or max_steps, or train its model further in another output_dir: "
        f"aift train --from {folder}.",
    )


def describe(start: ResumePoint, *, done: bool, total_steps: int) -> Reason:
    """Where a run goes on, in words."""
    if done:
        assert start.finished is not None
        return Reason(
            f"{start.finished.folder} の実行は完了しているので、そのモデルを返します。",
            f"the run in {start.finished.folder} is complete; returning its model.",
        )
    if start.foreign is not None:
        return Reason(f"{start.foreign} の重みから続けます。", f"going on with the weights of {start.foreign}.")
    if start.checkpoint is None and start.finished is None:
        return Reason(
            "再開できるチェックポイントがまだないので、最初から始めます。",
            "there is no complete checkpoint yet: starting from the beginning.",
        )
    where = start.checkpoint
    if where is not None and start.finished is None:
        return Reason(
            f"ステップ {start.step} から再開します（全 {total_steps} ステップ、{where}）。",
            f"resuming from step {start.step} of {total_steps} ({where}).",
        )
    assert start.finished is not None
    folder = start.finished.folder
    state = (
        (f"{where} の重みとオプティマイザーの状態", f"the weights and the optimizer's state of {where}")
        if where is not None
        else (
            "保存したモデルの重みを使い、オプティマイザーは新しく始めます。再開できるチェックポイントがないため",
            "the weights of the saved model and a new optimizer, since no checkpoint to resume from is left",
        )
    )
    return Reason(
        f"完了した実行 {folder} をステップ {start.step} から {total_steps} まで続けます（{state[0]}）。完成しているモデルは、新しいモデルを保存するまで残します。",
        f"going on with the finished run in {folder}, from step {start.step} to {total_steps} ({state[1]}); its model "
        "stays until the new one is saved.",
    )


def rescale_data_position(
    state: TrainState, saved: dict[str, Any], current: dict[str, Any], steps_per_epoch: int, *, streams: bool = False
) -> None:
    """Moves the position to the same rows where the batch size was changed on purpose; streamed data stands there already."""

    def rows(fingerprint: dict[str, Any]) -> int:
        return int(fingerprint["batch_size"]) * int(fingerprint["gradient_accumulation_steps"])

    if saved["batch_size"] != current["batch_size"]:
        state.micro_batch_size = int(current["batch_size"])
    if rows(saved) != rows(current) and not streams:
        state.index = state.index * rows(saved) // rows(current)
    if state.index >= steps_per_epoch:
        state.epoch, state.index = state.epoch + 1, 0


def load_foreign(run: Run, folder: Path) -> None:
    """Weights and step of a Hugging Face Trainer's checkpoint; its optimizer state is a pickle and is not read.

    Raises:
        CheckpointError: it holds no safetensors, or other weights than this run trains.
    """
    _load_weights(run, folder)
    step = int(json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["global_step"])
    _move_to(run, step)
    warn(
        f"{folder} は別のツールのチェックポイントです。検証はできず、オプティマイザーの状態（pickle）は読まずに、重みとステップ {step} だけを引き継ぎます。",
        f"{folder} was written by another trainer: it cannot be verified, its optimizer state (a pickle) is not "
        f"read; using its weights and step {step}.",
    )


def load_finished(run: Run, finished: Finished) -> None:
    """The weights of a finished model, and its place in the data.

    Raises:
        CheckpointError: the model does not hold the weights that this run trains, or they lie in several processes.
    """
    if run.strategy.layouts is not None:
        raise CheckpointError(
            f"{finished.folder} には再開できるチェックポイントがなく、重みを分割する strategy では保存したモデルから続けられません。strategy: ddp を使ってください。",
            f"{finished.folder} has no checkpoint to resume from, and a strategy that divides the weights cannot go on "
            "from the saved model; use strategy: ddp.",
        )
    _load_weights(run, finished.weights or finished.folder)
    _move_to(run, finished.steps)
    run.state.tokens = finished.tokens


def _move_to(run: Run, step: int) -> None:
    run.state.step, (run.state.epoch, run.state.index) = step, run.loader.behind(step)


def _load_weights(run: Run, folder: Path) -> None:
    """The weights that train, from a folder of an adapter or a model."""
    files = [folder / name for name in weight_names(folder) if name != INDEX]
    if not files:
        raise CheckpointError(
            f"{folder} に safetensors の重みがありません。安全のため .bin と .pt は読み込みません。",
            f"{folder} contains no safetensors weights; for safety .bin and .pt files are not read.",
        )
    saved = {name: tensor for path in files for name, tensor in load_file(path).items()}
    expected = [name for name, weight in run.strategy.named_parameters(run.model) if weight.requires_grad]
    obtained = {name: saved.get(name, saved.get(saved_name(name))) for name in expected}
    missing = sorted(name for name, tensor in obtained.items() if tensor is None)
    if missing:
        raise CheckpointError(
            f"{folder} に {missing[0]} など {len(missing)} 個の重みがありません。同じ method と lora の設定か確認してください。",
            f"{folder} lacks {len(missing)} weights ({missing[0]}, ...); check that method and lora settings are "
            "the same.",
        )
    weights = {name: tensor for name, tensor in obtained.items() if tensor is not None}
    run.strategy.load_tensors(run.model, run.optimizer, {"model": weights})
