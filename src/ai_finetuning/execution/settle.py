"""The last word on what GPUs compute: simulated steps, where the formula of memory is near the limit."""

from __future__ import annotations

from dataclasses import replace

from ..errors import ConfigError, Reason, localized
from ..messages import notice
from ..planner.cuts import Choice
from .resolve import RunPlan


def settled(plan: RunPlan) -> RunPlan:
    """The plan with a simulated step; on GPUs with the cheapest cut that fits by simulations.

    The formula, which lies above them, is the filter: what it says fits does, and of what is cheaper than that no more than
    two candidates are simulated, and none where memory is plenty.

    Raises:
        ConfigError: no cut fits, and there was one to choose.
    """
    from .simulation import with_timeline  # heavy, and most runs on a CPU need none

    choice = plan.summary.choice
    if choice is None or plan.take is None:
        return with_timeline(plan)
    for option in choice.hopeful() if plan.summary.is_tight else ():
        tried = _simulated(plan.take(option), choice.taking(option))
        seen = tried.summary.choice
        assert seen is not None
        if seen.chosen.simulated and seen.chosen.fits:
            return tried
        choice = choice.knowing(seen.chosen)
    timed = _simulated(plan, choice)
    _validate_fit(timed)
    return timed


def _simulated(plan: RunPlan, choice: Choice) -> RunPlan:
    """The plan of what a choice has taken, with its simulated size where there is one."""
    from .simulation import with_timeline

    timed = with_timeline(plan)
    if timed.summary.timeline is not None:
        choice = choice.taking(replace(choice.chosen, needed=timed.summary.needed_bytes, simulated=True))
    return replace(timed, summary=replace(timed.summary, choice=choice))


def _validate_fit(plan: RunPlan) -> None:
    """Refuses a run that fits in no way; one that is as the user gave it is only warned of.

    Raises:
        ConfigError: with the numbers and the way out.
    """
    summary, choice = plan.summary, plan.summary.choice
    if choice is None or choice.chosen.fits or not choice.decided:
        return
    listed = "; ".join(item.text() for item in (choice.chosen, *choice.runners_up()))
    each = "" if summary.devices is None else f" {summary.devices}."
    check = (
        ("", "")
        if summary.calibration is not None
        else (
            "aift gpu self-check で較正すると上限が上がります。",
            "aift gpu self-check calibrates a GPU, which raises the limit. ",
        )
    )
    raise ConfigError(
        f"{summary.device} のメモリーに収まる分け方がありません。{listed}。{each}method: qlora か lora にする、data.max_length を下げる、"
        f"training.runtime.offload: auto にする、または GPU を増やしてください。{check[0]}それでも試すなら、training.batch_size、"
        "gradient_accumulation_steps、gradient_checkpointing と parallel.strategy をすべて指定してください。",
        f"no cut of a step fits in the memory of {summary.device}: {listed}.{each} Use method: qlora or lora, lower "
        f"data.max_length, set training.runtime.offload: auto, or use more GPUs. {check[1]}To try it all the same, give "
        "training.batch_size, gradient_accumulation_steps, gradient_checkpointing and parallel.strategy yourself.",
    )


def tell_choice(plan: RunPlan) -> None:
    """What was chosen for GPUs with the runners-up, and how far these numbers go, in two lines; nothing where the user has
    given everything.
    """
    choice = plan.summary.choice
    if choice is None or not choice.decided:
        return
    next_best = "; ".join(item.text() for item in choice.runners_up())
    line = localized(f"選んだ分け方: {choice.chosen.text()}", f"chosen cut: {choice.chosen.text()}")
    if next_best:
        line += localized(f"。次点: {next_best}", f". Runners-up: {next_best}")
    notice(line, line)
    known, limit = plan.summary.calibration, f"{choice.chosen.limit / 2**30:.1f} GiB"
    time = Reason("", "") if choice.source is None else choice.source
    check = Reason("なし（aift gpu self-check で較正できます）", "none (aift gpu self-check makes one)")
    notice(
        f"GPU の較正: {(known or check).ja}、使うのは {limit} まで" + (f"。時間: {time.ja}" if time.ja else ""),
        f"calibration of the GPU: {(known or check).en}; up to {limit} are filled"
        + (f". Time: {time.en}" if time.en else ""),
    )
