"""Python processes that the toolkit starts: none imports modules of the folder where the user happens to stand."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# The environment variable in which whoever starts the ranks of a run on this machine tells them its process id.
LAUNCHER = "AIFT_LAUNCHER"
_START = Path(__file__).with_name("start.py")
_PACKAGE = str(Path(__file__).resolve().parents[2])


def isolated_python(module: str) -> list[str]:
    """The command that runs a module as `python -m` does, without the current folder on the path."""
    return [sys.executable, str(_START), module]


def isolated_environment() -> dict[str, str]:
    """This process's environment, with this package on the path and no entry that stands for the current folder; relative
    entries mean what they mean here, wherever the child stands.

    PYTHONSAFEPATH (Python 3.11) reaches the children of the child as well; Python 3.10 has the start file only.
    """
    given = [os.path.abspath(entry) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    return os.environ | {"PYTHONPATH": os.pathsep.join([_PACKAGE, *given]), "PYTHONSAFEPATH": "1"}
