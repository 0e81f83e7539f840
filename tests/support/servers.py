"""Servers of `aift serve` in tests."""

from __future__ import annotations

import contextlib
import importlib.util
import subprocess
import urllib.request

import pytest

from .patience import patience, until

MISSING = [name for name in ("fastapi", "uvicorn", "openai") if importlib.util.find_spec(name) is None]
needs_server = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (the extra `serve`)")


def until_it_answers(process: subprocess.Popen[str], port: int, key: str = "none") -> None:
    """Waits for a server's process; its output is the failure where it ends before."""

    request = urllib.request.Request(f"http://127.0.0.1:{port}/health", headers={"Authorization": f"Bearer {key}"})

    def answers() -> bool:
        if process.poll() is not None:
            raise AssertionError(process.communicate()[0])
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(request, timeout=patience(2)),
        ):
            return True
        return False

    until(answers, 120, "the server answers")
