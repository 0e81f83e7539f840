"""設定 without a browser: suggestions, figures by formulas, plans told again, names of runs."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.testclient import TestClient

from ai_finetuning.apps.web import api, children, uploads
from ai_finetuning.apps.web.data_facts import Facts
from ai_finetuning.apps.web.screens.models import find, id_of
from ai_finetuning.apps.web.screens.settings import ROUTES, Draft, checked, copied, draft_of, form_of, planned, run_name
from ai_finetuning.apps.web.site import Site
from ai_finetuning.data.glance import glance
from ai_finetuning.embedded import model_folder
from ai_finetuning.errors import ConfigError, InputNotFoundError, Reason, ToolkitError, UsageError
from ai_finetuning.planner.length import Beside, parts
from ai_finetuning.planner.rough import Rows
from ai_finetuning.planner.speed import Speed


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "outputs", (tmp_path,), tmp_path / "models", tmp_path / "data")


def counted(draft: Draft) -> Draft:
    """With the facts of its data, which the server asks a child for."""
    assert draft.chosen.train is not None
    found = glance(draft.chosen.train)
    assert found.rows is not None
    return replace(draft, facts=Facts(Rows(*found.rows), found.bad, found.objective))


def test_what_ships_is_suggested_and_counted(site: Site):
    draft = counted(draft_of(site, {"data": "embedded-kotoha-qa", "values": {}}))
    form = form_of(draft)
    assert form["data"] == {"name": "kotoha-qa", "bad": 0, "rows": 2417, "whole": True, "divided": None}
    assert form["values"]["training.learning_rate"] == "0.003"
    assert form["values"]["data.eval"] == "0.1"
    assert form["objectives"] == ["sft"]
    values = form["values"] | form["presets"]["standard"]["values"]
    found = checked(counted(draft_of(site, {"data": "embedded-kotoha-qa", "values": values})))
    assert found["figures"]["total_steps"] == 3 * found["figures"]["steps_per_epoch"] == 408
    steps = [found["presets"][name]["total_steps"] for name in ("quick", "standard", "careful")]
    assert steps == [136, 408, 816]
    assert found["command"][:2] == ["aift", "train"]
    assert "training.num_epochs=3" in found["command"]
    assert "num_epochs: 3" in found["yaml"]


def test_few_rows_get_more_epochs_and_too_few_steps_are_named(site: Site):
    few = draft_of(
        site, {"data": "embedded-kotoha-qa", "values": {"data.max_samples": "10", "training.num_epochs": "2"}}
    )
    found = checked(counted(few))
    assert found["figures"]["total_steps"] < 50
    assert "学習が進まない" in found["figures"]["findings"][0]["ja"]
    assert found["presets"]["quick"]["total_steps"] >= 30


def test_ids_name_what_is_there_and_nothing_else(site: Site):
    for ids in ({"data": "u-000000000000"}, {"model": "no-such-model"}, {"from": "no-such-run"}):
        with pytest.raises(InputNotFoundError):
            draft_of(site, ids)
    for ids in (
        {"data": "../etc"},
        {"data": 3},
        {"values": []},
        {"model": "/etc"},
        {"values": {str(n): "" for n in range(300)}},
    ):
        with pytest.raises(UsageError):
            draft_of(site, ids)


def test_an_evaluation_loss_needs_evaluation_data(site: Site):
    draft = counted(draft_of(site, {"data": "embedded-kotoha-qa", "values": {"training.checkpoint.load_best": "true"}}))
    with pytest.raises(ConfigError):
        checked(draft)


def test_a_copy_has_the_settings_of_its_run(site: Site, tmp_path: Path):
    folder = tmp_path / "outputs" / "faq"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text('{"status": "completed"}', encoding="utf-8")
    text = "model: embedded:kotoha-tiny\ndata: {train: 'embedded:kotoha-qa', eval: 0.1}\nlearning_rate: 1e-4\noutput_dir: /x\n"
    (folder / "config.yaml").write_text(text + "parallel: {processes: 2}\n", encoding="utf-8")
    _, found = copied(site, "faq")
    assert found["ids"] == {"data": "embedded-kotoha-qa", "model": "embedded-kotoha-tiny"}
    assert found["values"] == {"method": "lora", "data.eval": "0.1", "training.learning_rate": "0.0001"}
    assert found["left_out"] == ["parallel.processes"]
    (folder / "config.yaml").write_text(text.replace("embedded:kotoha-qa", "/gone/data.csv"), encoding="utf-8")
    assert copied(site, "faq")[1]["ids"]["data"] is None


def _model(site: Site, place: Path) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(model_folder("embedded:kotoha-tiny"), place)
    return place


def test_a_copy_has_a_model_of_the_models_folder(site: Site, tmp_path: Path):
    own = _model(site, site.models / "own")
    folder = tmp_path / "outputs" / "faq"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text('{"status": "completed"}', encoding="utf-8")
    text = f"model: '{own.absolute()}'\ndata: {{train: 'embedded:kotoha-qa'}}\n"
    (folder / "config.yaml").write_text(text, encoding="utf-8")
    draft, found = copied(site, "faq")
    assert found["ids"]["model"] == id_of("./own")
    assert form_of(draft)["model"] == str(own.absolute())


def test_a_link_out_of_the_models_folder_is_no_model(site: Site, tmp_path: Path):
    _model(site, site.models / "own")
    (site.models / "link").symlink_to(_model(site, tmp_path / "elsewhere"))
    assert find(site, id_of("./own")) == str(site.models.absolute() / "own")
    with pytest.raises(InputNotFoundError, match="leads out of"):
        find(site, id_of("./link"))


def test_no_plan_asks_for_a_model_that_is_not_here_until_it_is(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked = []

    run = children.run

    async def plan(request: Request, arguments: list[str], **how: Any) -> Any:
        if arguments[0] == "data":
            return await run(request, arguments, **how)
        asked.append(arguments[0])
        raise UsageError("計画", "planned")

    monkeypatch.setattr(children, "run", plan)
    monkeypatch.setattr("ai_finetuning.apps.web.screens.settings.cached", lambda name: here)
    app = Starlette(routes=ROUTES, exception_handlers={ToolkitError: api.refuse})
    app.state.site = site
    client, here = TestClient(app), False
    request = {"data": "embedded-kotoha-qa", "model": id_of("Qwen/Qwen3-0.6B"), "values": {"data.eval": "0.1"}}
    answered = client.post("/api/settings/plan", json=request)
    assert answered.status_code == 422
    assert "Qwen/Qwen3-0.6B is not on this PC, so there is no plan" in answered.json()["error"]["en"]
    assert asked == []
    assert client.post("/api/settings/check", json=request).json()["figures"]["total_steps"] > 0
    here = True  # it was brought meanwhile
    client.post("/api/settings/plan", json=request)
    assert asked == ["plan"]


def _plan(**changes: object) -> dict[str, object]:
    beside = Beside(9, 90, questions=10, samples=3, answer_tokens=20, judged=30, token_seconds=0.001)
    return {
        "steps_per_epoch": 10,
        "speed": {"tokens_per_second": 100.0, "token_seconds": 0.01},
        "tokens": 1000,
        "eval_steps": 6,
        "objective": "",
        "replay": None,
        "sources": [],
        "beside": asdict(beside),
    } | changes


def test_a_plan_tells_the_presets_again():
    found = planned(_plan())
    beside = Beside.of(_plan()["beside"])
    speed = Speed(100.0, Reason("", ""), 0.01)
    assert found["standard"] == {"epochs": 6, "total_steps": 60, "seconds": parts(beside, 6000, speed).total}
    without = parts(replace(beside, questions=0), 3000, speed)
    assert found["quick"]["seconds"] == without.total  # asks nothing while it trains
    assert found["standard"]["seconds"] - found["quick"]["seconds"] > 30 + 10
    by_the_epoch = parts(replace(beside, evaluations=15), 15_000, speed)
    assert found["careful"]["seconds"] == by_the_epoch.total
    assert planned(_plan(speed=None))["quick"]["seconds"] is None
    assert planned(_plan(objective="preference, sigmoid (beta 0.1)"))["standard"]["epochs"] == 2


def _pairs(site: Site, count: int) -> str:
    site.data.mkdir(exist_ok=True)
    part = site.data / "pairs.jsonl"
    rows = [{"prompt": f"{n} は？", "chosen": f"{n} です。", "rejected": "知りません。"} for n in range(count)]
    part.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return uploads.adopt(site, part, "pairs.jsonl").id


def _run(site: Site, more: str = "") -> None:
    """An earlier run at 0.003."""
    folder = site.runs / "first"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text('{"status": "completed"}', encoding="utf-8")
    text = f"model: {{name: embedded:kotoha-tiny}}\ntraining: {{learning_rate: 0.003, output_dir: {folder}}}\n{more}"
    (folder / "config.yaml").write_text(text, encoding="utf-8")
    adapter = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "embedded:kotoha-tiny"}
    (folder / "adapter_config.json").write_text(json.dumps(adapter), encoding="utf-8")
    save_file({"x": torch.zeros(1)}, str(folder / "adapter_model.safetensors"))


def test_pairs_after_answers_take_their_own_rate_and_length(site: Site):
    _run(site)
    asked = {"data": _pairs(site, 8), "from": "first"}
    form = form_of(counted(draft_of(site, asked | {"values": {}})))
    assert form["values"]["training.learning_rate"] == "0.0001"
    assert form["presets"]["standard"]["values"]["training.num_epochs"] == "2"
    values = form["values"] | form["presets"]["standard"]["values"]
    assert draft_of(site, asked | {"values": values}).config().training.learning_rate == 1e-4
    emptied = {key: value for key, value in values.items() if key != "training.learning_rate"}
    assert draft_of(site, asked | {"values": emptied}).config().training.learning_rate == 1e-4
    own = draft_of(site, asked | {"values": values | {"training.learning_rate": "0.004"}})
    assert own.config().training.learning_rate == 0.004
    notes = checked(counted(own))["figures"]["findings"]
    assert [one["kind"] for one in notes] == ["few_steps", "comparisons", "comparisons"]
    assert "学習率（training.learning_rate）" in notes[2]["ja"]
    assert "エポック" not in notes[0]["ja"]  # more of the same pairs is no advice


def test_what_goes_on_with_the_same_objective_keeps_the_rate_of_its_run(site: Site):
    _run(site)
    form = form_of(counted(draft_of(site, {"data": "embedded-kotoha-qa", "from": "first"})))
    assert "training.learning_rate" not in form["values"]
    assert form["inherited"]["training.learning_rate"] == "0.003"
    assert form["rates"] == {"sft": ""}


def test_pairs_after_pairs_keep_the_rate_of_their_run(site: Site):
    _run(site, "objective: preference\n")
    form = form_of(counted(draft_of(site, {"data": _pairs(site, 8), "from": "first"})))
    assert form["inherited"]["training.learning_rate"] == "0.003"
    assert form["rates"] == {"sft": "0.003", "preference": ""}


@pytest.mark.parametrize(
    ("shown", "name"),
    [
        ("FAQ 2026.csv", "faq-2026"),
        ("問い合わせ.xlsx", "問い合わせ"),
        ("../../etc/passwd", "passwd"),
        ("...", "run"),
        ("x" * 90, "x" * 40),
    ],
)
def test_a_run_is_called_after_its_data(shown: str, name: str):
    assert run_name(shown) == name
