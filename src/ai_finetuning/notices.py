"""One-line messages to the user, in the language of the locale, through standard logging."""

from __future__ import annotations

import logging

from .errors import localized

LOGGER = logging.getLogger("ai_finetuning")


def _ready() -> logging.Logger:
    """The toolkit's logger; a plain stderr handler is added where the program configured none."""
    if not LOGGER.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("[aift] %(message)s"))
        LOGGER.addHandler(handler)
    if LOGGER.level == logging.NOTSET:
        LOGGER.setLevel(logging.INFO)
    return LOGGER


def notice(ja: str, en: str) -> None:
    """Tells the user something worth knowing once."""
    _ready().info(localized(ja, en))


def warn(ja: str, en: str) -> None:
    """Tells the user something that may not be what they want."""
    _ready().warning(localized(ja, en))
