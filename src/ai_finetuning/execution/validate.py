"""What can be refused from the request alone: keys, files, folders, heads. Needs no torch, so that it answers at once."""

from __future__ import annotations

import importlib.util
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..config.data import ReplayConfig
from ..config.mixture import Sources
from ..config.run import RunConfig
from ..config.section import require
from ..data.files import find_data
from ..errors import ConfigError, InputNotFoundError
from ..japanese.templates import template_text
from ..models.hub import on_disk
from ..models.source import ModelSource, find_model, find_tokenizer
from ..parallel.limits import validate_heads
from ..runs.folder import validate_folder
from .adapter_start import refuse_own_base, with_adapter_settings
from .sources import config_source

TRACKER_PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}


def validate_config(config: RunConfig) -> None:
    """Refuses settings that name what is not there.

    Raises:
        ToolkitError: with name, value, rule and way out.
    """
    training = config.training
    if config.model.chat_template is not None:
        template_text(config.model.chat_template)
    with_adapter_settings(config)
    refuse_own_base(config)
    _validate_trackers(training.runtime.report_to)
    _validate_resume(training.checkpoint.resume_from_checkpoint)
    validate_folder(Path(training.output_dir))


def validate_data(train: Any, eval_data: Any = None, replay: ReplayConfig | None = None) -> None:
    """Refuses a run without data, and data files that are not there.

    Args:
        train, eval_data: what the trainers take; only names of files are looked at.
        replay: rows of an earlier training.

    Raises:
        ConfigError: no training data. InputNotFoundError: no such file. DataError: a kind of file that cannot be read.
    """
    if train is None:
        raise ConfigError(
            "学習データがありません。train_texts か train_dataset（設定では data.train）を指定してください。",
            "there is no training data; give train_texts or train_dataset (in a configuration: data.train).",
        )
    _refuse_share(eval_data)
    old = _files(config_source(replay.path)) if replay is not None else []
    named = [_files(train), _files(eval_data)]
    for files, others in (*zip(named, reversed(named), strict=True), (old, named[0])):
        for item in files:
            find_data(item, other_than=others)


def _files(source: Any) -> list[Any]:
    """The names of files that a source of data is."""
    items = source.paths if isinstance(source, Sources) else source if isinstance(source, list) else [source]
    return [item for item in items if isinstance(item, Path) or (isinstance(item, str) and item is source)]


def _refuse_share(source: Any) -> None:
    """Refuses a number or a percentage that was meant as a share of the rows.

    Raises:
        ConfigError: with the share as it is written.
    """
    text = unicodedata.normalize("NFKC", str(source)).strip() if isinstance(source, str | Path) else ""
    number = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)\s*(%?)", text)
    if number is None or Path(str(source)).exists():
        return
    value = float(number[1])
    share = value / 100 if value >= 1 else value
    example = f"{share:g}" if 0 < share < 1 else "0.1"
    raise ConfigError(
        f"data.eval が {source} です。そのような名前のファイルはありません。学習データの一部を評価に使うなら、0 より大きく 1 より小さい割合で書いてください（例: data.eval={example}）。",
        f"data.eval is {source}, and there is no file of that name. To set rows of the training data aside, write a share above "
        f"0 and below 1 (such as data.eval={example}).",
    )


def validate_evaluation(config: RunConfig, eval_data: Any) -> None:
    """Refuses settings that read the evaluation loss in a run that has none.

    Args:
        eval_data: what the trainers take.

    Raises:
        ConfigError: load_best or early_stopping_patience without evaluation data.
    """
    if eval_data is not None:
        return
    training = config.training
    for name, value in (
        ("checkpoint.load_best", training.checkpoint.load_best or None),
        ("runtime.early_stopping_patience", training.runtime.early_stopping_patience),
    ):
        require(
            value is None,
            f"training.{name}",
            value,
            "評価データがないと使えません。data.eval に評価用のファイルか、学習データから分ける割合（0.1 など）を指定してください。",
            "it needs evaluation data: give data.eval a file, or a share of the training rows (0.1).",
        )


def validate_streaming(config: RunConfig, train: Any, eval_data: Any) -> None:
    """Refuses data of a script that cannot be streamed; settings are refused with the configuration.

    Args:
        train, eval_data: what the trainers take.

    Raises:
        ConfigError: data.streaming with rows in memory, or with a share as evaluation data.
    """
    if not config.data.streaming:
        return
    files = train if isinstance(train, list) else [train]
    require(
        bool(files) and all(isinstance(item, Path) or (isinstance(item, str) and item is train) for item in files),
        "data.streaming",
        True,
        "ストリーミングで読めるのはファイルです。ファイルのパス（Path か、そのリスト）を渡すか、data.streaming を消してください。",
        "only files are streamed: give their paths (a Path, or a list of them), or remove data.streaming.",
    )
    require(
        not isinstance(eval_data, float),
        "data.eval",
        eval_data,
        "data.streaming: true では割合を使えません。評価用のファイルを指定するか、data.streaming を消してください。",
        "a share of rows does not go with data.streaming: name a file of evaluation data, or remove data.streaming.",
    )


def find_base(config: RunConfig) -> ModelSource:
    """Where the base of a configuration is; refuses one that the settings do not fit.

    Raises:
        ToolkitError: it cannot be found, or cannot be trained as asked.
    """
    if config.method == "pretrain":
        folder = on_disk(config.model.name)
        if folder is None:
            raise missing_tokenizer(config.model.name)
        return find_tokenizer(config.model.name)
    source = find_model(config.model.name, trust_remote_code=config.model.trust_remote_code)
    validate_source(config, source)
    return source


def missing_tokenizer(name: str) -> InputNotFoundError:
    """The refusal of a model from scratch without a tokenizer's folder."""
    return InputNotFoundError(
        f"method: pretrain の model.name は、トークナイザーのあるフォルダーです。{name} はありません（aift tokenizer train で作れます）。",
        f"with method: pretrain model.name is a folder with a tokenizer; {name} does not exist (aift "
        "tokenizer train makes one).",
    )


def validate_source(config: RunConfig, source: ModelSource) -> None:
    """Refuses what a model's config.json rules out.

    Raises:
        ConfigError: heads that tensor_parallel_size does not divide.
    """
    size = config.parallel.tensor_parallel_size
    heads, shared = source.text.get("num_attention_heads"), source.text.get("num_key_value_heads")
    if size > 1 and isinstance(heads, int):
        validate_heads(heads, shared if isinstance(shared, int) and shared > 0 else heads, size)


def _validate_trackers(names: Sequence[str]) -> None:
    for name in names:
        if importlib.util.find_spec(TRACKER_PACKAGES[name]) is None:
            raise ConfigError(
                f"training.runtime.report_to が {name} ですが、{TRACKER_PACKAGES[name]} がありません。pip install "
                f"{TRACKER_PACKAGES[name]} してください。",
                f"training.runtime.report_to is {name}, but {TRACKER_PACKAGES[name]} is not installed: pip install "
                f"{TRACKER_PACKAGES[name]}.",
            )


def _validate_resume(expected: str | None) -> None:
    if expected is None or expected == "auto" or Path(expected).is_dir():
        return
    raise InputNotFoundError(
        f"resume_from_checkpoint が {expected} ですが、そのフォルダーはありません。auto で最新を使えます。",
        f"resume_from_checkpoint is {expected}, which is not a folder; `auto` uses the newest checkpoint.",
    )
