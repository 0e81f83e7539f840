"""Checkpoint format v1: safetensors and JSON under a manifest with hashes; no pickle. Specified in
docs/checkpoints.md.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from ...config.run_folder import BEST, BEST_NOTE, CHECKPOINTS, MANIFEST
from ...errors import CheckpointError, InputNotFoundError, Reason
from ...messages import notice, warn
from ...parallel.processes import Peers, gather
from ...parallel.weights.layout import Layout
from ...runs.weights import problems_of, wrong_digest
from ...system.files import fsync_folder, sha256_of
from ..faults import Faults
from .read import read_tensors
from .write import Cancelled, raise_if_cancelled, write_durably, write_tensors

FORMAT_VERSION = 1
STATE = "state.json"
WEIGHTS_ONLY = "weights_only"  # in state and manifest of a checkpoint without the optimizer's state
_NAME = re.compile(r"^checkpoint-(\d+)$")
_STAGING = ".staging-"
_TRASH = ".trash-"
T = TypeVar("T")
# By group and name, of tensors that are parts of larger ones.
Layouts = Mapping[str, Mapping[str, Layout]]


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A verified checkpoint in memory: tensors by group (`model`, `optimizer`), JSON state, step."""

    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]
    step: int


def verify(folder: Path) -> list[Reason]:
    """What is wrong with a checkpoint's folder; an empty list means that every byte is what was written."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        version, files = manifest["format_version"], manifest["files"]
        foreign: list[str] = [name for name in files if not _is_entry(name, files[name])]
    except FileNotFoundError:
        return [Reason(f"{MANIFEST} がありません", f"{MANIFEST} is missing")]
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        return [Reason(f"{MANIFEST} を読めません（{error}）", f"{MANIFEST} cannot be read ({error})")]
    if foreign:
        return [
            Reason(
                f"{MANIFEST} の {foreign[0][:60]!r} はファイルの記録ではありません",
                f"{foreign[0][:60]!r} in {MANIFEST} is no entry of a file",
            )
        ]
    if manifest.pop("sha256", None) != _digest_of(manifest):
        return [wrong_digest(MANIFEST)]
    if version != FORMAT_VERSION:
        return [
            Reason(
                f"形式の版が {version} です（読めるのは {FORMAT_VERSION}）",
                f"format version {version}; this version reads {FORMAT_VERSION}",
            )
        ]
    problems = []
    for name, entry in files.items():
        path = folder / name
        if not path.is_file():
            problems.append(Reason(f"{name} がありません", f"{name} is missing"))
        elif path.stat().st_size != entry["bytes"]:
            size = path.stat().st_size
            problems.append(
                Reason(
                    f"{name} が {size} バイトです（正しくは {entry['bytes']} バイト）",
                    f"{name} has {size} bytes instead of {entry['bytes']}",
                )
            )
        elif sha256_of(path) != entry["sha256"]:
            problems.append(wrong_digest(name))
    return problems


def _is_entry(name: str, entry: Any) -> bool:
    """Whether a manifest's entry is that of a file beside it."""
    return Path(name).name == name and isinstance(entry, dict) and {"bytes", "sha256"} <= entry.keys()


def _digest_of(manifest: dict[str, Any]) -> str:
    """SHA-256 of a manifest without its own, in canonical form: UTF-8, sorted keys, no spaces."""
    text = json.dumps(manifest, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()


def load(folder: Path, layouts: Mapping[str, Layout] | None = None) -> LoadedCheckpoint:
    """Reads a checkpoint that verify() has accepted; with layouts, this rank's parts only."""
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    return LoadedCheckpoint(read_tensors(folder, manifest, layouts), state, manifest["step"])


class CheckpointStore:
    """The checkpoints of one run, in `folder`.

    A checkpoint is written beside (`.staging-N`), every file fsynced, the manifest last, then renamed: a folder called
    `checkpoint-N` is complete. At least two verified ones are kept.
    """

    def __init__(self, folder: Path, *, keep: int = 3, faults: Faults | None = None) -> None:
        self.folder = folder
        self.faults = faults or Faults()
        self._keep = max(2, keep)
        self._peers = Peers()
        # Makes a model's or an adapter's folder of a checkpoint; what knows models gives it.
        self.export: Callable[[Path, Path], None] | None = None

    def share(self, peers: Peers) -> None:
        """From now on these processes write each checkpoint together: every rank its parts, the main one the rest."""
        self._peers = peers

    def clean(self) -> None:
        """Removes what a killed run left half-done; called by the run that holds the lock."""
        if self.folder.is_dir():
            for path in self.folder.iterdir():
                if path.name.startswith((_STAGING, _TRASH)):
                    shutil.rmtree(path, ignore_errors=True)

    def candidates(self) -> list[tuple[int, Path]]:
        """(step, folder) of every finished checkpoint, newest first; not verified."""
        if not self.folder.is_dir():
            return []
        obtained = [(int(match[1]), path) for path in self.folder.iterdir() if (match := _NAME.match(path.name))]
        return sorted(obtained, reverse=True)

    def newest(self) -> Path | None:
        """The newest finished checkpoint's folder."""
        return next((path for _, path in self.candidates()), None)

    def save(
        self,
        step: int,
        *,
        tensors: dict[str, dict[str, Tensor]],
        state: dict[str, Any],
        cancelled: threading.Event | None = None,
        layouts: Layouts | None = None,
    ) -> Path:
        """Writes a checkpoint and removes old ones.

        Args:
            step: optimizer steps done.
            tensors: by group, under global names.
            state: JSON values.
            cancelled: once it is set, what has no name yet gets none.
            layouts: by group, of the tensors that are parts of larger ones.

        Raises:
            OSError: the disk is full or not writable; nothing half-written stays visible.
            Cancelled: `cancelled` was set in time.
        """
        final, staging = self.folder / f"checkpoint-{step}", self.folder / f"{_STAGING}{step}"
        try:
            self._together(lambda: self._stage(staging))
            written = self._together(lambda: self._write(staging, step, tensors, cancelled, layouts or {}))
            self._together(lambda: self._publish(staging, final, step, state, written, cancelled))
        except (OSError, Cancelled):
            if self._peers.is_main:
                shutil.rmtree(staging, ignore_errors=True)
            raise
        if self._peers.is_main:
            self.faults.inject("rotate", step)
            self._rotate()
        return final

    @property
    def best(self) -> Path:
        """The folder of the best weights, which may not be there."""
        return self.folder / BEST

    def keep_best(
        self,
        step: int,
        *,
        tensors: dict[str, dict[str, Tensor]],
        state: dict[str, Any],
        cancelled: threading.Event | None = None,
        layouts: Layouts | None = None,
    ) -> None:
        """Puts weights in the place of the best ones kept so far, as a folder that a model is loaded from.

        Every process writes its parts, and the main one makes the folder of them: none needs to hold all of it.

        Args:
            step: whose evaluation they won.
            tensors: the group `model`, under global names.
            state: what is noted about them.
            cancelled, layouts: as for save.

        Raises:
            OSError: the disk is full or not writable; the earlier best weights stay.
            Cancelled: `cancelled` was set in time.
        """
        staging, parts = self.folder / f"{_STAGING}{BEST}-parts", self.folder / f"{_STAGING}{BEST}-whole"
        place = self.folder / f"{_STAGING}{BEST}"
        try:
            self._together(lambda: self._stage(staging))
            written = self._together(lambda: self._write(staging, step, tensors, cancelled, layouts or {}, point=BEST))
            self._together(lambda: self._publish(staging, parts, step, state, written, cancelled, point=BEST))
            self._together(lambda: self._place_best(parts, place, state))
        finally:
            if self._peers.is_main:
                for path in (staging, parts, place):
                    shutil.rmtree(path, ignore_errors=True)

    def _place_best(self, parts: Path, place: Path, note: dict[str, Any]) -> None:
        if not self._peers.is_main or self.export is None:
            return
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        try:
            self.export(parts, place)
        except Exception as error:  # whatever it is, the run goes on without these weights, on every process alike
            raise error if isinstance(error, OSError) else OSError(f"{type(error).__name__}: {error}") from error
        files = {path.name: sha256_of(path) for path in sorted(place.iterdir()) if path.suffix == ".safetensors"}
        for path in place.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        write_durably(place / BEST_NOTE, json.dumps({**note, "sha256": files}, indent=1).encode("utf-8"))
        fsync_folder(place)
        if self.best.exists():
            self._remove(self.best)
        os.replace(place, self.best)
        fsync_folder(self.folder)

    def best_of(self, step: int) -> list[Reason]:
        """What is wrong with the kept best weights, which should be those of a step; an empty list means nothing."""
        return problems_of(self.best, BEST_NOTE, step)

    def _together(self, work: Callable[[], T]) -> list[T]:
        """What every rank's work gave; the first error of any rank is raised on all."""
        result: Any = None
        problem: OSError | Cancelled | None = None
        try:
            result = work()
        except (OSError, Cancelled) as error:
            problem = error
        told: tuple[int | None, str] | None = None
        if problem is not None:
            told = (problem.errno, str(problem)) if isinstance(problem, OSError) else (None, "")
        answers = gather((result, told), self._peers)
        if problem is not None:
            raise problem
        for _, other in answers:
            if other is not None:
                raise Cancelled if other == (None, "") else OSError(*other)
        return [obtained for obtained, _ in answers]

    def agree(self, yes: bool) -> bool:
        """Whether every rank says yes."""
        return all(gather(yes, self._peers))

    def _stage(self, staging: Path) -> None:
        if self._peers.is_main:
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir()

    def _write(
        self,
        folder: Path,
        step: int,
        tensors: dict[str, dict[str, Tensor]],
        cancelled: threading.Event | None,
        layouts: Layouts,
        point: str = "save",
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """This rank's files, and the pieces in them."""
        files: dict[str, Any] = {}
        pieces: dict[str, Any] = {}
        rank, size = self._peers.rank, self._peers.size
        for group, named in tensors.items():
            name = f"{group}-{rank + 1:05d}-of-{size:05d}.safetensors"
            self.faults.inject(point, step)
            if not named:
                continue
            length, digest, entries = write_tensors(folder / name, named, cancelled, layouts.get(group))
            files[name] = {"bytes": length, "sha256": digest, "group": group}
            pieces |= {f"{group}:{key}": {"file": name, **entry} for key, entry in entries.items()}
        return files, pieces

    def _publish(
        self,
        staging: Path,
        final: Path,
        step: int,
        state: dict[str, Any],
        written: list[tuple[dict[str, Any], dict[str, Any]]],
        cancelled: threading.Event | None,
        point: str = "save",
    ) -> None:
        """State and manifest, then the name: the work of the main process."""
        if not self._peers.is_main:
            return
        files: dict[str, Any] = {}
        obtained: dict[str, list[dict[str, Any]]] = {}
        for own_files, own_pieces in written:
            files |= own_files
            for key, piece in own_pieces.items():
                obtained.setdefault(key, []).append(piece)
        contents = {key: pieces[0] if len(pieces) == 1 else pieces for key, pieces in obtained.items()}
        self.faults.inject(point, step)
        text = json.dumps(state, ensure_ascii=False).encode("utf-8")
        files[STATE] = {"bytes": len(text), "sha256": write_durably(staging / STATE, text)}
        manifest = {"format_version": FORMAT_VERSION, "step": step, "files": files, "tensors": contents}
        if state.get(WEIGHTS_ONLY):
            manifest[WEIGHTS_ONLY] = True
        manifest["sha256"] = _digest_of(manifest)
        self.faults.inject(point, step)
        write_durably(staging / MANIFEST, json.dumps(manifest, ensure_ascii=False, indent=1).encode("utf-8"))
        fsync_folder(staging)
        if point == "save":
            self.faults.inject("rename", step)
        raise_if_cancelled(cancelled)
        if final.exists():
            self._remove(final)
        os.replace(staging, final)
        fsync_folder(self.folder)

    def _remove(self, folder: Path) -> None:
        """Renames before deleting, so that a kill in between leaves no checkpoint with files missing."""
        trash = folder.with_name(_TRASH + folder.name)
        shutil.rmtree(trash, ignore_errors=True)
        os.replace(folder, trash)
        shutil.rmtree(trash, ignore_errors=True)

    def _rotate(self) -> None:
        """Removes all but the newest; a damaged one does not count among those kept."""
        kept = 0
        for _, path in self.candidates():
            if kept >= self._keep:
                self._remove(path)
            elif kept < 1 or not verify(path):
                kept += 1

    def resolve(self, expected: str) -> Path | None:
        """The checkpoint to resume from; None where `auto` finds that none was ever completed.

        Args:
            expected: `auto`, a checkpoint's folder or a run's folder.

        Raises:
            CheckpointError: every checkpoint is damaged, or the one that was named.
            InputNotFoundError: the named folder is not there.
        """
        if expected == "auto":
            return self._newest_whole(self.candidates(), self.folder)
        path = Path(expected)
        if not path.is_dir():
            raise InputNotFoundError(
                f"resume_from_checkpoint が {expected} ですが、そのフォルダーはありません。auto で最新を使えます。",
                f"resume_from_checkpoint is {expected}, which is not a folder; `auto` uses the newest checkpoint.",
            )
        if (path / MANIFEST).exists() or _NAME.match(path.name):
            problems = verify(path)
            if problems:
                why = Reason.joined(problems)
                raise CheckpointError(
                    f"チェックポイント {path} は使えません（{why.ja}）。auto で他のものから再開できます。",
                    f"checkpoint {path} cannot be used ({why.en}); `auto` resumes from another one.",
                )
            if weights_only(path):
                raise _cannot_resume(path)
            return path
        nested = CheckpointStore(path / CHECKPOINTS)
        obtained = self._newest_whole(nested.candidates(), path)
        if obtained is None:
            raise CheckpointError(
                f"{path} にチェックポイントがありません。",
                f"{path} contains no checkpoint of this toolkit.",
            )
        return obtained

    @staticmethod
    def _newest_whole(candidates: list[tuple[int, Path]], folder: Path) -> Path | None:
        reasons: list[Reason] = []
        without_optimizer: list[Path] = []
        for _, path in candidates:
            if weights_only(path):
                without_optimizer.append(path)
                continue
            problems = verify(path)
            if not problems:
                if reasons or without_optimizer:
                    notice(f"{path} から再開します。", f"resuming from {path}.")
                return path
            why = Reason.joined(problems)
            reasons.append(Reason(f"{path.name}: {why.ja}", f"{path.name}: {why.en}"))
            warn(
                f"チェックポイント {path} は壊れているので使いません: {why.ja}",
                f"checkpoint {path} is damaged and skipped: {why.en}",
            )
        if without_optimizer:
            raise _cannot_resume(without_optimizer[0])
        if reasons:
            every = Reason.joined(reasons, " / ")
            raise CheckpointError(
                f"{folder} のチェックポイントはすべて壊れています（{every.ja}）。最初から始めるには --restart（checkpoint.restart=true）"
                "を指定してください。",
                f"every checkpoint in {folder} is damaged ({every.en}). To start anew, pass --restart "
                "(checkpoint.restart=true).",
            )
        return None


def weights_only(folder: Path) -> bool:
    """Whether a checkpoint says that it holds no optimizer state; False where it says nothing that can be read."""
    try:
        return bool(json.loads((folder / MANIFEST).read_text(encoding="utf-8")).get(WEIGHTS_ONLY))
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def _cannot_resume(folder: Path) -> CheckpointError:
    return CheckpointError(
        f"{folder} には重みだけがあり、オプティマイザーの状態がない（training.save_only_model=true で保存した）ので、続きから再開できません。最初から始めるには "
        "--restart（checkpoint.restart=true）を指定してください。再開するつもりの実行では save_only_model を使わないでください。",
        f"{folder} holds weights only (it was saved with training.save_only_model=true), so a run cannot resume from it "
        "without its optimizer's state. To start anew, pass --restart (checkpoint.restart=true); leave save_only_model "
        "out of runs that may have to resume.",
    )
