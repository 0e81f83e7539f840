"""Python processes that the toolkit starts: none imports modules of the folder where the user happens to stand."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

# The environment variable in which whoever starts the ranks of a run on this machine tells them its process id.
LAUNCHER = "AIFT_LAUNCHER"
# The one in which a job tells its commands the same: they end with it.
OWNER = "AIFT_OWNER"
# Seconds between two looks at whether the process that started us is there.
_PAUSE_SECONDS = 1.0
_START = Path(__file__).with_name("start.py")
_PACKAGE = str(Path(__file__).resolve().parents[2])


def isolated_python(module: str) -> list[str]:
    """The command that runs a module as `python -m` does, without the current folder on the path."""
    return [sys.executable, str(_START), module]


def isolated_environment() -> dict[str, str]:
    """This process's environment, with this package on the path and no entry that stands for the current folder; relative
    entries mean what they mean here, wherever the child stands.

    PYTHONSAFEPATH (Python 3.11) reaches the children of the child as well; Python 3.10 has the start file only. A job that
    started this process has not started the child.
    """
    own = {name: value for name, value in os.environ.items() if name != OWNER}
    given = [os.path.abspath(entry) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    return own | {"PYTHONPATH": os.pathsep.join([_PACKAGE, *given]), "PYTHONSAFEPATH": "1"}


def starter_lives(starter: int) -> bool:
    """Whether the process that started this one is there.

    Args:
        starter: its number.
    """
    if os.name == "posix":
        return os.getppid() == starter
    import psutil  # on Windows a process keeps its parent's number

    return bool(psutil.pid_exists(starter))


def end_with_owner() -> None:
    """Lets this process end within a second or so of the job that started it, however that ends; nothing without one."""
    owner = os.environ.get(OWNER, "")

    def watch() -> None:
        while starter_lives(int(owner)):
            time.sleep(_PAUSE_SECONDS)
        os._exit(1)

    if owner.isdecimal():
        threading.Thread(target=watch, name="aift-owner", daemon=True).start()
