"""What a server imports while it is used: none of the libraries that need hundreds of megabytes, or that read files of
strangers. Those are asked in children.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# As in a server, with the pages behind their gate; prints each answer that is no success, and what was imported.
CODE = """
import contextlib, sys
from pathlib import Path
from starlette.testclient import TestClient
from ai_finetuning.apps.web.main import application, site_in
from ai_finetuning.runs import jobs
from ai_finetuning.runs.devices import occupying
from ai_finetuning.runs.phase import change_run
here, held = Path.cwd(), contextlib.ExitStack()
held.enter_context(occupying(["cpu"], here / "other"))  # what is started waits, and computes nothing
site = site_in(here)
client = TestClient(application(site, frozenset({"testserver"})), headers={"x-aift-token": site.token})
def ask(path, body=None, **how):
    answered = client.get(path) if body is None else client.post(path, **how | {"json": body})
    print(answered.status_code, path, "" if answered.status_code == 200 else answered.text[:300])
    return answered.json() if answered.status_code == 200 else {}
def upload(name, content):
    found = client.post("/api/data/upload", content=content, headers={"x-aift-name": name}).json()["id"]
    ask(f"/api/data/{found}/read", {})
    return found
for page in ("/", "/data", "/train", "/runs/faq", "/runs/faq/result", "/chat", "/answers", "/compare", "/export", "/models"):
    assert client.get(page).status_code == 200
for path in ("/api/head", "/api/home", "/api/models"):
    ask(path)
table = upload("faq.csv", "質問,回答\\n送料は？,無料です。\\n休みは？,日曜です。\\n".encode())
book = upload("faq.xlsx", Path("faq.xlsx").read_bytes())
for one in (table, book):
    for path in (f"/api/data/{one}", f"/api/data/{one}/rows", f"/api/settings?data={one}", f"/api/answers/columns?file={one}"):
        ask(path)
    ask("/api/settings/check", {"data": one, "values": {"training.num_epochs": "2"}})
    ask("/api/answers", {"file": one, "model": "embedded-kotoha-tiny", "column": "質問", "max_new_tokens": 2})
ask("/api/data")
ask("/api/settings/yaml", {"data": table, "text": "training: {num_epochs: 3}"})
for path in ("", "/metrics", "/samples", "/log"):
    ask(f"/api/runs/faq{path}")
ask("/api/results/faq")
ask("/api/results/faq/answers")
for path in ("compare/runs", "compare?ids=faq,more", "compare/trash", "export/choices", "export", "chat/choices", "chat/state?model=embedded-kotoha-tiny"):
    ask(f"/api/{path}")
for path in ("answers/choices", "answers"):
    ask(f"/api/{path}")
for job in ask("/api/answers")["jobs"]:
    ask(f"/api/answers/{job['id']}")
    ask(f"/api/answers/{job['id']}/stop", {})
    told = jobs.find(site.data, job["id"], "answers")
    out = told.folder / told.about["out"]
    out.write_bytes(Path("answers" + out.suffix).read_bytes())
    change_run(told.folder, status="completed")
    assert ask(f"/api/answers/{job['id']}")["done"] == 2
    ask(f"/api/answers/{job['id']}/rows")
    ask(f"/api/answers/{job['id']}/download", {"spreadsheet": True})
held.close()
heavy = ("torch", "numpy", "transformers", "pyarrow", "openpyxl", "pandas", "peft", "tokenizers", "matplotlib")
print("imported:", *(name for name in heavy if name in sys.modules))
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with a workbook and two runs that are done."""
    import openpyxl
    from tests.browser.test_runs import finished

    rows = (
        ["質問", "回答", "モデルの回答"],
        ["送料は？", "無料です。", "無料です。"],
        ["休みは？", "日曜です。", "月曜です。"],
    )
    (tmp_path / "answers.csv").write_text("".join(f"{','.join(row)}\n" for row in rows), encoding="utf-8")
    for name, columns in (("faq", 2), ("answers", 3)):
        book = openpyxl.Workbook()
        for row in rows:
            book.active.append(row[:columns])
        book.save(tmp_path / f"{name}.xlsx")
    for name in ("faq", "more"):
        finished(tmp_path / "outputs" / name, 5)
    return tmp_path


def test_a_server_that_is_used_imports_nothing_heavy(here: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AIFT_STATE", str(here / "state"))
    done = subprocess.run([sys.executable, "-c", CODE], cwd=here, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    *answered, imported = done.stdout.splitlines()
    assert [line for line in answered if not line.startswith("200 ")] == []
    assert imported == "imported:"
