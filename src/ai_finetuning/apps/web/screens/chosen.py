"""What a conversation, a batch of answers or an export is of: a run by its id, or a model of this PC by an id made of its
name.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ....embedded import MODEL
from ....errors import InputNotFoundError, ModelError, ToolkitError, UsageError
from ....japanese.default_system import split_default_system
from ....system.files import read_bounded
from ..site import Site
from .models import id_of

if TYPE_CHECKING:
    from ....models.named import Named

# Bytes of a chat template, runs that are looked at for a list, and characters of a name for files.
_TEMPLATE, _RUNS, _NAME = 1 << 20, 100, 60
_USABLE = ("adapter", "model", "checkpoint", "hub")


@dataclass(frozen=True)
class Choice:
    """Something that answers.

    Attributes:
        by: `run` or `model`, the part of an address that names it.
        id: by which.
        label: what people call it.
        name: what every verb takes for it: a folder or a hub id.
        kind: as models.named tells it.
        base: the model below an adapter; empty where there is none.
        system: the system text that it was trained with.
        adopted: whether it is a run's that is in use.
    """

    by: Literal["run", "model"]
    id: str
    label: str
    name: str
    kind: str
    base: str = ""
    system: str | None = None
    adopted: bool = False

    def plain(self) -> dict[str, Any]:
        """As JSON tells it; the folder is shown in the command."""
        return asdict(self)


def slug(choice: Choice) -> str:
    """What files that are made of it are called, and the API that serves it."""
    return re.sub(r"[^\w.-]+", "-", choice.label).strip("-. ")[:_NAME] or "model"


def choices(site: Site) -> list[Choice]:
    """Every run with a model, those in use first, then the newest, then the models of this PC, the one that ships last."""
    from ....runs.listing import adopted_first

    found = []
    for entry in adopted_first(site.list_runs())[:_RUNS]:
        with contextlib.suppress(ToolkitError, OSError):
            found.append(_run(site, entry.id))
    return found + [_model(id, label, name) for id, label, name in _models(site)]


def chosen(site: Site, values: Mapping[str, Any]) -> Choice:
    """What a request or an address names by `run` or `model`.

    Raises:
        UsageError: neither, or both. InputNotFoundError: there is no such thing. ModelError: the run has no model yet.
    """
    run, model = values.get("run"), values.get("model")
    if isinstance(run, str) and run and not model:
        return _run(site, run)
    if isinstance(model, str) and model and not run:
        for id, label, name in _models(site):
            if id == model:
                return _model(id, label, name)
        raise InputNotFoundError("このモデルはこの PC にありません。", "this model is not on this PC.")
    raise UsageError("モデルを 1 つ選んでください。", "choose one model.")


def _models(site: Site) -> Iterator[tuple[str, str, str]]:
    """(id, label, name) of the models of this PC."""
    from ....models.local import local_models

    seen = set()
    for model in local_models(site.models):
        id, inside = id_of(model.name), model.name.startswith("./")
        name = str(site.models / model.name[2:]) if inside else model.name
        if id not in seen and (not inside or Path(name).resolve().is_relative_to(site.models.resolve())):
            seen.add(id)
            yield id, model.name.removeprefix("./"), name
    yield id_of(MODEL), MODEL.partition(":")[2], MODEL


def _model(id: str, label: str, name: str) -> Choice:
    from ....models.named import find_named

    named = find_named(name)
    return Choice("model", id, label, name, named.kind, system=_system(named))


def _run(site: Site, id: str) -> Choice:
    from ....models.named import find_named

    entry = site.run(id)
    folder = entry.path.absolute()
    named = find_named(folder)
    if named.kind not in _USABLE:
        raise ModelError(
            f"{id} の学習はまだ何も保存していません。チェックポイントができてから試してください。",
            f"the run {id} has saved nothing yet; try again once it has a checkpoint.",
        )
    base, system, adopted = _base(named, entry.model), _system(named), entry.adopted is not None
    return Choice("run", id, folder.name, str(folder), named.kind, base, system, adopted)


def _base(named: Named, recorded: str) -> str:
    from ....models.adapter_folder import base_name, recorded_config

    if named.kind == "adapter" and named.folder is not None:
        return base_name(recorded_config(named.folder)) or recorded
    return recorded


def _system(named: Named) -> str | None:
    """The system text in a model's chat template; None where it has none, or its files are not here."""
    folder = named.tokenizer_folder
    if folder is None:
        return None
    with contextlib.suppress(OSError, ValueError, TypeError, RecursionError):
        file = folder / "chat_template.jinja"
        if file.is_file():
            return split_default_system(read_bounded(file, _TEMPLATE).decode("utf-8"))[1]
        values = json.loads(read_bounded(folder / "tokenizer_config.json", _TEMPLATE))
        return split_default_system(str(values.get("chat_template") or ""))[1]
    return None
