"""The folder of a run, read: what is in it, and whose it is. Nothing here changes it."""

from __future__ import annotations

import fnmatch
import json
from pathlib import Path
from typing import Any

from ..config.run_folder import CHECKPOINTS, CONFIG, CURVE, ENVIRONMENT, METRICS, REPORT, RUN
from ..errors import ConfigError

STAGING = ".staging-model"
TRACKERS = "trackers"
# Everything that a run writes directly into its folder. Folders of others may hold any other name.
OURS = (
    CONFIG,
    ENVIRONMENT,
    METRICS,
    METRICS + ".tmp",
    CURVE,
    REPORT,
    CHECKPOINTS,
    TRACKERS,
    STAGING,
    "README.md",
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "adapter_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.*",
    "merges.txt",
    "spiece.model",
    "stacks-rank-*.txt",
    RUN,
)


def read_run(folder: Path) -> dict[str, Any]:
    """The run.json of the run that is in a folder; empty where there is none."""
    try:
        return dict(json.loads((folder / RUN).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def files_of_run(folder: Path) -> list[Path]:
    """What a run has written into its folder; run.json last."""
    obtained = [path for path in folder.iterdir() if any(fnmatch.fnmatch(path.name, name) for name in OURS)]
    return sorted(obtained, key=lambda path: (path.name == RUN, path.name))


def validate_folder(folder: Path) -> None:
    """Refuses a folder whose files a run would overwrite, although no run wrote them.

    Raises:
        ConfigError: with some of their names.
    """
    if not folder.is_dir() or (folder / RUN).exists():
        return
    foreign = files_of_run(folder)
    if foreign:
        names = ", ".join(path.name for path in foreign[:5])
        raise ConfigError(
            f"training.output_dir の {folder} に、この実行のものではない {names} があります。上書きしないよう、別のフォルダーを指定してください。",
            f"training.output_dir {folder} holds {names}, which no run of this toolkit wrote; choose "
            "another folder, so that nothing is overwritten.",
        )
