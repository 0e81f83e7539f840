"""`aift` in a terminal of its own (a pseudo-terminal): what a person sees, types and waits for."""

from __future__ import annotations

import os
import re
import sys
import time
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import pexpect

from .patience import patience

_ANSI = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_BOX = "│┃┏┓┗┛┡┩├┤┌┐└┘"


@dataclass(frozen=True)
class Seen:
    """What one command left on the screen.

    Attributes:
        text: without colours; of lines that were drawn over (progress), the last state.
        code: exit code.
        first: seconds until the first character.
        seconds: until it ended.
    """

    text: str
    code: int
    first: float
    seconds: float


class Terminal:
    """A person's terminal: a folder, a width, a language. Commands are typed one after the other.

    Attributes:
        tries: commands typed so far.
    """

    def __init__(self, folder: Path, *, columns: int = 80, language: str = "ja", cache: Path | None = None) -> None:
        self.folder, self.columns = folder, columns
        self.tries = 0
        dropped = ("AIFT_LANG", "LC_ALL", "LC_MESSAGES", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "CI", "TERM")
        kept = {
            name: value for name, value in os.environ.items() if name not in dropped and not name.startswith("PYTEST_")
        }
        self.environment = kept | {
            "LANG": {"ja": "ja_JP.UTF-8", "en": "en_US.UTF-8"}[language],
            "TERM": "xterm-256color",
            "PYTHONUTF8": "1",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "AIFT_CACHE": str(cache or folder / ".cache"),
        }

    def type(self, *arguments: str) -> Conversation:
        """Starts `aift` with these arguments."""
        self.tries += 1
        return Conversation(self, arguments)

    def run(self, *arguments: str, seconds: float = 180) -> Seen:
        """Types a command that asks nothing, and waits for its end."""
        return self.type(*arguments).end(seconds)


class Conversation:
    """A command that is running."""

    def __init__(self, terminal: Terminal, arguments: tuple[str, ...]) -> None:
        self._began = time.monotonic()
        self._first: float | None = None
        self._columns = terminal.columns
        self._text = ""
        self.process = pexpect.spawn(
            sys.executable,
            ["-m", "ai_finetuning", *arguments],
            cwd=str(terminal.folder),
            env=terminal.environment,
            dimensions=(40, terminal.columns),
            encoding="utf-8",
            codec_errors="replace",
            timeout=patience(60),
        )

    def expect(self, pattern: str, seconds: float = 60) -> str:
        """Waits until a pattern is on the screen; returns what stood before it.

        Raises:
            AssertionError: it did not come, with what did.
        """
        try:
            self.process.expect(pattern, timeout=patience(seconds))
        except (pexpect.TIMEOUT, pexpect.EOF) as error:
            raise AssertionError(f"{pattern!r} did not come:\n{self._text}{self.process.before}") from error
        self._note()
        before = str(self.process.before)
        self._text += before + str(self.process.after)
        return shown(before)

    def answer(self, line: str = "") -> None:
        """Types a line and Enter."""
        self.process.sendline(line)

    def interrupt(self) -> None:
        """Ctrl-C."""
        self.process.sendintr()

    def end(self, seconds: float = 180) -> Seen:
        """Waits for the end of the command."""
        if self._first is None:
            self.process.expect([r".", pexpect.EOF], timeout=patience(seconds))
            self._note()
            self._text += str(self.process.before) + (
                str(self.process.after) if self.process.after is not pexpect.EOF else ""
            )
        try:
            self.process.expect(pexpect.EOF, timeout=patience(seconds))
        except pexpect.TIMEOUT as error:
            raise AssertionError(f"no end:\n{self._text}{self.process.before}") from error
        self._text += str(self.process.before)
        self.process.close()
        code = (
            self.process.exitstatus
            if self.process.exitstatus is not None
            else 128 + int(self.process.signalstatus or 0)
        )
        now = time.monotonic()
        return Seen(shown(self._text), code, self._first or 0.0, now - self._began)

    def _note(self) -> None:
        if self._first is None:
            self._first = time.monotonic() - self._began


def shown(text: str) -> str:
    """A terminal's output as lines: no colours, and of what a carriage return drew over, the last state."""
    lines = _ANSI.sub("", text).replace("\r\n", "\n").split("\n")
    return "\n".join(line.rstrip("\r").split("\r")[-1] for line in lines)


def width(text: str) -> int:
    """Columns that a text takes in a terminal."""
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )


def assert_tables_fit(text: str, columns: int) -> None:
    """No line of a table or a rule is wider than the terminal: it would be broken in the middle."""
    wide = [line for line in text.splitlines() if any(mark in line for mark in _BOX) and width(line) > columns]
    assert not wide, wide
