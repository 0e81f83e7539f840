"""Whether a run waits, is at work, or how it ended: by its run.json and the process that this names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import Reason
from .phase import CHILD, PHASES
from .process import is_alive, is_here, time_of

Status = Literal["completed", "running", "waiting", "failed", "stopped"]
STATUSES: dict[Status, Reason] = {
    "completed": Reason("完了", "done"),
    "running": Reason("学習中", "running"),
    "waiting": Reason("順番待ち", "waiting"),
    "failed": Reason("失敗", "failed"),
    "stopped": Reason("中断", "stopped"),
}
# Kinds of errors by which run.json tells that somebody has asked for the end.
_ASKED = ("PreemptedError", "KeyboardInterrupt")
GONE = Reason(
    "プロセスがなくなっています（強制終了されたか、PC が止まりました）",
    "its process is gone (killed, or the PC stopped)",
)
_ELSEWHERE = Reason(
    "別の PC で始めた実行です。学習中かどうかは、その PC でしか分かりません",
    "it began on another PC; only there is seen whether it is at work",
)


@dataclass(frozen=True)
class State:
    """How a run is.

    Attributes:
        status: completed; at work or waiting on this PC; failed; or stopped, to be resumed.
        phase: what it does now, a key of PHASES; None where it does nothing, or does not tell.
        since: when that began, in seconds since 1970.
        reason: why it is not at work, where it is not completed.
        elsewhere: whether it may be at work on another PC, which cannot be seen from here.
    """

    status: Status
    phase: str | None = None
    since: float | None = None
    reason: str | None = None
    elsewhere: bool = False

    @property
    def at_work(self) -> bool:
        """Whether a process of this PC is busy with it, or waits to be."""
        return self.status in ("running", "waiting")


def state_of(run: Mapping[str, Any]) -> State:
    """The state of a run.

    Args:
        run: its run.json; any values, since somebody else may have written them.
    """
    child = run.get(CHILD)
    if isinstance(child, dict) and is_alive(child):
        name, since = _phase(child)
        return State("waiting" if name == "waiting" else "running", name or "preparing", since)
    # A child that has ended before the run itself began says last what became of it.
    told = (child if isinstance(child, dict) else run).get("reason")
    told = str(told)[:1000] if told else None
    status = run.get("status")
    if status == "completed":
        return State("completed", reason=told if child else None)
    if status == "running" and is_alive(run):
        return State("running", *_phase(run))
    if told is not None and (child or status != "running"):
        return State("stopped" if told.startswith(_ASKED) else "failed", reason=told)
    if not child and status != "running":
        return State("stopped")
    told_by = child if isinstance(child, dict) else run
    elsewhere = not is_here(told_by)
    return State("stopped", reason=str(_ELSEWHERE if elsewhere else GONE), elsewhere=elsewhere)


def is_being_judged(run: Mapping[str, Any]) -> bool:
    """Whether the model of a run is saved, and its process still compares it with its base.

    Args:
        run: its run.json.
    """
    verdict = run.get("verdict")
    return isinstance(verdict, dict) and verdict.get("pending") is True and is_alive(run)


def _phase(values: Mapping[str, Any]) -> tuple[str | None, float | None]:
    told = values.get("phase")
    told = told if isinstance(told, dict) else {}
    name, since = told.get("name"), told.get("since")
    return next((known for known in PHASES if known == name), None), time_of(since)
