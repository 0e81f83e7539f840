"""YAML read strictly, with refusals in both languages, and written so that it reads back as it was."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from ..errors import ConfigError
from .shortened import cut

_BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
_FLOAT = re.compile(
    r"^[-+]?(?:(?:\d[\d_]*\.[\d_]*|\.\d[\d_]*)(?:[eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
# Without YAML 1.1's octal 0512, which is 330, and its sexagesimal 1:30, which is 90: both are texts here.
_INT = re.compile(r"^[-+]?(?:0|[1-9][\d_]*|0x[\da-fA-F_]+|0b[01_]+)$")
_OWN = (
    ("tag:yaml.org,2002:bool", _BOOL, "tTfF"),
    ("tag:yaml.org,2002:float", _FLOAT, "-+0123456789."),
    ("tag:yaml.org,2002:int", _INT, "-+0123456789"),
)
_DROPPED = (*(tag for tag, _, _ in _OWN), "tag:yaml.org,2002:timestamp")

# What one document may hold, with every alias counted as what it repeats; settings of any tool stay far below.
MAX_NODES, MAX_DEPTH, MAX_BYTES = 10_000, 50, 1 << 20
# So many characters of a text count as a value more, so that a long text is not repeated without a bound either.
_COUNTED_TEXT = 1000

# What PyYAML says -> what is wrong and the way out, in both languages.
_PROBLEMS: tuple[tuple[str, str, str], ...] = (
    ("found character '\\t'", "タブは使えません。半角スペースにしてください", "tabs are not allowed; use spaces"),
    (
        "mapping values are not allowed",
        "ここに「:」は置けません。字下げを揃えるか、値を引用符で囲んでください",
        "a colon is not allowed here; align the indentation, or quote the value",
    ),
    (
        "could not find expected ':'",
        "キーの後に「:」がありません。「キー: 値」と書いてください",
        "a key has no colon; write key: value",
    ),
    (
        "expected <block end>",
        "字下げが揃っていません。同じ階層のキーは同じ列から書いてください",
        "the indentation is uneven; keys of one level start in one column",
    ),
    (
        "sequence entries are not allowed",
        "ここに「-」は置けません。改行してください",
        "a dash is not allowed here; start a new line",
    ),
    ("expected ',' or ']'", "「]」か「,」がありません", "a ] or a comma is missing"),
    ("expected ',' or '}'", "「}」か「,」がありません", "a } or a comma is missing"),
    ("found unexpected end of stream", "引用符が閉じられていません", "a quotation mark is not closed"),
    (
        "did not find expected",
        "「]」「}」や引用符が閉じられているか確認してください",
        "a bracket or a quotation mark is not closed",
    ),
    (
        "expected the node content",
        "値がありません。「]」や「}」が閉じられているか確認してください",
        "a value is missing; is a bracket not closed?",
    ),
    (
        "found unknown escape character",
        "「\\」の使い方が正しくありません。引用符を ' にしてください",
        "a backslash is used wrongly; quote with '",
    ),
    (
        "expected escape sequence",
        "「\\」の使い方が正しくありません。引用符を ' にしてください",
        "a backslash is used wrongly; quote with '",
    ),
    (
        "cannot start any token",
        "この文字で値を始められません。値を引用符で囲んでください",
        "a value cannot start with this character; quote it",
    ),
    ("found undefined alias", "「*」で始まる値は引用符で囲んでください", "a value that starts with * must be quoted"),
    ("found undefined tag", "「!」で始まる値は引用符で囲んでください", "a value that starts with ! must be quoted"),
    (
        "tag:yaml.org,2002:merge",
        "「<<」（マージ）は使えません。キーと値を並べて書いてください",
        "<< (merge) is not read; write the keys and values out",
    ),
    (
        "could not determine a constructor",
        "タグ（!!）は使えません。値だけを書いてください",
        "tags (!!) are not read; write plain values",
    ),
    (
        "but found another document",
        "文書は 1 つだけ書けます。「---」より後を消してください",
        "there must be one document; remove what follows ---",
    ),
    (
        "special characters are not allowed",
        "使えない制御文字があります。消してください",
        "a control character is not allowed; remove it",
    ),
    (
        "expected '<document start>'",
        "一番外側のキーの字下げが揃っていません。行頭から書いてください",
        "the outermost keys start in different columns; start them at the beginning of the line",
    ),
    (
        "found too many values",
        f"値が多すぎます。エイリアス（*）が繰り返すものを含めて {MAX_NODES} 個までです",
        f"there are too many values: at most {MAX_NODES}, with what aliases (*) repeat",
    ),
    (
        "found too many levels",
        f"入れ子が深すぎます。{MAX_DEPTH} 段までです",
        f"it is nested too deeply: at most {MAX_DEPTH} levels",
    ),
    (
        "found an alias inside its own anchor",
        "エイリアス（*）が自分自身を指しています。消してください",
        "an alias (*) stands inside what it repeats; remove it",
    ),
    ("unhashable key", "キーにはリストや組を使えません", "a key cannot be a list or a mapping"),
)


class _Bounded(yaml.SafeLoader):
    """Refuses a document while it is composed, where aliases or nesting make it larger than settings are.

    Every node counts once where it stands and once more wherever an alias repeats it.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._count = self._depth = self._deepest = 0
        self._measured: dict[yaml.Node, tuple[int, int]] = {}  # nodes below a node, and levels

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """One node with all below it."""
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        count, deepest = self._count, self._deepest
        self._depth += 1
        self._deepest = self._depth
        self._refuse_large(mark)
        alias = self.check_event(yaml.AliasEvent)
        node: yaml.Node | None = super().compose_node(parent, index)
        if alias and node not in self._measured:
            raise yaml.composer.ComposerError(None, None, "found an alias inside its own anchor", mark)
        if alias and node is not None:
            size, levels = self._measured[node]
            self._count += size
            self._deepest = self._depth + levels - 1
        elif node is not None:
            self._count += 1 + (len(node.value) // _COUNTED_TEXT if isinstance(node, yaml.ScalarNode) else 0)
            self._measured[node] = (self._count - count, self._deepest - self._depth + 1)
        self._refuse_large(mark)
        self._depth -= 1
        self._deepest = max(deepest, self._deepest)
        return node

    def _refuse_large(self, mark: yaml.Mark) -> None:
        if self._count > MAX_NODES:
            raise yaml.composer.ComposerError(None, None, "found too many values", mark)
        if self._deepest > MAX_DEPTH:
            raise yaml.composer.ComposerError(None, None, "found too many levels", mark)


class _Reader(_Bounded):
    """YAML 1.2's core schema where it matters: 3e-4 is a float, yes/no/on/off, 0512 and 1:30 are texts; a key twice is
    an error.
    """


_Reader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _DROPPED]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _Writer(yaml.SafeDumper):
    """Quotes every text that YAML 1.1 or 1.2 would read as something else: `1e3`, `on`, `2026-01-01`."""


_Writer.yaml_implicit_resolvers = {
    first: list(resolvers) for first, resolvers in yaml.SafeDumper.yaml_implicit_resolvers.items()
}
for _tag, _pattern, _first in _OWN:
    _Reader.add_implicit_resolver(_tag, _pattern, list(_first))
    _Writer.add_implicit_resolver(_tag, _pattern, list(_first))


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """PyYAML folds these line breaks; in double quotes it escapes them."""
    style = '"' if re.search("[\x85\u2028\u2029]", text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Writer.add_representer(str, _text)


def _mapping(loader: _Reader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: dict[Any, int] = {}
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        line = key_node.start_mark.line + 1
        if isinstance(key, list | dict):
            raise yaml.constructor.ConstructorError(None, None, "found unhashable key", key_node.start_mark)
        if key in seen:
            raise ConfigError(
                f"{node.start_mark.name}: キー {cut(key)} が 2 回あります（{seen[key]} 行目と {line} 行目）。一方を消してください。",
                f"{node.start_mark.name}: key {cut(key)} appears twice (lines {seen[key]} and {line}); remove one.",
            )
        seen[key] = line
    return dict(yaml.SafeLoader.construct_mapping(loader, node, deep=True))


_Reader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


# What PyYAML raises of a tag that does not fit its value: `!!int x`, `!!timestamp x`, `!!bool x`, `!!set [1]`.
_UNFIT = (ValueError, AttributeError, LookupError, TypeError, RecursionError)


def _document(loader: Any, name: str) -> Any:
    """The one document that a loader reads."""
    loader.name = name
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def parse_yaml(text: str, name: str) -> Any:
    """One YAML document of plain values.

    Raises:
        ConfigError: text that is no YAML, with its line, or a key that appears twice.
    """
    try:
        return _document(_Reader(text), name)
    except yaml.YAMLError as error:
        raise _refusal(error, text, name) from None
    except ConfigError:  # is a ValueError too
        raise
    except _UNFIT as error:
        raise ConfigError(
            f"{name} を YAML として読めません。タグ（!!）を消してください。",
            f"{name} is not valid YAML ({cut(error)}).",
        ) from None


def parse_plain(text: str, name: str) -> Any:
    """One YAML document as PyYAML's safe loader reads it: YAML 1.1, the last of two equal keys; for other tools' files.

    Raises:
        ConfigError: text that is no YAML, with its line.
    """
    try:
        return _document(_Bounded(text), name)
    except yaml.YAMLError as error:
        raise _refusal(error, text, name) from None
    except _UNFIT as error:
        raise ConfigError(
            f"{name} を YAML として読めません（{type(error).__name__}）。", f"{name} is not valid YAML ({cut(error)})."
        ) from None


def key_lines(text: str) -> dict[tuple[str, ...], int]:
    """The line, from 1, of every key of a YAML text that parse_yaml() reads, by its path."""
    loader = _Reader(text)
    try:
        return dict(_lines(loader.get_single_node(), ()))
    finally:
        loader.dispose()


def _lines(node: yaml.Node | None, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            below = (*path, str(key.value))
            yield below, key.start_mark.line + 1
            yield from _lines(value, below)


def _refusal(error: yaml.YAMLError, text: str, name: str) -> ConfigError:
    """PyYAML's complaint with line and column, in our own words."""
    mark = getattr(error, "problem_mark", None)
    reason = str(getattr(error, "problem", None) or getattr(error, "reason", None) or str(error).splitlines()[0])
    if mark is not None:
        line, column = mark.line + 1, mark.column + 1
    else:
        before = text[: getattr(error, "position", 0)]
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
    context = f"{getattr(error, 'context', '') or ''}: {reason}"
    known = next(((ja, en) for start, ja, en in _PROBLEMS if start in reason or start in context), None)
    ja, en = known or ("書き方を確認してください", cut(reason))
    return ConfigError(
        f"{name} の {line} 行目 {column} 文字目を YAML として読めません（{ja}）。",
        f"{name}, line {line}, column {column}, is not valid YAML ({en}).",
    )


def dump_yaml(values: Any) -> str:
    """Plain values as YAML that parse_yaml and any other reader of YAML 1.1 or 1.2 reads back the same."""
    return str(yaml.dump(values, Dumper=_Writer, allow_unicode=True, sort_keys=False, width=120))
