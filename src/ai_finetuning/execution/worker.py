"""One process of a run that execution/processes.py started: `python -m ai_finetuning.execution.worker FOLDER`, with its
rank in the environment.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from ..config.section import with_values
from ..errors import PreemptedError, ProcessesError, ToolkitError
from ..messages import described, trace
from ..parallel.processes import STORE, launched, lost_a_peer
from ..system.children import LAUNCHER, starter_lives
from ..system.leaving import leave

# Between two looks at whether the process that started us is there.
_PAUSE_SECONDS = 1.0


def main(folder: Path) -> NoReturn:
    """Runs the request of the folder; why it failed is left there for the process that started us.

    Where that process is killed, this one saves and ends as at a SIGTERM, and leaves no rows and no store.
    """
    from ..engine.faults import Faults
    from . import processes as launch
    from .execute import execute
    from .sources import with_resume

    # Behind the imports: two threads that import at a time may meet half a module.
    threading.Thread(target=_end_with, args=(int(os.environ[LAUNCHER]), folder), daemon=True).start()
    request, faults = launch.read_request(folder), Faults.from_environment()
    started = folder / f"{launch.STARTED}-{launched().rank}"
    if started.exists():  # started anew: go on from the last checkpoint, and meet no injected fault twice
        faults = Faults()
        training = with_resume(request.config.training, "auto")
        request = replace(request, config=with_values(request.config, training=training))
        (folder / launch.ERROR).unlink(missing_ok=True)  # the reason of the attempt before
    started.touch(mode=0o600)
    try:
        execute(request, faults)
    except Exception as error:
        code = tell(folder / launch.ERROR, error)
    else:
        code = 0
    if not starter_lives(int(os.environ[LAUNCHER])):
        _clean(folder)
    # After an error neither threads nor the process group may wait for processes that wait for this one.
    leave(code, orderly=code == 0)


def _end_with(launcher: int, folder: Path) -> None:
    """Ends this process some time after the one that started it: nobody would show what it says, or clean up."""
    from .launcher import GRACE, GRACE_SECONDS
    from .processes import remove_rows

    while starter_lives(launcher):
        time.sleep(_PAUSE_SECONDS)
    remove_rows(folder)
    if callable(signal.getsignal(signal.SIGTERM)):  # a run that can take it saves and goes
        signal.raise_signal(signal.SIGTERM)
        time.sleep(float(os.environ.get(GRACE, GRACE_SECONDS)))
    _clean(folder)
    os._exit(PreemptedError.exit_code)


def _clean(folder: Path) -> None:
    """Removes what the killed process would have: the rows, and the folder in which the processes met."""
    from .processes import remove_rows

    remove_rows(folder)
    shutil.rmtree(Path(os.environ[STORE]).parent, ignore_errors=True)


def tell(path: Path, error: Exception) -> int:
    """Writes the reason of the end to `path`, without text of a row; the first one counts, not that others were stopped because of it.
    Returns the exit code.
    """
    rank = launched().rank
    if not isinstance(error, ToolkitError):
        sys.stderr.write(trace(error, for_files=True))  # a file: the log of this process
        if lost_a_peer(error):
            return ProcessesError.exit_code
        text = described(error, for_files=True)[:300]
        error = ProcessesError(
            f"ランク {rank} のプロセスがエラーで終了しました（{text}）。ログは {path.parent} にあります。直してから `aift resume` で続きから再開できます。",
            f"the process of rank {rank} ended with an error ({text}). The logs are in {path.parent}. When it is mended, "
            "`aift resume` goes on.",
        )
    if launched().is_main or not (path.exists() or isinstance(error, PreemptedError)):
        reason = {"kind": type(error).__name__, "ja": error.for_files.ja, "en": error.for_files.en}
        path.touch(mode=0o600)
        path.write_text(json.dumps(reason, ensure_ascii=False), encoding="utf-8")
    return error.exit_code


if __name__ == "__main__":
    main(Path(sys.argv[1]))
