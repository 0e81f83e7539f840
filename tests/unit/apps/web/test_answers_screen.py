"""一括回答 without a browser: what a server takes, remembers and computes while several ask."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openpyxl
import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from ai_finetuning.apps.web import api, uploads
from ai_finetuning.apps.web.screens import answers, compare, export
from ai_finetuning.apps.web.site import Site
from ai_finetuning.errors import RunLockedError, ToolkitError
from ai_finetuning.inference.question_files import read_questions
from ai_finetuning.runs import jobs
from ai_finetuning.runs.process import identity


@pytest.fixture
def site(tmp_path: Path) -> Site:
    (tmp_path / "data").mkdir()
    return Site(tmp_path / "outputs", (tmp_path,), tmp_path / "models", tmp_path / "data")


@pytest.fixture
def app(site: Site) -> Starlette:
    made = Starlette(routes=answers.ROUTES, exception_handlers={ToolkitError: api.refuse})
    made.state.site, made.state.tickets = site, {}
    return made


@pytest.fixture
def client(app: Starlette) -> TestClient:
    return TestClient(app)


def _job(site: Site, questions: int = 2, kind: str = answers.KIND) -> Path:
    """A job that was stopped before its first answer."""
    folder = jobs.new_folder(site.data, kind)
    lines = [{"number": n + 1, "question": f"{n} の次は？", "expected": [str(n + 1)]} for n in range(questions)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    about = {"out": "answers.csv", "total": questions}
    told = {"steps": [{"argv": ["answer"], "may": [65]}], "about": about, "codes": []}
    (folder / "run.json").write_text(json.dumps({"job": told, "made": 1.0, "status": "stopped"}), encoding="utf-8")
    return folder


def _answer(folder: Path, place: int, said: str) -> None:
    with (folder / "answers.csv.partial.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"question": place, "answers": [said]}) + "\n")


def test_a_large_file_is_refused_before_it_is_read(site: Site, client: TestClient) -> None:
    header = "質問,回答\n"
    part = site.data / "large.csv"
    part.write_text(header, encoding="utf-8")
    with part.open("r+b") as file:
        file.truncate(20_000_001)
    large = uploads.adopt(site, part, "large.csv").id
    part.write_text(header + "首都は？,東京です。\n", encoding="utf-8")
    small = uploads.adopt(site, part, "small.csv").id
    assert client.get(f"/api/answers/columns?file={small}").json()["column"] == "質問"
    asked = {"file": large, "model": "embedded-kotoha-tiny"}
    for answered in (client.get(f"/api/answers/columns?file={large}"), client.post("/api/answers", json=asked)):
        assert answered.status_code == 400
        assert "at most 20 MB; use aift answer for large.csv" in answered.json()["error"]["en"]
    assert not (site.data / jobs.FOLDER).exists()


def test_a_file_that_a_batch_of_answers_reads_is_not_deleted(site: Site) -> None:
    part = site.data / "faq.csv"
    part.write_text("質問\n首都は？\n", encoding="utf-8")
    upload, folder = uploads.adopt(site, part, "faq.csv"), _job(site)
    told = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    told["job"]["about"]["file"] = upload.id
    at_work = {**told, "status": "running", **identity()}
    (folder / "run.json").write_text(json.dumps(at_work), encoding="utf-8")
    for remove in (lambda: uploads.trash(site, upload), lambda: uploads.delete(site, upload, "faq.csv")):
        with pytest.raises(RunLockedError, match="batch of answers"):
            remove()
    (folder / "run.json").write_text(json.dumps(told), encoding="utf-8")
    uploads.delete(site, upload, "faq.csv")
    assert not upload.folder.exists()


@pytest.mark.parametrize("kind", [answers.KIND, export.KIND])
def test_a_run_whose_model_a_job_reads_stays_where_it_is(site: Site, tmp_path: Path, kind: str) -> None:
    run, folder = tmp_path / "outputs" / "faq", _job(site, kind=kind)
    run.mkdir(parents=True)
    (run / "run.json").write_text('{"status": "completed"}', encoding="utf-8")
    told = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    told["job"]["about"]["of"] = {"by": "run", "id": "faq", "label": "faq"}
    at_work = {**told, "status": "running", **identity()}
    (folder / "run.json").write_text(json.dumps(at_work), encoding="utf-8")
    app = Starlette(routes=compare.ROUTES, exception_handlers={ToolkitError: api.refuse})
    app.state.site, app.state.tickets = site, {}
    client, asked = TestClient(app), {"id": "faq", "name": "faq-2"}
    assert client.post("/api/compare/rename", json=asked).status_code == 409
    assert client.post("/api/compare/trash", json=asked | {"name": "faq"}).status_code == 409
    assert run.is_dir()
    (folder / "run.json").write_text(json.dumps(told), encoding="utf-8")
    assert client.post("/api/compare/rename", json=asked).json()["name"] == "faq-2"


def test_jobs_that_are_not_shown_are_counted_and_keep_what_they_read(
    site: Site, client: TestClient, tmp_path: Path
) -> None:
    run = tmp_path / "outputs" / "faq"
    run.mkdir(parents=True)
    (run / "run.json").write_text('{"status": "completed"}', encoding="utf-8")
    folders = [_job(site) for _ in range(53)]
    found = client.get("/api/answers").json()
    assert len(found["jobs"]) == 50
    assert found["older"] == {"count": 3, "folder": str(site.data / ".jobs")}
    old = min(folders).name
    told = json.loads((site.data / ".jobs" / old / "run.json").read_text(encoding="utf-8"))
    told["job"]["about"]["of"] = {"by": "run", "id": "faq"}
    (site.data / ".jobs" / old / "run.json").write_text(
        json.dumps({**told, "status": "running", **identity()}), encoding="utf-8"
    )
    assert old not in {job["id"] for job in found["jobs"]}
    with pytest.raises(RunLockedError, match="faq is used"):
        compare._refuse_used(site, site.run("faq"))


def test_what_is_remembered_of_jobs_is_bounded(site: Site, client: TestClient) -> None:
    folders = [_job(site) for _ in range(11)]
    for folder in (*folders, folders[-8]):
        assert client.get(f"/api/answers/{folder.name}").json()["total"] == 2
    assert list(site.followed) == [folder.name for folder in (*folders[-7:], folders[-8])]
    _answer(folders[0], 0, "1")
    assert client.get(f"/api/answers/{folders[0].name}").json()["done"] == 1  # forgotten, and read again


def test_progress_and_rows_may_be_asked_at_once(site: Site, client: TestClient) -> None:
    folder = _job(site, questions=200)

    def ask(way: str) -> int:
        return client.get(f"/api/answers/{folder.name}{way}").status_code

    with ThreadPoolExecutor(4) as threads:
        asked = []
        for place in range(100):
            _answer(folder, place, str(place + 1))
            asked += [threads.submit(ask, way) for way in ("", "/rows?show=match")]
        assert {one.result() for one in asked} == {200}
    told = client.get(f"/api/answers/{folder.name}").json()
    assert (told["done"], told["score"]["judged"], told["score"]["right"]) == (100, 100, 100)
    assert client.get(f"/api/answers/{folder.name}/rows?show=match").json()["total"] == 100


@pytest.mark.parametrize("kind", [".csv", ".jsonl", ".xlsx"])
def test_what_a_stopped_batch_has_answered_can_be_downloaded(
    site: Site, app: Starlette, client: TestClient, kind: str
) -> None:
    rows = [("1 の次は？", ""), ("2 の次は？", "x"), ("", ""), ("4 の次は？", "y")]
    part = site.data / f"questions{kind}"
    if kind == ".csv":
        part.write_text("質問,備考\n" + "".join(f"{one},{more}\n" for one, more in rows), encoding="cp932")
    elif kind == ".jsonl":
        part.write_text("".join(json.dumps({"質問": one, "備考": more}) + "\n" for one, more in rows), encoding="utf-8")
    else:
        book = openpyxl.Workbook()
        for row in [("質問", "備考"), *rows]:
            book.active.append(row)
        book.save(part)
    upload = uploads.adopt(site, part, f"社内の質問{kind}")
    folder = _job(site, 4)
    asked = read_questions(upload.file, column="質問")
    answers._write_questions(folder / "questions.jsonl", asked, None)
    told = json.loads((folder / "run.json").read_text())
    told["job"]["about"] = {
        "file": upload.id,
        "shown": upload.shown,
        "out": f"answers{kind}",
        "column": "質問",
        "sheet": asked.sheet,
        "answer_column": "回答",
        "total": 3,
    }
    (folder / "run.json").write_text(json.dumps(told), encoding="utf-8")
    address = f"/api/answers/{folder.name}/download"
    assert client.post(address, json={}).status_code == 400  # nothing is answered yet
    with (folder / f"answers{kind}.partial.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"question": 1, "answers": ["=3"]}) + "\n")
    made = client.post(address, json={"spreadsheet": False})
    assert made.status_code == 200, made.text
    (one,) = app.state.tickets.values()
    assert one.name == f"社内の質問-回答-途中（3件中1件）{kind}"
    read = read_questions(one.path, column="質問")
    places = [place for place, item in enumerate(read.questions) if item.text]
    texts = [str(read.values(place).get("回答") or "") for place in places]
    assert texts == ["", "=3" if kind != ".csv" else "'=3", ""]
    assert [read.values(place).get("備考") or "" for place in places] == ["", "x", "y"]
    assert not (folder / f"answers{kind}").exists()  # going on writes it
