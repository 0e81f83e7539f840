"""One run file of another tool to our settings: read it, recognise the tool, walk its table, build a RunConfig."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import ConfigError, InputNotFoundError, Reason
from ...messages import argument
from ..fields import field_names
from ..run import RunConfig
from ..section import build
from ..yaml_text import MAX_BYTES, MAX_DEPTH, MAX_NODES, parse_plain
from . import axolotl, llamafactory, trl
from .draft import Draft, Entry, Part, Row, Verdict
from .values import Unfit, is_off, shown

VARIABLE = Reason(
    "変数（${...}）は展開しません。値を書いてください", "variables (${...}) are not filled in; write the value"
)
UNUSED = Reason("この学習では使われません", "this run does not use it")


@dataclass(frozen=True)
class Tool:
    """A tool and its tables.

    Attributes:
        name: for `--from`.
        label: as its makers write it.
        marks: keys that only its files have.
        table: their key (with `*`) -> what becomes of it.
        parts: what several keys say together, in the order in which they need each other.
        defaults: theirs, by our names, where the file says nothing.
        required: keys without which their tool does not start.
    """

    name: str
    label: str
    marks: frozenset[str]
    table: Mapping[str, Row]
    parts: tuple[Part, ...]
    defaults: Mapping[str, Any]
    required: tuple[str, ...]


TOOLS = {
    tool.name: tool
    for tool in (
        Tool(
            "llamafactory",
            "LLaMA-Factory",
            llamafactory.MARKS,
            llamafactory.TABLE,
            llamafactory.PARTS,
            llamafactory.DEFAULTS,
            ("model_name_or_path",),
        ),
        Tool(
            "axolotl",
            "Axolotl",
            axolotl.MARKS,
            axolotl.TABLE,
            axolotl.PARTS,
            axolotl.DEFAULTS,
            axolotl.REQUIRED,
        ),
        Tool("trl", "TRL", trl.MARKS, trl.TABLE, trl.PARTS, trl.DEFAULTS, ("model_name_or_path",)),
    )
}
# Files beside run files: (keys that tell them, what they are).
OTHERS: tuple[tuple[frozenset[str], Reason], ...] = (
    (
        frozenset({"zero_optimization", "train_micro_batch_size_per_gpu", "zero_allow_untested_optimizer"}),
        Reason("DeepSpeed の設定です", "a DeepSpeed configuration"),
    ),
    (
        frozenset({"compute_environment", "distributed_type", "num_machines", "rdzv_backend"}),
        Reason("Accelerate の起動設定です", "a launch configuration of Accelerate"),
    ),
    (
        frozenset({"peft_config", "dist_config", "kernel_config", "train_dataset", "model_class"}),
        Reason("LLaMA-Factory v1 の新しい形式です", "LLaMA-Factory's new format v1"),
    ),
)


@dataclass(frozen=True)
class Conversion:
    """A file of theirs, as ours.

    Attributes:
        source: the file.
        tool: whose it is.
        gpus: for how many GPUs.
        entries: what became of each of their keys, in their order; empty keys are in `empty`.
        empty: keys without a value.
        settings: ours, by dotted name.
        comments: why a setting of ours has its value.
        config: the settings, checked; None where something is refused.
    """

    source: str
    tool: Tool
    gpus: int
    entries: tuple[Entry, ...]
    empty: tuple[str, ...]
    settings: Mapping[str, Any]
    comments: Mapping[str, Reason]
    config: RunConfig | None

    def of(self, verdict: Verdict) -> list[Entry]:
        """The keys of one verdict."""
        return [entry for entry in self.entries if entry.verdict is verdict]

    def nested(self) -> dict[str, Any]:
        """Our settings by section."""
        return nest(self.settings)


def convert(path: str | Path, tool: str | None = None, gpus: int = 1) -> Conversion:
    """Reads and converts a run file of another tool.

    Args:
        path: YAML or JSON, at most 1 MiB.
        tool: `llamafactory`, `axolotl` or `trl`; None recognises it by its keys.
        gpus: how many GPUs the run has; their accumulation counts each device, ours all of them.

    Raises:
        InputNotFoundError: no such file. ConfigError: it is no run file of one of the tools, or settings that it
            becomes are refused by ours; what their table refuses is in the result.
    """
    source = Path(path)
    values = read(source)
    chosen = recognise(values, str(path)) if tool is None else _named(tool)
    draft = Draft({key: value for key, value in values.items() if value is not None}, source.parent, gpus)
    _walk(draft, chosen)
    for key in chosen.required:
        if not draft.on(key):
            draft.missing(key, Reason("必要なキーです", "it is needed"))
    config = None
    if not draft.of(Verdict.REFUSED):
        config = build(RunConfig, nest(draft.settings))
    order = {key: place for place, key in enumerate(draft.values)}
    entries = sorted(draft.entries.values(), key=lambda entry: order.get(entry.key, len(order)))
    empty = tuple(key for key, value in values.items() if value is None)
    return Conversion(str(path), chosen, gpus, tuple(entries), empty, draft.settings, draft.comments, config)


def refusal(conversion: Conversion) -> ConfigError:
    """Everything that their file needs and ours lacks, at once."""
    refused = conversion.of(Verdict.REFUSED)
    lines = [(entry.key, entry.reason or Reason("", "")) for entry in refused]
    name, label = conversion.source, conversion.tool.label
    return ConfigError(
        f"{name}（{label}）は変換できません。本ツールにないもの {len(lines)} 件:"
        + "".join(f"\n  {key}: {why.ja}" for key, why in lines)
        + "\nそのキーを消してよければ、消してもう一度 aift import を実行してください。",
        f"{name} ({label}) cannot be converted; {len(lines)} of its keys have nothing like them here:"
        + "".join(f"\n  {key}: {why.en}" for key, why in lines)
        + "\nWhere the run can do without a key, remove it and run aift import again.",
    )


def _named(tool: str) -> Tool:
    if tool.lower() not in TOOLS:
        raise ConfigError(
            f"--from が {tool!r} です。使えるのは {', '.join(TOOLS)} です。",
            f"--from is {tool!r}; it must be one of {', '.join(TOOLS)}.",
        )
    return TOOLS[tool.lower()]


def read(path: Path) -> dict[str, Any]:
    """The values of a file by their keys, in lower case with `_`; safe loading, at most 1 MiB.

    Raises:
        InputNotFoundError: no such file. ConfigError: it cannot be read, is too large, or holds no keys and values.
    """
    try:
        if not path.is_file():
            raise FileNotFoundError
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(
                f"{path} は 1 MiB を超えています。設定ファイルですか？",
                f"{path} is larger than 1 MiB; is it a run file?",
            )
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputNotFoundError(f"ファイル {path} がありません。", f"there is no file {path}.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path} を UTF-8 として読めません（{error.start + 1} バイト目）。",
            f"{path} cannot be read as UTF-8 (byte {error.start + 1}).",
        ) from None
    except OSError as error:
        raise ConfigError(
            f"{path} を開けません（{type(error).__name__}）。", f"{path} cannot be opened ({error})."
        ) from None
    values = _json(text, path) if path.suffix.lower() == ".json" else parse_plain(text, str(path))
    if not isinstance(values, Mapping) or not values:
        raise ConfigError(
            f"{path} にキーと値がありません。LLaMA-Factory、Axolotl、TRL の実行ファイルを指定してください。",
            f"{path} holds no keys and values; give a run file of LLaMA-Factory, Axolotl or TRL.",
        )
    return {str(key).strip().lower().replace("-", "_"): value for key, value in values.items()}


def _json(text: str, path: Path) -> Any:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{path} を JSON として読めません（{type(error).__name__}）。", f"{path} is not valid JSON ({error})."
        ) from None
    _bounded(values, path)
    return values


def _bounded(values: Any, path: Path) -> None:
    """Refuses a JSON file that is larger or nested deeper than settings are, as the YAML reader does."""
    waiting, count = [(values, 1)], 0
    while waiting:
        item, depth = waiting.pop()
        count += 1
        if count > MAX_NODES or depth > MAX_DEPTH:
            raise ConfigError(
                f"{path} の値が多すぎるか、入れ子が深すぎます（{MAX_NODES} 個、{MAX_DEPTH} 段まで）。",
                f"{path} holds too many values or levels (at most {MAX_NODES} and {MAX_DEPTH}).",
            )
        if isinstance(item, Mapping | list):
            waiting += [(below, depth + 1) for below in (item.values() if isinstance(item, Mapping) else item)]


def recognise(values: Mapping[str, Any], name: str) -> Tool:
    """The tool whose keys a file has.

    Raises:
        ConfigError: a file of ours, another kind of file, none of the tools, or two of them.
    """
    keys = set(values)
    _refuse_others(values, keys, name)
    model = {"axolotl": "base_model", "llamafactory": "model_name_or_path", "trl": "model_name_or_path"}
    found = {tool: len(keys & TOOLS[tool].marks) for tool in TOOLS if model[tool] in keys and keys & TOOLS[tool].marks}
    best = [tool for tool, count in found.items() if count == max(found.values())]
    if len(best) == 1:
        return TOOLS[best[0]]
    listed = ", ".join(list(values)[:8])
    if not best:
        raise ConfigError(
            f"{name} は LLaMA-Factory、Axolotl、TRL の実行ファイルに見えません（キー: {listed}）。そうなら --from で指定してください。",
            f"{name} looks like no run file of LLaMA-Factory, Axolotl or TRL (keys: {listed}); if it is one, say it "
            "with --from.",
        )
    raise ConfigError(
        f"{name} は {', '.join(best)} のどれか決められません。--from {best[0]} のように指定してください。",
        f"{name} may be of {' or '.join(best)}; say it, for example --from {best[0]}.",
    )


def _refuse_others(values: Mapping[str, Any], keys: set[str], name: str) -> None:
    sections = [key for key in keys if key in field_names(RunConfig) and isinstance(values[key], Mapping)]
    if sections and not keys & {"base_model", "model_name_or_path"}:
        raise ConfigError(
            f"{name} は本ツールの設定ファイルです（{', '.join(sorted(sections))}）。そのまま aift train {argument(name)} で使えます。",
            f"{name} is a run file of ours already ({', '.join(sorted(sections))}): aift train {argument(name)}.",
        )
    if all(isinstance(value, Mapping) for value in values.values()) and any(
        {"file_name", "hf_hub_url", "ms_hub_url", "script_url"} & value.keys() for value in values.values()
    ):
        _other(name, Reason("LLaMA-Factory の dataset_info.json です", "LLaMA-Factory's dataset_info.json"))
    for marks, what in OTHERS:
        if keys & marks and not keys & {"base_model", "model_name_or_path"}:
            _other(name, what)


def _other(name: str, what: Reason) -> None:
    raise ConfigError(
        f"{name} は{what.ja}。これを使う実行ファイルを指定してください。",
        f"{name} is {what.en}; give the run file that uses it.",
    )


def _walk(draft: Draft, tool: Tool) -> None:
    """Every key by its row, then what keys say together, then the defaults and whatever is left."""
    patterns = [(key, row) for key, row in tool.table.items() if "*" in key]
    for key, value in list(draft.values.items()):
        row = tool.table.get(key) or next((row for name, row in patterns if fnmatch.fnmatchcase(key, name)), None)
        if isinstance(value, str) and "${" in value:
            draft.refuse(key, VARIABLE)
            continue
        if row is None:
            _unknown(draft, key, value, tool)
            continue
        try:
            row(draft, key, value)
        except Unfit as unfit:
            draft.refuse(key, unfit.reason)
    for part in tool.parts:
        draft.attempt(part)
    for path, value in tool.defaults.items():
        draft.default(path, value, Reason(f"{tool.label} の既定値", f"default of {tool.label}"))
    for key in draft.values:
        draft.entries.setdefault(key, Entry(key, draft.values[key], Verdict.DROPPED, (), UNUSED))


def _unknown(draft: Draft, key: str, value: Any, tool: Tool) -> None:
    """A key that the table does not have: dropped where it is off or says a word, refused where it switches something."""
    if is_off(value):
        draft.drop(key, Reason("使っていません", "it is switched off"))
    elif value is True and key.startswith(("use_", "enable_")) or isinstance(value, Mapping):
        draft.refuse(key, Reason("知らない機能です", "it switches on something that is not known here"))
    else:
        draft.drop(
            key,
            Reason(
                f"{tool.label} の知られたキーではありません（{shown(value)}）",
                f"it is no known key of {tool.label} ({shown(value)})",
            ),
            differs=True,
        )


def nest(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names to sections, in the order of our fields."""
    nested: dict[str, Any] = {}
    for path, value in settings.items():
        *sections, name = path.split(".")
        inner = nested
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = value
    return {name: nested[name] for name in field_names(RunConfig) if name in nested}
