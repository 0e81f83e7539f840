"""What the command says of names that are mistyped, and its list of verbs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ai_finetuning.apps.cli.main import run


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["trian"], "train"),
        (["runs", "lst"], "list"),
        (["models", "--fit"], "--fits"),
        (["train", "--dryrun"], "--dry-run"),
        (["train", "run.yaml", "--resum"], "--resume"),
        (["train", "--hlep"], "--help"),
        (["plan", "run.yaml", "--pilto=true"], "--pilot"),
        (["resume", "outputs", "--alow-changed"], "--allow-changed"),
    ],
)
@pytest.mark.parametrize("language", ["ja", "en"])
def test_a_mistyped_name_is_told_the_right_one(
    arguments: list[str], meant: str, language: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("AIFT_LANG", language)
    assert run(arguments) == 64
    error = capsys.readouterr().err
    assert meant in error.split("(" if language == "en" else "もしかして")[-1].split("Did you mean")[-1], error


def test_a_setting_that_is_nearly_an_option_stays_one(capsys: pytest.CaptureFixture[str]):
    assert run(["train", "--report_to", "none", "--restart", "--lora_rank", "3"]) == 78
    assert "lora.r" in capsys.readouterr().err


def test_the_list_of_verbs_has_whole_sentences(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    for language in ("ja", "en"):
        monkeypatch.setenv("AIFT_LANG", language)
        assert run(["--help"]) == 0
        shown = capsys.readouterr().out
        assert shown.count("（") == shown.count("）")
        assert shown.count("(") == shown.count(")")


def test_a_number_in_full_width_is_told_how_it_is_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("AIFT_LANG", "ja")
    for arguments in (["generate", "m", "質問", "--max-new-tokens", "１０"], ["train", "--gpus=２"]):
        assert run(arguments) == 64
        assert "整数にしてください。全角の文字があります。半角で" in capsys.readouterr().err


def test_in_a_folder_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)  # and back, in the end
    (tmp_path / "gone").mkdir()
    os.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    for arguments in ([], ["runs", "list"], ["start", "faq.csv", "--yes"]):
        assert run(arguments) == 66, arguments
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert "the current folder is gone" in error


def test_init_takes_a_settings_file_by_its_option(capsys: pytest.CaptureFixture[str]):
    assert run(["init", "my run.yaml"]) == 64
    assert "--out 'my run.yaml'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "model=NAME", "data.train=rows.jsonl", "--dry-run"],
        ["train", "model=embedded:kotoha-tiny", "data.train=NAME", "--dry-run"],
        ["train", "NAME.yaml"],
        ["resume", "NAME"],
        ["plan", "NAME"],
        ["start", "NAME.csv"],
    ],
)
def test_a_name_longer_than_a_disk_takes(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"instruction": "a", "output": "b"}\n', encoding="utf-8")
    assert run([argument.replace("NAME", "x" * 300) for argument in arguments]) in (66, 74)
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert "xxx" in error
