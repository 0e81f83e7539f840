"""Data that `aift data prepare` made, as the data of a run: opened where the run would make the same tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..config.data import DataConfig
from ..config.preference import Objective
from ..config.section import explicitly_set
from ..errors import ConfigError, DataError
from .cache import tokenizer_digest
from .encode_report import EncodeReport
from .store.mapped import Manifest, StoredExamples, is_store, open_store
from .store.preparing import lines_of, settings_of

# Settings that the run itself goes by as well; the others are those of reading the files, which is done.
_OF_THE_RUN = ("max_length", "on_long", "loss_on", "system_prompt")


def prepared_folder(source: Any) -> Path | None:
    """The prepared folder that is a source of data; None for other data.

    Raises:
        DataError: it is one of several sources.
    """
    items = source if isinstance(source, list | tuple) else [source]
    folders = [Path(item) for item in items if isinstance(item, Path) or (isinstance(item, str) and item is source)]
    found = [folder for folder in map(_at_home, folders) if is_store(folder)]
    if not found:
        return None
    if len(items) > 1:
        raise DataError(
            f"{found[0]} は用意したデータのフォルダーで、ほかのデータと並べられません。元のファイルをまとめて `aift data prepare` で用意してください。",
            f"{found[0]} is a folder of prepared data, which cannot be listed with other data; prepare all the files together "
            "with `aift data prepare`.",
        )
    return found[0]


def _at_home(folder: Path) -> Path:
    """With `~` for the home folder; as it is where nobody has such a home."""
    try:
        return folder.expanduser()
    except RuntimeError:
        return folder


def open_prepared(
    folder: Path, tokenizer: Any, config: DataConfig, objective: Objective = "sft"
) -> tuple[StoredExamples, EncodeReport, list[str]]:
    """(examples, report, lines) of a prepared folder.

    Raises:
        ConfigError: it was prepared for another tokenizer, or with other settings. DataError: it is damaged.
    """
    examples, manifest = open_store(folder)
    _check_objective(folder, manifest, objective)
    _check_settings(folder, manifest, config)
    if manifest.tokenizer != tokenizer_digest(tokenizer):
        raise ConfigError(
            f"{folder} は別のトークナイザーかチャットテンプレートで用意したデータです。この実行の model と設定で `aift data prepare` をやり直してください。",
            f"{folder} was prepared for another tokenizer or chat template; run `aift data prepare` again with the model and the "
            "settings of this run.",
        )
    return examples, manifest.report, lines_of(manifest, manifest.settings.get("max_samples"))


def _check_objective(folder: Path, manifest: Manifest, objective: Objective) -> None:
    before = manifest.settings.get("objective", "sft")
    if before != objective:
        raise ConfigError(
            f"{folder} は objective: {before} で用意したデータですが、この実行は objective: {objective} です。objective を合わせるか、"
            "`aift data prepare` をやり直してください。",
            f"{folder} was prepared with objective: {before}, and this run says objective: {objective}; use the same, or run "
            "`aift data prepare` again.",
        )


def _check_settings(folder: Path, manifest: Manifest, config: DataConfig) -> None:
    own, given = settings_of(config), _given(config)
    different = [
        name
        for name, value in own.items()
        if manifest.settings.get(name) != value and (name in _OF_THE_RUN or name.partition(".")[0] in given)
    ]
    if different:
        name = different[0]
        before = manifest.settings.get(name)
        raise ConfigError(
            f"{folder} は data.{name}={before} で用意したデータですが、この実行は data.{name}={own[name]} です。data.{name}={before} を指定するか、"
            "`aift data prepare` をやり直してください。",
            f"{folder} was prepared with data.{name}={before}, and this run says data.{name}={own[name]}; set "
            f"data.{name}={before}, or run `aift data prepare` again.",
        )


def _given(config: DataConfig) -> Sequence[str]:
    """The settings of `data` that the user wrote."""
    return [*explicitly_set(config), *(["normalize"] if explicitly_set(config.normalize) else [])]
