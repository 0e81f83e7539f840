"""What a run starts from: a checkpoint of ours, one of another trainer, a completed run, or nothing."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from ..config.run_folder import CHECKPOINTS, MANIFEST
from ..config.sections import CheckpointConfig
from ..engine.checkpoint.store import STATE, CheckpointStore, differences, weights_only
from ..engine.state import Run
from ..engine.train_state import TrainState
from ..errors import CheckpointError, ConfigError, refusing
from ..messages import notice, warn
from ..runs.folder import read_run
from .output_folder import OutputFolder

_SHOWN = 20


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
    """

    checkpoint: Path | None = None
    inside: bool = False
    completed: bool = False
    fingerprint: dict[str, Any] = field(default_factory=dict)
    derived: dict[str, Any] = field(default_factory=dict)
    foreign: Path | None = None


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
    run = read_run(Path(output_dir)) if own else {}
    place = Path(output_dir) / CHECKPOINTS if own else Path(expected)
    folders = [place] if (place / MANIFEST).exists() else [path for _, path in CheckpointStore(place).candidates()]
    for folder in [*folders, *(path for _, path in CheckpointStore(place / CHECKPOINTS).candidates())]:
        with contextlib.suppress(CheckpointError):
            if not weights_only(folder):
                return _point(folder, inside=own)
    return _completed(None, run) if run.get("status") == "completed" else ResumePoint(inside=bool(run))


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
    run = folder.run() if own else {}
    completed = run.get("status") == "completed"
    try:
        checkpoint = folder.store.resolve("auto" if own else expected)
    except CheckpointError as error:
        if completed:
            return _completed(None, run)
        if not options.restart:
            raise
        warn(
            f"{error.ja} restart=true なので最初から始めます。",
            f"{error.en} restart=true: starting from the beginning.",
        )
        return None
    if completed:
        return _completed(checkpoint, run)
    if checkpoint is None:
        notice(
            f"{folder.path} に再開できるチェックポイントがまだないので、最初から始めます。",
            f"there is no complete checkpoint in {folder.path} yet: starting from the beginning.",
        )
        return ResumePoint(inside=bool(run))
    return _point(checkpoint, inside=folder.path.resolve() in checkpoint.resolve().parents)


def _is_own(expected: str, output_dir: Path) -> bool:
    return expected == "auto" or Path(expected).resolve() == output_dir.resolve()


def _is_foreign(folder: Path) -> bool:
    return (folder / "trainer_state.json").is_file() and not (folder / MANIFEST).exists()


def _completed(checkpoint: Path | None, run: dict[str, Any]) -> ResumePoint:
    with readable(checkpoint or "run.json"):
        derived = run.get("derived") or _derived_of(run["fingerprint"])
        return ResumePoint(
            checkpoint, inside=True, completed=True, fingerprint=dict(run["fingerprint"]), derived=dict(derived)
        )


def _point(checkpoint: Path, *, inside: bool) -> ResumePoint:
    with readable(checkpoint):
        state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
        fingerprint = {key: value for key, value in state["fingerprint"].items() if key != "weights"}
        derived = dict(state.get("derived") or _derived_of(fingerprint))
    return ResumePoint(checkpoint, inside=inside, fingerprint=fingerprint, derived=derived)


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


def validate_same_run(saved: dict[str, Any], current: dict[str, Any], *, allowed: bool) -> bool:
    """Compares this run with the one to resume.

    Raises:
        ConfigError: they do, and allow_changed is not set; the message lists every difference.
    """
    if not saved:
        return False
    current = json.loads(json.dumps(current))
    changed = [item for item in differences(saved, current) if not _same_folder(*item)]
    if not changed:
        return False
    lines = "; ".join(f"{name}: {_short(old)} -> {_short(new)}" for name, old, new in changed[:_SHOWN])
    if allowed:
        warn(
            f"再開する実行から変わった設定: {lines}（allow_changed=true なので続けます）。",
            f"settings that differ from the resumed run: {lines} (allowed by allow_changed=true).",
        )
        return True
    raise ConfigError(
        f"再開しようとする実行と設定が違います: {lines}。元に戻すか、承知のうえなら --allow-changed（checkpoint.allow_changed=true）を指定してください。",
        f"settings differ from the run to resume: {lines}. Change them back, or pass --allow-changed "
        "(checkpoint.allow_changed=true) if the change is intended.",
    )


def _same_folder(name: str, old: Any, new: Any) -> bool:
    """Whether a model's folder is only written in two ways; earlier versions noted it as it was typed."""
    return name == "model" and isinstance(old, str) and Path(old).is_dir() and str(Path(old).resolve()) == new


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:12] + "…"


def rescale_data_position(
    state: TrainState, saved: dict[str, Any], current: dict[str, Any], steps_per_epoch: int
) -> None:
    """Moves the position to the same rows where the batch size was changed on purpose."""

    def rows(fingerprint: dict[str, Any]) -> int:
        return int(fingerprint["batch_size"]) * int(fingerprint["gradient_accumulation_steps"])

    if saved["batch_size"] != current["batch_size"]:
        state.micro_batch_size = int(current["batch_size"])
    if rows(saved) != rows(current):
        state.index = state.index * rows(saved) // rows(current)
    if state.index >= steps_per_epoch:
        state.epoch, state.index = state.epoch + 1, 0


def load_foreign(run: Run, folder: Path) -> None:
    """Weights and step of a Hugging Face Trainer's checkpoint; its optimizer state is a pickle and is not read.

    Raises:
        CheckpointError: it holds no safetensors, or other weights than this run trains.
    """
    files = [
        path for path in (folder / "adapter_model.safetensors", *folder.glob("model*.safetensors")) if path.is_file()
    ]
    if not files:
        raise CheckpointError(
            f"{folder} に safetensors の重みがありません。安全のため .bin と .pt は読み込みません。",
            f"{folder} contains no safetensors weights; for safety .bin and .pt files are not read.",
        )
    saved = {name: tensor for path in files for name, tensor in load_file(path).items()}
    expected = [name for name, weight in run.strategy.named_parameters(run.model) if weight.requires_grad]
    # PEFT leaves the adapter's name out of its files.
    obtained = {name: saved.get(name, saved.get(name.replace(".default", ""))) for name in expected}
    missing = sorted(name for name, tensor in obtained.items() if tensor is None)
    if missing:
        raise CheckpointError(
            f"{folder} に {missing[0]} など {len(missing)} 個の重みがありません。同じ method と lora の設定か確認してください。",
            f"{folder} lacks {len(missing)} weights ({missing[0]}, ...); check that method and lora settings are "
            "the same.",
        )
    weights = {name: tensor for name, tensor in obtained.items() if tensor is not None}
    run.strategy.load_tensors(run.model, run.optimizer, {"model": weights})
    step = int(json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["global_step"])
    run.state.step = step
    run.state.epoch, run.state.index = divmod(step, len(run.loader))
    warn(
        f"{folder} は別のツールのチェックポイントです。検証はできず、オプティマイザーの状態（pickle）は読まずに、重みとステップ {step} だけを引き継ぎます。",
        f"{folder} was written by another trainer: it cannot be verified, its optimizer state (a pickle) is not "
        f"read; using its weights and step {step}.",
    )
