"""One-line messages to the user, in the language of the locale, through standard logging; and what is printed of texts
that came from outside.
"""

from __future__ import annotations

import logging
import re
import shlex
import sys
import traceback
from pathlib import Path
from typing import TextIO

from .errors import ToolkitError, localized, without_secrets

# What moves a terminal's cursor, colours or hides text (C0 but newline and tab, DEL, C1), and what turns the order of
# characters around or breaks lines where none is seen (Unicode TR 9 and 36). Joiners and variation selectors of emoji
# and of Japanese are no part of it.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]")

# What colours a terminal or moves its cursor: CSI, OSC and two-character sequences (ECMA-48).
ANSI = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|[@-Z\\-_])")

LOGGER = logging.getLogger("ai_finetuning")


class _Stderr(logging.StreamHandler):  # type: ignore[type-arg]  # no type parameter before Python 3.11
    """Writes to what sys.stderr is at that moment: a progress bar that is showing puts the line above itself."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        """The stream of the moment."""
        return sys.stderr


def _ready() -> logging.Logger:
    """The toolkit's logger; a plain stderr handler is added where the program configured none."""
    if not LOGGER.hasHandlers():
        handler = _Stderr()
        handler.setFormatter(logging.Formatter("[aift] %(message)s"))
        LOGGER.addHandler(handler)
    if LOGGER.level == logging.NOTSET:
        LOGGER.setLevel(logging.INFO)
    return LOGGER


def speak(*, only_errors: bool) -> None:
    """Lets one process of a run talk and the others keep still (they raise errors all the same)."""
    _ready().setLevel(logging.ERROR if only_errors else logging.INFO)


def notice(ja: str, en: str) -> None:
    """Logs information for the user."""
    _ready().info(printable(without_secrets(localized(ja, en))))


def warn(ja: str, en: str) -> None:
    """Logs a warning for the user."""
    _ready().warning(printable(without_secrets(localized(ja, en))))


def printable(text: str) -> str:
    """A text from outside as a terminal may get it: controls as `\\x1b` and `\\u202e`; newlines and tabs stay."""
    return _CONTROLS.sub(lambda found: _escaped(found.group()), text)


def displayable(text: str) -> str:
    """What another program has said, for a page: without colours and secrets, other controls as printable() has them."""
    return printable(without_secrets(ANSI.sub("", text)))


# Characters of a row, or of a heading, that a message shows.
EXCERPT = 20


def excerpt(value: object) -> str:
    """The beginning of a row's text or of a heading, as a message shows it: on one line, at most 20 characters."""
    text = value if isinstance(value, str) else repr(value)
    return on_one_line(text if len(text) <= EXCERPT else text[: EXCERPT - 1] + "…")


# Where rows are texts: what a library says from inside of it may hold one.
_ROOMS_OF_ROWS = tuple(str(Path(__file__).with_name(room)) for room in ("data", "japanese"))


def described(error: BaseException, *, for_files: bool) -> str:
    """The kind of an error and what it says, without secrets; of a row it holds the beginning, and in a file nothing."""
    kind = type(error).__name__
    if isinstance(error, ToolkitError):
        text = str(error.for_files if for_files else error)
    elif any(frame.filename.startswith(_ROOMS_OF_ROWS) for frame in traceback.extract_tb(error.__traceback__)):
        text = "" if for_files else excerpt(str(error))
    else:
        text = str(error)
    return without_secrets(f"{kind}: {text}" if text else kind)


def trace(error: BaseException, *, for_files: bool) -> str:
    """What Python prints of an error, with the errors before it, each as `described`."""
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    first = f"{trace(before, for_files=for_files)}\n" if before is not None else ""
    frames = "".join(traceback.format_tb(error.__traceback__))
    return f"{first}Traceback (most recent call last):\n{frames}{described(error, for_files=for_files)}\n"


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def on_one_line(text: str) -> str:
    """printable() without newlines and tabs either."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def argument(value: object) -> str:
    """A name or path for a command that is printed to be copied: quoted for a shell, on one line, and never taken for an
    option. Controls and line breaks stand as bash and zsh read them back: `$'a\\nb'`.
    """
    text = str(value)
    text = f"./{text}" if text.startswith("-") else text
    if on_one_line(text) == text:
        return shlex.quote(text)
    text = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\t", "\\t")
    return "$'" + _CONTROLS.sub(lambda found: f"\\u{ord(found.group()):04x}", text) + "'"
