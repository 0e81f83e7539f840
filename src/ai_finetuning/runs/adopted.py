"""Runs whose model is in use: marked by their user, in run.json.

The mark names the step of the weights that it was given to, and holds as long as these are the run's result. Weights that
take their place, of a longer training or of another step, are a new choice to make; where the former ones come back, the mark
holds again. Nothing has to remember to take it away.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError, Reason
from ..messages import argument
from .folder import read_run
from .held import held_result
from .phase import write_run
from .process import time_of
from .rows import step_of

_ADOPTED = "adopted"
_WORDS = {"adopt": Reason("採用", "adopt"), "hold": Reason("保留", "hold"), "reject": Reason("不採用", "reject")}


def adopt(path: Path) -> Reason | None:
    """Marks the model of a run as the one in use; marked again, it is the one that was marked last.

    Returns:
        What speaks against it (`doubt_of`).

    Raises:
        ConfigError: the run has no model yet. RunLockedError: it is at work. StorageError: the disk refuses.
    """
    with held_result(path) as run:
        mark = {"step": result_step(run), "since": round(time.time(), 3)}
        write_run(path, run | {_ADOPTED: mark})
        return doubt_of(run)


def release(path: Path) -> None:
    """Takes the mark away.

    Raises:
        ConfigError: there is none. RunLockedError: it is at work. StorageError: the disk refuses.
    """
    with held_result(path, model=False) as run:
        if run.get(_ADOPTED) is None:
            raise ConfigError(
                f"{path} は採用されていません。採用するには aift runs adopt {argument(path)}",
                f"{path} is not in use. To adopt it: aift runs adopt {argument(path)}",
            )
        write_run(path, {name: value for name, value in run.items() if name != _ADOPTED})


def adopted_since(run: Mapping[str, Any]) -> float | None:
    """Since when the model of a run is in use, in seconds since 1970; None where it is not.

    Args:
        run: its run.json; any values, since somebody else may have written them.
    """
    mark, step = _mark(run), result_step(run)
    return (time_of(mark.get("since")) or 0.0) if mark and step is not None and mark.get("step") == step else None


def adopted_before(run: Mapping[str, Any]) -> int | None:
    """The step of weights that were adopted, and that are not the result any more; None where there are none."""
    mark = _mark(run)
    return None if adopted_since(run) is not None else step_of(mark.get("step"))


def refuse_adopted(path: Path) -> None:
    """Raises ConfigError, with the way out, where the model of a run is in use."""
    if adopted_since(read_run(path)) is not None:
        shown = argument(path)
        raise ConfigError(
            f"{path} は採用中です。ごみ箱へ移すには、先に採用をやめてください: aift runs adopt {shown} --undo（aift web では結果の画面の「採用をやめる」）",
            f"{path} is in use. To move it into the trash, first take it out of use: aift runs adopt {shown} --undo (in aift web: on its result)",
        )


def result_step(run: Mapping[str, Any]) -> int | None:
    """The step of the weights that are a run's result; None where run.json does not say."""
    result = run.get("result")
    return step_of(result.get("saved_step"), result.get("steps")) if isinstance(result, dict) else None


def doubt_of(run: Mapping[str, Any]) -> Reason | None:
    """What a run's own verdict has against its model, in one sentence; None where it says that it be adopted."""
    verdict = run.get("verdict")
    verdict = verdict if isinstance(verdict, dict) else {}
    decision, why = verdict.get("result"), verdict.get("why")
    because = Reason("", "")
    if isinstance(why, dict) and {"ja", "en"} <= why.keys():
        because = Reason(str(why["ja"])[:500], str(why["en"])[:500])
    word = decision_of(verdict)
    if decision == "adopt":
        return None
    if word is not None:
        return Reason(f"判定は{word.ja}です。{because.ja}", f"Its verdict is {word.en}. {because.en}".rstrip())
    if verdict.get("pending") is True:
        return Reason("まだ判定していません。", "There is no verdict yet.")
    return Reason(f"判定はありません。{because.ja}", f"There is no verdict. {because.en}".rstrip())


def decision_of(verdict: Mapping[str, Any]) -> Reason | None:
    """The word of a verdict of run.json; None of one that decides nothing."""
    return next((word for name, word in _WORDS.items() if name == verdict.get("result")), None)


def _mark(run: Mapping[str, Any]) -> dict[str, Any]:
    mark = run.get(_ADOPTED)
    return mark if isinstance(mark, dict) else {}
