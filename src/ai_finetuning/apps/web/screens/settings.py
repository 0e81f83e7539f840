"""設定: a training's settings, what they will take, and its start."""

from __future__ import annotations

import re
import tempfile
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ....config.load import load_config
from ....config.run import RunConfig
from ....config.run_folder import CONFIG
from ....config.section import with_values
from ....embedded import MODEL, PREFIX, is_embedded
from ....errors import ConfigError, ModelError, Problem, Reason, ToolkitError, UsageError
from ....execution.adapter_start import find_start, going_on_from, with_adapter_settings
from ....execution.sources import config_source
from ....execution.validate import validate_config, validate_data, validate_evaluation
from ....models import catalog
from ....models.hub import cached, on_disk
from ....models.source import find_model
from ....planner.length import Beside, parts
from ....planner.presets import compared_notes, few_steps, plain_notes, presets_for, rate_for, suggested
from ....planner.rough import Rough, rough
from ....planner.speed import Speed
from ....runs.launch import launch
from ....system.machine import machine
from .. import api, children, uploads
from ..data_facts import Facts, facts_of
from ..draft import Chosen, arguments_of, config_of, described, text_of, values_of_yaml, yaml_of
from ..setting_names import both_with_labels
from ..site import Site, site_of
from . import models

# Seconds in which a plan has to be there, names that are tried, starts that are remembered, settings of a request.
_PLAN, _TRIES, _STARTS, _VALUES = 600.0, 100, 200, 200
_KEY = re.compile(r"[A-Za-z0-9-]{8,64}")
# What a name of a run cannot hold (runs/listing.py), and characters that it takes of a file's.
_ODD, _NAME = re.compile(r'[/\\:*?"<>|\s.]+'), 40
# Rows that are taken for many where they have not been counted.
_MANY = 10_000
# What the ids of data begin with that ships with the package: `embedded-kotoha-qa`.
_SHIPPED = "embedded-"
_RATE = "training.learning_rate"


@dataclass(frozen=True)
class Draft:
    """What a request describes.

    Attributes:
        values: settings as texts, by dotted name.
        chosen: model and data, found by their ids.
        start: the run from whose weights it goes on.
        shown: what the data is called.
        facts: of the data; None while none is chosen, and of draft_of().
    """

    values: dict[str, Any]
    chosen: Chosen
    start: Path | None = None
    shown: str = ""
    facts: Facts | None = None

    def config(self, **changes: str) -> RunConfig:
        """The configuration.

        Args:
            changes: settings in place of those of the request.

        Raises:
            ConfigError: settings that cannot be.
        """
        config = config_of(self.values | changes, self.chosen)
        return config if self.start is None else going_on_from(config, self.start)


def draft_of(site: Site, request: Mapping[str, Any]) -> Draft:
    """A request's draft without the facts of its data: `{"data": ID, "model": ID, "from": RUN, "values": {key: text}}`.

    Raises:
        InputNotFoundError: an id names nothing. UsageError: it is no draft.
    """
    values = {} if request.get("values") is None else request["values"]
    ids = {name: request.get(name) or None for name in ("data", "model", "from")}
    if (
        not isinstance(values, dict)
        or len(values) > _VALUES
        or any(not isinstance(id or "", str) for id in ids.values())
    ):
        raise UsageError("設定の形が正しくありません。", "this is no draft of settings.")
    given = {name: api.valid_id(str(id)) for name, id in ids.items() if id is not None}
    start = site.run(given["from"]).path.absolute() if "from" in given else None
    model = None
    if start is None:
        model = models.find(site, given["model"]) if "model" in given else MODEL
    if "data" not in given:
        return Draft(values, Chosen(model, None), start)
    upload = uploads.find(site, given["data"])
    shipped = upload.path == upload.file and upload.id.startswith(_SHIPPED)
    train = PREFIX + upload.id.removeprefix(_SHIPPED) if shipped else str(upload.path.absolute())
    tested = None if upload.evaluated is None else str(upload.evaluated.absolute())
    chosen = Chosen(model, train, upload.columns, upload.sheet, tested)
    return Draft(values, chosen, start, upload.shown)


async def _drafted(request: Request, values: Mapping[str, Any]) -> Draft:
    """A request's draft with the facts of its data.

    Raises:
        As draft_of(). DataError: no row can be used.
    """
    return await _counted_by(request, await api.blocking(draft_of, site_of(request), values))


async def _counted_by(request: Request, draft: Draft) -> Draft:
    chosen = draft.chosen
    if chosen.train is None:
        return draft
    return replace(draft, facts=await facts_of(request, chosen.train, chosen.columns, chosen.sheet))


async def _form(request: Request) -> Response:
    """The fields, and what is suggested for a model and data: `?data=ID&model=ID&from=RUN`; of `?copy=RUN` its settings."""
    asked = dict(request.query_params)
    if "copy" not in asked:
        return api.answer(await api.blocking(form_of, await _drafted(request, asked)))
    draft, more = await api.blocking(copied, site_of(request), api.valid_id(asked["copy"]))
    return api.answer(await api.blocking(form_of, await _counted_by(request, draft)) | more)


def copied(site: Site, id: str) -> tuple[Draft, dict[str, Any]]:
    """A draft of an earlier run's data and model; its settings, as far as the page takes them, and the ids of the two."""
    config = load_config(site.run(id).path / CONFIG)
    train = config.data.train
    shipped = isinstance(train, str) and is_embedded(train)
    found = [upload for upload in uploads.list_uploads(site) if str(upload.path.absolute()) == train]
    data = _SHIPPED + str(train).removeprefix(PREFIX) if shipped else found[0].id if found else None
    model: str | None = models.id_of(models.listed_name(site, config.model.name))
    try:
        models.find(site, str(model))
    except ToolkitError:
        model = None
    draft = draft_of(site, {"data": data, "model": model})
    values, left = values_of_yaml(yaml_of(config), draft.chosen)
    own = {"training.output_dir", "lora.adapter"}
    left = [key for key in left if key not in own]
    return draft, {"ids": {"data": data, "model": model}, "values": values, "left_out": left}


def form_of(draft: Draft) -> dict[str, Any]:
    """The fields of the form, the suggested values and presets, and what data and model are."""
    facts = draft.facts
    rows = _MANY if facts is None or facts.rows is None else facts.rows.count
    objective = "sft" if facts is None else facts.objective
    values = suggested(draft.chosen.model or "", rows, objective)
    if draft.chosen.eval is not None:
        values["data.eval"] = None
    if (
        draft.start is not None
    ):  # what its adapter has holds, and for the same objective the rate that it was trained with
        values = {key: value for key, value in values.items() if not key.startswith(("lora.", "method", _RATE))}
    if facts is not None and facts.bad:
        values["data.skip_bad_rows"] = True
    if objective != "sft":
        values["objective"] = objective
    config = draft.config(**_texts(values))
    if draft.start is not None and find_start(draft.start).objective != objective:
        values[_RATE] = rate_for(config.model.name, objective)
    objectives = list(dict.fromkeys(("sft", objective)))
    counted = None if facts is None or facts.rows is None else rough(config, facts.rows, None)
    evaluates = config.data.eval is not None
    return {
        "fields": described(),
        "values": _texts(values),
        "presets": {
            name: {
                "ja": preset.ja,
                "en": preset.en,
                "values": _texts(
                    preset.settings(_MANY if counted is None else counted.steps_per_epoch, evaluates=evaluates)
                ),
            }
            for name, preset in presets_for(objective).items()
        },
        "objectives": objectives,
        "rates": {
            one: text_of(values.get(_RATE, "") if one == objective else rate_for(config.model.name, one))
            for one in objectives
        },
        "data": None
        if facts is None
        else {"name": draft.shown, "bad": facts.bad} | _counted(facts) | _divided(draft.chosen),
        "model": config.model.name,
        "inherited": {} if draft.start is None else _inherited(config),
    }


def _inherited(config: RunConfig) -> dict[str, str]:
    """What a run that goes on from another one has from it, in place of the defaults."""
    lora = with_adapter_settings(config).lora
    return {
        "training.learning_rate": text_of(config.training.learning_rate),
        "data.system_prompt": text_of(config.data.system_prompt),
        **{f"lora.{name}": text_of(getattr(lora, name)) for name in ("r", "lora_alpha", "lora_dropout", "bias")},
    }


def _counted(facts: Facts) -> dict[str, Any]:
    return {"rows": None if facts.rows is None else facts.rows.count, "whole": facts.read_whole}


def _divided(chosen: Chosen) -> dict[str, Any]:
    """Rows of the evaluation data that was divided from the training data."""
    return {"divided": None if chosen.eval is None else uploads.count_rows(Path(chosen.eval))}


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {key: text_of(value) for key, value in values.items() if value is not None}


async def _check(request: Request) -> Response:
    """What is wrong with a draft, else what it will take by formulas, as YAML and as a command."""
    draft = await _drafted(request, await api.body(request))
    try:
        return api.answer(await api.blocking(checked, draft))
    except ConfigError as error:
        return api.answer({"problems": [{"key": one.key, "ja": one.ja, "en": one.en} for one in error.problems]})


def checked(draft: Draft) -> dict[str, Any]:
    """A draft that can be: figures by formulas, those of the presets too, YAML and command.

    Raises:
        ConfigError: it cannot be.
    """
    config = draft.config()
    if draft.facts is not None:
        validate_evaluation(config, config.data.eval)
    model, rows = _config_json(config.model.name), None if draft.facts is None else draft.facts.rows
    lengths = presets_for(config.objective)
    own = {key for preset in lengths.values() for key in preset.settings(1, evaluates=True)}
    figures, presets = None, {}
    if rows is not None:
        found = rough(config, rows, model)
        figures = asdict(found) | {
            "rows_per_step": _a_step(config),
            "findings": _findings(config, found),
        }
        base = replace(draft, values={key: value for key, value in draft.values.items() if key not in own})
        for name, preset in lengths.items():
            changes = preset.settings(found.steps_per_epoch, evaluates=config.data.eval is not None)
            presets[name] = asdict(rough(base.config(**_texts(changes)), rows, model)) | {
                "epochs": changes["training.num_epochs"],
                "values": _texts(changes),
            }
    return {
        "problems": [],
        "figures": figures,
        "presets": presets,
        "room": machine().room,
        "yaml": yaml_of(config),
        "command": ["aift", "train", *_from(draft), *arguments_of(config_of(draft.values, draft.chosen))],
    }


def _from(draft: Draft) -> list[str]:
    return [] if draft.start is None else ["--from", str(draft.start)]


def _a_step(config: RunConfig) -> int:
    return config.training.batch_size * config.training.gradient_accumulation_steps


def _findings(config: RunConfig, found: Rough) -> list[dict[str, str]]:
    """As a plan has them (Plan.notes)."""
    total, per_epoch = found.total_steps, found.steps_per_epoch
    by_steps, compared = config.training.schedule.max_steps is not None, config.objective != "sft"
    few = few_steps(total, per_epoch, _a_step(config), by_steps=by_steps, compared=compared)
    rate = config.training.learning_rate
    others = compared_notes(config.objective, found.rows, epochs=total / per_epoch, rate=rate)
    return _with_labels(plain_notes(few, others))


def _with_labels(notes: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    return [{"kind": one["kind"]} | both_with_labels({"ja": one["ja"], "en": one["en"]}) for one in notes]


def _is_here(name: str) -> bool:
    """Whether a model is on this PC, so that nobody has to be asked for it."""
    row = catalog.rows().get(name)
    published = name if row is None or row.alias_of is None else row.alias_of
    return is_embedded(name) or on_disk(name) is not None or cached(published)


def _config_json(name: str) -> Mapping[str, Any] | None:
    """The configuration of a model that is on this PC; None of others."""
    try:
        return find_model(name).config if _is_here(name) else None
    except ToolkitError:
        return None


async def _yaml(request: Request) -> Response:
    """The settings in a YAML text, as the form has them."""
    values = await api.body(request)
    draft = await api.blocking(draft_of, site_of(request), values)  # the facts do not matter
    taken, left = await api.blocking(values_of_yaml, api.text(values, "text", most=api.MOST), draft.chosen)
    return api.answer({"values": taken, "left_out": left})


async def _plan(request: Request) -> Response:
    """What `aift plan` says of a draft, by a child; with `"pilot": true` after three real steps. One at a time."""
    site, values = site_of(request), await api.body(request)
    draft = await api.blocking(draft_of, site, values)
    config = _whole(draft)
    if not await api.blocking(_is_here, config.model.name):  # a page that is opened asks no hub
        raise ModelError(
            f"モデル {config.model.name} がこの PC にないため、計画できません（数字は概算です）。開始すると、先にダウンロードします。",
            f"the model {config.model.name} is not on this PC, so there is no plan; the figures are rough. A start downloads it first.",
        )
    with tempfile.TemporaryDirectory(prefix="aift-web-") as folder:
        file = Path(folder) / CONFIG
        file.write_text(yaml_of(config), encoding="utf-8")
        pilot = ["--pilot"] if values.get("pilot") is True else []
        output = f"training.output_dir={site.runs / run_name(draft.shown)}"
        plan = await children.run(request, ["plan", str(file), output, *pilot, "--json", "-"], seconds=_PLAN)
    return api.answer(plan | {"presets": planned(plan), "findings": _with_labels(plan["findings"])})


def planned(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Steps and time of the presets by a plan, as it counts its own."""
    told, per_epoch = plan.get("speed"), max(1, int(plan["steps_per_epoch"]))
    replayed = (plan.get("replay") or {}).get("tokens", 0)
    sources = plan.get("sources") or []
    an_epoch = replayed + (sum(of["tokens"] for of in sources) if sources else plan["tokens"])
    beside, by_steps = Beside.of(plan["beside"]), plan.get("eval_steps") is not None
    found = {}
    for name, preset in presets_for(str(plan["objective"]).partition(",")[0] or "sft").items():
        epochs = preset.epochs_for(per_epoch)
        took = None
        if told:
            speed = Speed(told["tokens_per_second"], Reason("", ""), told.get("token_seconds"))
            other = beside.under(preset, epochs, epochs * per_epoch, by_steps=by_steps)
            took = parts(other, an_epoch * epochs, speed).total
        found[name] = {"epochs": epochs, "total_steps": epochs * per_epoch, "seconds": took}
    return found


def _whole(draft: Draft) -> RunConfig:
    """The configuration of a draft with data.

    Raises:
        ConfigError: settings that cannot be, or no data.
    """
    if draft.chosen.train is None:
        raise ConfigError.of([Problem("学習データを選んでください。", "choose the training data.", "data")])
    config = draft.config()
    tested = config_source(config.data.eval)
    validate_data(config_source(config.data.train), tested, config.data.replay)
    validate_evaluation(config, tested)
    return config


async def _start(request: Request) -> Response:
    """Starts a draft, once for each `key`, whoever asks again; answers with the run's id."""
    site, values = site_of(request), await api.body(request)
    key = api.text(values, "key")
    if not _KEY.fullmatch(key):
        raise UsageError("key が正しくありません。", "the key is none.")
    draft = await _drafted(request, values)
    async with site.locks["start"]:
        folder = site.starts.get(key)
        if folder is None:
            folder = await api.blocking(_launched, site, draft)
            site.starts[key] = folder
            for old in list(site.starts)[:-_STARTS]:
                del site.starts[old]
    entries = await api.blocking(site.list_runs, fresh=True)
    id = next((entry.id for entry in entries if entry.path.resolve() == folder.resolve()), None)
    return api.answer({"id": id})


def _launched(site: Site, draft: Draft) -> Path:
    """Starts a draft as a run that waits for its device; the folder."""
    config, name = _whole(draft), run_name(draft.shown)
    training = with_values(config.training, output_dir=str(site.runs / f"{name}-new"))
    validate_config(with_values(config, training=training))
    for number in range(1, _TRIES):
        tried = name if number == 1 else f"{name}-{number}"
        if not (site.runs / tried).exists():
            return launch(config, site.runs, tried, wait=True)
    return launch(config, site.runs, wait=True)


def run_name(shown: str) -> str:
    """A run's name by its data's: letters of a-z, digits and hyphens where there are any, so that it is its id."""
    stem = unicodedata.normalize("NFKC", Path(shown.removeprefix(PREFIX)).stem)
    return _ODD.sub("-", stem).strip("-")[:_NAME].strip("-").lower() or "run"


ROUTES = [
    Route("/api/settings", _form, methods=["GET"]),
    Route("/api/settings/check", _check, methods=["POST"]),
    Route("/api/settings/yaml", _yaml, methods=["POST"]),
    Route("/api/settings/plan", _plan, methods=["POST"]),
    Route("/api/settings/start", _start, methods=["POST"]),
]
