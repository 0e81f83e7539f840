"""The data of a run and its order, and what follows from its length: steps, warm-up, evaluations."""

from __future__ import annotations

from typing import Any

from ..config.mixture import Sources, with_replay
from ..config.section import explicitly_set
from ..config.training import TrainingConfig
from ..data.answers import AnswerRows
from ..data.examples import Joined, total_of
from ..data.loader import Loader
from ..data.mixed import Mixed, SourceShare
from ..data.mixture import Mixture, Replayed, Taken, replay
from ..data.prepare import PreparedData, prepare
from ..data.streamed_loader import Check, StreamedLoader
from ..engine.schedule import resolve_warmup, warmup_of_ratio
from ..errors import ConfigError, localized
from ..messages import notice
from ..parallel.plan import ParallelPlan
from .derived import PARTS
from .objective import validate_objective
from .request import TrainRequest
from .tokenizing import encoder_for

# How often a run evaluates where nobody says so.
_EVALUATIONS = 10
# A share of old rows that is missed by more than this part of it is said.
_MISSED = 0.1


def data_of(request: TrainRequest, tokenizer: Any, split: str) -> PreparedData:
    """The rows of a run; large files are encoded by several processes.

    Args:
        split: the rule by which a share of them becomes evaluation data.

    Raises:
        DataError: data that cannot be trained on.
    """
    config, seed = request.config.data, request.config.training.runtime.seed
    return prepare(
        request.train,
        request.eval_data,
        tokenizer,
        config,
        seed=seed,
        split=split,
        encoders=encoder_for,
        objective=request.config.objective,
    )


def mixture_of(request: TrainRequest, data: PreparedData, *, whole: bool) -> Mixture | Mixed | None:
    """Rows of several sources, each with its share: new rows with those of an earlier training (`data.replay`), or the
    entries of `data.train`; None where all rows are taken once an epoch.

    Args:
        whole: whether old rows have the order of earlier versions, however many they are (Derived.replay).
    """
    asked, seed = request.config.data.replay, request.config.training.runtime.seed
    share = asked.share
    if isinstance(request.train, Sources) and share is not None and asked.path is not None:
        entries = with_replay(request.train, asked.path, share).entries
        return Mixed(Joined(data.train, data.old), (*data.sizes, len(data.old)), entries, seed)
    if isinstance(request.train, Sources):
        return Mixed(data.train, data.sizes, request.train.entries, seed)
    if share is None:
        return None
    return replay(data.train, data.old, share, seed, whole=whole)


def replay_of(mixture: Mixture | Mixed | None) -> str | None:
    """Derived.replay of a run."""
    return PARTS if isinstance(mixture, Replayed) else None


def sources_taken(mixture: Mixture | Mixed | None) -> tuple[SourceShare, ...]:
    """What the first epoch takes of the entries of `data.train`; empty where it has none. Those of which it takes no row are
    said.
    """
    taken = tuple(mixture.taken_first()) if isinstance(mixture, Mixed) and not isinstance(mixture, Replayed) else ()
    for source in taken:
        if not source.rows:
            notice(
                f"data.train の {source.name} は weight が小さく、最初のエポックでは 1 行も使われません。weight を上げるか、項目を消してください。",
                f"the first epoch takes no row of {source.name} in data.train, as its weight is too small: raise it, or remove "
                "the entry.",
            )
    return taken


def validate_base(request: TrainRequest, parallel: ParallelPlan) -> None:
    """Refuses old rows that are held to the base where no process has the whole model to ask, and an objective that the
    strategy does not train.

    Raises:
        ConfigError: data.replay.distill with such a strategy, or the objective.
    """
    validate_objective(request, parallel)
    if request.config.data.replay.distill is None:
        return
    if parallel.in_parts or parallel.strategy == "model_parallel" or request.use_accelerate:
        name = "use_accelerate" if request.use_accelerate else f"parallel.strategy: {parallel.strategy}"
        raise ConfigError(
            f"data.replay.distill は {name} では使えません。1 台のデバイスか strategy: ddp で学習するか、data.replay.distill を消してください（以前の行の文字を学習します）。",
            f"data.replay.distill does not go with {name}: train on one device or with strategy: ddp, or leave it out "
            "(old rows then teach their own tokens).",
        )


def loader_of(
    request: TrainRequest, data: PreparedData, mixture: Mixture | Mixed | None, tokenizer: Any, check: Check
) -> Loader | StreamedLoader:
    """All rows, in order; see Loader.of_rank for the share of a process.

    Args:
        check: refuses rows that the model cannot take; streamed ones come later.
    """
    config, training = request.config, request.config.training
    if data.stream is not None:
        rows = training.batch_size * training.gradient_accumulation_steps
        return StreamedLoader(data.stream, rows_per_step=rows, pad_token_id=tokenizer.pad_token_id, check=check)
    loader = Loader(
        data.train if mixture is None else mixture,
        rows_per_step=training.batch_size * training.gradient_accumulation_steps,
        seed=training.runtime.seed,
        packing=config.data.packing,
        max_length=max(config.data.max_length, data.longest),
        group_by_length=config.data.group_by_length,
        pad_token_id=tokenizer.pad_token_id,
    )
    if config.objective != "sft":
        loader.answers = AnswerRows()
    return loader


def steps_of(training: TrainingConfig, loader: Loader | StreamedLoader) -> tuple[int, int]:
    """(steps of the run, of an epoch); of streamed rows, whose end nobody knows, both are the run's."""
    if isinstance(loader, StreamedLoader):
        total = training.schedule.max_steps or 1  # which is refused where it is not given
        return total, total
    return training.schedule.max_steps or loader.steps_of(training.num_epochs), len(loader)


def tokens_of(data: PreparedData, rows_of_run: int) -> tuple[int, int]:
    """(tokens, label tokens) of the training rows; of streamed ones those of so many rows of a run, by the first ones."""
    times = 1.0 if data.stream is None else rows_of_run / len(data.train)
    tokens, learnt = total_of(data.train, "lengths"), total_of(data.train, "learnt")
    return round(times * tokens), round(times * learnt)


def warmup_of(training: TrainingConfig, taken: dict[str, Any], total: int) -> int:
    """Steps of warm-up: as a resumed run had them, as given, or derived.

    Args:
        taken: the derived values of the resumed run.
        total: steps of the run.
    """
    given, ratio = "warmup_steps" in explicitly_set(training), training.schedule.warmup_ratio
    if not given and "warmup_steps" in taken and taken.get("warmup_ratio") == ratio:
        return int(taken["warmup_steps"])
    if ratio is not None:
        return warmup_of_ratio(ratio, total)
    return resolve_warmup(training.warmup_steps, explicitly_set=given, total_steps=total)


def eval_steps_of(training: TrainingConfig, taken: dict[str, Any], total: int) -> int | None:
    """Steps between evaluations: as given, as a resumed run had them, or so that a run has about ten; None where
    they are counted by epochs.
    """
    if training.evals_per_epoch is not None:
        return None
    if "eval_steps" in explicitly_set(training):
        return training.eval_steps
    if taken:  # of a version that derived none: its default
        return int(taken.get("eval_steps") or training.eval_steps)
    return max(1, round(total / _EVALUATIONS))


def evaluations_of(training: TrainingConfig, eval_steps: int | None, total: int, an_epoch: int) -> int:
    """Evaluations of a run after steps, the last step included.

    Args:
        eval_steps: what eval_steps_of gave.
        total, an_epoch: steps of the run and of an epoch.
    """
    if eval_steps is not None:
        return -(-total // eval_steps)
    return -(-total * (training.evals_per_epoch or 0) // an_epoch)


def replayed_of(
    request: TrainRequest, data: PreparedData, mixture: Mixture | Mixed | None, *, epochs: float
) -> Taken | None:
    """What the first epoch takes of the old rows; what is to be said of them joins the lines about the data."""
    if not isinstance(mixture, Mixture | Replayed):
        return None
    first, run, share = mixture.taken(1), mixture.taken(max(1, round(epochs))), mixture.share
    data.lines.append(
        localized(
            f"以前のデータ: {len(data.old):,} 行のうち 1 エポックに {first.rows:,} 行（学習対象 {first.label_tokens:,} トークン、実行全体の "
            f"{run.share:.1%}）",
            f"replay: {first.rows:,} of {len(data.old):,} old rows an epoch ({first.label_tokens:,} label tokens; "
            f"{run.share:.1%} of the run's)",
        )
    )
    if first.passes > 1:
        data.lines.append(
            localized(
                f"以前のデータが少ないため、1 エポックに約 {first.passes:.1f} 回ずつ繰り返します（data.replay.share を下げるか、行を増やせます）",
                f"replay: there are few old rows, so that each is repeated about {first.passes:.1f} times an epoch "
                "(lower data.replay.share, or give more rows)",
            )
        )
    if abs(run.share - share) > _MISSED * share:
        data.lines.append(
            localized(
                f"以前のデータの割合は、指定の {share:.1%} ではなく {run.share:.1%} になります（行は途中で切らず、学習が短いため）",
                f"replay: the share becomes {run.share:.1%} instead of {share:.1%}: a row is taken whole, and the run is "
                "short",
            )
        )
    return first
