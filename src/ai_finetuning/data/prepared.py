"""Data that `aift data prepare` made, as the data of a run: opened where the run would make the same tokens."""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..config.data import DataConfig
from ..config.preference import Objective
from ..config.section import explicitly_set
from ..errors import ConfigError, DataError, localized
from ..messages import argument
from ..system.files import sha256_of
from .cache import tokenizer_digest
from .encode_report import EncodeReport
from .store.mapped import MANIFEST, Manifest, Source, StoredExamples, is_store, open_store
from .store.preparing import lines_of, settings_of

# Settings that the run itself goes by as well; the others are those of reading the files, which is done.
_OF_THE_RUN = ("max_length", "on_long", "loss_on", "system_prompt")
# Bytes of a file up to which it is hashed to know whether it has changed.
_HASHED = 2**25


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
            f"{found[0]} は用意したデータのフォルダーで、ほかのデータと並べられません。元のファイルをまとめて `aift data prepare` で用意してください。"
            "data.train では、それぞれを別の項目（[{path: ...}, {path: ...}]）にしても使えます。",
            f"{found[0]} is a folder of prepared data, which cannot be listed with other data; prepare all the files together "
            "with `aift data prepare`. In data.train each may be an entry of its own too: [{path: ...}, {path: ...}].",
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
    _check_tokens(folder, manifest, tokenizer)
    lines = lines_of(manifest, manifest.settings.get("max_samples"))
    return examples, manifest.report, lines + _changed_sources(folder, manifest)


def look_into(folder: Path, tokenizer: Any) -> tuple[StoredExamples, EncodeReport, list[str]]:
    """The same for people who look at what is there, whatever it was prepared for and with.

    Raises:
        ConfigError: it was prepared for another tokenizer. DataError: it is damaged.
    """
    examples, manifest = open_store(folder)
    _check_tokens(folder, manifest, tokenizer)
    return examples, manifest.report, lines_of(manifest, manifest.settings.get("max_samples"))


def _check_tokens(folder: Path, manifest: Manifest, tokenizer: Any) -> None:
    """Refuses tokens of another tokenizer.

    Raises:
        ConfigError, DataError: see open_prepared.
    """
    if manifest.tokenizer != tokenizer_digest(tokenizer):
        raise ConfigError(
            f"{folder} は別のトークナイザーかチャットテンプレートで用意したデータです。この実行の model と設定で `aift data prepare` をやり直してください。",
            f"{folder} was prepared for another tokenizer or chat template; run `aift data prepare` again with the model and the "
            "settings of this run.",
        )
    most = max(tokenizer.get_vocab().values(), default=0)
    if manifest.largest > most:
        raise DataError(
            f"{folder} の tokens.json にある最大のトークン番号 {manifest.largest} は、トークナイザーの最大の番号 {most} を超えています。このフォルダーのデータは"
            "使わず、`aift data prepare` で作り直してください。",
            f"tokens.json of {folder} names {manifest.largest} as its largest token id, and the tokenizer's largest is {most}; do "
            "not use this folder, and prepare the data anew with `aift data prepare`.",
        )


def _changed_sources(folder: Path, manifest: Manifest) -> list[str]:
    """A line where files are not what they were when they were prepared, as far as that is told by their sizes, and by the
    hashes of small ones that were written since. Files that are not there any more are nobody's concern.
    """
    changed = [source.path for source in manifest.sources if _has_changed(Path(source.path), source, folder)]
    if not changed:
        return []
    some = ", ".join(changed[:3])
    return [
        localized(
            f"{folder} を用意してから元のファイルが変わりました（{some}）。学習するのは用意したときの行です。変わった行を使うには `aift data prepare` をやり直してください",
            f"files have changed since {folder} was prepared from them ({some}): the rows of then are trained; to use those of "
            "now, run `aift data prepare` again",
        )
    ]


def _has_changed(path: Path, source: Source, folder: Path) -> bool:
    try:
        now = path.stat()
        if not stat.S_ISREG(now.st_mode):
            return False
        if now.st_size != source.bytes:
            return True
        newer = now.st_mtime > (folder / MANIFEST).stat().st_mtime
        return newer and now.st_size <= _HASHED and bool(source.sha256) and sha256_of(path) != source.sha256
    except OSError:
        return False


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
    before, own, given = _whole(manifest.settings), _whole(settings_of(config)), _given(config)
    different = [
        name
        for name, value in own.items()
        if before.get(name) != value and (name in _OF_THE_RUN or name.partition(".")[0] in given)
    ]
    if different:
        name = different[0]
        was, now = (f"data.{name}={_written(value)}" for value in (before.get(name), own[name]))
        raise ConfigError(
            f"{folder} は {was} で用意したデータですが、この実行は {now} です。{argument(was)} を指定するか、`aift data prepare` をやり直してください。",
            f"{folder} was prepared with {was}, and this run says {now}; set {argument(was)}, or run `aift data prepare` again.",
        )


def _whole(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with the roles of columns as one of them."""
    columns = {name.partition(".")[2]: role for name, role in settings.items() if name.startswith("columns.")}
    rest = {name: value for name, value in settings.items() if not name.startswith("columns.")}
    return rest | {"columns": columns or None}


def _written(value: Any) -> str:
    """A value as a setting on the command line takes it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _given(config: DataConfig) -> Sequence[str]:
    """The settings of `data` that the user wrote."""
    return [*explicitly_set(config), *(["normalize"] if explicitly_set(config.normalize) else [])]
