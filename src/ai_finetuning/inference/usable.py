"""A checkpoint as a folder that every library loads: an adapter or a whole model.

A checkpoint (format v1) holds weights under the names that they have in training. What else a model is made of lies
beside the checkpoints of a run, in WITHOUT_WEIGHTS, which is written before the first step.
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from ..config.run_folder import CHECKPOINTS, MANIFEST, WITHOUT_WEIGHTS
from ..engine.checkpoint.read import pieces_of, write_shards
from ..engine.checkpoint.store import load as load_checkpoint
from ..engine.checkpoint.store import verify
from ..errors import CheckpointError, ModelError, Reason, refusing
from ..messages import argument, notice, warn
from ..models.adapter_folder import CONFIG, base_name, move_base, note_training_base, recorded_config
from ..models.adapters import save_adapter_tensors, tied_names
from ..models.hub import named_base
from ..models.named import Named, checkpoints, find_named, refusal
from ..models.quantized import quantized_bits
from ..models.tokenizers import save_generation_config
from ..system.files import is_private_tree, refuse_links_outside
from ..system.folders import private_cache

_TIED = "tied.json"  # names of weights that loading makes from others
_SETTINGS = ("*.json", "*.jinja", "*.model", "*.txt")
# What a run's folder holds beside a model's or an adapter's settings.
_OF_THE_RUN = ("run.json", "environment.json", "*.index.json")


def usable(name: str) -> Named:
    """What a name means, as a folder to load or a hub id: a checkpoint, or an interrupted run's newest one, becomes an
    adapter or a model in the user's cache.

    Raises:
        ToolkitError: there is nothing of that name. CheckpointError: the checkpoint is damaged.
        ModelError: an earlier version wrote it, and the run has not ended.
    """
    named = find_named(name)
    if named.kind == "run":
        raise refusal(named)
    if named.kind != "checkpoint":
        return named
    checkpoint = whole_checkpoint(named)
    _say(replace(named, folder=checkpoint))
    source = _without_weights(checkpoint, named.run)
    refuse_links_outside(source)
    place = private_cache(CHECKPOINTS) / _key(checkpoint)
    with FileLock(str(place) + ".lock"):
        if not (any((place / file).is_file() for file in (CONFIG, "config.json")) and is_private_tree(place)):
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(mode=0o700)
            try:
                write_checkpoint(checkpoint, place, run=named.run, home=place)
            except BaseException:
                shutil.rmtree(place, ignore_errors=True)
                raise
    return replace(find_named(str(place)), name=name, run=named.run, step=named.step, interrupted=named.interrupted)


def whole_model(name: str) -> Named:
    """The same where a whole model is needed.

    Raises:
        ModelError: it is an adapter. ToolkitError: as usable().
    """
    named = usable(name)
    if named.kind not in ("model", "hub"):
        raise refusal(named)
    return named


def whole_checkpoint(named: Named) -> Path:
    """The checkpoint, verified; of an interrupted run the newest one that is whole."""
    assert named.folder is not None
    folders = [named.folder]
    if named.interrupted:
        folders = [path for _, path in checkpoints(named.folder.parent)]
    reasons: list[Reason] = []
    for folder in folders:
        problems = verify(folder) or _files_elsewhere(folder)
        if not problems:
            return folder
        why = Reason.joined(problems)
        reasons.append(Reason(f"{folder.name}: {why.ja}", f"{folder.name}: {why.en}"))
        if len(folders) > 1:
            warn(
                f"チェックポイント {folder} は壊れているので使いません: {why.ja}",
                f"checkpoint {folder} is damaged and skipped: {why.en}",
            )
    every = Reason.joined(reasons, " / ")
    raise CheckpointError(
        f"チェックポイント {named.name} は使えません（{every.ja}）。同じ実行の別のチェックポイントを指定してください。",
        f"checkpoint {named.name} cannot be used ({every.en}); name another one of its run.",
    )


def _files_elsewhere(folder: Path) -> list[Reason]:
    """What is wrong with a manifest that takes tensors from files which it does not list, as one from a stranger may."""
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    named = {piece["file"] for entry in manifest["tensors"].values() for piece in pieces_of(entry)}
    elsewhere = sorted(name for name in named if name not in manifest["files"] or Path(name).name != name)
    return [Reason(f"{name} はチェックポイントの外です", f"{name} is outside the checkpoint") for name in elsewhere[:1]]


def _say(named: Named) -> None:
    step = named.step
    if named.interrupted and named.folder is not None:
        step = checkpoints(named.folder.parent)[0][0] if step is None else int(named.folder.name.rpartition("-")[2])
        run = argument(named.run)
        notice(
            f"{named.name} の学習は終わっていないため、ステップ {step} のチェックポイントを使います（再開: aift resume {run}）。",
            f"the run in {named.name} has not ended: using its checkpoint of step {step} (to go on: aift resume {run}).",
        )
        return
    notice(
        f"{named.name} はステップ {step} のチェックポイントです。その重みを使います。",
        f"{named.name} is the checkpoint of step {step}: using its weights.",
    )


def _key(checkpoint: Path) -> str:
    """A name that changes with the checkpoint's bytes, which its manifest has hashes of, and with what lies beside."""
    digest = hashlib.sha256((checkpoint / MANIFEST).read_bytes())
    beside = checkpoint.absolute().parent / WITHOUT_WEIGHTS
    for file in sorted(path for path in beside.iterdir() if path.is_file()) if beside.is_dir() else ():
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    digest.update(str(checkpoint.resolve().parent).encode())  # where a base that moved is looked for
    return digest.hexdigest()[:20]


def write_checkpoint(checkpoint: Path, place: Path, *, run: Path | None, home: Path) -> None:
    """Writes a verified checkpoint as an adapter's or a model's files.

    Args:
        checkpoint: its folder.
        place: a folder that is there.
        run: the run's folder.
        home: the folder that `place` will be.

    Raises:
        ModelError: nothing says what its weights belong to.
    """
    source = _without_weights(checkpoint, run)
    refuse_links_outside(source)
    for pattern in _SETTINGS:
        for file in source.glob(pattern):
            if not any(file.match(other) for other in (*_OF_THE_RUN, _TIED)):
                shutil.copyfile(file, place / file.name)
    if (place / CONFIG).is_file():
        save_adapter_tensors(place, load_checkpoint(checkpoint).tensors["model"])
        move_base(place, home, named_base(place, origin=run))  # its place relative to the run says nothing here
        return
    with refusing(CheckpointError, f"{source} を読めません（{{reason}}）。", f"{source} cannot be read ({{reason}})."):
        dtype = getattr(torch, str(json.loads((place / "config.json").read_text(encoding="utf-8")).get("dtype")), None)
        tied = set(json.loads((source / _TIED).read_text(encoding="utf-8"))) if (source / _TIED).is_file() else set()
    write_shards(place, checkpoint, dtype=dtype if isinstance(dtype, torch.dtype) else torch.float32, tied=tied)


def _without_weights(checkpoint: Path, run: Path | None) -> Path:
    """What the checkpoint's weights belong to: beside it, or, of earlier versions, what the ended run has saved."""
    beside = checkpoint.absolute().parent / WITHOUT_WEIGHTS
    for place in (beside, run):
        if place is not None and any((place / file).is_file() for file in (CONFIG, "config.json")):
            return place
    shown = argument(run if run is not None else checkpoint.parent.parent)
    raise ModelError(
        f"{checkpoint} は以前の版のチェックポイントで、学習が終わるまでモデルとして使えません。aift resume {shown} で学習を最後まで進めてください。",
        f"{checkpoint} was written by an earlier version and cannot be used as a model before its run has ended; go on with "
        f"aift resume {shown}.",
    )


def write_without_weights(
    model: Any, tokenizer: Any, place: Path, *, full: bool, dtype: torch.dtype, home: Path
) -> None:
    """Writes all of a model in training but its weights.

    Args:
        model: with its adapter, where it has one.
        place: a folder of a run's checkpoints.
        full: all weights train.
        dtype: that a full model is saved in.
        home: the run's folder.
    """
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    if full:
        config = copy.deepcopy(model.config)
        config.dtype, config.use_cache = dtype, True
        config.architectures = config.architectures or [type(model).__name__]
        config.save_pretrained(place)
        (place / _TIED).write_text(json.dumps(sorted(tied_names(model))), encoding="utf-8")
    else:
        settings = copy.copy(model.peft_config["default"])
        settings.inference_mode = True
        settings.save_pretrained(place)
        note_training_base(place, home, base_name(recorded_config(place)), quantized_bits(model))
    save_generation_config(copy.deepcopy(model.generation_config), tokenizer, place)
    tokenizer.save_pretrained(place)
