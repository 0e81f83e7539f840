"""The kept best weights of a run as its result, and back again, by its files alone: what run.json, the model card and the
report then say. Needs no torch.

run.json's `returned` names both steps while the result is not that of the last one. `to` in it says that a change is under way,
so that whoever finds it finishes it (`take_best`, `take_last`): each of them may be called at any state of the files.
"""

from __future__ import annotations

import html
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..config.run_folder import BEST, BEST_NOTE, CHECKPOINTS, LAST, LAST_NOTE, METRICS, REPORT
from ..engine.metrics import read_metrics
from ..errors import CheckpointError, ConfigError, Reason
from ..messages import argument
from ..runs.adopted import decision_of, result_step
from ..runs.folder import recorded_settings
from ..runs.held import held_result
from ..runs.phase import write_run
from ..runs.rows import loss_of, step_of
from ..runs.weights import (
    ADAPTER,
    RETURNED,
    drop_last,
    keep_last,
    last_of,
    problems_of,
    put,
    read_note,
    room_to_take,
    validate_room,
    weight_bytes,
    weight_names,
    wrong_digest,
)
from ..system.files import write_in_place
from .figures import figures_of
from .verdict import figure, verdict

_CARD = "README.md"
# What of run.json is of the weights that are the result.
_OF_RESULT = ("result", "verdict", "files")
_MEASURED_OF_LAST = Reason(
    "最良の重みに戻してからは、まだ測っていません。前の判定は最後の重みのものです。",
    "Not measured since the best weights became the result; the former verdict is that of the last weights.",
)


@dataclass(frozen=True)
class Best:
    """The kept best weights beside those of the last step: the steps, and the evaluation losses."""

    step: int
    loss: float
    last_step: int
    last_loss: float


@dataclass(frozen=True)
class Returned:
    """That the result of a run are its best weights, not the last ones.

    Attributes:
        step, last_step: of the result, and of the weights that are kept beside.
        unfinished: whether the change was broken off.
        verdict: that of the last weights, as run.json had it; empty without one.
    """

    step: int
    last_step: int
    unfinished: bool
    verdict: dict[str, Any]


def returned_of(run: Mapping[str, Any]) -> Returned | None:
    """What run.json says of it; None where the result is what the training left."""
    told = run.get(RETURNED)
    told = told if isinstance(told, dict) else {}
    step, last = step_of(told.get("step")), step_of(told.get("last_step"))
    if step is None or last is None:
        return None
    judged = told.get("verdict_of_last")
    return Returned(step, last, told.get("to") is not None, judged if isinstance(judged, dict) else {})


def best_of(path: Path, run: Mapping[str, Any]) -> Best | Reason:
    """The best weights that a run can have as its result, by its files' names; else why it cannot, with the way out.

    Args:
        run: its run.json.
    """
    shown, found = argument(path), run.get("best")
    found, last = found if isinstance(found, dict) else {}, run.get("result")
    step, low, high = step_of(found.get("step")), loss_of(found.get("eval_loss")), loss_of(found.get("last_eval_loss"))
    steps = step_of(last.get("steps")) if isinstance(last, dict) else None
    again = f"training.checkpoint.load_best=true training.output_dir=NEW {shown}/config.yaml"
    if run.get("status") != "completed":
        return Reason(
            f"{path} の学習は終わっていません。終わらせてから戻してください: aift resume {shown}",
            f"the training in {path} has not ended; finish it first: aift resume {shown}",
        )
    if step is None or steps is None or low is None or high is None:
        return Reason(
            f"{path} の最良の重みは分かりません（評価データなしの学習か、以前の版の実行です）。data.eval を付けて学習すると、最良の重みを残します。",
            f"the best weights of {path} are not known (it had no evaluation data, or is of an earlier version). A "
            "training with data.eval keeps them.",
        )
    if result_step(run) == step and step != steps:
        return Reason(
            f"{path} の結果は、もう最良のステップ {step} の重みです。",
            f"the result of {path} is its best step, {step}, already.",
        )
    if step == steps or high <= low:
        return Reason(
            f"{path} は最後の重み（ステップ {steps}）が最良なので、戻す必要はありません。",
            f"the last weights of {path}, of step {steps}, are the best ones.",
        )
    if step == 0:
        return Reason(
            f"{path} は学習で良くなっていません（最良は学習前です）。learning_rate を下げるか、データを確かめて学習し直してください。",
            f"{path} did not get better by training (the best evaluation is that before it). Lower learning_rate or look at "
            "the data, and train again.",
        )
    if found.get("folder") is None or not (path / CHECKPOINTS / BEST).is_dir():
        return Reason(
            f"{path} の最良の重み（ステップ {step}）は残っていません。学習し直すと残ります: aift train {again}",
            f"the best weights of {path}, of step {step}, were not kept. Training again keeps them: aift train {again}",
        )
    return Best(step, low, steps, high)


def take_best(path: Path) -> Best:
    """Makes the kept best weights the result of a run; those of the last step stay in `checkpoints/last`.

    Raises:
        ConfigError: there are none, or nothing is to be done. CheckpointError: they are not what was kept. RunLockedError: the
            run is at work. StorageError: no room, or the disk refuses.
    """
    with held_result(path) as run:
        before = returned_of(run)
        kept = _noted(path) if before is not None else {}
        original = kept or {name: run[name] for name in _OF_RESULT if name in run}
        finishing = before is not None and before.unfinished
        found = best_of(path, {**run, **original} if finishing else run)
        if isinstance(found, Reason):
            undo = f"aift runs best {argument(path)} --undo"
            hint = Reason(f" 最後の重みに戻すには {undo}", f" Back to the last weights: {undo}")
            raise ConfigError(found.ja + (hint.ja if before else ""), found.en + (hint.en if before else ""))
        place = path / CHECKPOINTS / BEST
        _validate(place, BEST_NOTE, found.step)
        validate_room(path, weight_bytes(place) + (0 if finishing else room_to_take(path, path)))
        judged = original.get("verdict")
        measured = isinstance(judged, dict) and judged.get("result") is not None
        told = {
            "step": found.step,
            "last_step": found.last_step,
            "folder": f"{CHECKPOINTS}/{LAST}",
            "verdict_of_last": judged if measured else None,
        }
        if not finishing:
            keep_last(path, found.last_step, {"run": original})
        write_run(path, run | original | {RETURNED: told | {"to": BEST}})
        names = put(place, path, mark=f"step{found.step}")
        _tell(path, found, measured=measured)
        changed = _of_best(original, found, read_metrics(path / METRICS), names)
        write_run(path, run | changed | {RETURNED: told})
        return found


def take_last(path: Path) -> Returned:
    """Makes the weights of the last step the result of a run again, with everything that was said of them.

    Raises:
        ConfigError: they are the result. CheckpointError: they are not there, or not what was kept. RunLockedError: the run is
            at work. StorageError: no room, or the disk refuses.
    """
    with held_result(path) as run:
        before = returned_of(run)
        if before is None:
            raise ConfigError(
                f"{path} の結果は学習が終わったときのままです。戻すものはありません。",
                f"the result of {path} is what its training left; there is nothing to undo.",
            )
        place = last_of(path)
        original = _noted(path)
        _validate(place, LAST_NOTE, before.last_step, () if original else (wrong_digest(LAST_NOTE),))
        validate_room(path, room_to_take(place, path))
        write_run(path, run | {RETURNED: dict(run[RETURNED]) | {"to": LAST}})
        put(place, path, linked=True)
        for name in (_CARD, REPORT):
            if (place / name).is_file():
                write_in_place(path / name, (place / name).read_bytes())
        content = {name: value for name, value in run.items() if name != RETURNED and name not in _OF_RESULT}
        # In the order in which they stood.
        write_run(
            path, {name: original.get(name, content.get(name)) for name in run if name in original or name in content}
        )
        drop_last(path)
        return before


def told_of(path: Path, run: Mapping[str, Any]) -> list[Reason]:
    """What is to be said of a run whose result is not what its training left, or could be better; with what to type."""
    shown, before, measure = argument(path), returned_of(run), measuring(path)
    if before is None:
        found = best_of(path, run)
        if isinstance(found, Reason):
            return []
        low, high = figure(found.loss), figure(found.last_loss)
        return [
            Reason(
                f"最良はステップ {found.step:,}（評価損失 {low}）で、結果（最後のステップ {found.last_step:,}、{high}）より良い重みです。結果にする: aift runs best {shown}",
                f"best: step {found.step:,} (evaluation loss {low}), better than the result (the last step, "
                f"{found.last_step:,}: {high}). To make it the result: aift runs best {shown}",
            )
        ]
    if before.unfinished:
        return [
            Reason(
                f"結果の入れ替えが途中で止まっています（モデルは壊れていません）。終わらせる: aift runs best {shown} ／ 最後の重みに戻す: aift runs best {shown} --undo",
                f"a change of its result was broken off (the model is whole). To finish it: aift runs best {shown}; to have "
                f"the last weights: aift runs best {shown} --undo",
            )
        ]
    lines = [
        Reason(
            f"結果は最良のステップ {before.step:,} の重みです。最後のステップ {before.last_step:,} に戻す: aift runs best {shown} --undo",
            f"its result are the weights of the best step, {before.step:,}. Back to the last step, {before.last_step:,}: "
            f"aift runs best {shown} --undo",
        )
    ]
    word = decision_of(before.verdict)
    if word is not None:
        lines.append(
            Reason(
                f"この判定は最後の重みのものです: {word.ja}。測り直す: {measure}",
                f"this verdict is that of the last weights: {word.en}. To measure again: {measure}",
            )
        )
    return lines


def measuring(path: Path) -> str:
    """The command that measures a run's model again, with the evaluation data that the run had where that is a file."""
    data = recorded_settings(path).get("data")
    asked = data.get("eval") if isinstance(data, dict) else None
    file = argument(asked) if isinstance(asked, str) and os.path.isfile(asked) else "FILE"
    return f"aift eval {argument(path)} --data {file}"


def _noted(path: Path) -> dict[str, Any]:
    """What run.json said of the weights of the last step; empty where that is not there."""
    told = read_note(last_of(path) / LAST_NOTE).get("run")
    return dict(told) if isinstance(told, dict) and isinstance(told.get("result"), dict) else {}


def _validate(folder: Path, note: str, step: int, more: Sequence[Reason] = ()) -> None:
    problems = problems_of(folder, note, step) or list(more)
    obtained, expected = weight_names(folder), weight_names(folder.parent.parent)
    if not problems and (not obtained or (ADAPTER in obtained) != (ADAPTER in expected)):
        problems = [Reason("この実行の重みがありません", "no weights of this run are there")]
    if problems:
        why = Reason.joined(problems)
        raise CheckpointError(
            f"{folder} の重みは使えません（{why.ja}）。結果は変えていません。学習し直すか、チェックポイントから取り出してください（aift export checkpoint）。",
            f"the weights in {folder} cannot be used ({why.en}); the result is as it was. Train again, or make a model of a "
            "checkpoint (aift export checkpoint).",
        )


def _of_best(
    original: Mapping[str, Any], found: Best, rows: Sequence[dict[str, Any]], names: Sequence[str]
) -> dict[str, Any]:
    """`original` of run.json as it is of the best weights."""
    evaluated = [row for row in rows if row.get("step") == found.step and "eval_loss" in row]
    row = evaluated[-1] if evaluated else {"step": found.step, "eval_loss": found.loss}
    scores = {key: row.get(key) for key in ("step", *(key for _, key in figures_of([row])))}
    known = [row for row in rows if step_of(row.get("step")) is not None]
    result = dict(original["result"]) | {
        "held_out_after": scores,
        "saved_step": found.step,
        "verdict": asdict(verdict(known, found.step)),
    }
    judged = original.get("verdict")
    if isinstance(judged, dict) and judged.get("result") is not None:
        judged = {"result": None, "why": {"ja": _MEASURED_OF_LAST.ja, "en": _MEASURED_OF_LAST.en}}
    elif isinstance(judged, dict) and judged.get("pending") is True:
        judged = {"result": None, "pending": True}  # `aift resume` measures it, of the weights that are there then
    files = original.get("files")
    if isinstance(files, list):
        others = [str(name) for name in files if ".safetensors" not in str(name)]
        files = sorted([*others, *names])
    changed = {"result": result, "verdict": judged, "files": files}
    return {name: value for name, value in changed.items() if name in original}


def _tell(path: Path, found: Best, *, measured: bool) -> None:
    """Says it at the head of the model card and of the report, which were written of the last weights."""
    measure, low, high = measuring(path), figure(found.loss), figure(found.last_loss)
    said = Reason(
        f"このフォルダーの重みは最良のステップ {found.step:,} のもの（評価損失 {low}）です。",
        f"The weights in this folder are those of the best step, {found.step:,} (evaluation loss {low}).",
    )
    what = (
        Reason("表、判定、回答の例", "The figures, the verdict and the answers below")
        if measured
        else Reason("表と回答の例", "The figures and the answers below")
    )
    rest = Reason(
        f"下の{what.ja}は最後のステップ {found.last_step:,}（{high}）の重みのものです。測り直す: {measure}",
        f"{what.en} are of the weights of the last step, {found.last_step:,} ({high}). To measure again: {measure}",
    )
    kept = last_of(path)
    _insert(kept / _CARD, path / _CARD, _below_title, f"> **{said.ja}**{rest.ja}\n>\n> **{said.en}** {rest.en}\n")
    note = f'<p class="note">{html.escape(str(said))} {html.escape(str(rest))}</p>'
    _insert(kept / REPORT, path / REPORT, _below_main, note)


def _below_title(page: str, text: str) -> str:
    lines = page.split("\n")
    at = next((at for at, line in enumerate(lines) if line.startswith("# ")), -1) + 1
    return "\n".join([*lines[:at], "", text.rstrip("\n"), *lines[at:]])


def _below_main(page: str, text: str) -> str:
    return page.replace("<main>", "<main>" + text, 1)


def _insert(source: Path, target: Path, into: Any, text: str) -> None:
    """Writes a page with a text in it; out of the one that is kept, so that it stands there once."""
    if source.is_file():
        content = into(source.read_text(encoding="utf-8", errors="surrogateescape"), text)
        write_in_place(target, content.encode("utf-8", errors="surrogateescape"))
