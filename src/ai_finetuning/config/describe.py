"""One source, many readers: the docstring below a field is its help, its description in the schema and its row in
docs/settings.md. Lines up to `ja: ` are English, what follows is Japanese.

`python -m ai_finetuning.config.describe` writes the two pages of the documentation again.
"""

from __future__ import annotations

import ast
import functools
import inspect
import json
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import prefers_japanese
from .fields import field_types, fields_of, section_class
from .limits import Texts, allowed
from .plain import to_plain
from .run import RunConfig

PAGES = {"en": "settings.md", "ja": "settings.ja.md"}
COMMAND = "python -m ai_finetuning.config.describe"


@dataclass(frozen=True)
class Setting:
    """One setting of a run.

    Attributes:
        key: dotted, as the YAML and the command line take it.
        default: as YAML writes it.
        ja, en: what it means.
        values_ja, values_en: its choices or its range; empty where its type says all.
        is_section: whether it holds other settings.
    """

    key: str
    default: str
    ja: str
    en: str
    values_ja: str = ""
    values_en: str = ""
    is_section: bool = False

    def text(self, *, japanese: bool) -> str:
        """What it means and which values it takes, for help and schema."""
        meaning, values = (self.ja, self.values_ja) if japanese else (self.en, self.values_en)
        return f"{meaning}（{values}）" if japanese and values else f"{meaning} ({values})" if values else meaning


@functools.cache
def texts_of(cls: type) -> dict[str, Texts]:
    """(Japanese, English) below each field of a configuration class; an empty text where there is none."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    texts = {}
    for field, below in zip(body, body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            en, _, ja = inspect.cleandoc(str(below.value.value)).partition("\nja: ")
            texts[ast.unparse(field.target)] = (" ".join(ja.split()), " ".join(en.split()))
    return texts


def settings(cls: type = RunConfig, prefix: str = "") -> list[Setting]:
    """Every setting of a run, sections before what they hold."""
    obtained = []
    defaults = to_plain(cls())
    for name, hint in field_types(cls).items():
        key = f"{prefix}{name}"
        ja, en = texts_of(cls).get(name, ("", ""))
        nested = section_class(hint)
        if nested is None:
            values_ja, values_en = allowed(hint) or ("", "")
            obtained.append(Setting(key, _shown(defaults[name]), ja, en, values_ja, values_en))
        else:
            default = "" if defaults[name] is not None else "null"
            obtained += [Setting(key, default, ja, en, is_section=True), *settings(nested, f"{key}.")]
    return obtained


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def json_schema(*, japanese: bool | None = None) -> dict[str, Any]:
    """The JSON Schema of a run's YAML, with ranges and descriptions, for editors.

    Args:
        japanese: the language of the descriptions; None takes the user's.
    """
    from pydantic import TypeAdapter

    language = prefers_japanese() if japanese is None else japanese
    schema: dict[str, Any] = TypeAdapter(RunConfig).json_schema()
    _describe(schema, RunConfig, schema["$defs"], language)
    model = schema["properties"]["model"]
    schema["properties"]["model"] = {
        "description": model["description"],
        "anyOf": [{"type": "string"}, {"$ref": "#/$defs/ModelConfig"}],
    }
    schema["properties"] |= _flat(schema)
    schema["description"] = "aift train の設定" if language else "What `aift train` runs."
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _flat(schema: dict[str, Any]) -> dict[str, Any]:
    """Schemas of the settings that may stand without their section: those whose name one section has."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path, hint in fields_of(RunConfig).items():
        if section_class(hint) is None and len(path) > 1:
            cls: Any = RunConfig
            for name in path[:-1]:
                cls = section_class(field_types(cls)[name])
            found.setdefault(path[-1], []).append(schema["$defs"][cls.__name__]["properties"][path[-1]])
    return {name: places[0] for name, places in found.items() if len(places) == 1}


def _describe(path: dict[str, Any], cls: type, definitions: dict[str, Any], japanese: bool) -> None:
    path["additionalProperties"] = False
    for name, hint in field_types(cls).items():
        ja, en = texts_of(cls)[name]
        path["properties"][name]["description"] = ja if japanese else en
        nested = section_class(hint)
        if nested is not None:
            inner = definitions[nested.__name__]
            inner["description"] = ja if japanese else en
            _describe(inner, nested, definitions, japanese)


def table() -> list[tuple[str, str, str]]:
    """(dotted key, default, meaning in the user's language) of every setting, for `aift train --help`."""
    japanese = prefers_japanese()
    return [(item.key, item.default, item.text(japanese=japanese)) for item in settings() if not item.is_section]


_HEADS = {
    "en": (
        "# Settings",
        "Keys of the YAML that `aift train` reads; on the command line `key=value`. Where one section has it, a key may "
        "stand without its section, on the command line and at the top of the YAML (`learning_rate: 1e-4`). What is wrong "
        "with a file is said at once, with lines. `aift schema` prints the keys for editors.",
        "| Setting | Default | Values | Meaning |",
    ),
    "ja": (
        "# 設定一覧",
        "`aift train` が読む YAML のキーです。コマンドラインでは `key=value` と書きます。1 つのセクションにしかないキーは、コマンドラインでも YAML の一番外側でも"
        "セクション名なしで書けます（`learning_rate: 1e-4`）。ファイルの問題は、行番号を付けて一度にすべて表示します。`aift schema` がエディター用に出力します。",
        "| 設定 | 既定値 | 値 | 意味 |",
    ),
}


def page(language: str) -> str:
    """docs/settings.md (`en`) or docs/settings.ja.md (`ja`)."""
    title, intro, head = _HEADS[language]
    generated = f"<!-- Written by `{COMMAND}` from src/ai_finetuning/config; change the texts there. -->"
    lines = [generated, "", title, "", intro]
    blocks: dict[str, list[str]] = {}
    sections = {item.key: item for item in settings() if item.is_section}
    for item in settings():
        if item.is_section:
            continue
        values, meaning = (item.values_ja, item.ja) if language == "ja" else (item.values_en, item.en)
        cells = (f"`{item.key}`", f"`{item.default}`", values, meaning)
        row = "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
        blocks.setdefault(item.key.rpartition(".")[0], []).append(row)
    for key, rows in sorted(blocks.items(), key=lambda block: _order(block[0], list(sections))):
        if key:
            lines += ["", f"## {key}", "", sections[key].ja if language == "ja" else sections[key].en]
        lines += ["", head, "|---|---|---|---|", *rows]
    return "\n".join(lines) + "\n"


def _order(key: str, keys: list[str]) -> int:
    return keys.index(key) if key in keys else -1


def write_pages(folder: Path) -> None:
    """Writes both pages."""
    for language, name in PAGES.items():
        (folder / name).write_text(page(language), encoding="utf-8")


if __name__ == "__main__":
    write_pages(Path(__file__).resolve().parents[3] / "docs")
