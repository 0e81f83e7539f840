"""What a person may have meant by a key that no section has, or by a file that is not there."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from ..errors import Reason
from ..messages import argument
from .other_tools import OTHER_TOOLS
from .synonyms import SYNONYMS, VALUES

# Below it names only look alike: `streaming` is 0.71 of `training`.
_ALIKE = 0.75
# Characters of a key that may be a slip; comparing takes time with their square.
_LONGEST = 100


def hint(key: str, own: Sequence[str], elsewhere: Mapping[str, Sequence[str]], otherwise: Reason) -> Reason:
    """The end of the sentence `KEY is not a known key; ...`.

    Args:
        key: without its section.
        own: names that would do here.
        elsewhere: the dotted names of settings, by their last part.
        otherwise: what to say where no name is near.
    """
    near = _near(key, own, elsewhere) if len(key) <= _LONGEST else []
    if near:
        names = ", ".join(near)
        return Reason(f"もしかして: {names}", f"did you mean {names}?")
    if key in OTHER_TOOLS:
        return Reason("ほかのツールの設定です。", "it is a setting of another tool.")
    return otherwise


def value_hint(key: str, value: object) -> Reason:
    """A sentence that says by which settings a word is meant that another tool has for a setting; empty without any."""
    meant = VALUES.get(key, {}).get(value.strip().lower()) if isinstance(value, str) else None
    return Reason(f"もしかして: {meant}", f" Did you mean {meant}?") if meant else Reason("", "")


def near_files(path: Path, kinds: Collection[str]) -> Reason:
    """A sentence that names files of these kinds (`.csv`) beside a path that are called nearly so; empty without any."""
    try:
        names = [entry.name for entry in path.parent.iterdir() if entry.suffix.lower() in kinds]
    except OSError:
        names = []
    near = [argument(path.parent / name) for name in difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)]
    return Reason(f"もしかして: {'、'.join(near)}。", f" Did you mean {', '.join(near)}?") if near else Reason("", "")


def _near(key: str, own: Sequence[str], elsewhere: Mapping[str, Sequence[str]]) -> Sequence[str]:
    if key in SYNONYMS:
        return [SYNONYMS[key]]
    if key in elsewhere:
        return elsewhere[key][:2]
    if key in OTHER_TOOLS:
        return []
    alike = difflib.get_close_matches(key, own, n=2, cutoff=_ALIKE)
    if alike:
        return alike
    return [elsewhere[name][0] for name in difflib.get_close_matches(key, list(elsewhere), n=2, cutoff=_ALIKE)]
