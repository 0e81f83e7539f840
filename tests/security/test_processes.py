"""What a stranger on this machine, or in the folder where the user stands, can do to a run of several processes."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from ai_finetuning.execution.launcher import remove_left_stores
from ai_finetuning.parallel.wire import decode, encode
from ai_finetuning.system.children import isolated_environment, isolated_python
from tests.support.commands import call, environment, start, write_run
from tests.support.patience import patience, until
from tests.support.runs import losses
from tests.support.systems import needs_sigkill

SHORT = ("--cpu-processes", "2", "training.num_epochs=1", "training.save_steps=100")
LINUX = pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads /proc/net/tcp")


def family(pid: int) -> set[int]:
    """A process and all it has started."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    except OSError:
        return {pid}
    return {pid}.union(*(family(int(child)) for child in children))


def listeners(pid: int) -> set[tuple[str, int]]:
    """(address as the kernel prints it, port) of all that a process and its children listen on."""
    inodes = set()
    for member in family(pid):
        try:
            inodes |= {os.readlink(f"/proc/{member}/fd/{item}") for item in os.listdir(f"/proc/{member}/fd")}
        except OSError:
            continue
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text(encoding="ascii").splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                address, port = fields[1].split(":")
                found.add((address, int(port, 16)))
    return found


def test_entries_of_the_path_mean_the_same_where_a_child_stands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A run that goes on without its terminal stands in its folder, which may hold a `src/torch` of somebody else."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["src", "", "/lib"]))
    entries = isolated_environment()["PYTHONPATH"].split(os.pathsep)
    assert entries[1:] == [str(tmp_path / "src"), os.path.abspath("/lib")]


@LINUX
def test_only_the_loopback_listens_and_noise_changes_nothing(tmp_path: Path, tiny_model_dir: Path):
    """A run whose ports a stranger finds and sends noise to, beside one that is left alone."""
    plain = start("train", str(write_run(tmp_path / "plain", tiny_model_dir)), *SHORT)
    assert plain.wait(patience(200)) == 0
    run = start("train", str(write_run(tmp_path / "noise", tiny_model_dir)), *SHORT)
    seen: set[tuple[str, int]] = set()
    sent, end = 0, time.monotonic() + patience(200)
    while run.poll() is None and time.monotonic() < end:
        now = listeners(run.pid)
        seen |= now
        for _, port in now:
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=1) as stranger:
                    stranger.sendall(os.urandom(4096))
                sent += 1
            except OSError:
                pass
        time.sleep(0.2)
    output, _ = run.communicate(timeout=patience(20))
    assert run.returncode == 0, output
    assert sent > 0
    assert {address for address, _ in seen} == {"0100007F"}, seen
    assert losses(tmp_path / "noise" / "out") == losses(tmp_path / "plain" / "out")


@pytest.mark.parametrize("path", [None, "", f"{os.pathsep}/nowhere"], ids=["none", "empty", "empty entry"])
def test_modules_of_the_current_folder_do_not_run(path: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As Python 3.10 starts it too, which does not know PYTHONSAFEPATH."""
    (tmp_path / "json.py").write_text("open('ran', 'w')", encoding="utf-8")
    (tmp_path / "torch.py").write_text("open('ran', 'w')", encoding="utf-8")
    if path is None:
        monkeypatch.delenv("PYTHONPATH", raising=False)
    else:
        monkeypatch.setenv("PYTHONPATH", path)
    surroundings = isolated_environment()
    for safe in ({"PYTHONSAFEPATH": "1"}, {"PYTHONSAFEPATH": ""}):
        done = subprocess.run(
            [*isolated_python("json.tool"), "--help"],
            env=surroundings | safe,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "json" in done.stdout
    assert not (tmp_path / "ran").exists()


def test_a_run_of_several_processes_beside_planted_modules(tmp_path: Path, tiny_model_dir: Path):
    """The installed command, in a folder that holds modules of the names that its processes import."""
    planted = tmp_path / "data"
    planted.mkdir()
    for name in ("torch", "json", "numpy", "transformers", "yaml", "fastapi", "ai_finetuning"):
        (planted / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')", encoding="utf-8")
    command = shutil.which("aift", path=str(Path(sys.executable).parent))
    assert command is not None
    done = subprocess.run(
        [command, "train", str(write_run(tmp_path, tiny_model_dir)), *SHORT, "training.schedule.max_steps=4"],
        env=environment(PYTHONPATH=isolated_environment()["PYTHONPATH"]),
        cwd=planted,
        capture_output=True,
        text=True,
        timeout=patience(200),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "ran").exists()


SCRIPT = """
import sys, torch
from ai_finetuning import AdvancedMultiGPUTrainer, DataConfig, JapaneseModel, MultiGPUTrainingConfig
model = JapaneseModel({model!r}, device=torch.device("cpu"))
config = MultiGPUTrainingConfig(strategy="ddp", output_dir={out!r}, num_epochs=1, fp16=False)
config.parallel.processes = 2
AdvancedMultiGPUTrainer(model, config, data=DataConfig(max_length=64)).train(["患者の山田さん。"] * 4)
"""


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["", "step:kill@1%1"], ids=["a run that ends well", "one that fails"])
def test_rows_from_memory_are_gone_after_the_run(fault: str, tmp_path: Path, tiny_model_dir: Path):
    script, out = tmp_path / "script.py", tmp_path / "out"
    script.write_text(SCRIPT.format(model=str(tiny_model_dir), out=str(out)), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)],
        env=environment(AIFT_FAULT=fault, PYTHONPATH=isolated_environment()["PYTHONPATH"]),
        capture_output=True,
        text=True,
        check=False,
        timeout=patience(200),
    )
    assert (done.returncode == 0) == (fault == ""), done.stderr
    folder = out / ".launch"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()} == {0o600}
    assert not [path for path in folder.rglob("*") if path.is_file() and "山田" in path.read_text(encoding="utf-8")]


def of_a_run(folder: Path) -> list[int]:
    """The worker processes of a run, by the folder that they were started with."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if str(folder / ".launch") in (process.info["cmdline"] or []) and process.status() != psutil.STATUS_ZOMBIE:
            found.append(process.pid)
    return found


@pytest.mark.slow
@needs_sigkill
def test_a_killed_start_leaves_no_process_no_row_and_no_store(tmp_path: Path, tiny_model_dir: Path):
    """The processes notice it, save and go; the run can be continued."""
    script, out, temporary = tmp_path / "script.py", tmp_path / "out", tmp_path / "tmp"
    temporary.mkdir()
    text = SCRIPT.format(model=str(tiny_model_dir), out=str(out)).replace("num_epochs=1", "num_epochs=500")
    script.write_text(text, encoding="utf-8")
    run = subprocess.Popen(
        [sys.executable, str(script)],
        env=environment(PYTHONPATH=isolated_environment()["PYTHONPATH"], TMPDIR=str(temporary)),
        stderr=subprocess.DEVNULL,
    )
    try:
        metrics = out / "metrics.jsonl"
        until(lambda: metrics.exists() and '"loss"' in metrics.read_text(encoding="utf-8"), 200, "the run has begun")
        assert (out / ".launch" / "train.jsonl").exists()
        assert list(temporary.glob("aift-store-*"))
        run.kill()
        run.wait()
        until(lambda: not of_a_run(out), 100, "the processes have gone")
    finally:
        run.kill()
        for pid in of_a_run(out):
            os.kill(pid, 9)
    assert not (out / ".launch" / "train.jsonl").exists()
    assert not list(temporary.glob("aift-store-*"))
    assert list((out / "checkpoints").glob("checkpoint-*"))
    assert json.loads((out / "run.json").read_text(encoding="utf-8"))["status"] == "stopped"


def test_stores_of_a_machine_that_stopped_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    old, new, foreign = (tmp_path / name for name in ("aift-store-old", "aift-store-new", "other-old"))
    yesterday = time.time() - 90_000
    for folder in (old, new, foreign):
        folder.mkdir(mode=0o700)
        (folder / "store-0").touch()
        for path in (folder / "store-0", folder):
            os.utime(path, (yesterday, yesterday))
    (new / "store-0-board-0").mkdir()  # written to a moment ago
    remove_left_stores()
    assert not old.exists()
    assert new.exists()
    assert foreign.exists()


def test_a_run_of_one_process_removes_rows_that_were_left(tmp_path: Path, tiny_model_dir: Path):
    left = tmp_path / "out" / ".launch" / "train.jsonl"
    left.parent.mkdir(parents=True)
    left.write_text("患者の山田さん", encoding="utf-8")
    assert call("train", str(write_run(tmp_path, tiny_model_dir)), "training.schedule.max_steps=3") == 0
    assert not left.exists()


BEATS = """
import os, sys, time
from datetime import timedelta
from pathlib import Path
import torch.distributed as dist
from ai_finetuning.parallel import watchdog
store = Path(os.environ["AIFT_STORE"])
dist.init_process_group("gloo", store=dist.FileStore(str(store), 1), rank=0, world_size=1)
watchdog.LOST_SECONDS = 0.5
board = store.with_name(store.name + "-board-0")
with watchdog.Watchdog(time.monotonic_ns, timeout_seconds=600, folder=store.parent):
    while not (board / "beat-0").exists():
        time.sleep(0.02)
    size, first = store.stat().st_size, (board / "beat-0").read_text()
    while (board / "beat-0").read_text() == first:
        time.sleep(0.02)
    assert store.stat().st_size == size
assert (board / "beat-0").read_text() == "left"
assert board.stat().st_mode & 0o777 == 0o700
assert len(list(board.iterdir())) == 2
"""


def test_signs_of_life_do_not_fill_the_disk(tmp_path: Path):
    """They replace each other, in files beside the one where the processes met, which torch only ever appends to."""
    done = subprocess.run(
        [sys.executable, "-c", BEATS],
        env=environment(AIFT_STORE=str(tmp_path / "store-0"), PYTHONPATH=isolated_environment()["PYTHONPATH"]),
        capture_output=True,
        text=True,
        timeout=patience(100),
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_what_travels_between_processes_is_no_pickle():
    import numpy as np

    value = {1: (np.arange(6, dtype=np.int32).reshape(2, 3), [None, True, 0.1, float("inf")]), "名": np.float32(0.5)}
    again = decode(encode(value))
    assert np.array_equal(again[1][0], value[1][0])
    assert again[1][0].dtype == np.int32
    assert again[1][1] == value[1][1]
    assert again["名"] == value["名"]
    with pytest.raises(TypeError, match="Path does not travel|PosixPath does not travel|WindowsPath"):
        encode(Path("x"))
