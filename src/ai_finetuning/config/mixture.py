"""Entries of `data.train` that say how much of each source a run takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from ..errors import ConfigError, Problem, Reason
from .hints import hint
from .limits import HUGE
from .shortened import cut, shortened

ROWS, TOKENS = "rows", "tokens"
KEYS = ("path", "weight", "epochs", "by", "max_samples")
_NAME = "data.train"
_COUNT = "1 以上、2^53 未満の整数にしてください。", "it must be an integer of at least 1 and below 2^53."


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
        """For people: its first files without their folders."""
        names = [item if item.startswith("embedded:") else Path(item).name or item for item in self.path]
        return ", ".join([*names[:3], *([f"… {len(names)}"] if len(names) > 3 else [])])

    def plain(self) -> dict[str, Any]:
        """As YAML writes it."""
        given = {"path": list(self.path), "weight": self.weight, "epochs": self.epochs, "max_samples": self.max_samples}
        by = {"by": self.by} if self.weight is not None else {}
        return {name: value for name, value in given.items() if value is not None} | by

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


def with_replay(sources: Sources, path: str | Sequence[str], share: float) -> Sources:
    """The sources with rows of an earlier training as one more: a share of the run's label tokens, which the weights of the
    other entries count too.

    Args:
        path: of the old rows.
        share: of the label tokens, above 0 and below 1.
    """
    entries = sources.entries
    # Beside whole passes weights are shares of the run; among themselves they are what they are of each other.
    alone = all(entry.weight is not None for entry in entries)
    weight = share / (1 - share) * sum(entry.weight or 0.0 for entry in entries) if alone else share
    return Sources((*entries, Entry((path,) if isinstance(path, str) else tuple(path), weight, by=TOKENS)))


def paths_of(value: Any) -> list[str]:
    """The paths of `data.train` in any of its forms."""
    items = value if isinstance(value, list) else [value] if isinstance(value, str) else []
    obtained: list[str] = []
    for item in items:
        path: Any = item.get("path") if isinstance(item, dict) else item
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


def _entry(number: int, item: Any, problems: list[Problem]) -> Entry:
    """An entry; what cannot be in it is added to the problems."""
    where = f"{_NAME}[{number}]"
    if isinstance(item, str):
        return Entry((item,), epochs=1)
    found = _unknown_keys(where, item) + _wrong_values(where, item)
    problems += found
    if found:
        return Entry(("",))
    path, weight, epochs, by, most = (item.get(key) for key in KEYS)
    return Entry(tuple(path) if isinstance(path, list) else (path,), weight, epochs, by or ROWS, most)


def _unknown_keys(where: str, item: Mapping[Any, Any]) -> list[Problem]:
    listed, problems = ", ".join(KEYS), []
    for key in item:
        if key not in KEYS:
            meant = hint(str(key), KEYS, {}, Reason("", ""))
            problems.append(
                Problem(
                    f"{where} に {cut(key)} というキーはありません。{meant.ja}使えるキー: {listed}",
                    f"{where} has no key {cut(key)}. {meant.en} Known keys: {listed}",
                    _NAME,
                )
            )
    return problems


def _wrong_values(where: str, item: Mapping[Any, Any]) -> list[Problem]:
    """Values that cannot be, and those that do not go together."""
    path, weight, epochs, by, most = (item.get(key) for key in KEYS)
    paths = path if isinstance(path, list) else [path]
    checks = (
        (
            "path",
            bool(paths) and all(isinstance(part, str) and part.strip() for part in paths),
            "ファイル、フォルダー、ハブの ID、またはそのリストを指定してください。",
            "give a file, folder or hub id, or a list of them.",
        ),
        (
            "weight",
            weight is None or (_is_number(weight) and 0 < weight < HUGE),
            "0 より大きく 2^53 より小さい数にしてください。使わないデータは、項目ごと消してください。",
            "it must be a number above 0 and below 2^53; remove the entry of data that is not to be used.",
        ),
        ("epochs", _is_count(epochs), *_COUNT),
        ("max_samples", _is_count(most), *_COUNT),
        (
            "weight",
            weight is None or epochs is None,
            f"epochs も {shortened(epochs)} です。割合（weight）か回数（epochs）のどちらか一方にしてください。",
            f"epochs is {shortened(epochs)} too: give only one of them, a share (weight) or passes (epochs).",
        ),
        (
            "by",
            by in (None, ROWS, TOKENS),
            f"使えるのは {ROWS}, {TOKENS} です。",
            f"it must be one of {ROWS}, {TOKENS}.",
        ),
        (
            "by",
            by is None or weight is not None,
            "weight の数え方の指定なので、weight のない項目では使えません。weight も指定するか、by を消してください。",
            "it says what a weight counts, and there is none: give a weight, or remove it.",
        ),
    )
    return [
        Problem(
            f"{where}.{name} が {shortened(item.get(name))} です。{ja}",
            f"{where}.{name} is {shortened(item.get(name))}; {en}",
            _NAME,
        )
        for name, holds, ja, en in checks
        if not holds
    ]


def _is_count(value: object) -> bool:
    return value is None or (type(value) is int and 1 <= value < HUGE)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _of_all(entries: Sequence[Entry]) -> list[Problem]:
    """What does not go together."""
    weighted = [entry for entry in entries if entry.weight is not None]
    if len(entries) == 1 and weighted:
        return [
            Problem(
                f"{_NAME}[1].weight が {weighted[0].weight:g} ですが、項目が 1 つしかありません。割合は 2 つ以上の項目の間で決まります。weight を消すか、ほかのデータも書いてください。",
                f"{_NAME}[1].weight is {weighted[0].weight:g}, but there is one entry; a share needs another: remove the weight, "
                "or add the other data.",
                _NAME,
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
