"""The weights of a run's result as files: which they are, whether they are those that were kept, and how others take their
place. Nothing here reads a tensor, and nothing needs torch.

A folder's weights are those that every loader takes: an adapter's file, else the single file of a model, else the shards of
its index. Whatever is done here, a process that is killed leaves one whole set of them in that sense, the old or the new one:
the new shards come under names that no other has, and one step on the file system makes them the folder's weights.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import re
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ..config.run_folder import BASE, CHECKPOINTS, LAST, LAST_NOTE, REPORT
from ..errors import ModelError, Reason, StorageError
from ..system.files import fsync_folder, read_bounded, sha256_of, write_in_place
from .folder import BESIDE_WEIGHTS, STAGING

ADAPTER, MODEL, INDEX = "adapter_model.safetensors", "model.safetensors", "model.safetensors.index.json"
# In run.json, while the result of a run are its best weights instead of the last ones (evaluation/returned.py).
RETURNED = "returned"
_WEIGHT_FILE = re.compile(r"[^/\\:\x00]+\.safetensors")
# Bytes of an index and of a note: those of the largest models have some MB.
_LARGEST = 64 << 20
# Bytes that tokenizer, configuration, card and report have at most, beside weights.
_BESIDE_BYTES = 64 << 20
# Under CHECKPOINTS; a run that begins removes what a process that was killed has left of them.
_STAGING, _TRASH = f".staging-{LAST}", f".trash-{LAST}"


def weight_names(folder: Path) -> list[str]:
    """The files of the weights that are loaded from a folder, an index last; none where they are not all there."""
    for single in (ADAPTER, MODEL):
        if (folder / single).is_file():
            return [single]
    with contextlib.suppress(ModelError, OSError):
        shards = indexed_files(folder / INDEX)
        if shards and all((folder / name).is_file() for name in shards):
            return [*shards, INDEX]
    return []


def indexed_files(index: Path) -> list[str]:
    """The files that an index of weights names, each once.

    Raises:
        ModelError: it is damaged, or names anything but safetensors files beside it: a `.bin` is a pickle, and whoever
            loads the index opens it, whatever it asked for.
    """
    try:
        names = json.loads(read_bounded(index, _LARGEST))["weight_map"].values()
        if not names:
            raise ValueError("no weights")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(
            f"{index} を読めません（{type(error).__name__}）。モデルをダウンロードまたは保存し直してください。",
            f"{index} cannot be read ({type(error).__name__}); download or save the model again.",
        ) from error
    for name in names:
        if not isinstance(name, str) or not _WEIGHT_FILE.fullmatch(name):
            shown = repr(name)[:100]
            raise ModelError(
                f"{index} が重みのファイルとして {shown} を挙げています。読み込むのは同じフォルダーの *.safetensors だけです（.bin などは開くだけで危険です）。"
                "信頼できる環境で save_pretrained し直したモデルを使ってください。",
                f"{index} names {shown} as a weight file. Only *.safetensors beside it are read: opening a pickle can run "
                "code. Use a model that was saved again by save_pretrained in an environment that you trust.",
            )
    return sorted(set(names))


def weight_bytes(folder: Path) -> int:
    """Bytes of a folder's weights."""
    return sum((folder / name).stat().st_size for name in weight_names(folder))


def read_note(file: Path) -> dict[str, Any]:
    """What was noted beside kept weights; empty where it cannot be read."""
    try:
        return dict(json.loads(read_bounded(file, _LARGEST)))
    except (OSError, ValueError, TypeError, RecursionError):
        return {}


def problems_of(folder: Path, note: str, step: int) -> list[Reason]:
    """What is wrong with kept weights, which should be those of a step; an empty list means nothing.

    Args:
        note: the file's name that vouches for them, with `step`, and `sha256` by file.
    """
    try:
        told = read_note(folder / note)
        there, files = told["step"], dict(told["sha256"])
        every = sorted(folder.iterdir())
    except (OSError, ValueError, KeyError, TypeError):
        return [Reason(f"{folder} にありません", f"they are not in {folder}")]
    if there != step:
        return [Reason(f"{folder} にあるのはステップ {there} です", f"{folder} holds those of step {there}")]
    # A link, or weights that nothing vouches for, may be anything of this user's, and would be copied into the model.
    wrong = [
        path.name
        for path in every
        if path.is_symlink() or not path.is_file() or (path.suffix == ".safetensors" and path.name not in files)
    ]
    wrong += [name for name, digest in files.items() if not _has_digest(folder / name, digest)]
    return [wrong_digest(name) for name in dict.fromkeys(wrong)]


def _has_digest(path: Path, digest: str) -> bool:
    return path.is_file() and sha256_of(path) == digest


def wrong_digest(name: str) -> Reason:
    """That a file is not the one that was written."""
    return Reason(f"{name} の SHA-256 が一致しません", f"{name} does not match its SHA-256")


def last_of(run: Path) -> Path:
    """Where a run keeps the weights of its last step, once its best ones are the result."""
    return run / CHECKPOINTS / LAST


def validate_room(run: Path, needed: int) -> None:
    """Raises StorageError where a run's disk has not so many free bytes."""
    free = shutil.disk_usage(run).free
    if free < needed:
        raise StorageError(
            f"{run} のディスクの空きが {free / 1e9:.2f} GB で、必要な {needed / 1e9:.2f} GB に足りません。空けてから、もう一度実行してください。",
            f"{run} has {free / 1e9:.2f} GB free, and {needed / 1e9:.2f} GB are needed; free some, and run the command "
            "again.",
        )


def room_to_take(source: Path, run: Path) -> int:
    """Bytes that the weights of a folder take at a second place of a run: next to none where a file can have two names."""
    (run / CHECKPOINTS).mkdir(exist_ok=True)
    probe = run / CHECKPOINTS / f"{_STAGING}-probe"
    probe.unlink(missing_ok=True)
    linked = _link(source / weight_names(source)[0], probe)
    probe.unlink(missing_ok=True)
    return _BESIDE_BYTES + (0 if linked else weight_bytes(source))


def keep_last(run: Path, step: int, values: dict[str, Any]) -> None:
    """Keeps the weights of a run's result, with all that makes a model of them, in the place of those kept before.

    Args:
        step: whose weights they are.
        values: what is noted beside them.
    """
    place = last_of(run)
    staging = place.with_name(_STAGING)
    shutil.rmtree(staging, ignore_errors=True)
    drop_last(run)
    staging.mkdir(parents=True)
    names = weight_names(run)
    for name in names:
        _take(run / name, staging / name)
    for path in sorted(run.iterdir()):
        if path.is_file() and any(fnmatch.fnmatch(path.name, known) for known in (*BESIDE_WEIGHTS, REPORT)):
            _copy(path, staging / path.name)
    _move_base(staging)
    digests = {name: sha256_of(staging / name) for name in names if name != INDEX}
    note = {"step": step, "sha256": digests, **values}
    write_in_place(
        staging / LAST_NOTE, json.dumps(note, ensure_ascii=False, indent=1).encode("utf-8", "backslashreplace")
    )
    fsync_folder(staging)
    os.replace(staging, place)
    fsync_folder(place.parent)


def drop_last(run: Path) -> None:
    """Removes the weights of the last step that were kept, by a rename first: half of them would be taken for all."""
    place, trash = last_of(run), last_of(run).with_name(_TRASH)
    shutil.rmtree(trash, ignore_errors=True)
    if place.is_dir():
        os.replace(place, trash)
        shutil.rmtree(trash, ignore_errors=True)


def _move_base(folder: Path) -> None:
    """Makes base.json say where the base is from two folders further down."""
    stored = read_note(folder / BASE)
    if isinstance(stored.get("relative"), str):
        stored["relative"] = os.path.normpath(os.path.join("..", "..", stored["relative"]))
        text = json.dumps(stored, ensure_ascii=False, indent=1)
        write_in_place(folder / BASE, text.encode("utf-8", "backslashreplace"))


def put(source: Path, run: Path, *, mark: str = "", linked: bool = False) -> list[str]:
    """Makes the weights of a folder the result of a run; returns their names.

    Args:
        source: verified (`problems_of`).
        mark: in the names of shards, so that they are none of the run's former ones.
        linked: the source is removed afterwards, so that its files may be the run's.
    """
    staging = run / STAGING
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    for name in weight_names(source):
        (_take if linked else _copy)(source / name, staging / name)
    if mark:
        _mark(staging, mark)
    return _enter(staging, run)


def place_saved(staging: Path, run: Path, mark: str) -> list[str]:
    """Makes a model that was saved in a folder within a run the run's result, with all that lies beside its weights; returns
    the names of its files.

    Args:
        staging: goes.
        mark: in the names of shards, where they would take those of the run's former ones.
    """
    for path in staging.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    with contextlib.suppress(ModelError):  # there is none, or none that is loaded
        if set(indexed_files(run / INDEX)).intersection(weight_names(staging)):
            _mark(staging, mark)
    return _enter(staging, run)


def _mark(folder: Path, mark: str) -> None:
    """Gives shards other names."""
    *files, last = weight_names(folder)
    if last != INDEX:
        return
    renamed = {name: name.replace("model-", f"model-{mark}-", 1) for name in files}
    for name, new in renamed.items():
        os.replace(folder / name, folder / new)
    index = json.loads(read_bounded(folder / INDEX, _LARGEST))
    index["weight_map"] = {weight: renamed[file] for weight, file in index["weight_map"].items()}
    write_in_place(folder / INDEX, json.dumps(index, indent=1).encode("utf-8"))


def _enter(staging: Path, run: Path) -> list[str]:
    """Moves everything in a folder into its run, the step that makes other weights the run's last; the former ones go."""
    weights = weight_names(staging)
    beside = sorted(path.name for path in staging.iterdir() if path.name not in weights)
    fsync_folder(staging)
    for name in (*weights[:-1], *beside):
        os.replace(staging / name, run / name)
    fsync_folder(run)
    # From one set to the other: a single file hides an index, so that of two steps one changes what is loaded.
    for last in weights[-1:]:
        os.replace(staging / last, run / last)
        if last == INDEX:
            (run / MODEL).unlink(missing_ok=True)
        fsync_folder(run)
        drop_other_weights(run, weights)
    shutil.rmtree(staging, ignore_errors=True)
    return [*weights, *beside]


def drop_other_weights(run: Path, names: Collection[str]) -> None:
    """Removes weights of a former result that are not among these files, an index before its shards."""
    for path in sorted([run / INDEX, *run.glob("model*.safetensors")], key=lambda path: path.name != INDEX):
        if path.name not in names:
            path.unlink(missing_ok=True)


def _take(source: Path, target: Path) -> None:
    """The same file under a second name, else a copy of it."""
    if not _link(source, target):
        _copy(source, target)


def _link(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except OSError:  # a file system without them, as of many USB sticks, and some of networks
        return False
    return True


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    with target.open("rb+") as file:
        os.fsync(file.fileno())
