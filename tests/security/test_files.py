"""Attacks through files: links, names that can be guessed, caches and programs that somebody else put there."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from ai_finetuning.config.data import DataConfig
from ai_finetuning.convert.quantize import QuantizationOptimizer
from ai_finetuning.data.store.folder import cached_store
from ai_finetuning.data.store.preparing import Preparation, sources_of
from ai_finetuning.errors import ModelError, StorageError
from ai_finetuning.execution.output_folder import OutputFolder, new_folder
from ai_finetuning.export.gguf import SCRIPT, find_converter, validate_converter
from ai_finetuning.export.source import model_folder
from ai_finetuning.kernels.build import KernelsUnavailableError
from ai_finetuning.kernels.build import library as library_of
from ai_finetuning.runs.folder import OURS
from ai_finetuning.system.files import is_private, refuse_links_outside, replacing
from ai_finetuning.system.folders import private_cache
from tests.support.commands import call, write_run
from tests.support.llama_cpp import write_checkout
from tests.support.models import build_tokenizer
from tests.support.runs import train_lora

pytestmark = pytest.mark.skipif(os.name == "nt", reason="links, owners and modes of POSIX")
needs_root = pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="only root gives files to another user")
NOBODY = 65534
SECRET = "-----BEGIN PRIVATE KEY-----\n"


@pytest.fixture(scope="module")
def adapter(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    train_lora(tiny_model_dir, folder / "out")
    return folder / "out"


@pytest.fixture(scope="module")
def stopped(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A YAML beside the folder of a run that has ended its first half, as somebody hands it on."""
    folder = tmp_path_factory.mktemp("stopped")
    config = write_run(folder, tiny_model_dir, num_epochs=1, eval_steps=100)
    assert call("train", str(config)) == 0
    run = json.loads((folder / "out" / "run.json").read_text(encoding="utf-8"))
    (folder / "out" / "run.json").write_text(json.dumps(run | {"status": "running"}), encoding="utf-8")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# --- F2: names of ours in a run's folder


NAMES = [
    *sorted(name.replace("*", "x") for name in OURS),
    ".lock",
    ".lock-owner.json",
    ".launch",
    "run.json.tmp",
    "checkpoints/checkpoint-2",
    "checkpoints/.staging-4",
    "checkpoints/.trash-checkpoint-2",
]
LINKS = [
    *((name, kind) for name in NAMES for kind in ("file", "folder", "nothing")),
    ("trackers/tensorboard/run", "folder"),  # trackers write only below folders
]


@pytest.mark.parametrize(("name", "kind"), LINKS)
def test_a_run_folder_with_a_link_is_refused_before_anything_is_written(
    stopped: Path, tmp_path: Path, name: str, kind: str
):
    """`aift train --resume` in a folder that was handed over, with one name of ours pointing elsewhere."""
    out, victims = tmp_path / "out", tmp_path / "victims"
    shutil.copytree(stopped / "out", out)
    victims.mkdir()
    (victims / "folder").mkdir()
    (victims / "folder" / "mine").write_text("mine", encoding="utf-8")
    (victims / "file").write_text("mine", encoding="utf-8")
    link = out / name
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_dir():
        shutil.rmtree(link)
    link.unlink(missing_ok=True)
    link.symlink_to(victims / kind)
    before = contents(victims), contents(out)
    assert call("train", str(stopped / "run.yaml"), f"training.output_dir={out}", "--resume") == 78
    assert (contents(victims), contents(out)) == before
    assert link.is_symlink()
    with pytest.raises(ValueError, match=r"is a link to"):
        OutputFolder(out, keep=2).validate_free()  # what a run of several processes asks before it makes .launch


def test_links_of_trackers_and_of_the_user_are_no_obstacle(stopped: Path, tmp_path: Path):
    """wandb makes links to files and to folders beside; a user's own names are the user's."""
    out = tmp_path / "out"
    shutil.copytree(stopped / "out", out)
    (out / "trackers" / "wandb" / "run-1").mkdir(parents=True)
    (out / "trackers" / "wandb" / "latest-run").symlink_to("run-1")
    (tmp_path / "log").write_text("log", encoding="utf-8")
    (out / "trackers" / "wandb" / "debug-core.log").symlink_to(tmp_path / "log")
    (out / "notes").symlink_to(tmp_path)
    assert call("train", str(stopped / "run.yaml"), f"training.output_dir={out}", "--resume") == 0


def test_a_file_is_replaced_and_no_link_is_followed(tmp_path: Path):
    victim, link = tmp_path / "victim", tmp_path / "file"
    victim.write_text("mine", encoding="utf-8")
    link.symlink_to(victim)
    with replacing(link) as file:
        names = [path.name for path in tmp_path.iterdir() if path.name.startswith(".aift-")]
        file.write(b"new")
    assert len(names) == 1
    assert len(names[0]) > len(".aift-.tmp") + 15
    assert victim.read_text(encoding="utf-8") == "mine"
    assert not link.is_symlink()
    assert link.read_bytes() == b"new"
    with pytest.raises(KeyError), replacing(link) as file:
        raise KeyError
    assert link.read_bytes() == b"new"
    assert {path.name for path in tmp_path.iterdir()} == {"victim", "file"}


def test_what_a_killed_run_left_of_a_file_goes_with_the_next(tmp_path: Path):
    (tmp_path / "run.json").write_text("{}", encoding="utf-8")
    (tmp_path / ".aift-0123456789abcdef.tmp").write_text("half", encoding="utf-8")
    with OutputFolder(tmp_path, keep=2):
        assert not list(tmp_path.glob(".aift-*"))


# --- F13: staging folders


def test_a_users_own_staging_folders_survive(adapter: Path, kotoha: str, tmp_path: Path):
    mine = [tmp_path / f".staging-{name}" for name in ("merged", "vllm", "new", "file.gguf")]
    for folder in mine:
        folder.mkdir()
        (folder / "mine").write_text("mine", encoding="utf-8")
    assert call("merge", str(adapter), "--out", str(tmp_path / "merged")) == 0
    assert call("export", "vllm", kotoha, "--out", str(tmp_path / "vllm")) == 0
    checkout = write_checkout(tmp_path / "llama.cpp")
    out = tmp_path / "file.gguf"
    assert call("export", "gguf", kotoha, "--out", str(out), "--llama-cpp", str(checkout)) == 0
    with pytest.raises(StorageError), new_folder(tmp_path / "new"):
        raise OSError("disk full")
    assert all((folder / "mine").is_file() for folder in mine)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [*(folder.name for folder in mine), "merged", "vllm", "llama.cpp", "file.gguf"]
    )
    usual = tmp_path / "usual"
    usual.mkdir()
    assert stat.S_IMODE((tmp_path / "merged").stat().st_mode) == stat.S_IMODE(usual.stat().st_mode)


# --- F8: what is copied into a folder that is then handed on


@pytest.mark.parametrize("name", ["notes.txt", "chat_template.jinja", "additional_chat_templates/rag.jinja"])
def test_links_out_of_a_model_are_refused_by_name(tiny_model_dir: Path, tmp_path: Path, logged, name: str):
    key, model = tmp_path / "id_rsa", tmp_path / "model"
    key.write_text(SECRET, encoding="utf-8")
    shutil.copytree(tiny_model_dir, model)
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to(key)
    checkout = write_checkout(tmp_path / "llama.cpp")
    for number, arguments in enumerate(
        (("vllm",), ("gguf", "--llama-cpp", str(checkout)), ("ollama", "--llama-cpp", str(checkout)))
    ):
        out = tmp_path / f"out{number}"
        assert call("export", arguments[0], str(model), "--out", str(out), *arguments[1:]) == 78
        assert f"{name} in {model} is a link to {key}" in logged()
        assert not out.exists()
    with pytest.raises(ModelError, match="is a link to"):
        QuantizationOptimizer(str(model)).quantize_to_8bit(str(tmp_path / "quantized"))
    assert not (tmp_path / "quantized").exists()


def test_a_template_that_is_a_link_is_not_trained_into_the_result(stopped: Path, tiny_model_dir: Path, tmp_path: Path):
    """A run saves the tokenizer with its templates: text of any kind would go with it."""
    (tmp_path / "id_rsa").write_text(SECRET, encoding="utf-8")
    shutil.copytree(tiny_model_dir, tmp_path / "model")
    (tmp_path / "model" / "additional_chat_templates").mkdir()
    (tmp_path / "model" / "additional_chat_templates" / "rag.jinja").symlink_to(tmp_path / "id_rsa")
    changes = (f"model.name={tmp_path / 'model'}", f"training.output_dir={tmp_path / 'out'}")
    assert call("train", str(stopped / "run.yaml"), *changes) == 78
    assert not (tmp_path / "out").exists()


def test_links_out_of_an_adapter_are_refused_by_name(adapter: Path, tmp_path: Path, logged):
    key, received = tmp_path / "id_rsa", tmp_path / "received"
    key.write_text(SECRET, encoding="utf-8")
    shutil.copytree(adapter, received)
    (received / "generation_config.json").unlink()
    (received / "generation_config.json").symlink_to(key)
    assert call("merge", str(received), "--out", str(tmp_path / "merged")) == 78
    assert "generation_config.json in" in logged()
    assert not (tmp_path / "merged").exists()


def test_links_inside_a_folder_and_to_blobs_of_the_hub_are_taken(tmp_path: Path):
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "0", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "0a").write_text("{}", encoding="utf-8")
    (snapshot / "config.json").symlink_to("../../blobs/0a")
    (snapshot / "copy.json").symlink_to("config.json")
    refuse_links_outside(snapshot)
    (tmp_path / "link").symlink_to(snapshot)
    refuse_links_outside(tmp_path / "link")
    # A folder built like a cache, whose `blobs` is a link to somebody's keys.
    blobs.rename(tmp_path / "keys")
    blobs.symlink_to(tmp_path / "keys")
    with pytest.raises(ModelError, match=r"config\.json"):
        refuse_links_outside(snapshot)


# --- F5: caches


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AIFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_cache_folders_are_made_for_this_user_alone(cached: Path, tmp_path: Path):
    for kind in ("kernels", "merged", "tokens"):
        assert private_cache(kind) == cached / kind
        assert stat.S_IMODE((cached / kind).stat().st_mode) == 0o700
    assert stat.S_IMODE(cached.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("what", "how"),
    [
        ("tokens", "0777"),
        ("", "0777"),
        pytest.param("tokens", "nobody's", marks=needs_root),
        pytest.param("", "nobody's", marks=needs_root),
    ],
)
def test_a_cache_that_others_can_write_to_is_not_used(cached: Path, logged, what: str, how: str):
    place = cached / "tokens"
    place.mkdir(parents=True, mode=0o700)
    if how == "0777":
        (cached / what).chmod(0o777)
    else:
        os.chown(cached / what, NOBODY, NOBODY)
    obtained = private_cache("tokens")
    assert not obtained.is_relative_to(cached)
    assert stat.S_IMODE(obtained.stat().st_mode) == 0o700
    assert f"the cache {place} belongs to" in logged()
    examples, _ = cached_store(rows_to_prepare(cached.parent))
    assert len(examples) == 1  # kept for this process
    assert not list(place.iterdir())


def rows_to_prepare(folder: Path) -> Preparation:
    rows = folder / "rows.jsonl"
    rows.write_text('{"instruction": "首都は？", "output": "東京です。"}\n', encoding="utf-8")
    return Preparation((str(rows),), DataConfig(max_length=64), build_tokenizer(), sources_of([str(rows)]))


def planted(path: Path, how: str) -> None:
    if how == "mode":
        path.chmod(0o666 if path.is_file() else 0o777)
    elif how == "link":
        path.rename(path.with_name("elsewhere"))
        path.symlink_to(path.with_name("elsewhere"))
    else:
        os.chown(path, NOBODY, NOBODY)


HOW = ["mode", "link", pytest.param("owner", marks=needs_root)]


@pytest.mark.parametrize("how", HOW)
def test_planted_tokens_are_not_read(cached: Path, how: str):
    asked = rows_to_prepare(cached.parent)
    cached_store(asked)
    folder = cached / "tokens" / asked.identity
    entry = folder / "tokens.json"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    planted(entry, how)
    entry.write_text("{}", encoding="utf-8")
    examples, _ = cached_store(asked)
    assert len(examples) == 1
    assert entry.read_text(encoding="utf-8") == "{}"  # left as it is, and not used


def test_a_planted_merged_model_is_merged_anew(cached: Path, adapter: Path, logged):
    folder = model_folder(str(adapter))
    assert folder.is_relative_to(cached)
    (folder / "config.json").write_text('{"model_type": "backdoor"}', encoding="utf-8")
    planted(folder / "config.json", "owner" if os.geteuid() == 0 else "mode")
    again = model_folder(str(adapter))
    assert "not used, merged anew" in logged()
    assert "backdoor" not in (again / "config.json").read_text(encoding="utf-8")
    assert model_folder(str(adapter)) == again
    assert "which was merged earlier" in logged()


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("g++") is None, reason="kernels need Linux and g++")
def test_a_planted_library_is_not_loaded(cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its constructor would write a file; found under the name of the real one, with a mode open to others."""
    marker, source, library = tmp_path / "marker", tmp_path / "evil.c", tmp_path / "evil.so"
    source.write_text(
        "#include <stdio.h>\n__attribute__((constructor)) static void run(void)"
        f'{{ FILE *f = fopen("{marker}", "w"); if (f) fclose(f); }}\n',
        encoding="utf-8",
    )
    subprocess.run(["g++", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    compiler = tmp_path / "bin" / "g++"  # a compiler of one moment in place of the real one, which takes seconds
    compiler.parent.mkdir()
    compiler.write_text(
        f'#!/bin/sh\nfor last; do :; done\necho "$last" >> {tmp_path / "compiled"}\n[ "$last" = --version ] || : > "$last"\n',
        encoding="utf-8",
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{compiler.parent}:{os.environ['PATH']}")
    build = partial(library_of.__wrapped__, torch.float32)  # each call as in a new process
    for _ in range(2):
        with contextlib.suppress(KernelsUnavailableError):  # an empty file is no library
            build()
        (found,) = (cached / "kernels").glob("cpu-*.so")
        assert found.stat().st_size == 0
        assert is_private(found)
        found.unlink()
        shutil.copyfile(library, found)
        found.chmod(0o666)
    assert (tmp_path / "compiled").read_text(encoding="utf-8").count("cpu.so") == 2
    assert not marker.exists()
    found.chmod(0o600)  # the proof of the test itself: a private entry is loaded, and this one leaves its mark
    build()
    assert marker.exists()


@needs_root
def test_a_group_with_other_members_makes_a_file_public(tmp_path: Path):
    file = tmp_path / "file"
    file.touch(mode=0o600)
    file.chmod(0o660)
    os.chown(file, 0, NOBODY)
    assert not is_private(file)
    file.chmod(0o640)
    assert is_private(file)


# --- F4: the converter


def test_a_converter_in_the_current_folder_is_not_run(kotoha: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    marker, here = tmp_path / "marker", tmp_path / "data" / "here"
    here.mkdir(parents=True)
    for place in (here / "llama.cpp", here.parent / "llama.cpp"):
        place.mkdir()
        (place / SCRIPT).write_text(f"open({str(marker)!r}, 'w')", encoding="utf-8")
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(here)
    for verb, out in (("gguf", "x.gguf"), ("ollama", "x")):
        assert call("export", verb, kotoha, "--out", out) == 66
    assert not marker.exists()


def test_a_converter_in_a_usual_place_has_to_be_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged):
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    script = write_checkout(tmp_path / "llama.cpp") / SCRIPT
    assert validate_converter(None, "") == script.resolve()
    assert f"the converter is {script.resolve()}" in logged()
    for path in (script, script.parent):
        before = stat.S_IMODE(path.stat().st_mode)
        path.chmod(0o777)
        assert find_converter() is None
        path.chmod(before)
    if os.geteuid() == 0:
        os.chown(script, NOBODY, NOBODY)
        assert find_converter() is None
    assert find_converter(str(script.parent)) == script.resolve()  # who names it answers for it


def test_a_file_that_another_process_of_the_run_is_writing_is_no_strangers(tmp_path: Path):
    """The ranks of a run look at its folder while the first of them begins to write there."""
    from ai_finetuning.runs.folder import validate_folder
    from ai_finetuning.system.files import TEMPORARY

    (tmp_path / TEMPORARY.replace("*", "0123456789abcdef")).write_text("{", encoding="utf-8")
    validate_folder(tmp_path)
