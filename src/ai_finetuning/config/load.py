"""YAML and `key=value` to RunConfig, strictly."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import ConfigError, InputNotFoundError, Problem, Reason, UsageError
from ..messages import argument
from .fields import field_names, fields_of, options_of, section_class
from .full_width import full_width
from .hints import hint, near_files
from .mixture import with_paths
from .other_tools import OTHER_TOOLS
from .run import RunConfig
from .run_folder import CONFIG
from .section import build, explicitly_set, settings_by_name, validate_keys
from .shortened import cut, shortened
from .yaml_text import MAX_BYTES, key_lines, parse_yaml

# Flags that stand for a field, as users type them.
FLAGS = {
    "resume": "training.checkpoint.resume_from_checkpoint",
    "restart": "training.checkpoint.restart",
    "allow_changed": "training.checkpoint.allow_changed",
}
_TRUST = ("model", "trust_remote_code")
_UNTRUSTED = Problem(
    "model.trust_remote_code は設定ファイルでは true にできません。コードを読んで信頼できるモデルだけ、コマンドラインで aift train ... model.trust_remote_code=true と指定してください。",
    "model.trust_remote_code cannot be true in a file. If you have read the model's code and trust it, say so on the "
    "command line: aift train ... model.trust_remote_code=true.",
    ".".join(_TRUST),
)
# Ends of names of data files that people give in place of settings.
_DATA = set(
    [
        ".csv",
        ".tsv",
        ".xlsx",
        ".xls",
        ".jsonl",
        ".txt",
        ".parquet",
        ".arrow",
        ".gz",
        ".zst",
        ".xz",
        ".bz2",
        ".zip",
        ".md",
        ".docx",
        ".pdf",
    ]
)
# What an input method or a word processor writes for the -- of an option.
_WIDE_DASHES = "－ー―—–‐−"
# Settings that name data.
_FILES = {("data", "train"), ("data", "eval"), ("data", "replay", "path")}
# Names that a line lists.
_SHOWN = 8


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration of a run.

    Args:
        path: a YAML file, or None for overrides alone. It cannot set model.trust_remote_code; an override can. At its top a setting may also stand without its section, as on
            the command line: `learning_rate: 1e-4`.
        overrides: `key=value`, `--key value`, `--key=value`; a key may be bare where one section has it.

    Raises:
        InputNotFoundError: no such file. ConfigError: unknown keys, values that cannot be, a setting that the file
            gives twice; all of them at once, with their lines. UsageError: an override that is no `key=value`.
    """
    if path is None:
        return _home(_load(_File("", {}, {}, []), overrides))
    try:
        return _home(_load(_read(Path(path)), overrides))
    except ConfigError as error:
        raise _with_full_width(error, Path(path)) from error


def load_text(text: str, name: str) -> RunConfig:
    """The configuration of a YAML text, as load_config reads a file.

    Args:
        name: what messages call it.

    Raises:
        ConfigError: as load_config's.
    """
    return _home(_load(_of_text(text, name), ()))


def _load(file: _File, overrides: Sequence[str]) -> RunConfig:
    """The configuration of a file's values and of the overrides."""
    values, problems = file.values, file.problems
    trusted = _trusts(values)
    for key, text in parse_overrides(overrides):
        try:
            whole = _section(key, text)
            if whole is not None:
                _put(values, *whole)
                continue
            path_of_key, kind = resolve_key(key)
            # `--resume` alone means the newest checkpoint.
            value = "auto" if (key, text) == ("resume", "true") else _value(text, kind, path_of_key)
        except ConfigError as error:
            problems += error.problems
            continue
        file.lines.pop(".".join(path_of_key), None)  # what is wrong now is no longer the file's
        _put(values, path_of_key, value)
        trusted = trusted and path_of_key != _TRUST
    if trusted:
        problems.append(_UNTRUSTED)
    try:
        built = build(RunConfig, _with_model_section(values))
    except ConfigError as error:
        # A rule between settings is looked at where every setting by itself is right.
        problems += [item for item in error.problems if item.key or not problems]
    if problems:
        raise _refusal(file, problems)
    return built


def _section(key: str, text: str) -> tuple[tuple[str, ...], dict[str, Any]] | None:
    """(path, its values) of an override that gives a whole section: `data.replay={path: FILE, share: 0.1}`."""
    path = tuple(key.split("."))
    if not text.lstrip().startswith("{") or section_class(fields_of(RunConfig).get(path)) is None or path == ("model",):
        return None
    plain = parse_yaml(text, key)
    return (path, plain) if isinstance(plain, dict) else None


def _with_full_width(error: ConfigError, path: Path) -> ConfigError:
    """The refusal of a file, with the full-width characters that are likely why."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError):
        return error
    keys = {name for path in fields_of(RunConfig) for name in path}
    found = full_width(text, keys)[:_SHOWN]
    if not found:
        return error
    ja = "".join(f"{path} の {item.line} 行目 {item.column} 文字目: {item.what.ja}。\n" for item in found)
    en = "".join(f"{path}, line {item.line}, character {item.column}: {item.what.en}.\n" for item in found)
    return ConfigError(ja + error.ja, en + error.en, error.problems)


def _home(config: RunConfig) -> RunConfig:
    """The configuration with `~` in its paths as the home folder, which shells leave as it is behind a `=`."""
    for section, name in (
        (config.model, "name"),
        (config.data, "train"),
        (config.data, "eval"),
        (config.data.replay, "path"),
        (config.lora, "adapter"),
        (config.training, "output_dir"),
        (config.training.checkpoint, "resume_from_checkpoint"),
    ):
        value = getattr(section, name)
        if name in explicitly_set(section):
            setattr(section, name, with_paths(value, _expanded))
    return config


def _expanded(value: Any) -> Any:
    return os.path.expanduser(value) if isinstance(value, str) and not os.path.exists(value) else value


def _trusts(values: Mapping[str, Any]) -> bool:
    """Whether a file asks for the code of a model's repository: it may come from anybody, so it cannot allow that."""
    section, name = _TRUST
    model = values.get(section)
    return isinstance(model, Mapping) and model.get(name) is True


@dataclass(frozen=True)
class _File:
    """A YAML file as it was read.

    Attributes:
        name: for messages.
        values: by section.
        lines: of its settings, by dotted name, and of its unknown keys.
        problems: keys that no section has, and settings given twice.
    """

    name: str
    values: dict[str, Any]
    lines: dict[str, int]
    problems: list[Problem]


def _wide_mark(text: str) -> str | None:
    return next((mark for mark in "＝：" if mark in text), None)


def _instead(path: Path) -> Reason:
    """What was meant by the name of a settings file that is not there: a setting with a full-width sign, another file."""
    wide = _wide_mark(str(path))
    if wide is not None:
        return Reason(
            f"設定を書くときは、全角の「{wide}」ではなく半角の = を使ってください（例: learning_rate=1e-4）。",
            f" To write a setting use a plain =, not {wide} (learning_rate=1e-4).",
        )
    if str(path)[0] in _WIDE_DASHES:
        return Reason(
            f"オプションは「{str(path)[0]}」ではなく半角の -- で始めてください（例: --dry-run）。",
            f" An option begins with --, not with {str(path)[0]} (--dry-run).",
        )
    return near_files(path, (".yaml", ".yml", *_DATA))


def _read(path: Path) -> _File:
    _refuse_other_files(path)
    try:
        if path.is_file() and path.stat().st_size > MAX_BYTES:
            raise ConfigError(
                f"{path} は 1 MiB を超えています。設定ファイルですか？",
                f"{path} is larger than 1 MiB; is it a configuration file?",
            )
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        near = _instead(path)
        raise InputNotFoundError(
            f"設定ファイル {path} がありません。{near.ja}", f"there is no configuration file {path}.{near.en}"
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"設定ファイル {path} を UTF-8 として読めません（{error.start + 1} バイト目）。UTF-8 で保存し直してください。",
            f"configuration file {path} cannot be read as UTF-8 (byte {error.start + 1}); save it as UTF-8.",
        ) from None
    except OSError as error:
        raise ConfigError(
            f"設定ファイル {path} を開けません（{type(error).__name__}）。ファイルの名前と権限を確認してください。",
            f"configuration file {path} cannot be opened ({error}); check its name and permissions.",
        ) from None
    return _of_text(text, str(path))


def _of_text(text: str, name: str) -> _File:
    values = parse_yaml(text, name)
    if values is None:
        return _File(name, {}, {}, [])
    if not isinstance(values, dict):
        shown = argument(name)
        raise ConfigError(
            f"{name} の一番外側はキーと値の組にしてください（model:, data:, training: など）。学習データなら data.train={shown} のことですか。",
            f"{name}: the outermost level must be keys and values (model:, data:, training:, ...). If it is training data: "
            f"data.train={shown}.",
        )
    return _in_sections(_with_model_section(values), key_lines(text), name)


def _refuse_other_files(path: Path) -> None:
    """Refuses a folder, and a file that by its name is data, in place of settings, with what to type.

    Raises:
        ConfigError: it is there. InputNotFoundError: it is not.
    """
    shown = argument(path)
    if path.is_dir():
        ja, en = f"{path} は設定ファイルではなくフォルダーです。", f"{path} is a folder, not a configuration file."
        if (path / CONFIG).is_file():
            again = argument(path / CONFIG)
            raise ConfigError(
                f"{ja}同じ設定でもう一度学習するなら aift train {again}、続きから再開するなら aift resume {shown} を使ってください。",
                f"{en} To train again by its settings: aift train {again}; to go on with it: aift resume {shown}.",
            )
        raise ConfigError(
            f"{ja}モデルなら model={shown}、学習データなら data.train={shown} のことですか。",
            f"{en} Did you mean model={shown}, or data.train={shown} if it holds training data?",
        )
    if path.suffix.lower() not in _DATA:
        return
    if path.is_file():
        raise ConfigError(
            f"{path} は設定ファイル（YAML）ではありません。学習データなら data.train={shown} のことですか（例: aift train model=モデル data.train={shown}）。",
            f"{path} is no configuration file (YAML). Did you mean data.train={shown} (as in aift train model=MODEL "
            f"data.train={shown})?",
        )
    raise InputNotFoundError(
        f"{path} がありません。学習データを指定するなら data.train=FILE、設定ファイルなら YAML のファイルを指定してください。",
        f"there is no {path}. Name training data with data.train=FILE, and settings by a YAML file.",
    )


def _in_sections(values: dict[Any, Any], lines: Mapping[tuple[str, ...], int], name: str) -> _File:
    """The values of a file, with what stands flat at its top put into its section."""
    sections = {key: value for key, value in values.items() if key in field_names(RunConfig)}
    file = _File(name, sections, {".".join(path): line for path, line in lines.items()}, [])
    given = {path: line for path, line in lines.items() if path[0] in sections}
    given.setdefault(("model", "name"), given.get(("model",), 0))  # `model: NAME` has no line of its own for it
    for key, value in values.items():
        if key in sections:
            continue
        line = lines.get((str(key),), 0)
        try:
            path, _ = resolve_key(str(key))
        except ConfigError as error:
            file.problems.extend(error.problems)
            continue
        dotted = ".".join(path)
        if _has(sections, path):
            other = given.get(path, given.get(path[:1], 0))  # YAML's merge key (<<) has brought it: its section's line
            file.problems.append(
                Problem(
                    f"{dotted} が 2 回あります（{other} 行目と {line} 行目の {cut(key)}）。一方を消してください。",
                    f"{dotted} is given twice (line {other}, and {cut(key)} on line {line}); remove one.",
                    str(key),
                )
            )
            continue
        given[path] = file.lines[dotted] = line
        _put(sections, path, "auto" if (key, value) == ("resume", True) else value)
    return file


def _has(values: Any, path: Sequence[str]) -> bool:
    for part in path:
        if not isinstance(values, dict) or part not in values:
            return False
        values = values[part]
    return True


def _refusal(file: _File, problems: Sequence[Problem]) -> ConfigError:
    """All problems in the order of the file, each with its line; those of the command line at the end."""
    placed = []
    for item in problems:
        line = file.lines.get(item.key)
        where = (f"{file.name} の {line} 行目: ", f"{file.name}, line {line}: ") if line else ("", "")
        placed.append((line or sys.maxsize, Problem(where[0] + item.ja, where[1] + item.en, item.key)))
    placed.sort(key=lambda item: item[0])
    refusal = ConfigError.of([problem for _, problem in placed])
    foreign = [cut(item.key) for item in problems if item.key.split(".")[-1] in OTHER_TOOLS and item.key in file.lines]
    if not foreign:
        return refusal
    names = ", ".join(foreign[:_SHOWN]) + (", ..." if len(foreign) > _SHOWN else "")
    return ConfigError(
        f"{refusal.ja}\n{names} は LLaMA-Factory、Axolotl、TRL などの設定です。そのファイルは aift import {argument(file.name)} で本ツールの設定に変換できます。",
        f"{refusal.en}\n{names}: settings of LLaMA-Factory, Axolotl or TRL; aift import {argument(file.name)} turns their files "
        "into ours.",
        refusal.problems,
    )


def _with_model_section(values: dict[str, Any]) -> dict[str, Any]:
    """`model: NAME` means `model: {name: NAME}`."""
    return values | {"model": {"name": values["model"]}} if isinstance(values.get("model"), str) else values


def parse_overrides(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """(key, text of the value) of every override; a flag without a value is `true`.

    Raises:
        UsageError: an argument that is neither.
    """
    obtained: list[tuple[str, str]] = []
    items = list(arguments)
    while items:
        item = items.pop(0)
        if item.startswith("--") and "=" not in item:
            value = items.pop(0) if items and not items[0].startswith("--") and not _is_override(items[0]) else "true"
            obtained.append((_plain_key(item), value))
        elif _is_override(item.removeprefix("--")):
            key, _, value = item.partition("=")
            obtained.append((_plain_key(key), value))
        else:
            wide = _wide_mark(item)
            ja, en = (
                (f"全角の「{wide}」ではなく半角の = を使い、", f" with a plain =, not {wide};") if wide else ("", "")
            )
            raise UsageError(
                f"引数 {shortened(item)} を解釈できません。{ja}key=value か --key value で書いてください（例: training.learning_rate=1e-4）。",
                f"argument {shortened(item)} cannot be understood; write key=value or --key value{en} "
                "(training.learning_rate=1e-4).",
            )
    return obtained


def _is_override(item: str) -> bool:
    return re.match(r"^[A-Za-z][\w.\-]*=", item) is not None


def _plain_key(key: str) -> str:
    return key.removeprefix("--").replace("-", "_")


def resolve_key(key: str) -> tuple[tuple[str, ...], Any]:
    """The path of a dotted or bare key, and its type.

    Raises:
        ConfigError: no section has it, or several have.
    """
    fields = fields_of(RunConfig)
    expected = tuple(FLAGS.get(key, key).split("."))
    if expected == ("model",):
        expected = ("model", "name")
    if expected in fields and section_class(fields[expected]) is None:
        return expected, fields[expected]
    # Parts of the path may be left out: learning_rate, schedule.name, training.resume_from_checkpoint.
    matches = [path for path in fields if _abbreviates(expected, path) and section_class(fields[path]) is None]
    if len(matches) == 1:
        return matches[0], fields[matches[0]]
    if len(matches) > 1:
        names = ", ".join(".".join(path) for path in matches)
        raise ConfigError.of(
            [
                Problem(
                    f"キー {key} は {names} のどれか決められません。セクション名を付けてください。",
                    f"key {key} could be {names}; write the section's name with it.",
                    key,
                )
            ]
        )
    if len(expected) == 2 and (expected[0],) in fields:
        section = section_class(fields[(expected[0],)])
        if section is not None:
            validate_keys(section, [expected[1]])
    if expected in fields or (len(expected) == 1 and any(path[0] == expected[0] for path in fields)):
        raise _is_section(expected, fields)
    listed = Reason("aift train --help で一覧を見られます。", "aift train --help lists them.")
    meant = hint(expected[-1], field_names(RunConfig), settings_by_name(), listed)
    raise ConfigError.of(
        [Problem(f"{cut(key)} というキーはありません。{meant.ja}", f"{cut(key)} is not a known key; {meant.en}", key)]
    )


# What people mean who give a section one value.
_MEANT = {"data": "data.train=FILE", "training": "training.learning_rate=1e-4", "lora": "lora.r=16"}


def _is_section(section: tuple[str, ...], fields: Mapping[tuple[str, ...], Any]) -> ConfigError:
    """The refusal of a section's name in place of a setting's."""
    name = ".".join(section)
    inside = [path for path in fields if len(path) == len(section) + 1 and path[: len(section)] == section]
    example = _MEANT.get(name, f"{'.'.join(inside[0])}=..." if inside else f"{name}.KEY=...")
    return ConfigError.of(
        [
            Problem(
                f"{name} は設定のまとまり（セクション）の名前です。{example} のことですか。",
                f"{name} is the name of a section of settings; did you mean {example}?",
                name,
            )
        ]
    )


def _abbreviates(expected: tuple[str, ...], path: tuple[str, ...]) -> bool:
    """Whether a key is a path with some of its sections left out."""
    rest = iter(path)
    return expected[-1] == path[-1] and all(part in rest for part in expected)


def _value(text: str, hint: Any, path: tuple[str, ...]) -> Any:
    """An override's text in the type of its field; what is a text there is taken as it is typed."""
    options, name = options_of(hint), ".".join(path)
    if path in _FILES:
        return _files(text, options)
    kinds = [typing.get_origin(option) for option in options]
    many = list in kinds or tuple in kinds
    only_text = str in options and not many and dict not in kinds
    words = [word for option in options if typing.get_origin(option) is Literal for word in typing.get_args(option)]
    if text in words:
        return text
    if only_text and float not in options and int not in options:
        return None if text == "null" and type(None) in options else text
    plain = parse_yaml(text, name) if text.strip() else text
    if plain is None and type(None) in options:
        return None
    if many and isinstance(plain, str) and "," in plain:
        return [part.strip() for part in plain.split(",")]
    if str in options and (only_text or not isinstance(plain, list | dict)):
        return plain if isinstance(plain, float) and float in options else text
    return [plain] if many and isinstance(plain, str) else plain


def _files(text: str, options: Sequence[Any]) -> Any:
    """Data as it is typed: a file that is there whatever its name, a share, a list or a mapping, else the text."""
    with contextlib.suppress(ValueError):
        if float in options and text.strip() and 0 < float(text) < 1:
            return float(text)
    if text == "null":
        return None
    if os.path.exists(os.path.expanduser(text)):
        return text
    if text.startswith(("[", "{")):
        with contextlib.suppress(ConfigError):
            listed = parse_yaml(text, "data")
            if isinstance(listed, list | dict):  # a mapping is refused by what the setting takes
                return listed
    parts = [part.strip() for part in text.split(",")]
    return parts if len(parts) > 1 and all(parts) else text


def _put(values: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    """Puts a value into copies of its sections; what stands in a section's place and is none stays, to be refused."""
    for part in path[:-1]:
        inner = values.get(part)
        if isinstance(inner, str) and part == "model":
            inner = {"name": inner}
        if inner is not None and not isinstance(inner, dict):
            return
        values[part] = values = dict(inner or {})
    values[path[-1]] = value
