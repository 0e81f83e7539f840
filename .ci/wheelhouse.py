"""Everything that `pip install` needs, in one folder to carry to a PC without a network.

Run it on a PC like that one (system, Python version); the wheels of torch are those of the index that pip uses here.
Usage: python .ci/wheelhouse.py FOLDER [--extras serve,torchao]
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAME = "ai-finetuning-toolkit"
INSTALL = """\
Installing without a network / ネットワークなしでのインストール

  sha256sum -c SHA256SUMS                      (Windows: certutil -hashfile FILE SHA256)
  python -m venv .venv
  .venv/bin/python -m pip install --no-index --find-links . -c constraints.txt "{name}"
  .venv/bin/aift env

Made with Python {python} on {platform}; the other PC needs the same.
Python {python}・{platform} で作成しました。インストール先も同じ環境にしてください。
"""


def main() -> None:
    """Build the project's wheel, collect those of its dependencies as pinned, write sums and steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--extras", default="serve")
    options = parser.parse_args()
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("ai_finetuning_toolkit-*.whl"):
        old.unlink()
    extras = f"[{options.extras}]" if options.extras else ""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--wheel-dir", str(folder)]
    subprocess.run([*command, "-c", str(ROOT / "constraints.txt"), f"{ROOT}{extras}"], check=True)
    shutil.copyfile(ROOT / "constraints.txt", folder / "constraints.txt")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    text = INSTALL.format(name=NAME + extras, python=version, platform=sys.platform)
    (folder / "INSTALL.txt").write_text(text, encoding="utf-8")
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != "SHA256SUMS")
    sums = "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files)
    (folder / "SHA256SUMS").write_text(sums, encoding="utf-8")
    size = sum(path.stat().st_size for path in files)
    print(f"{folder}: {len(files)} files, {size / 1e9:.2f} GB; INSTALL.txt says how to install from it")


if __name__ == "__main__":
    main()
