"""比較 without a browser: what settings name, as people call it."""

from __future__ import annotations

from pathlib import Path

from starlette.applications import Starlette
from starlette.testclient import TestClient

from ai_finetuning.apps.web import uploads
from ai_finetuning.apps.web.screens.compare import ROUTES
from ai_finetuning.apps.web.site import Site


def test_data_that_was_brought_has_its_name_and_its_id_where_two_have_the_same(tmp_path: Path):
    site = Site(tmp_path / "outputs", (tmp_path / "outputs",), tmp_path / "models", tmp_path / "data")
    app = Starlette(routes=ROUTES)
    app.state.site = site
    ids = []
    for run, name in (("a", "問い合わせ.jsonl"), ("b", "FAQ.jsonl"), ("c", "FAQ.jsonl")):
        rows = tmp_path / f"{run}.jsonl"
        rows.write_text('{"prompt": "首都は？", "completion": "東京です。"}\n', "utf-8")
        upload = uploads.adopt(site, rows, name)
        ids.append(upload.id)
        (site.runs / run).mkdir(parents=True)
        (site.runs / run / "config.yaml").write_text(f"data: {{train: '{upload.file.absolute()}'}}\n", "utf-8")
        (site.runs / run / "run.json").write_text('{"status": "completed"}', "utf-8")
    found = TestClient(app).get("/api/compare?ids=a,b,c").json()
    [train] = [one["values"] for one in found["settings"] if one["key"] == "data.train"]
    assert train == ["問い合わせ.jsonl", f"FAQ.jsonl ({ids[1]})", f"FAQ.jsonl ({ids[2]})"]
