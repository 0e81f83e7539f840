"""Every text of the page in both languages: the table of all screens, and one screen's texts in one language."""

from __future__ import annotations

from . import answers, chat, compare, data, export, home, models, results, runs, settings, shell

TABLE: dict[str, dict[str, tuple[str, str]]] = {
    "home": home.WORDS,
    "data": data.WORDS,
    "models": models.WORDS,
    "settings": settings.WORDS,
    "runs": runs.WORDS,
    "results": results.WORDS,
    "chat": chat.WORDS,
    "answers": answers.WORDS,
    "compare": compare.WORDS,
    "export": export.WORDS,
}


def of(language: str, screen: str) -> dict[str, str]:
    """The texts of a screen with those around it; a text of the screen replaces one of the same name."""
    place = 0 if language == "ja" else 1
    return {key: texts[place] for key, texts in (shell.WORDS | TABLE[screen]).items()}
