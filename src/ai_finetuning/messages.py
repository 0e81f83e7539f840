"""One-line messages to the user, in the language of the locale, through standard logging."""

from __future__ import annotations

import logging
import sys
from typing import TextIO

from .errors import localized

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
    _ready().info(localized(ja, en))


def warn(ja: str, en: str) -> None:
    """Logs a warning for the user."""
    _ready().warning(localized(ja, en))
