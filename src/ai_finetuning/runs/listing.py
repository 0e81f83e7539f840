"""The runs near a folder, newest first, by what their files say; their ids, names and the trash. Needs no torch."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..config.run_folder import METRICS, RUN
from ..errors import ConfigError, InputNotFoundError, RunLockedError, StorageError
from ..messages import notice, on_one_line
from ..system.files import subfolders
from . import OUTPUTS
from .adopted import adopted_since, refuse_adopted
from .folder import read_run
from .held import held
from .rows import last_rows, loss_of, step_of, steps_of
from .state import State, Status, state_of

# Runs that are moved out of the way, beside those that stay.
TRASH = ".trash"
_STAMP = "%Y%m%d-%H%M%S-%f"
_TRASHED = re.compile(r"(.+)\.(\d{8}-\d{6}-\d{6})")
# Bytes of run.json in all, runs whose metrics are read:
# a folder of a stranger takes no more time than others.
_BYTES, _FOLLOWED = 8 << 20, 20
_ID = re.compile(r"[a-z0-9-]{1,64}")
# Characters of a name that a person gives, those of ids that a name gives, and ids in a refusal.
_NAME, _SLUG, _LISTED = 100, 48, 20


@dataclass(frozen=True)
class RunEntry:
    """One run.

    Attributes:
        folder: of the run, relative to where it was looked for.
        path: of the folder, from where this process is.
        status: how it is, see `state`.
        step, total_steps: how far it came; None where its files do not say.
        loss_before, loss_after: evaluation loss before the first step and at the last evaluation, in nats per token.
        started: seconds since 1970; the time of run.json where it does not say.
        state: whether it waits, is at work, and why it is not.
        id: what names it among those that were looked for, in letters that any address holds.
        adopted: since when its model is the one in use, in seconds since 1970; None where it is not.
    """

    folder: Path
    path: Path
    status: Status
    model: str
    method: str
    step: int | None
    total_steps: int | None
    loss_before: float | None
    loss_after: float | None
    started: float
    state: State
    id: str = ""
    adopted: float | None = None


def list_runs(*roots: Path) -> list[RunEntry]:
    """The runs in folders, in the folders in them, and in those below their `outputs`; newest first.

    An id is the folder's name where it is made of a-z, 0-9 and hyphens and no other run here has it; else its letters
    and a mark of where it is. What links lead to outside of a root and of its `outputs` is left out.
    """
    found: list[tuple[Path, Path, dict[str, Any]]] = []
    seen: set[Path] = set()
    for root in roots:
        inside = (root.resolve(), (root / OUTPUTS).resolve())
        for path, values in _read_runs(root):
            real = path.resolve()
            if real not in seen and any(map(real.is_relative_to, inside)):
                seen.add(real)
                found.append((root, path, values))
    found.sort(key=lambda item: -_started(item[2], item[1] / RUN))
    entries = [_entry(path, values, root, followed=at < _FOLLOWED) for at, (root, path, values) in enumerate(found)]
    return _with_ids(entries)


def adopted_first(entries: Sequence[RunEntry]) -> list[RunEntry]:
    """Runs as one chooses among them: those in use, adopted last first, then the others in their order."""
    return sorted(entries, key=lambda entry: -(entry.adopted or 0.0))


def find_id(id: str, roots: Sequence[Path]) -> RunEntry:
    """The run that an id names.

    Raises:
        InputNotFoundError: there is none, or none any more; with the ids that there are.
    """
    entries = list_runs(*roots)
    for entry in entries:
        if entry.id == id:
            return entry
    shown, known = on_one_line(id)[:_NAME], ", ".join(entry.id for entry in entries[:_LISTED])
    raise InputNotFoundError(
        f"{shown} という実行はありません。ある実行: {known or 'なし'}",
        f"there is no run {shown}. Runs here: {known or 'none'}",
    )


def _with_ids(entries: list[RunEntry]) -> list[RunEntry]:
    names = [entry.path.resolve().name for entry in entries]
    often = Counter(names)
    return [
        replace(entry, id=name if _ID.fullmatch(name) and often[name] == 1 else _marked(name, entry.path))
        for entry, name in zip(entries, names, strict=True)
    ]


def _marked(name: str, path: Path) -> str:
    """An id for a name that is none, or that several runs have: the same wherever it is asked for."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:_SLUG].strip("-")
    mark = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:10]
    return f"{slug}-{mark}" if slug else mark


def rename(path: Path, name: str, *, force: bool = False) -> Path:
    """Gives the folder of a run another name beside it; returns the new folder.

    Args:
        force: also a run that may be at work on another PC.

    Raises:
        ConfigError: the name is no name of a folder, or is taken; or other runs lie in this one. RunLockedError: it is at
            work. StorageError: the disk refuses.
    """
    validate_name(name)
    return _moved(path, path.resolve().with_name(name), force=force)


def trash(path: Path, *, force: bool = False) -> Path:
    """Moves a run into `.trash` beside it, where no listing looks; nothing is deleted. Returns where it is now.

    Args:
        force: also a run that may be at work on another PC.

    Raises:
        ConfigError: other runs lie in this one, or its model is in use. RunLockedError: it is at work. StorageError: the
            disk refuses.
    """
    refuse_adopted(path)
    whole = path.resolve()
    try:
        (whole.parent / TRASH).mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise _not_moved(path, error) from error
    stamp = datetime.fromtimestamp(time.time()).strftime(_STAMP)
    return _moved(path, whole.parent / TRASH / f"{whole.name}.{stamp}", force=force)


@dataclass(frozen=True)
class Trashed:
    """A run in the trash.

    Attributes:
        id: its folder's name there, in letters that any address holds.
        path: of the folder.
        name: that it had.
        moved: when it was moved, in seconds since 1970.
    """

    id: str
    path: Path
    name: str
    moved: float


def list_trash(*roots: Path) -> list[Trashed]:
    """The runs in the trash of folders, and of their `outputs`; those moved last first."""
    places = {(root / name / TRASH).resolve() for root in roots for name in (".", OUTPUTS)}
    found = []
    for place in sorted(places):
        for path in subfolders(place):
            match = _TRASHED.fullmatch(path.name)
            if match and (path / RUN).is_file():
                moved = datetime.strptime(match[2], _STAMP).timestamp()
                found.append(Trashed(_marked(match[1], path), path, match[1], moved))
    return sorted(found, key=lambda one: -one.moved)


def restore(path: Path) -> Path:
    """Moves a run out of the trash, to where it was; returns the folder.

    Raises:
        ConfigError: its name is taken by now, or it is not in a trash. StorageError: the disk refuses.
    """
    match = _TRASHED.fullmatch(path.name)
    if path.parent.name != TRASH or match is None:
        raise ConfigError(f"{path} はごみ箱の中の実行ではありません。", f"{path} is no run in a trash.")
    return _moved(path, path.resolve().parent.parent / match[1], force=True)


def validate_name(name: str) -> None:
    """Raises ConfigError where a name cannot be that of a run's folder on every system."""
    odd = on_one_line(name) != name or set(name) & set('/\\:*?"<>|') or name != name.strip(" .")
    if odd or not 0 < len(name) <= _NAME:
        shown = on_one_line(name)[:_NAME]
        raise ConfigError(
            f'実行の名前が「{shown}」です。1～{_NAME} 文字で、/ \\ : * ? " < > | を含まず、空白やピリオドで始まらず終わらない名前にしてください。',
            f'the name of the run is {shown!r}; give 1 to {_NAME} characters, without / \\ : * ? " < > |, that neither begin '
            "nor end with a space or a dot.",
        )


def _moved(path: Path, target: Path, *, force: bool) -> Path:
    """Moves a run that nobody works on."""
    whole = path.resolve()
    inside = [entry.path.name for entry in list_runs(whole) if entry.path.resolve() != whole]
    if inside:
        names = ", ".join(inside[:5])
        raise ConfigError(
            f"{path} の中に別の実行（{names}）があるため、移せません。先にそれらを移してください。",
            f"{path} holds other runs ({names}) and is not moved; move those first.",
        )
    if target.exists():
        raise ConfigError(
            f"{target} はもうあります。別の名前にしてください。", f"{target} exists already; choose another name."
        )
    try:
        with held(path) as run:
            if state_of(run).elsewhere and not force:
                raise RunLockedError(
                    f"{path} は別の PC で始めた実行で、学習中かどうかはここからは分かりません。その PC で止めるか、学習中でないと分かっていれば --force を付けてください。",
                    f"{path} began on another PC, and whether it is at work is not seen from here. Stop it there, or add "
                    "--force where you know that it is not.",
                )
            if os.name != "nt":
                os.replace(whole, target)
        if os.name == "nt":  # which moves no folder with an open file
            os.replace(whole, target)
    except RunLockedError:  # an OSError too
        raise
    except OSError as error:
        raise _not_moved(path, error) from error
    return target


def _not_moved(path: Path, error: OSError) -> StorageError:
    return StorageError(f"{path} を移せませんでした（{error}）。", f"{path} could not be moved ({error}).")


def _read_runs(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """(folder, run.json) of runs, those that changed last first, as far as so many bytes go; it says where they end."""
    files = []
    for path in (folder, *subfolders(folder), *subfolders(folder / OUTPUTS)):
        with contextlib.suppress(OSError):
            state = (path / RUN).stat()
            if stat.S_ISREG(state.st_mode):
                files.append((-state.st_mtime, state.st_size, path))
    left, skipped = _BYTES, 0
    for _, size, path in sorted(files):
        if size > left:
            skipped += 1
            continue
        left -= size
        values = read_run(path)
        if values:
            yield path, values
    if skipped:
        notice(
            f"{folder}: 実行が多いため、{skipped:,} 件は読んでいません（{RUN} の合計が {_BYTES >> 20} MiB を超えます）。--in で場所を絞るか、aift runs trash で片付けてください。",
            f"{folder}: {skipped:,} runs are not read (their {RUN} are more than {_BYTES >> 20} MiB together); name a smaller "
            "place with --in, or tidy up with aift runs trash.",
        )


def _entry(path: Path, values: dict[str, Any], root: Path, *, followed: bool) -> RunEntry:
    same = _mapping(values.get("fingerprint")) or _mapping(values.get("planned"))
    result, state = _mapping(values.get("result")), state_of(values)
    rows = last_rows(path / METRICS) if followed else []
    steps = steps_of(rows)
    losses = [loss for row in rows if (loss := loss_of(row.get("eval_loss"))) is not None]
    before, after = (
        loss_of(_mapping(result.get(name)).get("eval_loss")) for name in ("held_out_before", "held_out_after")
    )
    done = result.get("steps") if state.status == "completed" else None  # else of an earlier, shorter training
    return RunEntry(
        folder=path.relative_to(root),
        path=path,
        status=state.status,
        model=str(same.get("model") or "?"),
        method=str(same.get("method") or "?"),
        step=step_of(done, steps[-1].get("step") if steps else None, result.get("steps")),
        total_steps=step_of(values.get("total_steps"), same.get("total_steps")),
        loss_before=before,
        loss_after=after if after is not None else (losses[-1] if losses else None),
        started=_started(values, path / RUN),
        state=state,
        adopted=adopted_since(values),
    )


def _started(values: dict[str, Any], file: Path) -> float:
    try:
        moment = datetime.fromisoformat(str(values.get("started")))
        return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
    except (ValueError, OverflowError):
        return file.stat().st_mtime


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
