"""A conversion as our YAML with comments, and as a list for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ...errors import Reason, localized
from ..fields import field_types, section_class
from ..run import RunConfig
from ..yaml_text import dump_yaml
from .convert import Conversion
from .draft import Entry, Verdict
from .values import shown

TITLES = {
    Verdict.TAKEN: Reason("そのまま", "taken as they are"),
    Verdict.CONVERTED: Reason("変換", "converted"),
    Verdict.DROPPED: Reason("不要", "dropped"),
    Verdict.REFUSED: Reason("本ツールにないもの", "refused: nothing like them here"),
}
ATTENTION = Reason("元の学習と少し違います", "not quite as there")


def yaml_of(conversion: Conversion) -> str:
    """Our YAML; comments say, in the user's language, how values were converted."""
    label, name = conversion.tool.label, _line(conversion.source)
    lines = [
        localized(f"# {name}（{label}）から aift import で変換", f"# Made of {name} ({label}) by aift import"),
        localized(
            f"# GPU {conversion.gpus} 個の値です（GPU の数が変わるなら --gpus を付けてやり直してください）",
            f"# For {conversion.gpus} GPU{'s' if conversion.gpus > 1 else ''}: with another number, import again with --gpus",
        ),
    ]
    for entry in conversion.entries:
        if entry.differs and entry.reason is not None:
            lines.append(f"# {ATTENTION}: {_line(entry.key)}: {_line(str(entry.reason))}")
    return "\n".join(lines) + "\n" + "".join(_sections(conversion.nested(), conversion.comments, RunConfig, ""))


def _sections(values: Mapping[str, Any], comments: Mapping[str, Reason], cls: type, prefix: str) -> Iterator[str]:
    indent = "  " * prefix.count(".")
    hints = field_types(cls)
    for name in (key for key in hints if key in values):
        value, path = values[name], prefix + name
        nested = section_class(hints[name])
        if path in comments:
            yield f"{indent}# {_line(str(comments[path]))}\n"
        if nested is not None and isinstance(value, Mapping):
            yield f"{indent}{name}:\n"
            yield from _sections(value, comments, nested, f"{path}.")
        else:
            block = dump_yaml({name: value})
            yield "".join(indent + line for line in block.splitlines(keepends=True))


def _line(value: str) -> str:
    """A text that stays inside a comment: one line without control characters."""
    return "".join(character if character.isprintable() else " " for character in value)


def list_of(conversion: Conversion) -> str:
    """Every key of their file and what became of it, in the user's language."""
    lines = []
    for verdict, title in TITLES.items():
        entries = conversion.of(verdict)
        if entries:
            lines.append(f"{title} ({len(entries)}):")
            lines += [f"  {_entry(entry)}" for entry in entries]
    if conversion.empty:
        empty = localized("値がないので使わないもの", "without a value, so unset")
        lines.append(f"{empty} ({len(conversion.empty)}): {', '.join(map(_line, conversion.empty))}")
    return "\n".join(lines)


def _entry(entry: Entry) -> str:
    text = _line(entry.key)
    if entry.value is not None:
        text += f": {_line(shown(entry.value, 40))}"
    if entry.ours:
        text += f"  ->  {', '.join(entry.ours)}"
    if entry.reason is not None and str(entry.reason):
        text += f"  ({_line(str(entry.reason))})"
    return f"(!) {text}" if entry.differs else text
