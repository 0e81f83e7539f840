"""Where this toolkit keeps what it can make again."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_folder(kind: str) -> Path:
    """The folder of one kind of cached things (`tokens`, `kernels`): below AIFT_CACHE, else below the user's cache
    folder.
    """
    if os.environ.get("AIFT_CACHE"):
        return Path(os.environ["AIFT_CACHE"]) / kind
    if os.name == "nt":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "ai_finetuning" / kind
