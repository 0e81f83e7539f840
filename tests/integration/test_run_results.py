"""`aift runs best` and `aift runs adopt` on real runs: what answers afterwards, what goes on, what comes back."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tests.support.commands import call, write_run
from tests.support.kept_runs import contents
from tests.support.runs import losses, weights_digest

from ai_finetuning.evaluation import run_verdict, tasks
from ai_finetuning.inference.session import open_model
from ai_finetuning.runs.folder import read_run
from ai_finetuning.runs.weights import INDEX, weight_names

RUIN = {"learning_rate": 0.03, "schedule": {"name": "constant"}, "eval_steps": 2, "num_epochs": 2}


@pytest.fixture(scope="module")
def ruined(kotoha: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA run whose best weights are neither the first nor the last ones, with a verdict of the last."""
    folder, whole = tmp_path_factory.mktemp("ruined"), tasks.prose()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_verdict, "prose", lambda: replace(whole, items=whole.items[:2]))
        assert call("train", str(write_run(folder, kotoha, **RUIN, evaluation={"verdict": True}))) == 0
    best = read_run(folder / "out")["best"]
    assert 0 < best["step"] < 12, "the rate has to help at first, and to ruin the model then"
    return folder / "out"


@pytest.fixture
def run(ruined: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(ruined, tmp_path / "outputs" / "faq"))


def answer(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert call("generate", str(folder), "1の次の数は何ですか？", "--greedy", "--max-new-tokens", "12") == 0
    return capsys.readouterr().out


def test_the_best_weights_answer_and_the_last_ones_come_back(
    run: Path, capsys: pytest.CaptureFixture[str], logged: Callable[[], str]
):
    before, best, step = contents(run), run / "checkpoints" / "best", read_run(run)["best"]["step"]
    said = {folder: answer(folder, capsys) for folder in (run, best)}
    assert said[run] != said[best]
    assert call("runs", "show", str(run)) == 0
    assert f"aift runs best {run}" in capsys.readouterr().out
    assert call("runs", "best", str(run)) == 0
    assert weights_digest(run) == weights_digest(best)
    assert answer(run, capsys) == said[best]
    last = run / "checkpoints" / "last"
    assert answer(last, capsys) == said[run]
    assert open_model(str(last), device=torch.device("cpu")).has_adapter
    assert call("runs", "show", str(run), "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["result_step"], told["step"]) == (step, 12)
    assert told["loss_after"] == read_run(run)["best"]["eval_loss"]
    assert told["returned"]["verdict"]["step"] == 12
    assert call("runs", "show", str(run)) == 0
    assert "this verdict is that of the last weights" in capsys.readouterr().out
    card = (run / "README.md").read_text(encoding="utf-8")
    assert f"最良のステップ {step}" in card.partition("## 結果")[0]
    assert f"{step}" in (run / "report.html").read_text(encoding="utf-8").partition('<p class="note">')[2]
    assert call("runs", "best", str(run)) == 78
    # What else takes a run takes the best weights.
    assert call("merge", str(run), "--out", str(run.parent / "merged")) == 0
    assert call("eval", str(run), "--tasks", "prose", "--limit", "2", "--out", str(run.parent / "eval")) == 0
    assert call("resume", str(run)) == 0  # nothing is left to do, so that it returns the result
    assert weights_digest(run) == weights_digest(best)
    assert call("runs", "best", str(run), "--undo") == 0
    assert contents(run) == before
    assert call("runs", "best", str(run), "--undo") == 78
    assert answer(run, capsys) == said[run]


@pytest.mark.parametrize("checkpoints", [True, False])
def test_a_longer_training_goes_on_from_the_last_weights_as_before(
    run: Path, tmp_path: Path, checkpoints: bool, logged: Callable[[], str]
):
    """Whatever the result is: with checkpoints the same bits; without them the saved weights of the last step."""
    if not checkpoints:
        for folder in run.glob("checkpoints/checkpoint-*"):
            shutil.rmtree(folder)
    other = Path(shutil.copytree(run, tmp_path / "outputs" / "other"))
    assert call("runs", "best", str(run)) == 0
    for folder in (run, other):
        assert call("resume", str(folder), "num_epochs=3", "evaluation.verdict=false") == 0
    assert weights_digest(run) == weights_digest(other)
    assert losses(run) == losses(other)
    assert "returned" not in read_run(run)
    assert not (run / "checkpoints" / "last").exists()
    assert read_run(run)["result"]["saved_step"] == 18


@pytest.mark.slow
def test_a_whole_model_in_shards(kotoha: str, tmp_path: Path, logged: Callable[[], str]):
    from transformers import AutoModelForCausalLM

    settings = write_run(tmp_path, kotoha, **RUIN | {"learning_rate": 0.02})
    config = yaml.safe_load(settings.read_text(encoding="utf-8")) | {"method": "full"}
    del config["lora"]
    settings.write_text(yaml.safe_dump(config), encoding="utf-8")
    assert call("train", str(settings)) == 0
    run = tmp_path / "out"
    best = run / "checkpoints" / "best"
    assert 0 < read_run(run)["best"]["step"] < 12
    for folder in (run, best):
        model = AutoModelForCausalLM.from_pretrained(folder)
        (folder / "model.safetensors").unlink()
        model.save_pretrained(folder, max_shard_size="2MB")
        assert weight_names(folder)[-1] == INDEX
    note = json.loads((best / "best.json").read_text(encoding="utf-8"))
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in best.glob("*.safetensors")}
    (best / "best.json").write_text(json.dumps(note | {"sha256": digests}), encoding="utf-8")
    before = contents(run)

    def weights(folder: Path) -> dict[str, Any]:
        return dict(AutoModelForCausalLM.from_pretrained(folder).state_dict())

    kept, last = weights(best), weights(run)
    assert call("runs", "best", str(run)) == 0
    assert all(torch.equal(tensor, kept[name]) for name, tensor in weights(run).items())
    assert all(torch.equal(tensor, last[name]) for name, tensor in weights(run / "checkpoints" / "last").items())
    assert call("runs", "best", str(run), "--undo") == 0
    assert contents(run) == before
    # A longer training leaves no shards of another result.
    assert call("runs", "best", str(run)) == 0
    assert call("resume", str(run), "num_epochs=3") == 0
    assert weight_names(run) == ["model.safetensors"]
    assert [path.name for path in run.glob("*.safetensors*")] == ["model.safetensors"]
    assert not (run / "checkpoints" / "last").exists()


def test_a_run_in_use(run: Path, capsys: pytest.CaptureFixture[str], logged: Callable[[], str]):
    place = ("--in", str(run.parent))
    shutil.copytree(run, run.with_name("second"))
    assert call("runs", "adopt", "faq", *place) == 0
    text = logged()
    assert "is in use" in text
    assert "verdict is" in text  # that of a ruined model
    assert call("runs", "adopt", "second", *place) == 0
    assert f"also in use: {run}" in logged()
    assert call("runs", "adopt", "second", "--undo", *place) == 0
    capsys.readouterr()
    assert call("runs", "list", "--json", *place) == 0
    listed = {item["id"]: item["adopted"] for item in json.loads(capsys.readouterr().out)}
    assert listed["second"] is None
    assert listed["faq"] > 0
    assert call("runs", "list", *place) == 0
    assert "in use" in capsys.readouterr().out
    assert call("runs", "trash", "faq", *place) == 78
    assert "aift runs adopt" in logged()
    assert call("runs", "best", "faq", *place) == 0
    assert "To adopt the result as it is now" in logged()
    assert call("runs", "show", "faq", *place) == 0
    assert "the weights of step 12 were in use" in capsys.readouterr().out
    assert call("runs", "adopt", "faq", "--undo", *place) == 0
    assert call("runs", "adopt", "faq", "--undo", *place) == 78
    assert call("runs", "trash", "faq", *place) == 0
    assert call("runs", "best", "nothing", *place) == 66
    assert call("runs", "adopt", "nothing", *place) == 66
