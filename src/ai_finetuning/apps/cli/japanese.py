"""The command line parser's own texts (usage, headings, errors) in the language of the locale."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from ...errors import ConfigError, UsageError, localized

_Verb = TypeVar("_Verb", bound=Callable[..., Any])
_Table = Sequence[tuple[str, str]]

# How much a mistyped option is like the one that is meant, at least.
_ALIKE = 0.75

# Patterns and replacements for help; what typer writes around the texts of this package.
_USAGE: _Table = (
    (r"^Usage: ", "使い方: "),
    (r"\[OPTIONS\]", "[オプション]"),
    (r"COMMAND \[ARGS\]\.\.\.", "コマンド [引数]..."),
)
_HELP: _Table = (
    *_USAGE,
    (r"^Options:$", "オプション:"),
    (r"^Arguments:$", "引数:"),
    (r"^Commands:$", "コマンド:"),
    (r"Show this message and exit\.", "このヘルプを表示します。"),
    (r"Install completion for the current shell\.", "いまのシェルに補完を設定します。"),
    (
        r"Show completion for the current shell, to\s+copy\s+it\s+or\s+customize\s+the\s+installation\.",
        "補完の設定を表示します。",
    ),
    (r"\[default:", "[既定:"),
    (r"\[required\]", "[必須]"),
    (r"; required\]", "; 必須]"),
)
# Errors; the first pattern that matches the whole message is taken, and {1} is translated by the same table.
_ERRORS: _Table = (
    (
        r"No such option:? (\S+?)\.?(?: \(Possible options: (.+)\)| Did you mean (.+)\?)?",
        "{1} というオプションはありません",
    ),
    (r"No such command (.+?)\.(?: Did you mean (.+)\?)?", "{1} というコマンドはありません"),
    (r"Missing (?:argument|parameter) (.+?)\.(?s:.*)", "引数 {1} がありません"),
    (r"Missing option (.+?)\.(?s:.*)", "オプション {1} がありません"),
    (r"Missing command\.", "コマンドがありません"),
    (r"Option (.+) requires an argument\.", "オプション {1} には値が必要です"),
    (r"Option (.+) requires (\d+) arguments\.", "オプション {1} には値が {2} 個必要です"),
    (r"Option (.+) does not take a value\.", "オプション {1} に値は付けられません"),
    (r"Got unexpected extra arguments? ?(?:\(s\) )?\((.+)\)", "余分な引数があります（{1}）"),
    (
        r"Invalid value for (.+?): (?s:.*(?:valid integer|unable to parse string as an integer).*)",
        "{1} は整数にしてください",
    ),
    (r"Invalid value for (.+?): (?s:.*(?:valid number|valid float|as a number).*)", "{1} は数値にしてください"),
    (r"Invalid value for (.+?): (?s:.*range (.+?)\.?)", "{1} の値が範囲 {2} の外です"),
    (r"Invalid value for (.+?): (?s:.*greater than or equal to (\S+?)\.?)", "{1} は {2} 以上にしてください"),
    (r"Invalid value for (.+?): (?s:.*less than or equal to (\S+?)\.?)", "{1} は {2} 以下にしてください"),
    (r"Invalid value for (.+?): (?s:.*)", "{1} の値が正しくありません"),
    (r"Invalid value: (?s:.*)", "値が正しくありません"),
)


def _replaced(text: str, table: _Table) -> str:
    for pattern, japanese in table:
        text = re.sub(pattern, japanese, text, flags=re.MULTILINE)
    return text


def _error_text(message: str) -> str:
    """An error of the parser in Japanese; a message that the table lacks is quoted."""
    for pattern, japanese in _ERRORS:
        match = re.fullmatch(pattern, message)
        if match is not None:
            text = japanese.format(message, *match.groups())
            near = match.groups()[1:] if pattern.startswith("No such") else ()
            names = next((name for name in near if name), None)
            return f"{text}（もしかして: {names}）。" if names else f"{text}。"
    return f"コマンドの書き方が正しくありません（{message}）。"


def _first_sentence(text: str) -> str:
    """Up to the first full stop that stands in no brackets."""
    text = " ".join(text.split())
    for end in re.finditer(r"。|\.(?= )", text):
        sentence = text[: end.end()]
        if sum(map(sentence.count, "（(")) == sum(map(sentence.count, "）)")):
            return sentence
    return text


def _letters(name: str) -> str:
    """A name as it is compared with others: how its words are joined is seldom remembered."""
    return re.sub("[-_]", "", name).lower()


def _refuse_mistyped(arguments: Sequence[str], options: Sequence[str]) -> None:
    """Refuses what is no setting and nearly an option; verbs that take settings hand everything on that is no option.

    Raises:
        UsageError: with the option that is meant.
    """
    from ...config.load import resolve_key  # help and the first line need no settings
    from ...config.shortened import cut

    known = {_letters(name): name for name in options if name.startswith("--")}
    for argument in arguments:
        if not argument.startswith("--"):
            continue
        name = argument.partition("=")[0]
        near = difflib.get_close_matches(_letters(name), known, n=1, cutoff=_ALIKE)
        if not near:
            continue
        try:
            resolve_key(name.removeprefix("--").replace("-", "_"))
        except ConfigError:
            shown = cut(name)
            raise UsageError(
                f"{shown} というオプションはありません（もしかして: {known[near[0]]}）。",
                f"no such option: {shown} (did you mean {known[near[0]]}?).",
            ) from None


class Command(TyperCommand):
    """A verb whose help is in the language of the locale."""

    # Options that the parser does not know, since their values may be left out.
    MORE_OPTIONS: ClassVar[tuple[str, ...]] = ()

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """What is left for the verb; without options that are mistyped, where a verb takes settings as well."""
        rest: list[str] = super().parse_args(ctx, args)
        if ctx.ignore_unknown_options and not ctx.resilient_parsing:
            known = [name for parameter in self.get_params(ctx) for name in parameter.opts]
            _refuse_mistyped(ctx.args, [*known, *self.MORE_OPTIONS])
        return rest

    def get_help(self, ctx: Any) -> str:
        """The help page."""
        text: str = super().get_help(ctx)
        return localized(_replaced(text, _HELP), text)

    def get_usage(self, ctx: Any) -> str:
        """The line that errors begin with."""
        text: str = super().get_usage(ctx)
        return localized(_replaced(text, _USAGE), text)


class Group(TyperGroup):
    """Verbs below one name, with help in the language of the locale."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The verbs, each with the first sentence of its help, whole."""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [
            (name, _first_sentence(command.help or "")) for name, command in commands if command and not command.hidden
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def get_help(self, ctx: Any) -> str:
        """The help page."""
        text: str = super().get_help(ctx)
        return localized(_replaced(text, _HELP), text)

    def get_usage(self, ctx: Any) -> str:
        """The line that errors begin with."""
        text: str = super().get_usage(ctx)
        return localized(_replaced(text, _USAGE), text)


class App(typer.Typer):
    """Typer with these classes as defaults."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"cls": Group, "no_args_is_help": True, "rich_markup_mode": None, **settings})

    def command(self, name: str | None = None, **settings: Any) -> Callable[[_Verb], _Verb]:
        """Registers a verb."""
        return super().command(name, **{"cls": Command, **settings})


def usage_error(error: Any, arguments: Sequence[str] = ()) -> str:
    """What to print of an error that the parser raised: usage, where help is, and the reason.

    Args:
        arguments: of the command, for a number in full width, which the parser does not quote.
    """
    from ...config.full_width import narrow_hint

    context = getattr(error, "ctx", None)
    message = error.format_message()
    if type(error).__name__ == "NoArgsIsHelpError":
        return str(message)
    lines = []
    if context is not None:
        lines = [context.get_usage(), f"`{context.command_path} --help` で使い方を表示します。", ""]
    values = [argument.rpartition("=")[2] for argument in arguments] if message.startswith("Invalid value") else []
    wide = next((hint.ja for value in values if (hint := narrow_hint(value)).ja), "")
    return "\n".join([*lines, f"エラー: {_error_text(message)}{wide}"])
