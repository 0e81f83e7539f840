"""Checkpoints, evaluation, trackers: what several keys of theirs say together."""

from __future__ import annotations

from collections.abc import Callable

from ...errors import Reason
from .draft import Draft
from .rows import EVALUATION, TRACKER
from .training_parts import NOT_USED, first
from .values import is_off, names, number, truth, whole, word

EVAL_STRATEGY = ("eval_strategy", "evaluation_strategy")
TRACKERS = ("tensorboard", "wandb", "mlflow")


def _per_epoch(draft: Draft, key: str, path: str, share: float) -> None:
    """Steps below 1 are a share of all steps; ours counts events of an epoch."""
    passes = draft.settings.get("training.num_epochs", 1)
    count = max(1, round(1 / (share * passes)))
    reason = Reason(
        f"全ステップの {share:g} ごと（1 エポックに {count} 回）", f"every {share:g} of all steps: {count} an epoch"
    )
    draft.take(key, path, count, reason)


def _interval(draft: Draft, steps_key: str, epoch_key: str, strategy: str, paths: tuple[str, str]) -> bool:
    """A number of steps, a share of them, or a number of times an epoch; whether the file says one."""
    by_steps, by_epoch = paths
    if strategy == "epoch":
        once = Reason("1 エポックに 1 回", "once an epoch")
        draft.set(by_epoch, 1, once)
        draft.drop(steps_key, Reason("epoch ごとの指定が優先されます", "the strategy `epoch` decides"))
        draft.drop(epoch_key, Reason("epoch ごとの指定が優先されます", "the strategy `epoch` decides"))
        return True
    if draft.on(steps_key):
        steps = draft.read(steps_key, number)
        if steps < 1:
            _per_epoch(draft, steps_key, by_epoch, steps)
        else:
            draft.take(steps_key, by_steps, whole(steps))
        draft.drop(epoch_key, NOT_USED)
        return True
    draft.drop(steps_key, NOT_USED)
    if draft.on(epoch_key):
        draft.take(epoch_key, by_epoch, draft.read(epoch_key, whole))
        return True
    draft.drop(epoch_key, NOT_USED)
    return False


def saving(otherwise: Callable[[Draft], None]) -> Callable[[Draft], None]:
    """When checkpoints are written and how many stay.

    Args:
        otherwise: sets what their tool does where the file says nothing of it.
    """

    def part(draft: Draft) -> None:
        strategy = (
            draft.read("save_strategy", word)
            if draft.on("save_strategy")
            else "no"
            if "save_strategy" in draft.values
            else ""
        )
        said = _interval(
            draft, "save_steps", "saves_per_epoch", strategy, ("training.save_steps", "training.saves_per_epoch")
        )
        if strategy == "epoch":
            draft.convert("save_strategy", Reason("1 エポックに 1 回", "once an epoch"), "training.saves_per_epoch")
        elif strategy in ("no", "best"):
            draft.drop(
                "save_strategy",
                Reason(
                    "再開できるように save_steps ごとに保存します（最良の重みは checkpoint.load_best）",
                    "checkpoints are kept so that a run can resume (checkpoint.load_best returns the best weights)",
                ),
            )
        else:
            draft.drop("save_strategy", Reason("save_steps と同じ意味です", "save_steps says it"))
        if not said and strategy in ("", "epoch"):
            otherwise(draft)
        _kept(draft)
        _best(draft)

    return part


def _kept(draft: Draft) -> None:
    key = "save_total_limit"
    if not draft.on(key):
        draft.drop(key, NOT_USED)
        return
    limit, path = draft.read(key, whole), "training.checkpoint.save_total_limit"
    two = Reason("1 つが壊れても再開できるように 2 以上です", "at least two, so that a damaged one leaves another")
    draft.take(key, path, max(2, limit), two if limit < 2 else None)


def _best(draft: Draft) -> None:
    wanted = draft.on("load_best_model_at_end") and draft.read("load_best_model_at_end", truth)
    metric = draft.read("metric_for_best_model", word) if draft.on("metric_for_best_model") else "loss"
    if metric not in ("loss", "eval_loss") and wanted:
        draft.refuse(
            "metric_for_best_model",
            Reason("最良の重みは評価損失で選びます", "the best weights are chosen by the evaluation loss"),
        )
    else:
        draft.drop("metric_for_best_model", Reason("評価損失で選びます", "the evaluation loss decides"))
    draft.drop("greater_is_better", Reason("評価損失は小さいほど良い値です", "a lower evaluation loss is better"))
    if wanted and "data.eval" in draft.settings:
        draft.take("load_best_model_at_end", "training.checkpoint.load_best", True)
    elif wanted:
        draft.drop("load_best_model_at_end", Reason("評価データがありません", "there is no evaluation data"))
    else:
        draft.drop("load_best_model_at_end", NOT_USED)


def evaluation(draft: Draft) -> None:
    """When the evaluation data is scored."""
    key = first(draft, EVAL_STRATEGY)
    strategy = "" if key is None else "no" if is_off(draft.values[key]) else draft.read(key, word)
    data = "data.eval" in draft.settings
    paths = ("training.eval_steps", "training.evals_per_epoch")
    if strategy == "no" or (not data and strategy):
        reason = Reason("評価データがありません", "there is no evaluation data") if not data else EVALUATION
        draft.drop("eval_steps", reason)
        if draft.on("evals_per_epoch"):
            draft.take("evals_per_epoch", paths[1], draft.read("evals_per_epoch", whole))
        else:
            draft.drop("evals_per_epoch", NOT_USED)
        if key is not None:
            draft.drop(key, reason)
        return
    _interval(draft, "eval_steps", "evals_per_epoch", strategy, paths)
    if key is not None and strategy == "epoch":
        draft.convert(key, Reason("1 エポックに 1 回", "once an epoch"), paths[1])
    elif key is not None:
        draft.drop(key, Reason("eval_steps と同じ意味です", "eval_steps says it"))


def report_to(draft: Draft) -> None:
    """transformers' `report_to`: a name, a list, `none` or `all`."""
    if "report_to" not in draft.values:
        return
    value = draft.values["report_to"]
    wanted = [] if is_off(value) else [name.lower() for name in names(value)]
    ours = [name for name in TRACKERS if name in wanted]
    if ours:
        others = [name for name in wanted if name not in TRACKERS]
        draft.take("report_to", "training.runtime.report_to", ours, TRACKER if others else None)
    elif not wanted or wanted == ["none"]:
        draft.convert("report_to", Reason("トラッカーなし（本ツールの既定）", "no tracker, as is our default"))
    else:
        draft.drop(
            "report_to",
            Reason(
                f"使えるトラッカーは {', '.join(TRACKERS)} です。metrics.jsonl は常にあります",
                f"trackers here are {', '.join(TRACKERS)}; metrics.jsonl is always there",
            ),
        )
