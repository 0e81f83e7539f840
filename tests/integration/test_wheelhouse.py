"""What `make wheelhouse` collected is enough: it installs with --no-index into a fresh environment, and works there."""

from __future__ import annotations

import hashlib
import os
import subprocess
import venv
from pathlib import Path

import pytest
from tests.conftest import REPOSITORY

WHEELHOUSE = Path(os.environ.get("AIFT_WHEELHOUSE", REPOSITORY / "build" / "wheelhouse"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(os.name == "nt", reason="the paths of a POSIX environment")
def test_a_fresh_environment_installs_from_the_folder_alone(tmp_path: Path):
    if not (WHEELHOUSE / "SHA256SUMS").is_file():
        pytest.skip(f"there is no wheelhouse at {WHEELHOUSE}: `make wheelhouse` makes it (it needs a network)")
    for line in (WHEELHOUSE / "SHA256SUMS").read_text(encoding="utf-8").splitlines():
        digest, _, name = line.partition("  ")
        assert hashlib.sha256((WHEELHOUSE / name).read_bytes()).hexdigest() == digest, name
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PIP_") and k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    clean = kept | {"PIP_CONFIG_FILE": os.devnull, "HF_HUB_OFFLINE": "1", "AIFT_CACHE": str(tmp_path / "cache")}
    install = ["-m", "pip", "install", "--quiet", "--no-index", "--find-links", str(WHEELHOUSE)]
    install += ["-c", str(WHEELHOUSE / "constraints.txt"), "ai-finetuning-toolkit[serve]"]
    subprocess.run([python, *install], check=True, env=clean, cwd=tmp_path)
    for command in (["env"], ["generate", "embedded:kotoha-tiny", "こんにちは", "--max-new-tokens", "4"]):
        done = subprocess.run(
            [python, "-m", "ai_finetuning", *command],
            env=clean,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
