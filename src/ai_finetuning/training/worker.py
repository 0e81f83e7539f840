"""One process of a run that training/launch.py started: `python -m ai_finetuning.training.worker FOLDER` under torchrun."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from ..errors import PreemptedError, ToolkitError
from ..parallel.processes import launched


def main(folder: Path) -> int:
    """Runs the job of the folder; a refusal is left there for the process that started us."""
    from . import launch
    from .assemble import run_job
    from .sources import with_resume

    job = launch.read_job(folder)
    started = folder / f"{launch.STARTED}-{launched().rank}"
    if (
        started.exists()
    ):  # torchrun has started us anew: go on from the last checkpoint, and meet no injected fault twice
        os.environ.pop("AIFT_FAULT", None)
        job.config.training = with_resume(job.config.training, "auto")
    started.touch()
    try:
        run_job(job)
    except ToolkitError as error:
        place = folder / launch.ERROR
        # The first reason counts; that others were stopped because of it does not.
        if launched().is_main or not (place.exists() or isinstance(error, PreemptedError)):
            text = {"kind": type(error).__name__, "ja": error.ja, "en": error.en}
            place.write_text(json.dumps(text, ensure_ascii=False), encoding="utf-8")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
