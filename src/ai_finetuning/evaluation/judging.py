"""Which answers of a file of samples are right: by the expected answer, a regular expression, checks, or a function of the
user's own.

Every judge says yes or no. It is asked once for each different answer to a question, so that equal answers have equal
marks.
"""

from __future__ import annotations

import functools
import inspect
import json
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from ..config.hints import near_files
from ..data.columns import listed, plain, role_of
from ..data.row_format import NO_VALUES
from ..errors import ConfigError, DataError, InputNotFoundError, UsageError
from ..inference.sampled import Sampled
from ..messages import excerpt, on_one_line
from .answers import exact
from .instructions import CHECKS, parse_checks

# Seconds of CPU that a regular expression may take for one answer.
SECONDS = 1.0
# Items that a pattern may have with its counted repeats written out, as it is compiled: seconds, and a GB of memory.
_ITEMS = 1_000_000
# An escaped character, a class of characters, the ends of a group, a count, or any other character.
_PIECE = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|[()]|\{(\d{0,20}),?(\d{0,20})\}|.", re.DOTALL)
# Lists of different expected answers, whose patterns are kept.
_KEPT = 64
# What stands in a pattern for the expected answer.
EXPECTED = "{expected}"
CHECKS_COLUMN = "checks"
BY = ("exact", "regex", "checks", "FILE.py:NAME")

Judge = Callable[[Sampled, str], bool]


@dataclass(frozen=True)
class Rule:
    """How answers are judged.

    Attributes:
        by: `exact`, `regex`, `checks`, or `FILE.py:NAME`.
        expected: column of the expected answer; None finds it by its heading.
        pattern: of `regex`.
    """

    by: str
    expected: str | None = None
    pattern: str | None = None

    @property
    def is_code(self) -> bool:
        """Whether judging runs a file of the user's own."""
        return self.by not in ("exact", "regex", "checks")


def judge_by(rule: Rule, rows: Sequence[Sampled]) -> Judge:
    """The judge of a rule, made before any answer is judged.

    Raises:
        UsageError: a rule that is none, or options that do not belong to it. ConfigError: a pattern, column or function that
            cannot be used. InputNotFoundError: no such file. DataError: a row without what the rule needs.
    """
    if (rule.by == "regex") != (rule.pattern is not None):
        raise UsageError(
            "--pattern は --by regex と一緒に指定してください。", "--pattern and --by regex belong together."
        )
    if rule.pattern == "":
        raise ConfigError(
            "--pattern が空です。どの回答にも当てはまるので、正しい回答だけに当てはまる正規表現にしてください。",
            "--pattern is empty, which every answer holds; write a regular expression that right answers alone hold.",
        )
    uses_expected = rule.by == "exact" or (rule.pattern is not None and EXPECTED in rule.pattern)
    if rule.expected is not None and not uses_expected:
        raise UsageError(
            f"--expected は --by exact と、{EXPECTED} のある --pattern にだけ使えます。",
            f"--expected is for --by exact, and for a --pattern with {EXPECTED}.",
        )
    if rule.by == "checks":
        return _by_checks(rows)
    if rule.is_code:
        return _by_function(rule.by)
    accepted = _accepted(rows, rule.expected) if uses_expected else {}
    if rule.pattern is not None:
        return _by_pattern(rule.pattern, rows, accepted)
    return lambda row, answer: any(exact(answer, text) for text in accepted[row.place])


def judged(rows: Sequence[Sampled], judge: Judge) -> list[tuple[bool, ...]]:
    """For each question whether its answers are right.

    Raises:
        ConfigError, DataError: the judge fails over an answer.
    """
    marks = []
    for row in rows:
        known = {text: judge(row, text) for text in dict.fromkeys(row.samples)}
        marks.append(tuple(known[text] for text in row.samples))
    return marks


def _accepted(rows: Sequence[Sampled], column: str | None) -> dict[str, tuple[str, ...]]:
    """The accepted answers of every question, by its place: the text of its cell, or each of a list.

    Raises:
        ConfigError: no such column. DataError: none is known to hold them, several are, or a row has none.
    """
    names = list(dict.fromkeys(str(name) for row in rows for name in row.row))
    if column is not None:
        found = [name for name in names if plain(name) == plain(column)]
        if not found:
            raise ConfigError(
                f"--expected が {excerpt(column)} ですが、質問の行にその列はありません。列: {listed(names)}",
                f"--expected is {excerpt(column)}, which is no column of the questions; columns: {listed(names)}.",
            )
    else:
        roles = [(name, role_of(name)) for name in names]
        found = [name for name, role in roles if role == ("output", False)]
        found = found or [name for name, role in roles if role == ("output", True)]
        if len(found) != 1:
            raise DataError(
                f"正解の列が{'複数あります' if found else '分かりません'}（{listed(found or names)}）。--expected 列名 で指定してください。",
                f"{'several columns may hold' if found else 'no column is known to hold'} the expected answers "
                f"({listed(found or names)}); name it with --expected NAME.",
            )
    obtained = {row.place: _texts(row.row.get(found[0])) for row in rows}
    without = [row.number for row in rows if not obtained[row.place]]
    if without:
        raise DataError(
            f"列 {excerpt(found[0])} に正解のない質問が {len(without)} 行あります（{without[0]} 行目など）。",
            f"{len(without)} questions have no expected answer in the column {excerpt(found[0])} (such as row {without[0]}).",
        )
    return obtained


def _texts(cell: Any) -> tuple[str, ...]:
    cells = cell if isinstance(cell, list) else [cell]
    fitting = [str(item) for item in cells if isinstance(item, str | int | float) and not isinstance(item, bool)]
    written = [text for text in fitting if text.strip() and text.strip() not in NO_VALUES]
    return tuple(written) if len(fitting) == len(cells) else ()


def _by_pattern(pattern: str, rows: Sequence[Sampled], accepted: Mapping[str, Sequence[str]]) -> Judge:
    """Right where the pattern is found in the answer; `{expected}` stands for the expected answer, as it is written.

    `regex` reads what `re` reads, and stops by itself when a search takes too long.
    """
    import regex

    written = _written_out(pattern)
    if written > _ITEMS:
        raise ConfigError(
            f"--pattern の {{n}} の繰り返しが入れ子で {written:,} 個になります（上限 {_ITEMS:,}）。回数を減らすか、* や + にしてください: {on_one_line(pattern)}",
            f"the repeats {{n}} inside repeats of --pattern come to {written:,} items, more than {_ITEMS:,}; repeat less "
            f"often, or write * or +: {on_one_line(pattern)}",
        )

    @functools.lru_cache(_KEPT)
    def compiled(expected: tuple[str, ...]) -> Any:
        either = "(?:" + "|".join(regex.escape(text) for text in expected) + ")"
        try:
            return regex.compile(pattern.replace(EXPECTED, either))
        except (regex.error, ValueError, OverflowError, RecursionError) as error:
            raise ConfigError(
                f"--pattern の正規表現を読めません（{error}）: {on_one_line(pattern)}",
                f"--pattern is no regular expression ({error}): {on_one_line(pattern)}",
            ) from None

    def judge(row: Sampled, answer: str) -> bool:
        try:
            return compiled(tuple(accepted.get(row.place, ()))).search(answer, timeout=SECONDS) is not None
        except (TimeoutError, MemoryError):
            raise ConfigError(
                f"--pattern の正規表現が、質問 {row.number}（{row.place}）の回答 1 つに {SECONDS:g} 秒を超えてかかります。(a+)+ や (a|aa)+ のような繰り返しの入れ子をなくしてください: "
                f"{on_one_line(pattern)}",
                f"--pattern takes more than {SECONDS:g} s for one answer of question {row.number} ({row.place}); write it "
                f"without repeats inside repeats, such as (a+)+ or (a|aa)+: {on_one_line(pattern)}",
            ) from None

    compiled(tuple(accepted.get(rows[0].place, ())))  # refused before any answer is judged
    return judge


def _written_out(pattern: str) -> int:
    """How many items a pattern has where each counted repeat, such as {3} or {2,5}, stands as often as it says."""
    groups, last = [0], 0
    for piece in _PIECE.finditer(pattern):
        text = piece.group()
        if text == "(":
            groups.append(0)
            last = 0
        elif text == ")":
            last = groups.pop() if len(groups) > 1 else 1
            groups[-1] += last
        elif piece[1] or piece[2]:
            times = int(piece[2] or piece[1])
            groups[-1] += last * (times - 1)
            last *= times
        else:
            last = 1
            groups[-1] += 1
    return sum(groups)


def _by_checks(rows: Sequence[Sampled]) -> Judge:
    """Right where all checks of the question's own column `checks` pass: a list of {"check": NAME, ...}, or it as text."""
    asked: dict[str, Sequence[tuple[str, Mapping[str, Any]]]] = {}
    for row in rows:
        value = next((cell for name, cell in row.row.items() if plain(name) == CHECKS_COLUMN), None)
        try:
            items = json.loads(value) if isinstance(value, str) else value
            asked[row.place] = parse_checks(items)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"質問 {row.number}（{row.place}）の列 {CHECKS_COLUMN} を読めません（{error}）。"
                '[{"check": "characters_at_most", "n": 50}] のように書いてください。',
                f"question {row.number} ({row.place}): its column {CHECKS_COLUMN} cannot be read ({error}); write it like "
                '[{"check": "characters_at_most", "n": 50}].',
            ) from None

    def judge(row: Sampled, answer: str) -> bool:
        return bool(answer.strip()) and all(CHECKS[name](answer, **given) for name, given in asked[row.place])

    return judge


class _AsWritten(SourceFileLoader):
    """Runs the text that the user can read, never what is compiled beside it; writes nothing."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def function_of(name: str) -> tuple[Path, str]:
    """(file, function) of FILE.py:NAME.

    Raises:
        UsageError: no FILE.py:NAME. InputNotFoundError: no such file.
    """
    file, _, function = name.rpartition(":")
    path = Path(file)
    if path.suffix != ".py" or not function.isidentifier():
        raise UsageError(
            f"--by が {on_one_line(name)} です。{'、'.join(BY)} のどれかにしてください。",
            f"--by is {on_one_line(name)}; it must be one of {', '.join(BY)}.",
        )
    if not path.is_file():
        near = near_files(path, (".py",))
        raise InputNotFoundError(
            f"--by のファイル {path} がありません。{near.ja}", f"the file {path} of --by does not exist.{near.en}"
        )
    return path, function


def _by_function(name: str) -> Judge:
    """A function of a file of the user's own (function_of): NAME(answer, question) -> bool, where `question` is the sample's line
    (question, row ...) without its answers.

    Raises:
        UsageError, InputNotFoundError: see function_of. ConfigError: it cannot be run, or has no such function.
    """
    path, function = function_of(name)
    module = ModuleType("aift_judge")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses look their module up
    try:
        _AsWritten(module.__name__, str(path)).exec_module(module)
    except (Exception, SystemExit) as error:  # whatever the user's file raises
        raise _failed(path, error, "読み込めません", "cannot be run") from None
    found = getattr(module, function, None)
    if not callable(found):
        own = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise ConfigError(
            f"{path} に関数 {function} がありません。関数: {listed(own) or 'なし'}",
            f"{path} has no function {function}; functions: {listed(own) or 'none'}.",
        )

    def judge(row: Sampled, answer: str) -> bool:
        question = {key: value for key, value in row.as_dict().items() if key not in ("samples", "ends", "right")}
        try:
            mark = found(answer, question)
        except (Exception, SystemExit) as error:
            where = (f"質問 {row.number} の回答で止まりました", f"fails over an answer of question {row.number}")
            raise _failed(path, error, *where) from None
        if not isinstance(mark, bool):
            raise ConfigError(
                f"{path} の {function} が {excerpt(mark)}（{type(mark).__name__}）を返しました。True か False を返してください。",
                f"{function} of {path} returned {excerpt(mark)} ({type(mark).__name__}); it must return True or False.",
            )
        return mark

    return judge


def _failed(path: Path, error: BaseException, ja: str, en: str) -> ConfigError:
    """What the user's own file raised, and the last of its lines that was at work."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).absolute() == path.absolute()
    ]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    place = f"{path}:{line}" if line else f"{path}"
    said = on_one_line(f"{type(error).__name__}: {error}")
    return ConfigError(f"--by の {place} は{ja}（{said}）。", f"{place} of --by {en} ({said}).")
