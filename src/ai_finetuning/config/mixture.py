"""Entries of `data.train` that say how much of each source a run takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from ..errors import ConfigError, Problem, Reason
from .hints import hint
from .shortened import cut, shortened

ROWS, TOKENS = "rows", "tokens"
KEYS = ("path", "weight", "epochs", "by", "max_samples")
_NAME = "data.train"


@dataclass(frozen=True)
class Entry:
    """A source of training data.

    Attributes:
        path: files, folders or hub ids.
        weight: how much of the run it is, against the others; None where it is passed whole.
        epochs: passes over it in every epoch of the run.
        by: what weights count.
        max_samples: at most so many rows of each file; None takes what data.max_samples says.
    """

    path: tuple[str, ...]
    weight: float | None = None
    epochs: int | None = None
    by: str = ROWS
    max_samples: int | None = None

    @property
    def passes(self) -> int | None:
        """Over it in an epoch; None where its weight decides."""
        return None if self.weight is not None else self.epochs or 1

    @property
    def weight_exact(self) -> Fraction:
        """The weight as it is written; 0 without one."""
        return Fraction(str(self.weight)) if self.weight is not None else Fraction(0)

    @property
    def name(self) -> str:
        """For people: its files without their folders."""
        return ", ".join(item if item.startswith("embedded:") else Path(item).name or item for item in self.path)

    @property
    def source(self) -> Any:
        """What reads it: a path, or a list of them."""
        return self.path[0] if len(self.path) == 1 else [Path(item) for item in self.path]


@dataclass(frozen=True)
class Sources:
    """Training data of several sources, as a run takes it."""

    entries: tuple[Entry, ...]

    @property
    def paths(self) -> list[Path]:
        """Everything that is read."""
        return [Path(item) for entry in self.entries for item in entry.path]


def paths_of(value: Any) -> list[str]:
    """The paths of `data.train` in any of its forms."""
    items = value if isinstance(value, list) else [value] if isinstance(value, str) else []
    obtained: list[str] = []
    for item in items:
        path = item.get("path") if isinstance(item, dict) else item
        obtained += path if isinstance(path, list) else [path]
    return [item for item in obtained if isinstance(item, str)]


def with_paths(value: Any, change: Any) -> Any:
    """`data.train` with its paths changed, whatever its form.

    Args:
        change: called with each path.
    """
    if isinstance(value, list):
        return [with_paths(item, change) for item in value]
    if isinstance(value, dict):
        return value | {"path": with_paths(value["path"], change)}
    return change(value) if isinstance(value, str) else value


def sources_of(value: Any) -> Sources | None:
    """The sources of `data.train`; None where it is a path or a list of paths.

    Raises:
        ConfigError: entries that cannot be, with their number, value and rule.
    """
    if not isinstance(value, list) or not any(isinstance(item, dict) for item in value):
        return None
    problems: list[Problem] = []
    entries = [_entry(number, item, problems) for number, item in enumerate(value, start=1)]
    if not problems:
        problems = _of_all(entries)
    if problems:
        raise ConfigError.of(problems)
    return Sources(tuple(entries))


def _problem(where: str, value: object, ja: str, en: str) -> Problem:
    return Problem(f"{where} が {shortened(value)} です。{ja}", f"{where} is {shortened(value)}; {en}", _NAME)


def _entry(number: int, item: Any, problems: list[Problem]) -> Entry:
    """An entry; what cannot be in it is added to the problems."""
    where = f"{_NAME}[{number}]"
    if isinstance(item, str):
        return Entry((item,), epochs=1)
    for key in item:
        if key not in KEYS:
            meant = hint(str(key), KEYS, {}, Reason("", ""))
            problems.append(
                Problem(
                    f"{where} に {cut(key)} というキーはありません。{meant.ja}使えるキー: {', '.join(KEYS)}",
                    f"{where} has no key {cut(key)}; {meant.en} known keys: {', '.join(KEYS)}",
                    _NAME,
                )
            )
    path = item.get("path")
    paths = path if isinstance(path, list) else [path]
    if not paths or not all(isinstance(part, str) and part for part in paths):
        problems.append(
            _problem(
                f"{where}.path",
                path,
                "ファイル、フォルダー、ハブの ID、またはそのリストを指定してください。",
                "give a file, folder or hub id, or a list of them.",
            )
        )
        paths = [""]
    weight, epochs, by, most = (item.get(key) for key in KEYS[1:])
    if weight is not None and (not _is_number(weight) or not 0 < weight < float("inf")):
        problems.append(
            _problem(
                f"{where}.weight",
                weight,
                "0 より大きい数にしてください。使わないデータは書かずに除きます。",
                "it must be a number above 0; leave data that is not to be used out.",
            )
        )
        weight = None
    for name, value in (("epochs", epochs), ("max_samples", most)):
        if value is not None and (type(value) is not int or value < 1):
            problems.append(
                _problem(
                    f"{where}.{name}", value, "1 以上の整数にしてください。", "it must be an integer of at least 1."
                )
            )
    if weight is not None and epochs is not None:
        problems.append(
            _problem(
                f"{where}.weight",
                weight,
                f"epochs も {shortened(epochs)} です。割合（weight）か回数（epochs）のどちらか一方にしてください。",
                f"epochs is {shortened(epochs)} too: give only one of them, a share (weight) or passes (epochs).",
            )
        )
    if by is not None and by not in (ROWS, TOKENS):
        problems.append(
            _problem(f"{where}.by", by, f"使えるのは {ROWS}, {TOKENS} です。", f"it must be one of {ROWS}, {TOKENS}.")
        )
    elif by is not None and weight is None and item.get("weight") is None:
        problems.append(
            _problem(
                f"{where}.by",
                by,
                "weight のない項目では意味がありません。weight も指定するか、by を消してください。",
                "it says what a weight counts, and there is none; give a weight, or leave it out.",
            )
        )
    return Entry(tuple(paths), weight, epochs if weight is None else None, by or ROWS, most)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _of_all(entries: Sequence[Entry]) -> list[Problem]:
    """What does not go together."""
    weighted = [entry for entry in entries if entry.weight is not None]
    if len(entries) == 1 and weighted:
        return [
            _problem(
                f"{_NAME}[1].weight",
                weighted[0].weight,
                "割合は 2 つ以上の項目の間で決まります。weight を消すか、ほかのデータも書いてください。",
                "a share needs a second entry: leave the weight out, or add the other data.",
            )
        ]
    if len({entry.by for entry in weighted}) > 1:
        return [
            Problem(
                f"{_NAME} の by が項目によって違います。weight のある項目すべてで同じ値（{ROWS} か {TOKENS}）にしてください。",
                f"{_NAME} counts rows in one entry and tokens in another; give all entries with a weight the same `by` ({ROWS} or {TOKENS}).",
                _NAME,
            )
        ]
    total = sum(entry.weight_exact for entry in weighted)
    if len(weighted) < len(entries) and total >= 1:
        return [
            Problem(
                f"{_NAME} の weight の合計が {float(total):g} です。weight のない項目（回数で使うデータ）があるときは全体に対する割合なので、1 未満にしてください。",
                f"the weights of {_NAME} sum to {float(total):g}; beside entries without a weight, which are passed whole, they are "
                "shares of all rows and must sum to less than 1.",
                _NAME,
            )
        ]
    return []
