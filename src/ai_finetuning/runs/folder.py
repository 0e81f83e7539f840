"""The folder of a run, read: what is in it, and whose it is. Nothing here changes it."""

from __future__ import annotations

import fnmatch
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..config.run_folder import (
    BASE,
    BEST,
    CHECKPOINTS,
    CONFIG,
    CONSOLE,
    CURVE,
    ENVIRONMENT,
    EVAL,
    LAST,
    LAUNCH,
    LOCK,
    METRICS,
    REFERENCES,
    REPORT,
    RUN,
    SAMPLES,
    STOP,
    WITHOUT_WEIGHTS,
)
from ..config.yaml_text import MAX_BYTES, parse_yaml
from ..errors import ConfigError
from ..system.files import TEMPORARY, read_bounded

# Bytes of a run.json; ours have some 10 KB.
_LARGEST = 4 << 20

STAGING = ".staging-model"
TRACKERS = "trackers"
OWNER = ".lock-owner.json"
# What makes a model of its weights, an adapter or a whole one, and tells of it.
BESIDE_WEIGHTS = (
    "README.md",
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    BASE,
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.*",
    "merges.txt",
    "spiece.model",
)
# Everything that a run writes directly into its folder. Folders of others may hold any other name.
OURS = (
    CONFIG,
    ENVIRONMENT,
    METRICS,
    METRICS + ".tmp",  # of earlier versions
    TEMPORARY,
    CURVE,
    REPORT,
    EVAL,
    SAMPLES,
    CHECKPOINTS,
    TRACKERS,
    STAGING,
    "*.safetensors",
    "*.safetensors.index.json",
    *BESIDE_WEIGHTS,
    "stacks-rank-*.txt",
    CONSOLE,
    RUN,
)
# What else is written while a run is at work, or was by earlier versions.
_AT_WORK = (LOCK, OWNER, LAUNCH, STOP, RUN + ".tmp")
_OF_CHECKPOINTS = ("checkpoint-[0-9]*", BEST, LAST, ".staging-*", ".trash-*", WITHOUT_WEIGHTS, REFERENCES)


def read_run(folder: Path) -> dict[str, Any]:
    """The run.json of the run that is in a folder; empty where there is none that can be read."""
    try:
        return dict(json.loads(read_bounded(folder / RUN, _LARGEST)))
    except (OSError, ValueError, TypeError, RecursionError):
        return {}


def recorded_settings(folder: Path) -> dict[str, Any]:
    """The settings of the run that is in a folder, as they are written; empty where there are none that can be read."""
    try:
        values = parse_yaml(read_bounded(folder / CONFIG, MAX_BYTES).decode("utf-8-sig"), CONFIG)
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def beside(folder: Path, suffix: str) -> Path:
    """A name next to a folder: `outputs-merged`, and `/home/me/work-merged` for `.`."""
    named = folder if folder.name not in ("", "..") else Path(os.path.abspath(folder))
    return named.with_name(named.name + suffix)


def files_of_run(folder: Path) -> list[Path]:
    """What a run has written into its folder; run.json last."""
    obtained = [path for path in folder.iterdir() if any(fnmatch.fnmatch(path.name, name) for name in OURS)]
    return sorted(obtained, key=lambda path: (path.name == RUN, path.name))


def refuse_links(folder: Path) -> None:
    """Refuses a run's folder in which a name that a run writes is a link: it would write where the link points.

    Raises:
        ConfigError: with the first link and where it points.
    """
    for path in _links(folder):
        raise ConfigError(
            f"training.output_dir の {path} は {path.readlink()} へのリンクです。実行がフォルダーの外に書き込むことになるため、断りました。"
            "リンクを消すか、リンク先のフォルダーそのものを output_dir に指定してください。",
            f"{path} in training.output_dir is a link to {path.readlink()}, so that the run would write outside "
            "its folder. Remove the link, or let output_dir name the folder that is meant.",
        )


def _links(folder: Path) -> Iterator[Path]:
    for place, names in ((folder, (*OURS, *_AT_WORK)), (folder / CHECKPOINTS, _OF_CHECKPOINTS)):
        for path in sorted(place.iterdir()) if place.is_dir() else ():
            if path.is_symlink() and any(fnmatch.fnmatch(path.name, name) for name in names):
                yield path
    # Trackers make links of their own: to files, and to folders beside.
    for parent, folders, _ in os.walk(folder / TRACKERS):
        for path in (Path(parent) / name for name in folders):
            if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
                yield path


def validate_folder(folder: Path) -> None:
    """Refuses a folder whose files a run would overwrite, although no run wrote them, or in which they are links.

    Raises:
        ConfigError: with some of their names.
    """
    refuse_links(folder)
    if not folder.is_dir() or (folder / RUN).exists():
        return
    # A temporary name is random: nothing is overwritten by it, and it may be of another process of this very run.
    foreign = [path for path in files_of_run(folder) if not fnmatch.fnmatch(path.name, TEMPORARY)]
    if foreign:
        names = ", ".join(path.name for path in foreign[:5])
        raise ConfigError(
            f"training.output_dir の {folder} に、この実行のものではない {names} があります。上書きしないよう、別のフォルダーを指定してください。",
            f"training.output_dir {folder} holds {names}, which no run of this toolkit wrote; choose "
            "another folder, so that nothing is overwritten.",
        )
