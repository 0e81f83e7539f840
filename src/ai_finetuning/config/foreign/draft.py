"""A conversion while it goes on: their values, our settings, and what became of each of their keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from ...errors import Reason
from ..plain import to_plain
from ..run import RunConfig
from .values import Unfit, is_off

T = TypeVar("T")


class Verdict(Enum):
    """What became of a key of theirs."""

    TAKEN = "taken"
    CONVERTED = "converted"
    DROPPED = "dropped"
    REFUSED = "refused"


@dataclass(frozen=True)
class Entry:
    """One line of the list.

    Attributes:
        key, value: theirs.
        ours: the settings that it became.
        reason: how it was converted, why it may be dropped, what is missing; None where a value was taken as it is.
        differs: it was dropped or converted although a run of ours is then not quite theirs.
    """

    key: str
    value: Any
    verdict: Verdict
    ours: tuple[str, ...] = ()
    reason: Reason | None = None
    differs: bool = False


@dataclass
class Draft:
    """A conversion.

    Attributes:
        values: their settings without the empty ones; keys in lower case, `_` for `-`.
        folder: of their file, for the files that it names.
        gpus: how many GPUs the run has.
        settings: ours, by dotted name.
        comments: why a setting of ours has its value.
        entries: what became of their keys, in the order of the file once it is done.
    """

    values: dict[str, Any]
    folder: Path
    gpus: int = 1
    settings: dict[str, Any] = field(default_factory=dict)
    comments: dict[str, Reason] = field(default_factory=dict)
    entries: dict[str, Entry] = field(default_factory=dict)

    def get(self, key: str, default: Any = None) -> Any:
        """Their value of a key."""
        return self.values.get(key, default)

    def read(self, key: str, convert: Callable[[object], T]) -> T:
        """Their value in the type that is meant.

        Raises:
            Unfit: it cannot be that; names the key.
        """
        try:
            return convert(self.values[key])
        except Unfit as unfit:
            raise Unfit(unfit.reason.ja, unfit.reason.en, unfit.key or key) from None

    def on(self, key: str) -> bool:
        """Whether they use a key: it is there and its value does not say `off`."""
        return key in self.values and not is_off(self.values[key])

    def set(self, path: str, value: Any, comment: Reason | None = None) -> None:
        """Gives a setting of ours its value."""
        self.settings[path] = value
        if comment is not None:
            self.comments[path] = comment

    def default(self, path: str, value: Any, comment: Reason) -> None:
        """A default of theirs: taken where they set nothing else and ours is another."""
        if path not in self.settings and our_default(path) != value:
            self.set(path, value, comment)

    def say(self, key: str, verdict: Verdict, reason: Reason | None = None, *ours: str, differs: bool = False) -> None:
        """Lists what became of a key, if their file has it."""
        if key in self.values:
            self.entries[key] = Entry(key, self.values[key], verdict, ours, reason, differs)

    def take(self, key: str, path: str, value: Any, comment: Reason | None = None) -> None:
        """A value that is ours as it stands; with a comment it was converted."""
        self.set(path, value, comment)
        self.say(key, Verdict.TAKEN if comment is None else Verdict.CONVERTED, comment, path)

    def convert(self, key: str, reason: Reason, *ours: str, differs: bool = False) -> None:
        """A value that ours follows from."""
        self.say(key, Verdict.CONVERTED, reason, *ours, differs=differs)

    def drop(self, key: str, reason: Reason, *, differs: bool = False) -> None:
        """A value that a run of ours does without."""
        self.say(key, Verdict.DROPPED, reason, differs=differs)

    def refuse(self, key: str, reason: Reason) -> None:
        """A value that a run of ours cannot do without, and does not have."""
        self.say(key, Verdict.REFUSED, reason)

    def missing(self, key: str, reason: Reason) -> None:
        """A key that their file would need and does not have, or whose value cannot be read."""
        self.entries[key] = Entry(key, self.values.get(key), Verdict.REFUSED, (), reason)

    def attempt(self, part: Part) -> None:
        """Lets a part speak; a value that it cannot read is refused, and the other parts go on."""
        try:
            part(self)
        except Unfit as unfit:
            self.missing(unfit.key or "(file)", unfit.reason)

    def of(self, verdict: Verdict) -> list[Entry]:
        """The keys of one verdict."""
        return [entry for entry in self.entries.values() if entry.verdict is verdict]


# What becomes of one key; keys that only together say something belong to a Part.
Row = Callable[[Draft, str, Any], None]
# What several keys together become; also where their file has none of them, for the defaults.
Part = Callable[[Draft], None]


@cache
def our_defaults() -> Mapping[str, Any]:
    """The defaults of our settings, by dotted name."""
    return dict(_flat(to_plain(RunConfig())))


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    obtained: list[tuple[str, Any]] = []
    for key, value in values.items():
        obtained += _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
    return obtained


def our_default(path: str) -> Any:
    """The default of one setting of ours, or None."""
    return our_defaults().get(path)
