"""A run from its folder alone: its settings, its files wherever they are by now, and which runs were interrupted."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from filelock import FileLock, Timeout

from ..config.load import load_config, parse_overrides, resolve_key
from ..config.mixture import with_paths
from ..config.run import RunConfig
from ..config.run_folder import CHECKPOINTS, CONFIG, LOCK, MANIFEST, RUN
from ..config.section import with_values
from ..errors import ConfigError, InputNotFoundError
from ..messages import argument, notice
from .folder import read_run, recorded_settings
from .state import state_of

_CHECKPOINT = re.compile(r"^checkpoint-(\d+)$")
_EPOCHS, _STEPS = ("training", "num_epochs"), ("training", "schedule", "max_steps")
# How far up from a run's folder its files are looked for, and how far down from here runs are.
_UP, _DOWN = 5, 3
_SEEN = 2000  # folders, in a search for runs


@dataclass(frozen=True)
class RecordedRun:
    """The folder of a run, and the checkpoint that was named; None: the newest."""

    folder: Path
    checkpoint: Path | None = None


@dataclass(frozen=True)
class Interrupted:
    """A run that can go on: the last step that is saved, and its steps in all (0 where run.json does not say)."""

    folder: Path
    step: int
    total_steps: int


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run, with the settings to go on from."""
    return (folder / RUN).is_file() and (folder / CONFIG).is_file()


def find_run(path: Path) -> RecordedRun:
    """The run that a path means: its folder, its config.yaml, its checkpoints, or one of them.

    Raises:
        InputNotFoundError: there is nothing, or no run.
    """
    folder = path.parent if path.name == CONFIG and path.is_file() else path
    if is_run(folder):
        return RecordedRun(folder)
    if (path / MANIFEST).is_file() and path.absolute().parent.name == CHECKPOINTS:
        return RecordedRun(_parent(_parent(path)), path)
    if path.absolute().name == CHECKPOINTS and is_run(_parent(path)):
        return RecordedRun(_parent(path))
    if not path.exists():
        ja, en = f"{path} というフォルダーはありません。", f"there is no folder {path}."
    elif (path / "trainer_state.json").is_file():
        ja = f"{path} は別のツールのチェックポイントです。設定を付けて aift train ... training.resume_from_checkpoint={argument(path)} としてください。"
        en = f"{path} is a checkpoint of another tool; train with settings of your own and training.resume_from_checkpoint={argument(path)}."
    else:
        ja = f"{path} は aift の実行フォルダーではありません（{RUN} と {CONFIG} が必要です）。"
        en = f"{path} is not a run's folder ({RUN} and {CONFIG} are what makes one)."
    listed = listing(interrupted_runs(Path()))
    raise InputNotFoundError(ja + listed[0], en + listed[1])


def _parent(path: Path) -> Path:
    return path.parent if path.name not in ("", "..") and path.parent != path else path.absolute().parent


def recorded_config(run: RecordedRun, overrides: Sequence[str] = ()) -> RunConfig:
    """The settings of a run, to go on with it where it is now; what was moved with it or beside it is found again.

    Args:
        run: its folder.
        overrides: as load_config takes them; they stand above the recorded settings.

    Raises:
        ConfigError: settings that cannot be, or data that only a script knows. InputNotFoundError: a file of the run
            is gone.
    """
    start = os.path.abspath(run.checkpoint or run.folder)
    own = [f"training.output_dir={run.folder}", f"training.checkpoint.resume_from_checkpoint={start}"]
    given = {resolve_key(key)[0] for key, _ in parse_overrides(overrides)}
    if _EPOCHS in given and _STEPS not in given:
        own.append(f"{'.'.join(_STEPS)}=null")  # recorded steps would stand above the epochs that are asked for now
    config = load_config(run.folder / CONFIG, [*own, *overrides])
    if config.data.train is None:
        raise ConfigError(
            f"{run.folder} の学習データは Python のプログラムから渡されたもので、ファイルの名前がありません。同じプログラムで "
            'train(..., resume_from_checkpoint="auto") とするか、同じ行のファイルを data.train=FILE で指定してください。',
            f"the training data of {run.folder} came from a Python program and has no file name. Continue there with "
            'train(..., resume_from_checkpoint="auto"), or name a file with the same rows: data.train=FILE.',
        )
    return _Places(run.folder, _recorded_output(run.folder)).found(config, given)


def _recorded_output(folder: Path) -> str | None:
    training = recorded_settings(folder).get("training")
    output = training.get("output_dir") if isinstance(training, dict) else None
    return output if isinstance(output, str) else None


@dataclass(frozen=True)
class _Places:
    """Where the files of a run may be that is no longer where it was, or is continued from another folder.

    Attributes:
        folder: of the run, now.
        before: where it was, as its config.yaml says.
    """

    folder: Path
    before: str | None

    def found(self, config: RunConfig, given: set[tuple[str, ...]]) -> RunConfig:
        """The configuration with the paths that hold now; those that were given again are left alone."""
        sections: dict[str, Any] = {"model": config.model, "data": config.data, "lora": config.lora}
        for section, name in (
            ("model", "name"),
            ("model", "chat_template"),
            ("data", "train"),
            ("data", "eval"),
            ("lora", "adapter"),
        ):
            if (section, name) in given:
                continue
            old = getattr(sections[section], name)
            new = with_paths(old, lambda item, section=section, name=name: self._place(item, section, name))
            if new != old:
                sections[section] = with_values(sections[section], **{name: new})
        changed = {name: value for name, value in sections.items() if value is not getattr(config, name)}
        return with_values(config, **changed) if changed else config

    def _place(self, recorded: str, section: str, name: str) -> str | None:
        if os.path.exists(os.path.expanduser(recorded)) or (section == "data" and glob.glob(recorded, recursive=True)):
            return recorded  # files of data may be named by a pattern
        whole = os.path.isabs(recorded) or PureWindowsPath(recorded).is_absolute()
        for candidate in self._candidates(recorded, whole=whole):
            if candidate.exists():
                notice(
                    f"{section}.{name}: {recorded} は {candidate} にありました。",
                    f"{section}.{name}: {recorded} was found at {candidate}.",
                )
                return str(candidate)
        if not whole:  # of a hub, of the package, or the name of a template
            return recorded
        if name == "chat_template":
            return None  # the checkpoint holds its text
        key = "model" if section == "model" else f"{section}.{name}"
        raise InputNotFoundError(
            f"この実行の {section}.{name}（{recorded}）が見つかりません。移した場合は aift resume {argument(self.folder)} {key}=PATH で場所を指定してください。",
            f"{section}.{name} of this run, {recorded}, is not there; if it was moved, name its place: "
            f"aift resume {argument(self.folder)} {key}=PATH.",
        )

    def _candidates(self, recorded: str, *, whole: bool) -> Iterator[Path]:
        here = self.folder.absolute()
        above = [here, *list(here.parents)[:_UP]]
        roots = [root for root in (*above, Path.cwd()) if root != root.parent]
        if not whole:
            yield from (root / recorded for root in roots)
            return
        if self.before is not None and os.path.isabs(recorded) and os.path.isabs(self.before):
            # What lay beside the run lies beside it still.
            yield Path(os.path.normpath(here / os.path.relpath(recorded, self.before)))
        pure = PurePosixPath(recorded) if recorded.startswith("/") else PureWindowsPath(recorded)
        parts = pure.parts[1:]
        for length in range(len(parts), 0, -1):
            yield from (root.joinpath(*parts[-length:]) for root in roots)


def interrupted_runs(root: Path) -> list[Interrupted]:
    """The runs below a folder that were stopped or killed, the one last changed first."""
    found: list[tuple[float, Interrupted]] = []
    for count, (place, folders, files) in enumerate(os.walk(root)):
        folder = Path(place)
        if RUN in files:
            folders.clear()
            item = _interrupted(folder)
            if item is not None:
                found.append(((folder / RUN).stat().st_mtime, item))
        if count >= _SEEN:
            break
        deep = len(folder.relative_to(root).parts) >= _DOWN
        folders[:] = [] if deep else sorted(name for name in folders if not name.startswith("."))
    return [item for _, item in sorted(found, key=lambda pair: pair[0], reverse=True)]


def _interrupted(folder: Path) -> Interrupted | None:
    run = read_run(folder)
    if not is_run(folder) or run.get("status") not in ("stopped", "running"):
        return None
    if state_of(run).at_work or _at_work(folder):
        return None
    total = run.get("total_steps")
    return Interrupted(folder, saved_step(folder) or 0, total if isinstance(total, int) and 0 < total < 10**12 else 0)


def saved_step(folder: Path) -> int | None:
    """The step of a run's newest checkpoint, not verified; None where there is none."""
    place = folder / CHECKPOINTS
    try:
        names = os.listdir(place)
    except OSError:  # there is none, or it is another user's
        names = []
    return max((int(match[1]) for name in names if (match := _CHECKPOINT.match(name))), default=None)


def _at_work(folder: Path) -> bool:
    """Whether a process holds the run's lock."""
    if not (folder / LOCK).exists():
        return False
    lock = FileLock(str(folder / LOCK), timeout=0)
    try:
        lock.acquire()
    except (Timeout, OSError):
        return True
    lock.release()
    return False


def listing(runs: Sequence[Interrupted]) -> tuple[str, str]:
    """(Japanese, English) lines with the command that goes on with each run."""
    if not runs:
        return "中断した実行はここにはありません。", " There is no interrupted run here."
    lines = [
        (f"\n  aift resume {argument(run.folder)}", f"{run.step}/{run.total_steps}" if run.total_steps else run.step)
        for run in runs
    ]
    return (
        "ここにある中断した実行:" + "".join(f"{line}   # ステップ {step} まで保存済み" for line, step in lines),
        " Interrupted runs here:" + "".join(f"{line}   # saved up to step {step}" for line, step in lines),
    )
