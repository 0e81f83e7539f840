"""Which data a trainer's call means."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..config.mixture import Sources, sources_of
from ..config.section import with_values
from ..config.training import TrainingConfig
from ..data.files import matching
from ..errors import ConfigError


def choose_sources(trainer: Any, train_texts: Any, eval_texts: Any) -> tuple[Any, Any]:
    """(training data, evaluation data) of a call: arguments, the trainer's data sets, or DataConfig's files.

    Raises:
        ConfigError: the same thing given twice; nothing is preferred silently.
    """
    return (
        _one(
            "train_texts",
            train_texts,
            "train_dataset",
            trainer.train_dataset,
            "data.train",
            config_source(trainer.data.train),
        ),
        _one(
            "eval_texts",
            eval_texts,
            "eval_dataset",
            trainer.eval_dataset,
            "data.eval",
            config_source(trainer.data.eval),
        ),
    )


def _one(*named: Any) -> Any:
    given = [(named[index], named[index + 1]) for index in range(0, len(named), 2) if named[index + 1] is not None]
    if len(given) > 1:
        names = ", ".join(name for name, _ in given)
        raise ConfigError(
            f"{names} が両方指定されています。どのデータを使うか決められないので、1 つだけにしてください。",
            f"{names} are both given; give only one of them.",
        )
    return given[0][1] if given else None


def config_source(value: Any) -> Any:
    """What DataConfig names: files are paths, never texts; entries with shares or passes are Sources.

    Raises:
        InputNotFoundError: a pattern that no file matches.
    """
    sources = sources_of(value)
    if sources is not None:
        entries = (replace(entry, path=tuple(_found(entry.path))) for entry in sources.entries)
        return Sources(tuple(entries))
    if isinstance(value, list):
        return [Path(item) for item in _found(value)]
    found = _found([value]) if isinstance(value, str) else [value]
    return value if found == [value] else [Path(item) for item in found]


def _found(paths: Iterable[str]) -> list[str]:
    """The paths, with what patterns such as `corpus/*.jsonl` mean in their place."""
    return [found for path in paths for found in matching(path)]


def with_resume(config: TrainingConfig, resume_from_checkpoint: str | bool | None) -> TrainingConfig:
    """The training settings with the call's resume_from_checkpoint; True, as other trainers write it, means auto."""
    if resume_from_checkpoint is None or resume_from_checkpoint is False:
        return config
    expected = "auto" if resume_from_checkpoint is True else str(resume_from_checkpoint)
    return with_values(config, checkpoint=with_values(config.checkpoint, resume_from_checkpoint=expected))
