"""The end of a process that has computed together with others."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from typing import NoReturn


def leave(code: int, *, orderly: bool = True) -> NoReturn:
    """Ends this process without taking its interpreter apart, which can abort beside torch's native threads ("terminate
    called without an active exception"): a run that is done and saved would be taken for a failed one.

    Args:
        code: of the process.
        orderly: whether what is registered for the end of a process is done first (trackers write, temporary folders go).
            It may wait for processes that wait for this one, so not after an error that others do not know of.
    """
    if orderly:
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody reads any more, or it is closed
            stream.flush()
    os._exit(code)
