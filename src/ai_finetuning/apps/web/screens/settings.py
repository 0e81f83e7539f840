"""設定: a training's settings, what they will take, and its start."""

from __future__ import annotations

import json
import re
import tempfile
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ....config.fields import fields_of
from ....config.run import RunConfig
from ....config.run_folder import CONFIG
from ....config.section import explicitly_set
from ....errors import ConfigError, ToolkitError, UsageError
from ....execution.adapter_start import going_on_from
from ....execution.validate import validate_config, validate_data, validate_evaluation
from ....execution.sources import config_source
from ....models.hub import on_disk
from ....models.source import find_model
from ....planner.presets import PRESETS, few_steps, suggested
from ....planner.rough import Rough, rough
from ....runs.launch import launch
from ....system.machine import machine
from .. import api, children, uploads
from ..data_facts import Facts, facts_of
from ..draft import Chosen, config_of, described, text_of, values_of_yaml, yaml_of
from ..pages import shell
from ..site import Site, site_of
from . import models

# Seconds in which a plan has to be there, names that are tried, and starts that are remembered.
_PLAN, _TRIES, _STARTS = 600.0, 100, 200
_KEY = re.compile(r"[A-Za-z0-9-]{8,64}")
# What a name of a run cannot hold (runs/listing.py), and characters that it takes of a file's.
_ODD, _NAME = re.compile(r'[/\\:*?"<>|\s]+'), 40
# Parameters up to which three real steps are tried without a question where no speed is known.
_SMALL = 100_000_000


@dataclass(frozen=True)
class Draft:
    """What a request describes.

    Attributes:
        values: settings as texts, by dotted name.
        chosen: model and data, found by their ids.
        start: the run from whose weights it goes on.
        facts: of the data; None while none is chosen.
        shown: what the data is called.
    """

    values: dict[str, Any]
    chosen: Chosen
    start: Path | None = None
    facts: Facts | None = None
    shown: str = ""

    def config(self) -> RunConfig:
        """The configuration.

        Raises:
            ConfigError: settings that cannot be.
        """
        config = config_of(self.values, self.chosen)
        return config if self.start is None else going_on_from(config, self.start)


def draft_of(site: Site, request: Mapping[str, Any]) -> Draft:
    """A request's draft: `{"data": ID, "eval": ID, "model": ID, "from": RUN, "values": {key: text}}`.

    Raises:
        InputNotFoundError: an id names nothing. UsageError: it is no draft.
    """
    values = request.get("values") or {}
    if not isinstance(values, dict) or len(values) > 200:
        raise UsageError("values は設定名と値の組です。", "values is a mapping of settings.")
    ids = {name: request.get(name) or None for name in ("data", "eval", "model", "from")}
    if any(id is not None and not isinstance(id, str) for id in ids.values()):
        raise UsageError("ID は文字列です。", "ids are texts.")
    upload = None if ids["data"] is None else uploads.find(site, api.valid_id(ids["data"]))
    tested = None if ids["eval"] is None else uploads.find(site, api.valid_id(ids["eval"]))
    start = None if ids["from"] is None else site.run(api.valid_id(ids["from"])).path.absolute()
    model = None if ids["model"] is None or start is not None else models.find(site, api.valid_id(ids["model"]))
    facts = None
    if upload is not None:
        facts = facts_of(str(upload.path), upload.columns, upload.sheet)
    chosen = Chosen(
        model=model,
        train=None if upload is None else str(upload.path),
        columns=None if upload is None else upload.columns,
        sheet=None if upload is None else upload.sheet,
        eval=None if tested is None else str(tested.path),
    )
    return Draft(values, chosen, start, facts, "" if upload is None else upload.shown)


async def _form(request: Request) -> Response:
    """The fields, and what is suggested for a model and data: `?data=ID&model=ID&from=RUN`."""
    site = site_of(request)
    draft = await api.blocking(draft_of, site, dict(request.query_params))
    return api.answer(await api.blocking(_suggestions, draft))


def _suggestions(draft: Draft) -> dict[str, Any]:
    facts = draft.facts
    rows = 0 if facts is None or facts.rows is None else facts.rows.count
    values = suggested(draft.chosen.model or "", rows or 10**6)
    if draft.chosen.eval is not None:
        values.pop("data.eval")
    if draft.start is not None:  # what its adapter has holds
        values = {key: value for key, value in values.items() if not key.startswith("lora.") and key != "method"}
    if facts is not None and facts.bad:
        values["data.skip_bad_rows"] = True
    if facts is not None and facts.objective != "sft":
        values["objective"] = facts.objective
    evaluates = values.get("data.eval") is not None or draft.chosen.eval is not None
    per_epoch = _per_epoch(values, facts)
    return {
        "fields": described(),
        "values": {key: text_of(value) for key, value in values.items() if value is not None},
        "presets": {
            name: {"ja": preset.ja, "en": preset.en, "values": _texts(preset.settings(per_epoch, evaluates=evaluates))}
            for name, preset in PRESETS.items()
        },
        "objectives": ["sft"] if facts is None or facts.objective == "sft" else ["sft", facts.objective],
        "data": None if facts is None else _data(draft.shown, facts),
        "model": draft.chosen.model,
    }
