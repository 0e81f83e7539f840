"""What a stranger on this machine, or in the folder where the user stands, can do to a run of several processes."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ai_finetuning.parallel.wire import decode, encode
from ai_finetuning.system.children import isolated_environment, isolated_python
from tests.support.commands import environment, start, write_run
from tests.support.patience import patience
from tests.support.runs import losses

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
