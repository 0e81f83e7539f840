"""Attacks through what the verbs of a first day read and write: folders, runs, tables and bundles of somebody else."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import zipfile
from pathlib import Path
from typing import Any

import openpyxl
import pytest
import torch
import yaml

from ai_finetuning.apps.cli import chat
from ai_finetuning.apps.cli.asking import Questions as Asked
from ai_finetuning.apps.cli.main import run
from ai_finetuning.apps.cli.start import _ask_file, _column_line, _free_folder, _show_rows
from ai_finetuning.engine.checkpoint.store import CheckpointStore
from ai_finetuning.errors import CheckpointError, ConfigError, DataError, ModelError
from ai_finetuning.execution.resume import ResumePoint
from ai_finetuning.inference import usable as usable_module
from ai_finetuning.inference.answer_files import validate_target, write_answers
from ai_finetuning.inference.answering import Outcome, Record
from ai_finetuning.inference.question_files import read_questions
from ai_finetuning.inference.usable import usable, write_checkpoint
from ai_finetuning.messages import argument, on_one_line
from ai_finetuning.runs.listing import list_runs
from ai_finetuning.runs.recorded import interrupted_runs
from tests.support.commands import call, write_run
from tests.support.patience import patience
from tests.support.runs import train_lora

posix = pytest.mark.skipif(os.name == "nt", reason="links, pipes and shells of POSIX")
CONTROLS = "\x1b]0;t\x07\x9b31m\u202eabc\u2066\u2028x"
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
FORGED = "x\n  aift resume EVIL"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a stranger in which the user stands."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return folder


def plant(folder: Path, values: Any, metrics: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    content = values if isinstance(values, str) else json.dumps(values)
    (folder / "run.json").write_text(content, encoding="utf-8")
    (folder / "config.yaml").write_text("model: {name: m}\n", encoding="utf-8")
    (folder / "metrics.jsonl").write_text(metrics, encoding="utf-8")


def alone(capsys: pytest.CaptureFixture[str]) -> tuple[str, float]:
    """What `aift` alone prints, and its CPU seconds."""
    before = time.process_time()
    assert run([]) == 0
    seconds = time.process_time() - before
    said = "".join(capsys.readouterr())
    assert not RAW.search(said)
    assert "EVIL" not in [word for line in said.splitlines() if line.startswith("  aift") for word in line.split()]
    return said, seconds


HOSTILE_RUNS: dict[str, tuple[Any, str]] = {
    "names": ({"fingerprint": {"model": FORGED + CONTROLS, "method": CONTROLS + FORGED}}, ""),
    "numbers": (
        {"status": "running", "pid": 10**30, "host": "HOST", "total_steps": 10**400, "started": "0001-01-01T00:00:00+23:59",
         "result": {"steps": -(10**300), "held_out_before": {"eval_loss": 10**400}, "held_out_after": {"eval_loss": 10**400}}},
        json.dumps({"loss": 1, "step": 10**400, "eval_loss": 10**400}) + "\n",
    ),
    "types": ({"status": [], "pid": {}, "fingerprint": [1], "result": "x", "started": [], "total_steps": "a"}, "1\n[]\n"),
    "depth": ({"status": "running"}, "[" * 60_000 + "\n"),
    "a list": ([["status", "running"]], ""),
    "no JSON": ("{" * 5000, ""),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE_RUNS)
def test_aift_alone_lists_hostile_runs(here: Path, kind: str, capsys, monkeypatch: pytest.MonkeyPatch):
    values, metrics = HOSTILE_RUNS[kind]
    if isinstance(values, dict):
        values = {name: socket.gethostname() if value == "HOST" else value for name, value in values.items()}
    plant(here / "outputs" / "a", values, metrics)
    said, _ = alone(capsys)
    assert len(said.splitlines()) < 30
    assert all(len(line) < 400 for line in said.splitlines())


@posix
def test_aift_alone_shows_hostile_names_of_folders(here: Path, capsys):
    plant(here / f"a{CONTROLS}", {"status": "stopped"})
    plant(here / "outputs" / FORGED.replace("/", ""), {"status": "stopped", "started": "2030-01-01"})
    (here / f"{CONTROLS}{FORGED}.xlsx").touch()
    said, _ = alone(capsys)
    assert r"\x1b" in said
    assert "aift resume $'outputs/x\\n  aift resume EVIL'" in said


@posix
def test_aift_alone_takes_no_longer_in_the_folder_of_a_stranger(here: Path, capsys):
    """Ten thousand folders, a run.json without end, a pipe in the place of each file, and metrics that are all brackets."""
    alone(capsys)  # imports
    _, usual = alone(capsys)
    for number in range(10_000):
        (here / f"f{number:05}").mkdir()
    for number in range(300):
        plant(here / "outputs" / f"f{number:05}", {"status": "running"}, "[" * 60_000 + "\n")
    runs = here / "outputs"
    with (runs / "f00000" / "run.json").open("wb") as file:
        file.truncate(300_000_000)
    for name in ("run.json", "config.json"):
        (runs / "f00001" / name).unlink(missing_ok=True)
        os.mkfifo(runs / "f00001" / name)
    (runs / "f00002" / "metrics.jsonl").unlink()
    os.mkfifo(runs / "f00002" / "metrics.jsonl")
    os.utime(runs / "f00002" / "run.json", (2e9, 2e9))
    _, seconds = alone(capsys)
    assert seconds - usual < 0.5
    assert len(list_runs(here)) == 298


@posix
def test_a_search_for_runs_follows_no_lock(here: Path, tmp_path: Path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    plant(here / "a", {"status": "running", "total_steps": 10**400})
    (here / "a" / ".lock").symlink_to(victim)
    assert run(["resume"]) == 64
    assert interrupted_runs(here) == []
    assert victim.read_text() == "mine"


@posix
@pytest.mark.parametrize("name", [FORGED, f"a{CONTROLS}'b\\", "a\tb", "-x\ny", "plain", "a b", "日本語"])
def test_a_name_in_a_command_is_one_word_on_one_line(name: str):
    shown = argument(name)
    assert on_one_line(shown) == shown
    got = subprocess.run(
        ["bash", "-c", f"printf %s {shown}"],
        capture_output=True,
        check=True,
        env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
    ).stdout.decode()
    assert got == (f"./{name}" if name.startswith("-") else name)


# --- start and init


def test_start_shows_hostile_sheets_and_columns_as_text(capsys):
    name = CONTROLS + FORGED
    Asked(True).choose("column", [_column_line(name, [{name: name}]), "b"])
    _show_rows([{name: name, "messages": [name]}], {name: name, "messages": "messages"})
    said = capsys.readouterr().out
    assert said
    assert not RAW.search(said)
    assert not any(line.startswith("  aift") for line in said.splitlines())


def test_start_asks_in_one_line_an_option(capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("builtins.input", lambda prompt: "1")
    assert Asked(False).choose("sheet", ["a\n  2) EVIL", "b"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


@posix
@pytest.mark.parametrize("there", [True, False])
def test_a_run_file_that_is_a_link_is_not_written_through(here: Path, tmp_path: Path, there: bool):
    victim = tmp_path / ".bash_profile"
    if there:
        victim.write_text("mine")
    (here / "run.yaml").symlink_to(victim)
    (here / "run-2.yaml").symlink_to(victim)
    assert run(["init"]) == 78
    assert _ask_file(Path("run.yaml"), Asked(True)) == Path("run-3.yaml")
    assert run(["init", "--force"]) == 0
    assert not (here / "run.yaml").is_symlink()
    assert victim.exists() == there
    assert not there or victim.read_text() == "mine"
    (here / "outputs").mkdir()
    (here / "outputs" / "faq").symlink_to(tmp_path / "elsewhere")
    assert _free_folder("faq") == "outputs/faq-2"


# --- answer

HEAD = {"format": 1, "made_by": {"variants": [True]}}
LINES: list[Any] = [
    1, [], {}, {"question": "0", "answers": ["a"], "ends": ["end"]}, {"question": 1e999, "answers": ["a"], "ends": ["end"]},
    {"question": 0, "answers": [1], "ends": ["end"]}, {"question": 0, "answers": "a", "ends": []},
    {"question": 0, "answers": ["a", "b"], "ends": ["end", "end"]}, {"question": 0, "answers": [], "ends": [], "refused": ["x"]},
    {"question": 0, "answers": None, "ends": None}, {"question": True, "answers": ["a"], "ends": ["end"]}, "[" * 90_000,
]  # fmt: skip


@pytest.mark.parametrize("line", LINES)
def test_a_planted_record_of_answers_is_refused(tmp_path: Path, line: Any):
    path = tmp_path / "a.csv.partial.jsonl"
    text = line if isinstance(line, str) else json.dumps(line)
    path.write_text(json.dumps(HEAD) + "\n" + text + "\n", encoding="utf-8")
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="restart"):
        Record.open(path, {"variants": (True,)}, restart=False)


@pytest.mark.parametrize("head", [1, [], {}, {"format": 1}, {"format": 1, "made_by": 3}, {"format": 1, "made_by": {}}])
def test_a_planted_head_of_answers_is_refused(tmp_path: Path, head: Any):
    path = tmp_path / "a.csv.partial.jsonl"
    path.write_text(json.dumps(head) + "\n", encoding="utf-8")
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="restart"):
        Record.open(path, {"variants": (True,)}, restart=False)


@posix
def test_answers_so_far_are_for_this_user_and_follow_no_link(here: Path, tmp_path: Path, capsys):
    record = Record.open(here / "a.csv.partial.jsonl", HEAD["made_by"], restart=False)  # type: ignore[arg-type]
    record.add({0: Outcome(("a",), ("end",))})
    assert record.path.stat().st_mode & 0o777 == 0o600
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (here / "q.csv").write_text("質問\na\n", encoding="utf-8")
    for name, expected in (("b.csv.partial.jsonl", 78), ("b.csv.partial.jsonl.lock", 74)):
        (here / name).symlink_to(victim)
        assert run(["answer", "embedded:kotoha-tiny", "q.csv", "--out", "b.csv"]) == expected
        (here / name).unlink()
    os.mkfifo(here / "b.csv.partial.jsonl")
    assert run(["answer", "embedded:kotoha-tiny", "q.csv", "--out", "b.csv"]) == 78
    assert victim.read_text() == "mine"
    assert "Traceback" not in "".join(capsys.readouterr())


def test_a_file_of_questions_takes_time_by_its_size(tmp_path: Path):
    """Keys that differ in each row, and a heading with a hundred thousand columns above short rows."""
    keys = tmp_path / "keys.jsonl"
    keys.write_text(
        "".join(json.dumps({"質問": "a", f"k{number}": 1}) + "\n" for number in range(20_000)), encoding="utf-8"
    )
    wide = tmp_path / "wide.csv"
    wide.write_text("a," * 100_000 + "質問\n" + "b\n" * 20_000, encoding="utf-8")
    before = time.process_time()
    for path in (keys, wide):
        read = read_questions(path)
        for kind in (".csv", ".xlsx"):
            with pytest.raises(DataError, match="columns"):
                validate_target(tmp_path / f"a{kind}", read, ["回答"], overwrite=False)
    assert time.process_time() - before < 20  # by the square of the size: minutes, and no memory is left


def workbook(folder: Path, title: str = "s", cells: tuple[str, ...] = ("質問", "a")) -> Path:
    book = openpyxl.Workbook()
    book.active.title = title
    for cell in cells:
        book.active.append([cell])
    path = folder / "q.xlsx"
    book.save(path)
    return path


def changed_sheet(path: Path, old: bytes, new: bytes) -> None:
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    assert old in parts["xl/worksheets/sheet1.xml"]
    parts["xl/worksheets/sheet1.xml"] = parts["xl/worksheets/sheet1.xml"].replace(old, new, 1)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"</sheetData>", b'</sheetData><mergeCells><mergeCell ref="A1:XFD1048576"/></mergeCells>'),
        (b"</sheetData>", b"</sheetData><mergeCells>" + b"<mergeCell ref='A1:ZZ9999'/>" * 9 + b"</mergeCells>"),
        (b'<c r="A2"', b'<c s="99" r="A2"'),
    ],
)
def test_a_workbook_that_cannot_be_written_is_refused_before_it_is_answered(tmp_path: Path, old: bytes, new: bytes):
    path = workbook(tmp_path)
    changed_sheet(path, old, new)
    before = time.process_time()
    with pytest.raises(DataError):
        validate_target(tmp_path / "a.xlsx", read_questions(path), ["回答"], overwrite=False)
    assert time.process_time() - before < 5


FORMULAS = ['=HYPERLINK("http://evil.example")', "+cmd|' /C calc'!A0", "@SUM(A1)", "＝1+1", "-1+1", "\t=1"]


@pytest.mark.parametrize("kind", [".csv", ".tsv"])
def test_no_text_of_the_questions_becomes_a_formula(tmp_path: Path, kind: str):
    """JSON Lines and workbooks hold texts; in a CSV they would be formulas. Numbers stay as they are."""
    path = tmp_path / "q.jsonl"
    rows = [{"質問": text, "=1+1": text, "数": "-5"} for text in FORMULAS]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    read = read_questions(path)
    out = tmp_path / f"a{kind}"
    write_answers(out, validate_target(out, read, ["回答"], overwrite=False), read, ["回答"], [["=1"]] * len(rows))
    delimiter = "\t" if kind == ".tsv" else ","
    table = list(csv.reader(io.StringIO(out.read_bytes().decode("utf-8-sig"), newline=""), delimiter=delimiter))
    cells = [cell for row in table for cell in row]
    assert not [cell for cell in cells if cell.startswith(tuple("=+@＝\t")) or (cell[:1] == "-" and cell != "-5")]
    assert cells.count("-5") == len(rows)


def test_hostile_names_of_sheets_and_columns_in_answer(tmp_path: Path, capsys):
    path = workbook(tmp_path, cells=(f"質問\n  aift resume EVIL{CONTROLS[7:]}", "a"))
    out = str(tmp_path / "a.xlsx")
    run(["answer", "embedded:kotoha-tiny", str(path), "--out", out, "--max-new-tokens", "1", "--column", "x"])
    run(["answer", "embedded:kotoha-tiny", str(path), "--out", out, "--sheet", CONTROLS])
    said = "".join(capsys.readouterr())
    assert "質問" in said
    assert not RAW.search(said)
    assert not any(line.startswith("  aift") for line in said.splitlines())


# --- runs, checkpoints and bundles of somebody else


@pytest.fixture(scope="module")
def stopped(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stopped")
    assert call("train", str(write_run(folder, tiny_model_dir, num_epochs=1, eval_steps=100, save_steps=2))) == 0
    run_file = folder / "out" / "run.json"
    run_file.write_text(
        json.dumps(json.loads(run_file.read_text(encoding="utf-8")) | {"status": "running"}), encoding="utf-8"
    )
    return folder / "out"


def received(stopped: Path, folder: Path) -> Path:
    return Path(shutil.copytree(stopped, folder / "received"))


def test_a_received_run_says_what_it_reads_and_allows_no_code(stopped: Path, tmp_path: Path, capsys, logged):
    folder = received(stopped, tmp_path)
    config = folder / "config.yaml"
    text = config.read_text(encoding="utf-8")
    secret = tmp_path / f"secret{'' if os.name == 'nt' else CONTROLS}.jsonl"
    secret.write_text('{"instruction": "a", "output": "b"}\n' * 4, encoding="utf-8")
    settings = yaml.safe_load(text)
    settings["data"]["train"] = str(secret)
    settings["training"]["runtime"]["report_to"] = ["wandb"]
    config.write_text(json.dumps(settings), encoding="utf-8")
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    call("resume", str(folder), "--dry-run")
    said = "".join(capsys.readouterr()) + logged()
    assert on_one_line(str(secret)) in said
    assert "wandb" in said
    assert not RAW.search(said)
    settings["model"]["trust_remote_code"] = True
    config.write_text(json.dumps(settings), encoding="utf-8")
    assert call("resume", str(folder), "--dry-run") == 78
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


@posix
@pytest.mark.parametrize("attack", ["pipe", "device", "link"])
def test_what_lies_beside_the_checkpoints_is_read_only_from_files(stopped: Path, tmp_path: Path, attack: str):
    folder = received(stopped, tmp_path)
    place = folder / "checkpoints" / "without-weights" / "x.json"
    if attack == "pipe":
        os.mkfifo(place)
    else:
        (tmp_path / "id_rsa").write_text("secret")
        place.symlink_to("/dev/zero" if attack == "device" else tmp_path / "id_rsa")
    with pytest.raises(ModelError, match=r"x\.json"):
        usable(str(next((folder / "checkpoints").glob("checkpoint-*"))))


@pytest.mark.parametrize("dtype", ["os", "save", "Tensor", 1, None])
def test_a_dtype_that_a_stranger_names_is_one_of_torch(tmp_path: Path, dtype: object, monkeypatch: pytest.MonkeyPatch):
    """What torch has under a name may be a module or a function."""
    beside, place, given = tmp_path / "checkpoints" / "without-weights", tmp_path / "place", []
    beside.mkdir(parents=True)
    place.mkdir()
    (beside / "config.json").write_text(json.dumps({"dtype": dtype}), encoding="utf-8")
    monkeypatch.setattr(usable_module, "write_shards", lambda *_, dtype, tied: given.append(dtype))
    write_checkpoint(beside.parent / "checkpoint-1", place, run=None, home=place)
    assert given == [torch.float32]
    for content in ("[1]", "[" * 90_000):
        (beside / "config.json").write_text(content, encoding="utf-8")
        with pytest.raises(CheckpointError):
            write_checkpoint(beside.parent / "checkpoint-1", place, run=None, home=place)


@posix
@pytest.mark.parametrize("name", ["config.json", "other.safetensors"])
def test_best_weights_with_links_are_not_put_back(tmp_path: Path, name: str):
    """They are copied into the model at the end of a run."""
    store = CheckpointStore(tmp_path / "checkpoints", keep=1)
    store.best.mkdir(parents=True)
    (store.best / "best.json").write_text(json.dumps({"step": 3, "sha256": {}}), encoding="utf-8")
    (store.best / "adapter_config.json").write_text("{}")
    assert store.best_of(3) == []
    (tmp_path / "id_rsa").write_text("secret")
    (store.best / name).symlink_to(tmp_path / "id_rsa")
    assert name in str(store.best_of(3)[0])
    (store.best / "best.json").write_text("[" * 90_000, encoding="utf-8")
    assert store.best_of(3)


@pytest.mark.parametrize("content", ["[" * 90_000, '{"step": []}', "[]", "{"])
def test_a_step_of_a_hostile_checkpoint_is_refused(tmp_path: Path, content: str):
    (tmp_path / "manifest.json").write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match="restart"):
        _ = ResumePoint(tmp_path).step


def test_a_hostile_manifest_of_a_bundle_is_shown_as_text(tmp_path: Path, capsys):
    assert run(["bundle", "embedded:kotoha-tiny", "--out", str(tmp_path / "b")]) == 0
    manifest = tmp_path / "b" / "bundle.json"
    values = json.loads(manifest.read_text(encoding="utf-8"))
    values |= {"model": CONTROLS + FORGED, "created": FORGED + CONTROLS, "licence": CONTROLS, "toolkit": CONTROLS}
    manifest.write_text(json.dumps(values), encoding="utf-8")
    assert run(["bundle", "verify", str(tmp_path / "b")]) == 0
    values["files"][f"a{CONTROLS[8:]}"] = {"size": 10**30, "sha256": "0" * 64}
    manifest.write_text(json.dumps(values), encoding="utf-8")
    assert run(["bundle", "verify", str(tmp_path / "b")]) == 65
    said = "".join(capsys.readouterr())
    assert not RAW.search(said)
    assert "  aift resume EVIL" not in said.splitlines()


@posix
def test_a_bundle_is_not_copied_through_a_planted_link(tmp_path: Path):
    """A folder in which a bundle was begun, as somebody hands it over."""
    out, victim = tmp_path / "b", tmp_path / "victim"
    out.mkdir()
    victim.write_text("mine")
    (out / ".bundle-begun.json").write_text('{"model": "embedded:kotoha-tiny", "revision": null}', encoding="utf-8")
    (out / ".config.json.part").symlink_to(victim)
    (out / "config.json").symlink_to(victim)
    run(["bundle", "embedded:kotoha-tiny", "--out", str(out)])
    assert victim.read_text() == "mine"
    assert not (out / "config.json").is_symlink()


@posix
def test_a_conversation_is_saved_through_no_link(tmp_path: Path, capsys):
    class Talk:
        history = [{"role": "user", "content": "a"}]
        system = "b"

    for victim in (tmp_path / "there", tmp_path / "not"):
        if victim.name == "there":
            victim.write_text("mine")
        link = tmp_path / f"{victim.name}.jsonl"
        link.symlink_to(victim)
        chat._save(chat.Session(Talk(), {}), str(link))
    assert (tmp_path / "there").read_text() == "mine"
    assert not (tmp_path / "not").exists()
    assert "saved as" not in capsys.readouterr().out


@pytest.fixture(scope="module")
def run_of_somebody(tmp_path_factory: pytest.TempPathFactory, kotoha: str) -> Path:
    """The folder of a run of somebody else, with an adapter."""
    folder = tmp_path_factory.mktemp("received") / "run"
    train_lora(Path(kotoha), folder, num_epochs=1, save_steps=100)
    return folder


@posix
@pytest.mark.parametrize("command", ["generate", "train", "resume"])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(
    run_of_somebody: Path, here: Path, monkeypatch: pytest.MonkeyPatch, command: str
):
    """An archive can hold pipes; whoever opens one to read waits for ever."""
    (here / "rows.jsonl").write_text('{"instruction": "a?", "output": "b."}\n' * 4, encoding="utf-8")
    arguments = {
        "generate": ["generate", "f", "q", "--greedy", "--max-new-tokens", "2"],
        "train": ["train", "--from", "f", "data.train=rows.jsonl", "training.output_dir=new", "--dry-run"],
        "resume": ["resume", "f", "num_epochs=2", "--dry-run"],
    }[command]
    files = sorted(
        path.name for path in run_of_somebody.iterdir() if path.suffix in (".json", ".jsonl", ".yaml", ".jinja")
    )
    assert {"run.json", "config.yaml", "adapter_config.json", "tokenizer.json", "base.json"} <= set(files)

    def too_late(*_: object) -> None:
        raise AssertionError(f"{name} was waited for")

    before = signal.signal(signal.SIGALRM, too_late)
    try:
        for name in [*files, "adapter_model.safetensors"]:
            shutil.rmtree(here / "f", ignore_errors=True)
            shutil.copytree(run_of_somebody, here / "f")
            (here / "f" / name).unlink()
            os.mkfifo(here / "f" / name)
            signal.alarm(int(patience(30)))
            assert call(*arguments) in (0, 64, 65, 66, 69, 78), name
            signal.alarm(0)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
