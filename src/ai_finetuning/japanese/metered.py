"""Chat templates in Jinja's sandbox, with a meter: what a template may take is counted, not measured by a clock.

A template comes with a received model and runs for every row. Jinja's sandbox keeps it from reaching Python; it does not
keep it from looping for hours or from building a text of gigabytes. Here each rendering has a number of units, about the
work of one node of the template or one character each, which every loop, call, filter and text pays for before it is
done; where they are used up, the rendering ends. Counting gives the same answer on every machine, in every thread and
process (docs/decisions/0087).
"""

from __future__ import annotations

import operator
import re
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro, Undefined, markup_join
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from .meter import CALL, FREE, ITEM, MOST, MOST_BITS, NODE, OBJECT, PER_CHARACTER, PER_MESSAGE, PLAIN, Meter, TooMuch
from .rewriting import Rewritten

# Templates that print today's date (llm-jp-4, gpt-oss) would render the same data differently every day; the date is
# frozen.
FROZEN_DATE = "2026-01-01"

# A width, or one that comes from an argument: `%9999d`, `%*d`, `{:9999}`, `{:{}}`.
_WIDE_PERCENT = re.compile(r"%(\([^)]*\))?[-+ #0]*(\*|\d{4})|%[^a-zA-Z%]*\.(\*|\d{4})")
_WIDE_FORMAT = re.compile(r"[:!.][^{}]*(\d{4}|\{)")


def _length(value: Any) -> int:
    return len(value) if hasattr(value, "__len__") else 1


def _number(value: Any) -> int:
    return max(0, value) if isinstance(value, int) else _length(value)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _replaced(value: Any, old: Any = "", new: Any = "", *_: Any, **__: Any) -> int:
    text = _text(value)
    return (text.count(_text(old)) if old else len(text) + 1) * _length(new)


def _widened(value: Any, width: Any = 80, *_: Any, **__: Any) -> int:
    return _number(width)


def _nothing(value: Any, *_: Any, **__: Any) -> int:
    return 0


def _again(factor: int) -> Callable[..., int]:
    return lambda value, *_, **__: factor * _length(value)


def _split_up(value: Any, *_: Any, **__: Any) -> int:
    """A text or a range becomes a list of objects of its own."""
    return ITEM * len(value) if isinstance(value, (str, range)) else _length(value)


def _filled(value: Any, parts: Any = 1, fill: Any = None, *_: Any, **__: Any) -> int:
    if fill.__class__ not in PLAIN:
        raise TooMuch("it fills up rows with a list")
    return ITEM * _number(parts)


# What a method of a text pays beyond the length of the text, by its name; one that is not here is refused.
_TEXT_METHODS: dict[str, Callable[..., int]] = {
    **dict.fromkeys(
        [
            "capitalize",
            "casefold",
            "count",
            "endswith",
            "find",
            "index",
            "isalnum",
            "isalpha",
            "isascii",
            "isdecimal",
            "isdigit",
            "islower",
            "isnumeric",
            "isspace",
            "istitle",
            "isupper",
            "lower",
            "lstrip",
            "partition",
            "removeprefix",
            "removesuffix",
            "rfind",
            "rindex",
            "rpartition",
            "rstrip",
            "startswith",
            "strip",
            "swapcase",
            "title",
            "upper",
        ],
        _nothing,
    ),
    **dict.fromkeys(("split", "rsplit", "splitlines"), _again(8)),
    **dict.fromkeys(("center", "ljust", "rjust", "zfill"), _widened),
    "expandtabs": lambda text, tabsize=8: text.count("\t") * _number(tabsize),
    "replace": _replaced,
    "join": lambda text, values=(): len(text) * _length(values),
}
# The same for filters, beyond the length of what they are given.
_FILTERS: dict[str, Callable[..., int]] = {
    **dict.fromkeys(
        [
            "abs",
            "capitalize",
            "first",
            "float",
            "format",
            "int",
            "last",
            "lower",
            "max",
            "min",
            "reverse",
            "round",
            "safe",
            "string",
            "trim",
            "upper",
        ],
        _nothing,
    ),
    **dict.fromkeys(("escape", "e"), _again(6)),
    **dict.fromkeys(("title", "truncate", "wordcount"), _again(16)),
    **dict.fromkeys(("list", "sort", "unique"), _split_up),
    **dict.fromkeys(("batch", "slice"), _filled),
    "center": _widened,
    "dictsort": _again(ITEM),
    "groupby": _again(ITEM),
    "indent": lambda value, width=4, *_, **__: (_text(value).count("\n") + 1) * _number(width),
    "join": lambda value, d="", *_, **__: _length(d) * _length(value),
    "replace": _replaced,
    "sum": _again(16),
    "tojson": _again(2),
    "wordwrap": lambda value, width=79, brk=True, wrap="\n", *_, **__: (64 + _length(wrap)) * _length(value),
    **dict.fromkeys(("map", "select", "reject", "selectattr", "rejectattr"), _nothing),
}
# Filters that need no meter; others of Jinja that no template of a conversation uses are not there.
_FREE_FILTERS = ("attr", "count", "d", "default", "items", "length")
_LAZY = ("map", "select", "reject", "selectattr", "rejectattr", "batch")
_LISTING = ("list", "join", "sort", "unique", "sum", "min", "max", "reverse", "groupby", "slice", "first")
_DEEP = ("sort", "unique", "min", "max", "groupby", "dictsort")
# Those that make text of what they are given.
_WRITING = [
    "capitalize",
    "center",
    "escape",
    "e",
    "format",
    "indent",
    "join",
    "lower",
    "replace",
    "string",
    "title",
    "tojson",
    "trim",
    "truncate",
    "upper",
    "wordcount",
    "wordwrap",
]
_COMPARING = [
    "eq",
    "==",
    "equalto",
    "ne",
    "!=",
    "lt",
    "<",
    "lessthan",
    "le",
    "<=",
    "gt",
    ">",
    "greaterthan",
    "ge",
    ">=",
    "in",
]


class _Generation(Extension):
    """`{% generation %}` of transformers marks the assistant's words; here they are words like others."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Names(Namespace):
    """A namespace whose attributes do not begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        values = dict(*rest, **kwargs)
        for name in values:
            _Names._check(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _Names._check(name)
        super().__setitem__(name, value)

    @staticmethod
    def _check(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a namespace takes no name with an underscore in front: {name[:60]!r}")


def _raise(message: Any) -> None:
    raise TemplateError(message[:1000] if isinstance(message, str) else type(message).__name__)


def _day(form: Any) -> str:
    """The frozen date, for templates that print today's."""
    if not isinstance(form, str) or len(form) > 100:
        raise TooMuch("the form of its date is no short text")
    return datetime.fromisoformat(FROZEN_DATE).strftime(form)


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """As chat templates expect it: characters as they are, nothing escaped for HTML."""
    import json

    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class _Sandbox(ImmutableSandboxedEnvironment):
    """transformers' sandbox for chat templates, with a meter."""

    intercepted_binops = frozenset({"*", "**", "%", "-"})

    def __init__(self, meter: Meter) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self.meter = meter
        ranged, cycler, joiner = (self.globals[name] for name in ("range", "cycler", "joiner"))
        self.globals.clear()
        self.globals.update(range=ranged, cycler=cycler, joiner=joiner, namespace=_Names, dict=_dict)
        self.globals.update(raise_exception=_raise, strftime_now=_day)
        own = dict(self.filters) | {"tojson": _tojson}
        self.filters = {name: own[name] for name in _FREE_FILTERS}
        self.filters |= {name: _metered(self, name, own[name], rule) for name, rule in _FILTERS.items()}
        self.filters |= _Parts(meter).named()
        for name in _COMPARING:
            original: Any = self.tests[name]
            self.tests[name] = _compared(self, original)

    def wrap_str_format(self, value: Any) -> Any:
        """Refuses formats that name a width of thousands."""
        owner = getattr(value, "__self__", None)
        if isinstance(owner, str) and value.__name__ in ("format", "format_map"):
            self.meter.pay(len(owner))
            if _WIDE_FORMAT.search(owner):
                raise TooMuch("it formats with a width of thousands or from an argument")
            formatted: Any = super().wrap_str_format(value)

            def written(*args: Any, **kwargs: Any) -> Any:
                self.meter.weigh((args, kwargs), printed=True)
                return formatted(*args, **kwargs)

            return written
        return super().wrap_str_format(value)

    def call(self, context: Any, called: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Calls a function, a macro or a method, which is paid for by what it is given and gives."""
        meter = self.meter
        meter.pay(OBJECT if isinstance(called, type) else CALL)
        owner = getattr(called, "__self__", None)
        if (args or kwargs) and any(value.__class__ not in PLAIN for value in (*args, *kwargs.values())):
            args = tuple(self._argument(value) for value in args)
            kwargs = {name: self._argument(value) for name, value in kwargs.items()}
        if owner is not None and not isinstance(called, Macro):
            self._pay_method(owner, called, args, kwargs)
        obtained = super().call(context, called, *args, **kwargs)
        if isinstance(obtained, str):
            meter.pay(len(obtained))
        return obtained

    def _argument(self, value: Any) -> Any:
        if isinstance(value, Iterator):
            value = self.meter.listed(value)
        self.meter.weigh(value)
        return value

    def _pay_method(self, owner: Any, called: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        name = str(getattr(called, "__name__", ""))
        if isinstance(owner, str):
            rule = _TEXT_METHODS.get(name)
            if rule is None:
                raise TooMuch(f"it calls {name[:30]} of a text, which no template needs")
            self.meter.pay(len(owner) + rule(owner, *args, **kwargs))
        elif isinstance(owner, (list, tuple)):
            self.meter.weigh(owner)
        elif isinstance(owner, type) or (isinstance(owner, (int, float, bytes)) and name != "is_integer"):
            raise TooMuch(f"it calls {name[:30]}, which no template needs")

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """`* ** % -`, which may make a small value large."""
        meter = self.meter
        if operator == "%":
            if isinstance(left, str):
                _check_percent(left)
                meter.weigh((left, right), printed=True)
        elif isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * abs(right) if operator == "**" else left.bit_length() + right.bit_length()
            if bits > MOST_BITS:
                raise TooMuch("it makes a number of more than a thousand digits")
        elif operator == "*":
            for many, times in ((left, right), (right, left)):
                if isinstance(many, (str, list, tuple)) and isinstance(times, int):
                    meter.pay(2 * len(many) * max(0, times))
                    many = many * times
                    meter.weigh(many)
                    return many
        return super().call_binop(context, operator, left, right)


def _check_percent(form: str) -> None:
    if _WIDE_PERCENT.search(form):
        raise TooMuch("it formats with a width of thousands or from an argument")


def _metered(
    sandbox: _Sandbox, name: str, original: Callable[..., Any], rule: Callable[..., int]
) -> Callable[..., Any]:
    """A filter that is paid for. It takes the context, so that Jinja does not work it out while it compiles."""
    meter = sandbox.meter
    given = getattr(original, "jinja_pass_arg", None)
    kind = given.name if given is not None else ""
    lazy = name in _LAZY
    simple = rule is _nothing and name in _WRITING and not kind

    @pass_context
    def filtered(context: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        if simple and not args and not kwargs and value.__class__ is str:
            meter.left -= 2 * len(value) + 1
            if meter.left < 0:
                meter.pay(0)
            return original(value)
        if lazy and not isinstance(value, Undefined):
            value = meter.each(value)
        elif name in _LISTING:
            value = meter.listed(value)
        _weigh_given(meter, name, value, args, kwargs)
        _check_given(name, value, args, kwargs)
        meter.pay(NODE + (0 if lazy else _length(value)) + rule(value, *args, **kwargs))
        first = {"context": (context,), "eval_context": (context.eval_ctx,), "environment": (sandbox,)}.get(kind, ())
        obtained = original(*first, value, *args, **kwargs)
        if isinstance(obtained, str):
            meter.pay(len(obtained))
        return obtained

    return filtered


def _weigh_given(meter: Meter, name: str, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    writing = name in _WRITING
    if value.__class__ is not str and (writing or name in _DEEP):
        before = meter.left
        meter.weigh(value, printed=writing)
        if name == "tojson":
            meter.pay((before - meter.left) * _spread(value, args, kwargs))
    for argument in (*args, *kwargs.values()):
        if argument.__class__ not in PLAIN:
            meter.weigh(argument, printed=writing)


def _check_given(name: str, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if name == "format" and isinstance(value, str):
        _check_percent(value)
    elif (name == "int" and len(_text(value)) > 1000) or (name == "round" and args and _number(args[0]) > 100):
        raise TooMuch("it makes a number of more than a thousand digits")
    elif name == "sum" and not isinstance((*args[1:], kwargs.get("start", 0))[0], (int, float)):
        raise TooMuch("it adds up what are no numbers")


def _spread(value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Characters that JSON puts around each of its values at most: the separators, and what it is indented by."""
    indent = kwargs.get("indent", args[1] if len(args) > 1 else None)
    separators = kwargs.get("separators", args[2] if len(args) > 2 else None)
    around = sum(map(_length, separators or ()))
    depth, level = 0, [value]
    while level and indent is not None:
        depth += 1
        level = [part for item in level for part in (item.values() if isinstance(item, dict) else item)
                 if isinstance(part, (dict, list, tuple))]  # fmt: skip
    return around + depth * _number(indent or 0)


def _compared(sandbox: _Sandbox, original: Callable[..., bool]) -> Callable[..., bool]:
    meter = sandbox.meter

    def compared(value: Any, other: Any) -> bool:
        if value.__class__ not in PLAIN:
            meter.weigh(value)
        if other.__class__ not in PLAIN:
            meter.weigh(other)
        meter.pay(ITEM + len(_text(other)))
        return original(value, other)

    return compared


class _Parts:
    """What Rewritten puts into a template, as filters under names that no template can write."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    @pass_context
    def loop(self, context: Any, values: Any, units: int) -> Any:
        """What a loop goes through, `units` an item."""
        if hasattr(values, "__len__"):
            self._meter.pay(units * len(values) + 1)
            return values
        return self._meter.each(values, units) if hasattr(values, "__iter__") else values

    @pass_context
    def pay(self, context: Any, units: int) -> str:
        """Nothing, for its price."""
        self._meter.pay(units)
        return ""

    @pass_context
    def print(self, context: Any, value: Any) -> Any:
        """What `{{ }}` prints."""
        if value.__class__ is str:
            self._meter.left -= len(value) + 1
            if self._meter.left < 0:
                self._meter.pay(0)
        else:
            self._meter.weigh(value, printed=not isinstance(value, Macro))
        return value

    @pass_context
    def cut(self, context: Any, value: Any) -> Any:
        """A slice."""
        self._meter.pay(_length(value))
        return value

    @pass_context
    def made(self, context: Any, value: Any) -> Any:
        """A list, tuple or object that the template has written down, or a value that will be searched."""
        if value.__class__ is str:
            self._meter.pay(len(value))
            return value
        if isinstance(value, Iterator):
            value = self._meter.listed(value)
        self._meter.weigh(value)
        return value

    @pass_context
    def add(self, context: Any, parts: tuple[Any, ...]) -> Any:
        """`a + b + c`."""
        size = 0
        for part in parts:
            if part.__class__ is not str:
                return _folded(self._meter, parts)
            size += len(part)
        self._meter.left -= size
        if self._meter.left < 0:
            self._meter.pay(0)
        return "".join(parts)

    @pass_context
    def concat(self, context: Any, parts: tuple[Any, ...]) -> Any:
        """`a ~ b ~ c`."""
        self._meter.weigh(parts, printed=True)
        return markup_join(parts) if context.eval_ctx.autoescape else "".join(map(str, parts))

    def named(self) -> dict[str, Callable[..., Any]]:
        """The filters of a sandbox."""
        own = (self.loop, self.pay, self.print, self.cut, self.made, self.add, self.concat)
        return {f"aift:{part.__name__}": part for part in own}


def _folded(meter: Meter, parts: tuple[Any, ...]) -> Any:
    """`a + b + c`, from the left."""
    result = parts[0]
    for part in parts[1:]:
        sized = isinstance(result, (str, list, tuple)) and isinstance(part, (str, list, tuple))
        if sized:
            meter.pay(2 * (len(result) + len(part)) * (6 if isinstance(result, str) else 1))
        result = operator.add(result, part)
        if not isinstance(result, str):
            meter.weigh(result)
    return result


class Renderer:
    """A chat template, ready to render; one thread at a time.

    Raises:
        TooMuch, jinja2.TemplateError, SyntaxError, RecursionError: it is no template that can be read.
    """

    def __init__(self, text: str) -> None:
        self._meter = Meter()
        self._lock = threading.Lock()
        self.environment = _Sandbox(self._meter)
        self._template = self.environment.from_string(Rewritten().visit(self.environment.parse(text)))

    def render(self, **variables: Any) -> str:
        """The text of a conversation.

        Raises:
            TooMuch: beyond the units that its messages allow. Exception: whatever the template's expressions raise.
        """
        with self._lock:
            messages = variables.get("messages") or ()
            size = sum(map(_characters, messages))
            self._meter.left = min(MOST, FREE + PER_MESSAGE * len(messages) + PER_CHARACTER * size)
            return self._template.render(**variables)


def _characters(message: Any) -> int:
    return sum(len(value) for value in message.values() if isinstance(value, str)) if isinstance(message, dict) else 0


@lru_cache(maxsize=32)
def compiled(text: str) -> Renderer:
    """The renderer of a template."""
    return Renderer(text)
