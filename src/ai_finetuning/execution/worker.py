"""One process of a run that execution/processes.py started: `python -m ai_finetuning.execution.worker FOLDER`, with its
rank in the environment.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

from ..config.section import with_values
from ..errors import PreemptedError, ProcessesError, ToolkitError
from ..messages import described, trace
from ..parallel.processes import launched, lost_a_peer


def main(folder: Path) -> int:
    """Runs the request of the folder; why it failed is left there for the process that started us."""
    from ..engine.faults import Faults
    from . import processes as launch
    from .execute import execute
    from .sources import with_resume

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
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # at once: neither threads nor the process group may wait for processes that wait for this one
    return 0


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
            f"ランク {rank} のプロセスがエラーで終了しました（{text}）。ログは {path.parent} にあります。直してから resume_from_checkpoint=auto "
            "で続きから再開できます。",
            f"the process of rank {rank} ended with an error ({text}). The logs are in {path.parent}. Continue with "
            "resume_from_checkpoint=auto.",
        )
    if launched().is_main or not (path.exists() or isinstance(error, PreemptedError)):
        reason = {"kind": type(error).__name__, "ja": error.for_files.ja, "en": error.for_files.en}
        path.touch(mode=0o600)
        path.write_text(json.dumps(reason, ensure_ascii=False), encoding="utf-8")
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
