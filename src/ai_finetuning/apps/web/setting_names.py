"""Settings in texts for people by what the form calls them: 学習率（learning_rate）. Needs no torch."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping

from .draft import leaves
from .words.settings import WORDS

_LABEL = "f_"


@functools.cache
def _labels() -> dict[str, tuple[str, str]]:
    """(Japanese, English) labels of the form by a setting's name as texts have it: dotted; or its last part, where that is no
    word of a language too and names one setting.
    """
    labels: dict[str, tuple[str, str]] = {}
    last = [setting.key.rpartition(".")[2] for setting in leaves()]
    for key, label in WORDS.items():
        name = key.removeprefix(_LABEL)
        if key.startswith(_LABEL):
            short = name.rpartition(".")[2]
            labels |= {one: label for one in (name, short) if "." in one or ("_" in one and last.count(one) == 1)}
    return labels


@functools.cache
def _named() -> re.Pattern[str]:
    names = "|".join(re.escape(name) for name in sorted(_labels(), key=len, reverse=True))
    return re.compile(rf"(?<![A-Za-z0-9_.-])({names})(?![A-Za-z0-9_]|\.[A-Za-z])( ?)")


def with_labels(text: str, language: str) -> str:
    """A text with the form's label in front of every setting that the form shows by one."""
    ja = language == "ja"

    def called(found: re.Match[str]) -> str:
        label = _labels()[found[1]][0 if ja else 1]
        return f"{label}（{found[1]}）" if ja else f"{label} ({found[1]}){found[2]}"

    return _named().sub(called, text)


def both_with_labels(texts: Mapping[str, str]) -> dict[str, str]:
    """The same for texts by language."""
    return {language: with_labels(text, language) for language, text in texts.items()}
