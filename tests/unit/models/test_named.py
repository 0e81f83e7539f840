"""What a name of a model, a run or an adapter means, told from names of files alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ai_finetuning.errors import HubError, InputNotFoundError, ModelError
from ai_finetuning.models import hub
from ai_finetuning.models.named import checkpoints, find_named, models_here


def checkpoint(run: Path, step: int) -> Path:
    place = run / "checkpoints" / f"checkpoint-{step}"
    place.mkdir(parents=True)
    (place / "manifest.json").write_text("{}", encoding="utf-8")
    return place


def folder(place: Path, *files: str) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    for file in files:
        (place / file).write_text("{}", encoding="utf-8")
    return place


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


KINDS = {
    "a model": (("config.json",), "model"),
    "an adapter": (("adapter_config.json", "config.yaml", "run.json"), "adapter"),
    "a full run": (("config.json", "config.yaml", "run.json"), "model"),
    "a run that saved nothing": (("config.yaml", "run.json"), "run"),
    "a tokenizer": (("tokenizer.json",), "tokenizer"),
    "a GGUF": (("model-q8_0.gguf",), "export"),
    "an Ollama export": (("Modelfile",), "export"),
    "anything else": (("notes.txt",), "other"),
}


@pytest.mark.parametrize(("files", "kind"), KINDS.values(), ids=KINDS)
def test_every_folder_is_told_by_its_files(here: Path, files: tuple[str, ...], kind: str):
    place = folder(here / "a b", *files)
    assert find_named("a b").kind == find_named(str(place)).kind == find_named("a b/").kind == kind
    assert find_named("a b").folder is not None


def test_a13_a_checkpoint_and_an_interrupted_run_are_told(here: Path):
    run = folder(here / "run", "run.json", "config.yaml")
    checkpoint(run, 9)
    newest = checkpoint(run, 10)
    (run / "checkpoints" / "checkpoint-11").mkdir()  # half-written by another program
    named = find_named("run/checkpoints/checkpoint-9")
    assert (named.kind, named.step, named.interrupted) == ("checkpoint", 9, False)
    assert named.run is not None
    assert named.run.samefile(run)
    for name in ("run", "run/checkpoints"):
        named = find_named(name)
        assert (named.kind, named.step, named.interrupted) == ("checkpoint", 10, True), name
        assert named.folder is not None
        assert named.folder.samefile(newest)
    assert [step for step, _ in checkpoints(run)] == [10, 9]


@pytest.mark.parametrize("file", ["adapter_config.json", "config.json"])
def test_the_checkpoints_of_a_finished_run_stand_for_its_model(here: Path, file: str):
    """`outputs/faq/checkpoints` as completion of the shell leaves it: the run has a model, whatever lies in there."""
    run = here / "outputs" / "faq"
    (run / "checkpoints" / "checkpoint-2").mkdir(parents=True)
    (run / "checkpoints" / "best").mkdir()
    (run / "run.json").write_text("{}", encoding="utf-8")
    (run / file).write_text("{}", encoding="utf-8")
    for typed in ("outputs/faq/checkpoints", "outputs/faq/checkpoints/"):
        found = find_named(typed)
        assert (found.kind, found.name) == (find_named("outputs/faq").kind, typed)
        assert found.folder is not None
        assert found.folder.samefile(run)
        assert not found.interrupted


def test_sentences_about_a_name_end_and_its_folders_are_ready_to_paste(here: Path):
    """No sentence runs into the next one, no blank stands in between, and what is shown may be copied to a shell."""
    (here / "社内 FAQ").mkdir()
    (here / "社内 FAQ" / "config.json").write_text("{}", encoding="utf-8")
    for typed, shown in {"社内 FAX": "もしかして: '社内 FAQ'。", "./zzz": "現在のフォルダーにあるモデル: "}.items():
        with pytest.raises(InputNotFoundError) as refusal:
            find_named(typed)
        assert shown in refusal.value.ja
        assert "。フォルダーのパスか" in refusal.value.ja
        assert "。 " not in refusal.value.ja


def test_a15_a_slip_beside_a_folder_is_answered_with_it_and_not_with_the_hub(here: Path):
    folder(here / "outputs", "run.json")
    folder(here / "my-model", "config.json")
    for name, meant in (("output", "outputs"), ("my-modell", "my-model"), ("outputs/fq", "outputs/faq")):
        folder(here / "outputs" / "faq", "adapter_config.json")
        with pytest.raises(InputNotFoundError, match=f"Did you mean: {meant}") as refusal:
            find_named(name)
        assert refusal.value.exit_code == 66


def test_a15_without_a_near_name_what_is_here_is_listed(here: Path):
    folder(here / "faq-bot", "config.json")
    folder(here / "outputs" / "第1回", "adapter_config.json")
    folder(here / "notes")
    with pytest.raises(InputNotFoundError) as refusal:
        find_named("モデル")
    assert "faq-bot" in refusal.value.ja
    assert "現在のフォルダーにあるモデル" in refusal.value.ja
    assert "第1回" in refusal.value.en
    assert "notes" not in refusal.value.en
    assert models_here(here) == [str(here / "faq-bot"), str(here / "outputs" / "第1回")]


def test_a15_a_hub_that_does_not_answer_names_the_catalog_and_never_the_name_typed(
    here: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    known = "llm-jp/llm-jp-3-1.8b-instruct3"
    with pytest.raises(ConnectionError, match=known):
        hub.locate("llm-jp/llm-jp-3-1.8b-instruct33")
    with pytest.raises(ConnectionError) as refusal:
        hub.locate(known)
    assert "Did you mean" not in str(refusal.value)


ODD = ("", " ", "a\0b", "~nobody/x", "x" * 5000, "モデル\n2", "-o", "C:\\model", "a b", "{x}", "%s", "#1", "a,b")


@pytest.mark.parametrize("name", ODD, ids=range(len(ODD)))
def test_odd_names_that_are_not_there_are_refused_by_a_word_of_ours(here: Path, name: str):
    with pytest.raises((InputNotFoundError, ConnectionError)):
        hub.locate(name)


@pytest.mark.parametrize(
    "name", [" モデル 2", "[旧] faq", "a,b", "{x}", "50%", "#1", "a@b", "役割： 店員", "-o", "a=b"]
)
def test_folders_of_any_name_are_found_as_they_are_written(here: Path, name: str):
    folder(here / name, "config.json")
    assert find_named(name).kind == "model"
    assert hub.locate(name).path == name


def test_a_file_is_answered_with_its_folder(here: Path):
    run = folder(here / "run", "adapter_config.json", "run.json", "config.yaml", "adapter_model.safetensors")
    for file in ("config.yaml", "adapter_model.safetensors", "adapter_config.json"):
        with pytest.raises(ModelError, match="Name its folder: run"):
            find_named(f"run/{file}")
    (run / "x.gguf").touch()
    with pytest.raises(ModelError, match="GGUF"):
        find_named("run/x.gguf")
    (here / "faq.yaml").touch()
    with pytest.raises(ModelError, match=r"aift train faq\.yaml"):
        find_named("faq.yaml")


REFUSED = {
    ("run.json",): "nothing yet",
    ("tokenizer.json",): "tokenizer only",
    ("Modelfile",): "GGUF",
    ("notes.txt",): r"no config\.json",
}


@pytest.mark.parametrize(("files", "words"), REFUSED.items(), ids=[files[0] for files in REFUSED])
def test_a_folder_that_cannot_be_loaded_says_why(here: Path, files: tuple[str, ...], words: str):
    folder(here / "x", *files)
    with pytest.raises(ModelError, match=words):
        hub.validate_name("x")


def test_a_folder_of_runs_names_them(here: Path):
    folder(here / "outputs" / "faq", "adapter_config.json")
    with pytest.raises(ModelError, match=r"In it: outputs/faq"):
        hub.validate_name("outputs")


def test_names_are_refused_before_torch_is_imported(here: Path):
    folder(here / "outputs")
    program = (
        "import sys\n"
        "from ai_finetuning.models.hub import validate_name\n"
        "try:\n    validate_name('output')\n"
        "except FileNotFoundError as error:\n    print(error)\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "outputs" in done.stdout


@pytest.mark.parametrize("recorded", ["../my-model", "my-model", "models/my-model", "/gone/my-model"])
def test_a04_a_base_that_moved_with_its_adapter_is_found(
    here: Path, recorded: str, logged, monkeypatch: pytest.MonkeyPatch
):
    """As earlier versions noted it: relative to the folder that training was started in."""
    place = folder(here / "outputs" / "faq", "run.json", "adapter_model.safetensors")
    base = folder(here / recorded.lstrip("./").removeprefix("gone/"), "config.json")
    (place / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": recorded}), encoding="utf-8")
    told = base if recorded.startswith("/") else Path(f"/gone/{recorded}")
    (place / "config.yaml").write_text(f"model: {{name: {told}}}\n", encoding="utf-8")
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    if recorded.startswith("../"):
        base.rename(here / "outputs" / "my-model")
    assert Path(hub.named_base(place)).name == "my-model"
    assert "--base" in logged()


def test_a04_a_base_that_is_nowhere_names_the_option_and_where_the_name_came_from(here: Path):
    place = folder(here / "faq", "adapter_model.safetensors")
    (place / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "/gone/my-model"}), encoding="utf-8"
    )
    with pytest.raises(InputNotFoundError) as refusal:
        hub.validate_name("faq")
    assert "--base" in refusal.value.en
    assert "adapter_config.json" in refusal.value.en
    folder(here / "my-model", "config.json")
    with pytest.raises(InputNotFoundError, match="--base my-model"):
        hub.validate_name("faq")
    assert hub.validate_name("faq", "my-model").kind == "adapter"


def test_an_id_whose_beginning_is_a_folder_here_is_told_what_is_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "outputs" / "faq").mkdir(parents=True)
    (tmp_path / "outputs" / "faq" / "adapter_config.json").write_text("{}", encoding="utf-8")
    for name, told in (("outputs/of-last-year", True), ("somebody/of-last-year", False)):
        with pytest.raises(HubError) as refusal:
            hub.locate(name)
        assert ("outputs/faq" in refusal.value.ja) == told
        assert ("outputs/faq" in refusal.value.en) == told
