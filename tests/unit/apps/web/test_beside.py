"""比較, 同じ質問をする: the routes with real processes, the embedded model and adapters on it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient
from tests.browser.talking import BASE, make_run

from ai_finetuning.apps.web import api
from ai_finetuning.apps.web.beside import turns_of
from ai_finetuning.apps.web.screens import compare
from ai_finetuning.apps.web.screens.chosen import chosen
from ai_finetuning.apps.web.site import Site
from ai_finetuning.embedded import model_folder
from ai_finetuning.errors import ToolkitError
from ai_finetuning.inference.session import open_model
from ai_finetuning.japanese.default_system import system_turn
from ai_finetuning.models.generation import generate_answers
from ai_finetuning.runs.devices import Place, visible_devices

QUESTION = "日本の首都はどこですか。"
GREEDY = {"max_new_tokens": 10}
SAMPLED = GREEDY | {"do_sample": True, "temperature": 1.2}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Two runs over one base, one over a copy of it in another place, one that has saved nothing."""
    folder = tmp_path_factory.mktemp("beside")
    shutil.copytree(model_folder(BASE), folder / "models" / "copy")
    make_run(folder / "outputs" / "a")
    make_run(folder / "outputs" / "b", seed=2, system="短く答えます。")
    make_run(folder / "outputs" / "c", seed=3, base=str(folder / "models" / "copy"))
    (folder / "outputs" / "empty").mkdir()
    (folder / "outputs" / "empty" / "run.json").write_text('{"status": "failed"}', encoding="utf-8")
    return Site(folder / "outputs", (folder,), folder / "models", folder / "data")


@pytest.fixture
def client(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("AIFT_STATE", str(site.data.parent / "state"))
    app = Starlette(routes=compare.ROUTES, exception_handlers={ToolkitError: api.refuse})
    app.state.site = site
    with TestClient(app) as opened:
        yield opened
        if site.workers is not None:
            site.workers.close()
            site.workers = None


def _asked(client: TestClient, ids: list[str], **more: Any) -> list[dict[str, Any]]:
    answer = client.post("/api/compare/answer", json={"ids": ids, "question": QUESTION, **more})
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


def _texts(told: list[dict[str, Any]]) -> dict[str, str]:
    texts: dict[str, str] = {}
    for one in told:
        if "t" in one:
            texts[one["id"]] = texts.get(one["id"], "") + one["t"]
    return texts


def _alone(site: Site, id: str, *, system: str | None = None, seed: int | None = None, **options: Any) -> str:
    """What `aift generate` says of the run alone; with a seed what a conversation with it says."""
    opened = open_model(str(site.runs / id))
    conversation = [*system_turn(opened.tokenizer, system), {"role": "user", "content": QUESTION}]
    seeds = None if seed is None else [seed]
    return generate_answers(opened.model, opened.tokenizer, [conversation], seed=seeds, **options)[0].text


def test_every_run_answers_as_it_does_alone(client: TestClient, site: Site) -> None:
    """Greedy where nobody says otherwise, with the stored system prompt; sampled by one seed."""
    told = _asked(client, ["a", "b", "c", "empty"], options=GREEDY)
    plain = {"do_sample": False, **GREEDY}
    assert _texts(told) == {id: _alone(site, id, **plain) for id in "abc"}
    assert len(set(_texts(told).values())) == 3
    states = [(one["state"], one["ids"]) for one in told if "state" in one]
    both, last = ["a", "b"], ["c"]
    assert states == [("loading", both), ("answering", both), ("loading", last), ("answering", last)]
    assert [one["end"] for one in told if "end" in one] == ["length"] * 3
    assert told[-1] == {"done": True}
    assert site.workers is not None
    shared = site.workers.of((str(site.runs / "a"), str(site.runs / "b")))
    assert shared is not None
    assert shared.ended is None  # the next question finds it loaded

    system = "英語で答えます。"
    told = _asked(client, ["a", "b"], options=SAMPLED, seed=7, systems={"a": system, "b": ""})
    drawn = {id: _alone(site, id, system=one, seed=7, **SAMPLED) for id, one in (("a", system), ("b", ""))}
    assert _texts(told) == drawn
    assert site.workers.of((str(site.runs / "a"), str(site.runs / "b"))) is shared


@pytest.mark.slow
def test_a_damaged_run_does_not_keep_the_others_from_answering(client: TestClient, site: Site) -> None:
    damaged = site.runs / "damaged"
    shutil.copytree(site.runs / "b", damaged)
    (damaged / "adapter_model.safetensors").write_bytes(b"x")
    site.list_runs(fresh=True)
    told = _asked(client, ["a", "damaged"], options=GREEDY)
    shutil.rmtree(damaged)
    refused = {one["id"]: one["refused"]["ja"] for one in told if "refused" in one}
    assert list(refused) == ["damaged"]
    assert "damaged" in refused["damaged"]
    assert _texts(told) == {"a": _alone(site, "a", do_sample=False, **GREEDY)}


def test_the_page_is_told_who_can_be_asked_and_nobody_answers_beside_a_training(
    client: TestClient, site: Site, tmp_path: Path
) -> None:
    site.list_runs(fresh=True)
    found = client.get("/api/compare?ids=a,b,c,empty").json()["ask"]
    assert [one["id"] for one in found["runs"]] == ["a", "b", "c"]
    assert found["turns"] == [["a", "b"], ["c"]]
    assert "まだ何も保存していません" in found["not"]["empty"]["ja"]
    assert [len(turn) for turn in turns_of([chosen(site, {"run": id}) for id in "ab"])] == [2]
    for values in ({"ids": ["a"]}, {"ids": ["../a", "b"]}, {"ids": "a,b"}, {"ids": ["a", "b"], "question": " "}):
        assert client.post("/api/compare/answer", json={"question": QUESTION, **values}).status_code == 400
    bad = {"ids": ["a", "b"], "question": QUESTION, "options": {"temperature": -1, "do_sample": True}}
    assert client.post("/api/compare/answer", json=bad).status_code == 422
    training = Place(visible_devices(), tmp_path / "training")
    training.take()
    try:
        told = _asked(client, ["a", "b"])
    finally:
        training.leave()
    assert {one["id"]: "計算中" in one["refused"]["ja"] for one in told if "refused" in one} == {"a": True, "b": True}
