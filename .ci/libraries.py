"""Installs other versions of transformers and peft over the pinned ones: `oldest` and `newest` that pyproject.toml
allows, or `main`, upstream's current state.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("transformers", "peft")


def requirements(which: str, declared: list[str]) -> list[str]:
    """What pip is asked for.

    Args:
        which: `oldest`, `newest` or `main`.
        declared: the dependencies of pyproject.toml.
    """
    if which == "main":
        return [f"{name} @ git+https://github.com/huggingface/{name}@main" for name in NAMES]
    ours = [item for item in map(Requirement, declared) if item.name in NAMES]
    if which == "newest":
        return [str(item) for item in ours]
    lowest = {item.name: next(part.version for part in item.specifier if part.operator == ">=") for item in ours}
    return [f"{name}=={lowest[name]}" for name in NAMES]


def main() -> None:
    """Installs, then shows what is there."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        declared = tomllib.load(file)["project"]["dependencies"]
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, "install", "--upgrade", *requirements(sys.argv[1], declared)], check=True)
    subprocess.run([*pip, "list"], check=True)


if __name__ == "__main__":
    main()
