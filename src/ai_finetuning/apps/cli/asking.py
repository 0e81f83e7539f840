"""Questions in a terminal, each with an answer to take by Enter; without a terminal that answer is taken and said."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import typer

from ...errors import localized
from ...messages import on_one_line


def _typed(prompt: str) -> str:
    try:
        return input(prompt).strip()
    except EOFError:  # Ctrl-D leaves, as Ctrl-C does
        print()
        raise typer.Abort from None


@dataclass(frozen=True)
class Questions:
    """Asks, or decides.

    Attributes:
        decides: take what is recommended without asking, and say so.
    """

    decides: bool

    @staticmethod
    def of(yes: bool) -> Questions:
        """What --yes and the terminal allow; says why nobody is asked."""
        if not yes and sys.stdin.isatty():
            return Questions(False)
        print(
            localized("--yes のため、", "--yes: ") if yes else localized("端末ではないため、", "This is no terminal: "),
            end="",
        )
        print(localized("質問せずに推奨の選択で進めます。", "going on with what is recommended, without questions."))
        return Questions(True)

    def choose(self, title: str, options: Sequence[str], recommended: int = 0, *, free: str = "") -> int | str:
        """The index of an option, or what was typed where `free` says that something else may be.

        Args:
            title: what is asked.
            options: one line each.
            recommended: the index that Enter takes.
            free: what else may be typed; empty where nothing.
        """
        if self.decides:
            print(f"{title}: {on_one_line(options[recommended])}")
            return recommended
        print(title)
        for number, option in enumerate(options, start=1):
            mark = localized("  ← 推奨", "  <- recommended") if number == recommended + 1 else ""
            print(f"  {number}) {on_one_line(option)}{mark}")
        word = localized("番号", "number")
        prompt = localized(f"{word}か{free}", f"{word} or {free}") if free else word
        while True:
            typed = _typed(f"{prompt} [{recommended + 1}]: ")
            if not typed:
                return recommended
            if typed.isdecimal() and 1 <= int(typed) <= len(options):
                return int(typed) - 1
            if free and not typed.isdecimal():
                return typed
            print(
                localized(
                    f"1 から {len(options)} の番号を入力してください。", f"Type a number from 1 to {len(options)}."
                )
            )

    def agree(self, question: str, *, default: bool = True) -> bool:
        """Yes or no; the default where nobody is asked."""
        if self.decides:
            return default
        typed = _typed(f"{question} [{'Y/n' if default else 'y/N'}]: ").lower()
        return default if not typed else typed.startswith(("y", "は"))
