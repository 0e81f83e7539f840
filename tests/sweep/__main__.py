"""`python -m tests.sweep`: every family, a few minutes; writes the tables of docs/models.md and docs/models.ja.md."""

from __future__ import annotations

import logging
import tempfile
import warnings
from pathlib import Path

from .check import Row, Unbuilt, sweep
from .families import families
from .pages import KNOWN, write


def main() -> None:
    """Sweeps, says what is not as it should be, writes."""
    import transformers

    warnings.filterwarnings("ignore")
    logging.getLogger("ai_finetuning").setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    rows: list[Row] = []
    unbuilt = []
    for family in families():
        with tempfile.TemporaryDirectory() as folder:
            try:
                row = sweep(family, Path(folder))
            except Unbuilt as error:
                unbuilt.append(family)
                print(f"{family}: not built ({error})", flush=True)
                continue
        rows.append(row)
        if row.problems and family not in KNOWN:
            print(f"{family}: {'; '.join(row.problems)}", flush=True)
    write(rows, unbuilt)
    print(f"{len(rows)} families, {len(unbuilt)} not built")


if __name__ == "__main__":
    main()
