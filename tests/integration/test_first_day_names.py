"""What a newcomer types as a name on the first day: any folder that the product wrote, for every verb."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.support.commands import call
from tests.support.runs import train_full, train_lora

from ai_finetuning.errors import CheckpointError, ModelError
from ai_finetuning.inference.session import open_model
from ai_finetuning.inference.usable import usable


@pytest.fixture(scope="module")
def run(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA run of six steps with checkpoints after 3 and 6; read-only."""
    folder = tmp_path_factory.mktemp("outputs") / "faq"
    train_lora(tiny_model_dir, folder, num_epochs=1)
    return folder


@pytest.fixture(scope="module")
def full_run(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in full; read-only."""
    folder = tmp_path_factory.mktemp("outputs") / "whole"
    train_full(tiny_model_dir, folder, num_epochs=1)
    return folder


def interrupted(run: Path, place: Path) -> Path:
    """What a run leaves that was stopped before its end."""
    place.mkdir()
    shutil.copytree(run / "checkpoints", place / "checkpoints")
    for name in ("config.yaml", "run.json", "environment.json"):
        shutil.copyfile(run / name, place / name)
    return place


def logits(name: str) -> torch.Tensor:
    opened = open_model(name, dtype="float32")
    ids = torch.tensor([opened.tokenizer.encode("日本の首都は")])
    with torch.no_grad():
        return opened.model(input_ids=ids).logits


@pytest.mark.parametrize("kind", ["run", "full_run"])
def test_a13_the_last_checkpoint_answers_as_the_saved_model_and_an_earlier_one_does_not(
    kind: str, request: pytest.FixtureRequest
):
    folder: Path = request.getfixturevalue(kind)
    saved = logits(str(folder))
    assert torch.equal(logits(str(folder / "checkpoints" / "checkpoint-6")), saved)
    assert not torch.allclose(logits(str(folder / "checkpoints" / "checkpoint-3")), saved)


@pytest.mark.parametrize("kind", ["run", "full_run"])
def test_a13_an_interrupted_run_answers_from_its_newest_checkpoint_and_says_so(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, logged
):
    folder: Path = request.getfixturevalue(kind)
    place = interrupted(folder, tmp_path / "stopped run")
    assert torch.equal(logits(str(place)), logits(str(folder)))
    text = logged()
    assert "step 6" in text
    assert f"aift resume '{place}'" in text


def test_a13_a_damaged_checkpoint_is_refused_and_an_interrupted_run_uses_the_one_before(
    run: Path, tmp_path: Path, logged
):
    place = interrupted(run, tmp_path / "stopped")
    weights = next((place / "checkpoints" / "checkpoint-6").glob("model-*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match="SHA-256"):
        usable(str(place / "checkpoints" / "checkpoint-6"))
    assert torch.equal(logits(str(place)), logits(str(run / "checkpoints" / "checkpoint-3")))
    assert "step 3" in logged()


def test_a13_a_checkpoint_of_an_earlier_version_takes_the_rest_from_its_ended_run(run: Path, tmp_path: Path):
    old = tmp_path / "old"
    shutil.copytree(run, old)
    shutil.rmtree(old / "checkpoints" / "without-weights")
    (old / "base.json").unlink()
    assert torch.equal(logits(str(old / "checkpoints" / "checkpoint-6")), logits(str(run)))
    stopped = interrupted(run, tmp_path / "stopped")
    shutil.rmtree(stopped / "checkpoints" / "without-weights")
    with pytest.raises(ModelError, match="aift resume"):
        usable(str(stopped))


def test_a13_the_adapter_of_a_checkpoint_has_the_bytes_that_training_saves(run: Path):
    made = load_file(Path(usable(str(run / "checkpoints" / "checkpoint-6")).path) / "adapter_model.safetensors")
    saved = load_file(run / "adapter_model.safetensors")
    assert made.keys() == saved.keys()
    assert all(torch.equal(made[name], saved[name]) for name in saved)


def test_a04_an_adapter_trained_on_a_relative_path_answers_from_elsewhere(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    here = tmp_path / "here"
    shutil.copytree(tiny_model_dir, here / "my-model")
    monkeypatch.chdir(here)
    train_lora(Path("my-model"), Path("outputs/faq"), num_epochs=1)
    settings = json.loads((here / "outputs/faq/adapter_config.json").read_text(encoding="utf-8"))
    assert settings["base_model_name_or_path"] == str(here / "my-model")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    ask = ["質問", "--greedy", "--max-new-tokens", "3"]
    assert call("generate", str(here / "outputs/faq"), *ask) == 0
    answer = capsys.readouterr().out
    here.rename(tmp_path / "moved")  # the whole folder, on another machine or disk
    for name in ("outputs/faq", "outputs/faq/checkpoints/checkpoint-6"):
        assert call("generate", str(tmp_path / "moved" / name), *ask) == 0
        assert capsys.readouterr().out == answer
    (tmp_path / "moved" / "my-model").rename(tmp_path / "base")
    assert call("generate", str(tmp_path / "moved/outputs/faq"), *ask) == 66
    assert "--base" in capsys.readouterr().err
    assert call("generate", str(tmp_path / "moved/outputs/faq"), *ask, "--base", str(tmp_path / "base")) == 0
    assert capsys.readouterr().out == answer
