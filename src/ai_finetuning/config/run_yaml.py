"""The configuration in a run's folder: what the user gave, what was derived beside it, and paths that hold anywhere."""

from __future__ import annotations

import copy
import glob
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .fields import field_names
from .mixture import with_paths
from .plain import plain_run
from .run import RunConfig
from .section import explicitly_set
from .yaml_text import dump_yaml

# What no YAML text may hold as it is, or what would end a comment's line.
_UNSAFE = re.compile("[^\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")


def describe_run(config: RunConfig, derived: Mapping[str, object]) -> str:
    """YAML that load_config reads back to the same configuration: what the user gave, the model and the method.

    Derived values are comments, so that another run derives them again.

    Args:
        derived: dotted names of settings and the values that the run uses (`training.warmup_steps`: 15).
    """
    plain = plain_run(config, given_only=True)
    plain["model"] = {"name": config.model.name} | plain.get("model", {})
    if config.trains_all:
        plain.pop("lora", None)  # without effect, and refused beside method: full
    parts = []
    for name in field_names(RunConfig):
        if name in plain:
            parts.append(dump_yaml({name: plain[name]}))
        parts += [
            f"# derived: {key}: {_on_one_line(value)}\n" for key, value in derived.items() if key.split(".")[0] == name
        ]
    return "".join(parts)


def _on_one_line(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return _UNSAFE.sub(lambda obtained: "".join(f"\\u{unit:04x}" for unit in _units(obtained.group())), text)


def _units(character: str) -> list[int]:
    """UTF-16 code units, as JSON escapes them."""
    data = character.encode("utf-16-be", errors="surrogatepass")
    return [int.from_bytes(data[start : start + 2], "big") for start in range(0, len(data), 2)]


# A value as it was given, and what it is relative to -> the value with an absolute path, where it is one.
_Finder = Callable[[str, Path], str]


def absolute_paths(config: RunConfig, folder: Path) -> RunConfig:
    """The configuration with the paths that the user gave made absolute, so that it holds in any working folder.

    Hub ids, `embedded:` names and names of templates stay as they are.

    Args:
        folder: what relative paths are relative to.
    """
    changed = copy.deepcopy(config)
    training = changed.training
    for section, name, absolute in (
        (changed.model, "name", _where(os.path.isdir)),
        (changed.model, "chat_template", _where(os.path.isfile)),
        (changed.data, "train", _data),
        (changed.data, "eval", _data),
        (changed.data.replay, "path", _data),
        (changed.lora, "adapter", _where(os.path.isdir)),
        (training, "output_dir", _where(_always)),
        (training.checkpoint, "resume_from_checkpoint", _where(_always)),
    ):
        value = getattr(section, name)
        if name not in explicitly_set(section) or value == "auto":
            continue
        if section is changed.model and name == "name":
            value = os.path.expanduser(value)  # as it is for reading; other paths are taken as they are written
        setattr(section, name, _absolute(value, folder, absolute))
    return changed


def _always(_: str) -> bool:
    return True


def _where(belongs: Callable[[str], bool]) -> _Finder:
    """What is there as a path; anything else is another kind of name."""

    def absolute(value: str, folder: Path) -> str:
        path = os.path.abspath(folder / value)
        return path if belongs(path) else value

    return absolute


def _data(value: str, folder: Path) -> str:
    """A path, or a pattern of paths (data/files.py); characters of one in the folder's own name are none."""
    path = _where(os.path.exists)(value, folder)
    pattern = os.path.join(glob.escape(os.path.abspath(folder)), value)
    is_pattern = path == value and glob.has_magic(value) and any(glob.iglob(pattern, recursive=True))
    return pattern if is_pattern else path


def _absolute(value: Any, folder: Path, absolute: _Finder) -> Any:
    if isinstance(value, list):
        return with_paths(value, lambda item: _absolute(item, folder, absolute))
    return absolute(value, folder) if isinstance(value, str) and "\0" not in value else value
