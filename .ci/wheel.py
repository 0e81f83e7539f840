"""Builds the wheel, installs it into a fresh environment and runs `aift` from it, outside the checkout.

Nothing is downloaded: hatchling and the dependencies are those of the environment that runs this script; the fresh one
sees them through a .pth file, and the wheel itself comes from its own site-packages.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "ai_finetuning"
# What an import of the package needs besides its Python files.
SHIPPED = (
    "py.typed",
    "kernels/cpu.cpp",
    "models/catalog.yaml",
    "embedded/kotoha-tiny/model.safetensors",
    "embedded/kotoha-text/train.jsonl",
    "apps/web/pages/base.html",
    "apps/web/static/app.css",
    "apps/web/static/api.js",
    "apps/web/static/vendor/uPlot/uPlot.iife.min.js",
    "apps/web/static/vendor/uPlot/LICENSE",
)


def build(folder: Path) -> Path:
    """The wheel of this checkout."""
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (wheel,) = folder.glob("*.whl")
    return wheel


def inspect(wheel: Path) -> None:
    """Ends with a message where the wheel lacks a file, or holds one of another package."""
    names = zipfile.ZipFile(wheel).namelist()
    missing = [name for name in SHIPPED if f"{PACKAGE}/{name}" not in names]
    foreign = [name for name in names if not name.startswith((f"{PACKAGE}/", "ai_finetuning_toolkit-"))]
    if missing or foreign:
        sys.exit(f"{wheel.name}: missing {missing}, not ours {foreign[:5]}")


def install(wheel: Path, folder: Path) -> Path:
    """The scripts folder of a fresh environment with the wheel."""
    venv.create(folder, with_pip=False)
    variables = {"base": str(folder), "platbase": str(folder)}
    scheme = "nt_venv" if os.name == "nt" else "posix_venv"
    scripts = Path(sysconfig.get_path("scripts", scheme, variables))
    python = scripts / ("python.exe" if os.name == "nt" else "python")
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*command, str(wheel)], check=True)
    library = Path(sysconfig.get_path("purelib", scheme, variables))
    (library / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return scripts


def main() -> None:
    """Build, look inside, install, run."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    with tempfile.TemporaryDirectory(prefix="aift-wheel-") as name:
        folder = Path(name)
        wheel = build(folder / "dist")
        inspect(wheel)
        scripts = install(wheel, folder / "venv")
        settings = {"HF_HUB_OFFLINE": "1", "AIFT_LANG": "en", "PYTHONUTF8": "1", "AIFT_CACHE": str(folder / "cache")}
        calls = (
            [str(scripts / "python"), "-c", f"import {PACKAGE}; print({PACKAGE}.__file__)"],
            [str(scripts / "aift"), "--help"],
            [str(scripts / "aift"), "env"],
        )
        for call in calls:
            done = subprocess.run(call, cwd=folder, env=kept | settings, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                sys.exit(f"{' '.join(call[-2:])} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
            if call is calls[0] and not Path(done.stdout.strip()).resolve().is_relative_to(folder.resolve()):
                sys.exit(f"the package comes from {done.stdout.strip()}, not from the wheel")
        print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB; installed, `aift --help` and `aift env` run")


if __name__ == "__main__":
    main()
