"""What `aift` shows before anything is trained: this PC, models, versions, completion. Nothing here needs torch."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.support.commands import call, environment
from tests.support.models import save_tiny_model

from ai_finetuning.config.load import load_config
from ai_finetuning.models import catalog
from ai_finetuning.models.local import local_models
from ai_finetuning.runs.listing import list_runs

# Ends with the modules that must not be there and the processor time, of this process alone.
PROBE = """
import resource, sys
from ai_finetuning.apps.cli.main import run
try:
    code = run(sys.argv[1:])
except SystemExit as stop:
    code = stop.code
used = resource.getrusage(resource.RUSAGE_SELF)
heavy = [name for name in ("torch", "transformers", "datasets") if name in sys.modules]
print(f"\\n{code} {heavy} {used.ru_utime + used.ru_stime:.2f}")
"""


def probe(*arguments: str, folder: Path, **changes: str) -> tuple[str, int, list[str], float]:
    """(output, exit code, heavy modules, seconds of processor time) of a command in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *arguments],
        env=environment(**changes),
        cwd=folder,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
    )
    text, _, last = done.stdout.rstrip("\n").rpartition("\n")
    code, heavy, seconds = re.fullmatch(r"(\d+|None) (\[.*\]) ([\d.]+)", last).groups()
    return text + done.stderr, int(code) if code != "None" else 0, json.loads(heavy.replace("'", '"')), float(seconds)


def columns(text: str) -> int:
    """Columns of a terminal that the widest line takes."""
    return max(
        sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in line) for line in text.split("\n")
    )


def run_folder(folder: Path, status: str, **values: object) -> None:
    """The folder of a run, as far as others read it."""
    folder.mkdir(parents=True)
    same = {"model": "org/some-model", "method": "lora", "total_steps": 40}
    content = {"status": status, "fingerprint": same, "pid": 0, "host": "elsewhere"} | values
    (folder / "run.json").write_text(json.dumps(content), encoding="utf-8")
    rows = [{"step": 0, "eval_loss": 4.74}, {"step": 27, "total_steps": 40, "loss": 1.5, "tokens": 9, "seconds": 2.0}]
    text = "".join(json.dumps(row) + "\n" for row in rows) + '{"step": 28, "los'
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("language", "words"), [("ja", ("この PC", "次のステップ")), ("en", ("This PC", "Next steps"))]
)
def test_aift_alone_shows_pc_models_runs_and_the_next_step_at_once(tmp_path: Path, language: str, words: tuple[str]):
    save_tiny_model(tmp_path / "my-model")
    snapshot = tmp_path / "hub" / "models--some-org--some-model" / "snapshots" / "abc"
    shutil.copytree(tmp_path / "my-model", snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc", encoding="utf-8")
    result = {"steps": 40, "held_out_before": {"eval_loss": 4.74}, "held_out_after": {"eval_loss": 4.03}}
    run_folder(tmp_path / "outputs" / "done", "completed", started="2026-01-01T00:00:00+00:00", result=result)
    run_folder(tmp_path / "half", "running", started="2026-02-01T00:00:00+00:00")
    (tmp_path / "faq.csv").write_text("質問,回答\n", encoding="utf-8")
    text, code, heavy, seconds = probe(folder=tmp_path, AIFT_LANG=language, HF_HUB_CACHE=str(tmp_path / "hub"))
    assert (code, heavy) == (0, [])
    assert seconds < 0.5
    for word in (*words, "./my-model", "some-org/some-model", "embedded:kotoha-tiny", "aift start faq.csv", "GPU"):
        assert word in text, word
    assert re.search(r"half .*(中断|stopped).* 27/40", text)
    assert re.search(r"outputs/done .*(完了|done).* 40/40.*4\.740 → 4\.030", text)
    assert text.index("half") < text.index("outputs/done")  # the newest first
    assert "aift resume half" in text


def test_a_listing_survives_what_is_no_run(tmp_path: Path):
    assert list_runs(tmp_path / "nothing") == []
    run_folder(tmp_path / "outputs" / "a", "completed")
    (tmp_path / "b").mkdir()
    for text in ("[]", "{", '{"fingerprint": 3, "result": [], "status": 7}'):
        (tmp_path / "b" / "run.json").write_text(text, encoding="utf-8")
        found = {entry.folder.as_posix(): entry for entry in list_runs(tmp_path)}
        assert found["outputs/a"].status == "completed"
        assert "b" not in found or found["b"].status == "stopped"
    assert [entry.folder for entry in list_runs(tmp_path / "outputs" / "a")] == [Path()]


def test_a_running_run_is_told_from_one_that_was_killed(tmp_path: Path):
    import socket

    run_folder(tmp_path / "alive", "running", pid=os.getpid(), host=socket.gethostname())
    run_folder(tmp_path / "killed", "running", pid=2**22 + 1, host=socket.gethostname())
    assert {entry.folder.name: entry.status for entry in list_runs(tmp_path)} == {
        "alive": "running",
        "killed": "stopped",
    }


def test_half_downloaded_models_and_runs_are_no_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "no-cache"))
    save_tiny_model(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "half")
    (tmp_path / "half" / "model.safetensors").unlink()
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text("{}", encoding="utf-8")
    assert [model.name for model in local_models(tmp_path)] == ["./whole"]


@pytest.mark.parametrize("language", ["ja", "en"])
@pytest.mark.parametrize("width", [60, 80, 200])
def test_a19_models_fit_the_terminal_and_a_pipe_with_whole_licences(tmp_path: Path, language: str, width: int):
    text, code, heavy, seconds = probe("models", folder=tmp_path, AIFT_LANG=language, COLUMNS=str(width))
    assert (code, heavy) == (0, [])
    assert seconds < 2
    assert columns(text) <= max(width, 66)
    assert "…" not in text
    squeezed = re.sub(r"\s+", "", text)
    assert "Apache-2.0" in squeezed
    if width == 200:
        for row in catalog.rows().values():
            assert row.alias_of is not None or row.id in text, row.id


def test_a19_what_fits_comes_first_and_fits_leaves_the_rest_out(capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=16 * 2**30, available=12 * 2**30))
    monkeypatch.setattr("ai_finetuning.system.nvml.gpus", list)

    def listed(*arguments: str) -> tuple[list[str], list[str]]:
        """(ids in their order, those that are marked)."""
        assert call("models", *arguments) == 0
        words = [line.split() for line in capsys.readouterr().out.splitlines()[3:]]
        rows = [(parts[0] in "○●", parts[1] if parts[0] in "○●" else parts[0]) for parts in words]
        rows = [(fits, name) for fits, name in rows if name in catalog.rows()]  # no second line of a licence
        return [name for _, name in rows], [name for fits, name in rows if fits]

    for method in ("infer", "lora", "qlora", "full"):
        names, fitting = listed("--method", method)
        assert names[: len(fitting)] == fitting
        assert 0 < len(fitting) < len(names)
        assert all((catalog.rows()[name].memory_gib[method] <= 12) == (name in fitting) for name in names)
        assert listed("--fits", "--method", method)[0] == fitting
    assert call("models", "--method", "x") == 78


@pytest.mark.parametrize("language", ["ja", "en"])
def test_a19_an_exact_name_is_told_in_words(capsys, monkeypatch: pytest.MonkeyPatch, language: str):
    monkeypatch.setenv("AIFT_LANG", language)
    for name in ("llm-jp/llm-jp-3-1.8b-instruct3", "elyza/Llama-3-ELYZA-JP-8B", "embedded:kotoha-tiny"):
        assert call("models", name) == 0
        text = capsys.readouterr().out
        assert not re.search(r"\b(True|False|None)\b|[{\[]'|'[}\]]", text), text
        assert not re.search(r"^\s*\w+_\w+:", text, re.MULTILINE), "a key of the code instead of a label"
        assert (("ライセンス" if language == "ja" else "licence") + ": ") in text


def test_a19_no_match_exits_66_with_near_names(logged):
    assert call("models", "llm-jp-3-1.8b-instrct3") == 66
    assert "llm-jp/llm-jp-3-1.8b-instruct3" in logged()
    assert call("models", "no such model") == 66


def test_versions_are_told_without_importing_what_they_are_of(tmp_path: Path):
    for arguments in (("version",), ("--version",)):
        text, code, heavy, _ = probe(*arguments, folder=tmp_path)
        assert (code, heavy) == (0, [])
        assert re.search(r"^ai-finetuning-toolkit \d+\.\d+", text, re.MULTILINE)
        assert re.search(r"^torch \d+\.\d+", text, re.MULTILINE)


# Verbs whose options are explained with them (tests/integration/test_cli.py).
TALKING = ("chat", "generate", "serve", "answer")


def verbs() -> list[list[str]]:
    """Every verb, those of groups too."""
    import typer

    from ai_finetuning.apps.cli.main import app_of

    def below(command: object, name: list[str]) -> list[list[str]]:
        inner = getattr(command, "commands", {})
        return [name] + [found for key, part in inner.items() for found in below(part, [*name, key])]

    return below(typer.main.get_command(app_of()), [])


@pytest.mark.parametrize("language", ["ja", "en"])
def test_every_verb_has_h_and_no_help_is_cut_or_left_out(capsys, monkeypatch, language: str):
    monkeypatch.setenv("AIFT_LANG", language)
    monkeypatch.setenv("COLUMNS", "80")
    for verb in verbs():
        assert call(*verb, "-h") == 0
        text = capsys.readouterr().out
        assert call(*verb, "--help") == 0
        assert capsys.readouterr().out == text, verb
        usage, _, below = text.partition("\n")
        assert not re.search(r"\S\.\.\.\s*$", below, re.MULTILINE), verb
        if verb[:1] and verb[0] in TALKING:
            continue
        head = text.split("Settings (keys")[0].split("設定（YAML")[0]
        lines = head.splitlines()
        for line, after in zip(lines, [*lines[1:], ""], strict=True):
            if re.match(r"  (-\w, )?--\S+( <[^>]+>)?$", line):
                assert after.startswith("     "), (verb, line)


def test_the_usage_of_train_and_plan_names_what_they_take(capsys):
    for verb in ("train", "plan"):
        assert call(verb, "-h") == 0
        text = capsys.readouterr().out
        assert "[run.yaml] [key=value ...]" in text.splitlines()[0]
        words = re.sub(r"\s+", " ", text)
        for values in ("full, lora, qlora, pretrain", "truncate, drop, error, split", "linear, cosine, constant, wsd"):
            assert values in words, values
        assert "fsdp" in words


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_verbs_and_options_without_torch(tmp_path: Path, shell: str):
    script, code, heavy, _ = probe(
        "--show-completion", shell, folder=tmp_path, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1"
    )
    assert (code, heavy) == (0, [])
    assert "_AIFT_COMPLETE" in script
    for typed, expected in (("aift sta", "start"), ("aift train --pi", "--pilot")):
        asked = {
            "_AIFT_COMPLETE": f"complete_{shell}",
            "COMP_WORDS": typed,
            "COMP_CWORD": str(len(typed.split()) - 1),
            "_TYPER_COMPLETE_ARGS": typed,
            "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        }
        text, _, heavy, seconds = probe(folder=tmp_path, **asked)
        assert expected in text
        assert heavy == []
        assert seconds < 0.5


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_install_completion_makes_bash_complete(tmp_path: Path):
    command = tmp_path / "bin" / "aift"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ai_finetuning "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    changed = environment(HOME=str(tmp_path), PATH=f"{command.parent}:{os.environ['PATH']}")
    done = subprocess.run(
        ["bash", "-c", "aift --install-completion bash"],
        env=changed | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    asks = 'source ~/.bashrc; COMP_WORDS=(aift ver); COMP_CWORD=1; _aift_completion aift; echo "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-c", asks], env=changed, capture_output=True, text=True, check=True)
    assert "version" in done.stdout


@pytest.mark.parametrize("language", ["ja", "en"])
def test_init_writes_a_file_that_loads_with_the_settings_own_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, language: str
):
    from ai_finetuning.config.describe import settings

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AIFT_LANG", language)
    (tmp_path / "faq.csv").write_text("質問,回答\nあ,い\n", encoding="utf-8")
    assert call("init", "faq.csv") == 0
    text = (tmp_path / "run.yaml").read_text(encoding="utf-8")
    rate = next(item for item in settings() if item.key == "training.learning_rate")
    assert (rate.ja if language == "ja" else rate.en) in text
    config = load_config("run.yaml")
    assert (config.data.train, config.method, config.training.num_epochs) == ("faq.csv", "lora", 3)
    before = text
    assert call("init", "faq.csv") == 78  # nothing is overwritten
    assert (tmp_path / "run.yaml").read_text(encoding="utf-8") == before
    assert call("init", "--force") == 0
    assert call("init", "nope.csv", "--out", "other.yaml") == 66
    assert not (tmp_path / "other.yaml").exists()
    # What is commented can be switched on: every setting of the file by its default.
    live = re.sub(r"^( *)# ([a-z_]+:(?: .*)?)$", r"\1\2", before, flags=re.MULTILINE)
    (tmp_path / "all.yaml").write_text(re.sub(r"^( *)# .*$", "", live, flags=re.MULTILINE), encoding="utf-8")
    assert load_config("all.yaml").training.num_epochs == 3


def test_why_the_hub_is_not_reached_is_told_in_words(monkeypatch: pytest.MonkeyPatch):
    import socket

    from ai_finetuning.system.network import head

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        reason = head(f"http://127.0.0.1:{taken.getsockname()[1]}").reason
    assert (reason.ja, reason.en) == ("接続を拒否されました", "connection refused")


@pytest.mark.parametrize("language", ["ja", "en"])
def test_env_is_told_in_the_users_language(language: str, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setenv("AIFT_LANG", language)
    assert call("env") == 0
    text = capsys.readouterr().out
    assert not re.search(r"\b(True|False|None)\b|[{\[]'|\w+_\w+:", text), text
    assert ("メモリー: " if language == "ja" else "memory: ") in text
