"""What a conversation, a batch of answers or an export is of: ids, and nothing outside of the folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.support.kept_runs import kept_run

from ai_finetuning.apps.web.screens.chosen import choices, chosen
from ai_finetuning.apps.web.site import Site
from ai_finetuning.embedded import model_folder
from ai_finetuning.errors import ModelError, ToolkitError
from ai_finetuning.japanese.default_system import with_default_system
from ai_finetuning.runs.adopted import adopt

KOTOHA = model_folder("embedded:kotoha-tiny")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A server with two runs, a model, and a link to one outside."""
    for name, status in (("faq", "completed"), ("begun", "running")):
        folder = tmp_path / "outputs" / name
        folder.mkdir(parents=True)
        run = {"status": status, "fingerprint": {"model": "org/base", "method": "lora"}}
        (folder / "run.json").write_text(json.dumps(run), encoding="utf-8")
    faq = tmp_path / "outputs" / "faq"
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "org/base"}
    (faq / "adapter_config.json").write_text(json.dumps(adapter), encoding="utf-8")
    (faq / "adapter_model.safetensors").write_bytes(b"")
    (faq / "chat_template.jinja").write_text(with_default_system("{{ messages }}", "短く。"), encoding="utf-8")
    models = tmp_path / "models"
    for place in (models / "own", tmp_path / "elsewhere"):
        place.mkdir(parents=True)
        for file in KOTOHA.iterdir():
            (place / file.name).symlink_to(file)
    (models / "link").symlink_to(tmp_path / "elsewhere")
    return Site(tmp_path / "outputs", (tmp_path,), models, tmp_path / "data")


def test_runs_and_models_are_named_by_ids(site: Site) -> None:
    found = {(one.by, one.label): one for one in choices(site)}
    assert ("run", "begun") not in found  # it has saved nothing yet
    assert ("model", "link") not in found
    run, own = found["run", "faq"], found["model", "own"]
    assert (run.kind, run.base, run.system) == ("adapter", "org/base", "短く。")
    assert run.name == str(site.runs / "faq")
    assert own.name == str(site.models / "own")
    assert chosen(site, {"run": run.id}) == run
    assert chosen(site, {"model": own.id}) == own
    assert found["model", "kotoha-tiny"].name == "embedded:kotoha-tiny"


@pytest.mark.parametrize(
    "values",
    [{}, {"run": "../outputs/faq"}, {"run": "none"}, {"model": "/etc"}, {"run": "faq", "model": "x"}, {"run": 3}],
)
def test_nothing_else_is_one(site: Site, values: dict[str, object]) -> None:
    with pytest.raises(ToolkitError):
        chosen(site, values)


def test_a_run_that_has_saved_nothing_says_so(site: Site) -> None:
    with pytest.raises(ModelError, match="saved nothing"):
        chosen(site, {"run": "begun"})


def test_runs_in_use_come_first(site: Site) -> None:
    kept_run(site.runs / "older", started="2026-01-01T00:00:00+00:00")
    kept_run(site.runs / "newest")
    adopt(site.runs / "older")
    found = [(one.label, one.adopted) for one in choices(site) if one.by == "run"]
    assert found[0] == ("older", True)
    assert ("newest", False) in found[1:]
