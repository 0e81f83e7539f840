"""What a check is, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ...errors import Reason, without_secrets

Status = Literal["passed", "failed", "not run"]


class NotHere(Exception):
    """Raised by a check that this machine cannot run, with the reason."""

    def __init__(self, ja: str, en: str) -> None:
        super().__init__(en)
        self.reason = Reason(ja, en)


@dataclass(frozen=True)
class Measured:
    """A number and the most that it may be; NaN never passes.

    Attributes:
        note: what else is worth knowing of it.
    """

    value: float
    limit: float
    note: Reason | None = None


@dataclass(frozen=True)
class Check:
    """One thing to check: `group/what/...`, and how.

    Attributes:
        may_refuse: an error in it is no failure but a way that this machine cannot go, as a run would find before it uses
            it; a wrong number always is one.
    """

    name: str
    measure: Callable[[], Measured]
    may_refuse: bool = False

    @property
    def group(self) -> str:
        """The first part of its name."""
        return self.name.split("/")[0]


@dataclass(frozen=True)
class Result:
    """What came of a check."""

    name: str
    status: Status
    value: float | None = None
    limit: float | None = None
    note: Reason | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        obtained: dict[str, Any] = {"name": self.name, "status": self.status}
        if self.value is not None:
            obtained |= {"value": self.value, "limit": self.limit}
        return obtained | ({} if self.note is None else {"note": self.note.en})


def run(check: Check) -> Result:
    """Runs a check; whatever goes wrong in it becomes its result."""
    try:
        measured = check.measure()
    except NotHere as error:
        return Result(check.name, "not run", note=error.reason)
    except Exception as error:  # a kernel that does not compile says so in many ways
        text = without_secrets(f"{type(error).__name__}: {str(error).strip()[:200]}")
        reason = Reason(f"エラーになりました（{text}）", f"it raised {text}")
        return Result(check.name, "not run" if check.may_refuse else "failed", note=reason)
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    passed = measured.value <= measured.limit
    return Result(check.name, "passed" if passed else "failed", measured.value, measured.limit, measured.note)


def run_all(checks: Iterable[Check]) -> Iterator[Result]:
    """Runs checks one after the other."""
    for check in checks:
        yield run(check)
