"""What a MODEL, RUN or ADAPTER argument names: the one reading of such names, for every verb and every function.

A name is a hub id, `embedded:NAME`, or a folder: of a model, an adapter, a run, one of its checkpoints. Only names of
files are looked at, so that a wrong name is refused at once; neither torch nor transformers is needed.
"""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from .. import embedded
from ..config.run_folder import CHECKPOINTS, CONFIG, MANIFEST, RUN, WITHOUT_WEIGHTS
from ..errors import InputNotFoundError, ModelError, Reason, ToolkitError
from ..messages import argument
from . import catalog
from .adapter_folder import base_name, is_adapter, recorded_config

Kind = Literal["hub", "model", "adapter", "checkpoint", "run", "tokenizer", "export", "other"]
# As huggingface_hub takes ids: at most 96 characters, no `--` and no `..`.
_HUB_ID = re.compile(r"^(?!.*(--|\.\.))(?=.{1,96}$)[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)?(?<![-.])$")
_CHECKPOINT = re.compile(r"^checkpoint-(\d+)$")
_TOKENIZER = ("tokenizer_config.json", "tokenizer.json", "tokenizer.model")
_TABLES = (".csv", ".tsv", ".xlsx", ".jsonl", ".parquet")
# Folders that a message lists, and entries of a folder that are looked at for it.
_SHOWN, _LOOKED_AT = 6, 300


@dataclass(frozen=True)
class Named:
    """What a name means.

    Attributes:
        name: as it was given.
        kind: `hub`: an id to look up; `model`: a folder with config.json; `adapter`: one with adapter_config.json;
            `checkpoint`: a checkpoint of a run; `run`: a run that has saved nothing yet; `tokenizer`: a tokenizer
            alone; `export`: a GGUF; `other`: a folder with nothing of these in it.
        folder: of that kind; for an interrupted run that of its newest checkpoint; None for a hub id.
        run: the folder of the run that wrote it; None where none of ours did.
        step: of a checkpoint.
        interrupted: the name is that of a run that has no model yet, and `checkpoint` is its newest one.
    """

    name: str
    kind: Kind
    folder: Path | None = None
    run: Path | None = None
    step: int | None = None
    interrupted: bool = False

    @property
    def path(self) -> str:
        """What loads it: the folder, or the hub id."""
        return str(self.folder) if self.folder is not None else self.name

    @property
    def tokenizer_folder(self) -> Path | None:
        """Where its tokenizer is; of a checkpoint that is beside it, or, of earlier versions, in the run's folder."""
        if self.kind != "checkpoint" or self.folder is None:
            return self.folder
        beside = self.folder.absolute().parent / WITHOUT_WEIGHTS
        return beside if beside.is_dir() else self.run


def find_named(name: str | os.PathLike[str]) -> Named:
    """What a name means. Whether the hub has an id is not asked here.

    Raises:
        InputNotFoundError: a path that is not there, an embedded name that does not exist, or a name without a slash
            beside a folder of nearly that name. ModelError: a file in place of a folder.
    """
    text = os.fspath(name)
    if embedded.is_embedded(text):
        return Named(text, "model", embedded.model_folder(text))
    place = os.path.expanduser(text)
    if text.strip() and os.path.isdir(place):
        return _folder(text, Path(place))
    if text.strip() and os.path.isfile(place):
        raise _is_file(Path(place))
    _refuse_missing(text, place)
    return Named(text, "hub")


def _folder(name: str, folder: Path) -> Named:
    """The first of the kinds that a folder is; a finished run is a model or an adapter."""
    run = _run_of(folder)
    if is_adapter(folder):
        return Named(name, "adapter", folder, run)
    if (folder / MANIFEST).is_file():
        step = _CHECKPOINT.match(folder.resolve().name)
        return Named(name, "checkpoint", folder, run, int(step[1]) if step else None)
    if (folder / "config.json").is_file():
        return Named(name, "model", folder, run)
    if run is not None and run.absolute() != folder.absolute() and folder.name == CHECKPOINTS and _is_finished(run):
        return replace(_folder(name, run), name=name)
    if run is not None or folder.name == CHECKPOINTS:
        newest = next(iter(checkpoints(folder)), None)
        if newest is not None:
            return Named(name, "checkpoint", newest[1], run or folder.absolute().parent, newest[0], interrupted=True)
        return Named(name, "run", folder, run)
    if is_tokenizer(folder):
        return Named(name, "tokenizer", folder)
    if (folder / "Modelfile").is_file() or any(folder.glob("*.gguf")):
        return Named(name, "export", folder)
    return Named(name, "other", folder)


def _is_finished(run: Path) -> bool:
    return is_adapter(run) or (run / "config.json").is_file()


def _run_of(folder: Path) -> Path | None:
    """The run's folder that a folder is, or is a checkpoint of."""
    above = folder.absolute().parent
    for place in (
        (folder, above, above.parent) if above.name == CHECKPOINTS or folder.name == CHECKPOINTS else (folder,)
    ):
        if (place / RUN).is_file():
            return place
    return None


def is_tokenizer(folder: Path) -> bool:
    """Whether a folder has a tokenizer of its own."""
    return any((folder / file).is_file() for file in _TOKENIZER)


def checkpoints(run: Path) -> list[tuple[int, Path]]:
    """(step, folder) of the checkpoints of a run, or in a run's folder of checkpoints, newest first; not verified."""
    place = run / CHECKPOINTS if (run / CHECKPOINTS).is_dir() else run
    found = [(int(match[1]), path) for path in place.iterdir() if (match := _CHECKPOINT.match(path.name))]
    return sorted(((step, path) for step, path in found if (path / MANIFEST).is_file()), reverse=True)


def _refuse_missing(name: str, place: str) -> None:
    """Refuses what reads like a path and is not there, and a slip of the name of a folder that is."""
    reads_like_path = not _HUB_ID.match(name) or name.startswith((".", "~"))
    path = Path(place.replace("\0", ""))
    if reads_like_path or (catalog.lookup(name) is None and near_folders(path) and _may_be_folder(name, path)):
        raise missing(name)


def _may_be_folder(name: str, path: Path) -> bool:
    if "/" in name:
        return path.parent.is_dir()
    from huggingface_hub import try_to_load_from_cache

    return not isinstance(try_to_load_from_cache(name, "config.json"), str)


def near_folders(path: Path, n: int = 3) -> list[str]:
    """Folders beside a path whose names are nearly its own."""
    names = [entry.name for entry in _entries(path.parent) if entry.is_dir()]
    return [str(path.parent / near) for near in difflib.get_close_matches(path.name, names, n=n, cutoff=0.6)]


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())[:_LOOKED_AT]
    except OSError:
        return []


def models_here(folder: Path) -> list[str]:
    """Models, adapters and runs in a folder and in the folders of runs there."""
    found: list[str] = []
    for entry in _entries(folder):
        if len(found) > _SHOWN or entry.name.startswith("."):
            continue
        if entry.is_dir():
            within = [entry, *(inner for inner in _entries(entry) if inner.is_dir())]
            found += [str(place) for place in within if _folder("", place).kind in ("model", "adapter", "checkpoint")]
    return [name for name in found if not name.endswith(f"{os.sep}{CHECKPOINTS}")][:_SHOWN]


def what_is_here() -> Reason:
    """A sentence that lists what can be named in the current folder; empty without any."""
    here = [argument(name) for name in models_here(Path())]
    if not here:
        return Reason("", "")
    return Reason(f"現在のフォルダーにあるモデル: {'、'.join(here)}。", f" In the current folder: {', '.join(here)}.")


def missing(name: str) -> InputNotFoundError:
    """The refusal of a path that is not there, with near names, else what is there."""
    path = Path(os.path.expanduser(name).replace("\0", ""))
    nearest = next((parent for parent in path.parents if parent.is_dir()), None)
    near = [argument(folder) for folder in near_folders(path)] or catalog.near(name)
    shown = argument(name)
    ja, en = f"モデルのフォルダー {shown} が見つかりません。", f"The model folder {shown} does not exist."
    if near:
        ja, en = ja + f"もしかして: {'、'.join(near)}。", en + f" Did you mean: {', '.join(near)}?"
    elif nearest is not None and str(nearest) != ".":
        ja, en = ja + f"{nearest} まではあります。", en + f" {nearest} does exist."
    else:
        here = what_is_here()
        ja, en = ja + here.ja, en + here.en
    return InputNotFoundError(
        ja + "フォルダーのパスか、組織名/モデル名 の形の ID を指定してください。",
        en + " Name a folder, or an id of the form organisation/model.",
    )


def _is_file(file: Path) -> ModelError:
    """The refusal of a file: what it is, and what to type instead."""
    shown, above = argument(file), argument(file.parent)
    if file.suffix.lower() in (".yaml", ".yml") and file.name != CONFIG:
        way = Reason(
            f"設定ファイルなら aift train {shown} で学習できます。", f"If it is a run's settings: aift train {shown}."
        )
    elif file.suffix.lower() == ".gguf":
        way = Reason(
            "GGUF は llama.cpp や Ollama で使います。元のモデルかアダプターのフォルダーを指定してください。",
            "A GGUF is for llama.cpp and Ollama; name the folder of the model or adapter that it was made from.",
        )
    elif file.suffix.lower() in _TABLES:
        way = Reason(
            f"学習データなら aift start {shown} か data.train={shown} です。",
            f"If it is training data: aift start {shown}, or data.train={shown}.",
        )
    elif _folder("", file.parent).kind in ("model", "adapter", "checkpoint", "run"):
        way = Reason(f"そのフォルダー {above} を指定してください。", f"Name its folder: {above}.")
    else:
        way = Reason(
            "モデル、アダプター、学習結果のフォルダーを指定してください。",
            "Name the folder of a model, adapter or run.",
        )
    return ModelError(f"{shown} はファイルです。{way.ja}", f"{shown} is a file. {way.en}")


def refusal(named: Named) -> ToolkitError:
    """Why a name that is no whole model cannot be used where one is needed, and what to type."""
    ja, en = _WHY_NO_MODEL[named.kind]
    assert named.folder is not None
    base = base_name(recorded_config(named.folder)) if named.kind == "adapter" else ""
    run = named.run if named.run is not None else named.folder
    inside = [argument(name) for name in models_here(named.folder)] if named.kind == "other" else []
    values = {
        "name": argument(named.name or named.folder),
        "base": base,
        "run": argument(run),
        "step": named.step,
        "inside_ja": f"中にあるのは {'、'.join(inside)} です。" if inside else "",
        "inside_en": f" In it: {', '.join(inside)}." if inside else "",
    }
    return ModelError(ja.format(**values), en.format(**values))


_WHY_NO_MODEL: dict[Kind, tuple[str, str]] = {
    "adapter": (
        "{name} は LoRA アダプターで、モデル全体ではありません。ベースモデルは {base} です。会話するなら aift chat {name}、1 つのモデルにするなら "
        "aift merge {name} --out 新しいフォルダー、続きから学習するなら aift train --from {name} data.train=ファイル を使ってください（Python では load_lora_model）。",
        "{name} is a LoRA adapter, not a whole model. Its base model is {base}. To talk with it: aift chat {name}; to make "
        "one model of it: aift merge {name} --out NEW_FOLDER; to train it on: aift train --from {name} data.train=FILE (in Python: "
        "load_lora_model).",
    ),
    "checkpoint": (
        "{name} は学習途中のチェックポイント（ステップ {step}）です。続きから学習するなら aift resume {run}、モデルやアダプターとして取り出すなら "
        "aift export checkpoint {name} --out 新しいフォルダー を使ってください。",
        "{name} is a checkpoint of a run (step {step}). To train on: aift resume {run}; to make a model or an adapter of "
        "it: aift export checkpoint {name} --out NEW_FOLDER.",
    ),
    "run": (
        "{name} の学習はまだ何も保存していません（チェックポイントもありません）。もう一度学習するなら aift train {run}/config.yaml を使ってください。",
        "the run in {name} has saved nothing yet, not even a checkpoint. To train again: aift train {run}/config.yaml.",
    ),
    "tokenizer": (
        "{name} にあるのはトークナイザーだけで、モデル（config.json と重み）がありません。",
        "{name} holds a tokenizer only and no model (no config.json, no weights).",
    ),
    "export": (
        "{name} にあるのは GGUF です。ollama や llama.cpp で使うもので、ここでは使えません。元のモデルかアダプターのフォルダーを指定してください。",
        "{name} holds a GGUF, for Ollama and llama.cpp; name the folder of the model or adapter that it was made from.",
    ),
    "other": (
        "{name} に config.json がありません。{inside_ja}save_pretrained で保存したモデルのフォルダーか、学習結果のフォルダーを指定してください。",
        "{name} has no config.json.{inside_en} Name a folder written by save_pretrained, or one that training wrote.",
    ),
}
