"""What the server knows while it runs: its folders, its token and what is going on. Everything else is in the folders."""

from __future__ import annotations

import secrets
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import anyio
from starlette.requests import Request

from ...errors import InputNotFoundError

if TYPE_CHECKING:
    from ...runs.listing import RunEntry
    from .followed import Followed
    from .workers import Workers

Language = Literal["ja", "en"]
# Seconds for which a listing of the runs is taken for true, and for which its ids are.
_LISTED, _NAMED = 1.0, 10.0


@dataclass
class Site:
    """One server.

    Attributes:
        runs: where new runs are made.
        roots: where runs are looked for.
        models: a folder of the user's models.
        data: where what is uploaded lies.
        language: of people who chose none; None asks their browser.
        demo: whether a newcomer is led through it.
        token: what every request but those for empty pages has to bring.
        locks: one for each kind of work that is done once at a time.
        workers: the models of conversations, once there was one.
        followed: the batches of answers that were looked at last, by the job's id; `following` is held to change it.
        token_rows: the blocks of rows that were shown as tokens last, by the upload as it was, model and first row: by a
            row's number what `aift data show` says of it.
        listed_models: by method when the models were listed (time.monotonic()), and the answer.
        facts: what `aift data glance` says of training data that was looked at last, by what it is read as and its state.
        starts: the folders of the last starts, by the key that each tab makes for one start.
    """

    runs: Path
    roots: tuple[Path, ...]
    models: Path
    data: Path
    language: Language | None = None
    demo: bool = False
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    locks: dict[str, anyio.Lock] = field(default_factory=lambda: defaultdict(anyio.Lock), repr=False)
    workers: Workers | None = field(default=None, repr=False)
    followed: dict[str, Followed] = field(default_factory=dict, repr=False)
    following: threading.Lock = field(default_factory=threading.Lock, repr=False)
    token_rows: dict[tuple[str | int, ...], dict[int, list[Any]]] = field(default_factory=dict, repr=False)
    listed_models: dict[str, tuple[float, dict[str, Any]]] = field(default_factory=dict, repr=False)
    facts: dict[tuple[str | int, ...], dict[str, Any]] = field(default_factory=dict, repr=False)
    starts: dict[str, Path] = field(default_factory=dict, repr=False)
    _working: tuple[float, dict[str, int]] = field(default=(0.0, {}), repr=False)
    _listing: tuple[float, list[RunEntry]] = field(default=(0.0, []), repr=False)

    def list_runs(self, *, fresh: bool = False) -> list[RunEntry]:
        """The runs, newest first, as they were at most a second ago.

        Args:
            fresh: as they are now.
        """
        from ...runs.listing import list_runs

        made, entries = self._listing
        if fresh or not 0 <= time.monotonic() - made < _LISTED:
            entries = list_runs(*self.roots)
            self._listing = (time.monotonic(), entries)
        return entries

    def jobs_at_work(self) -> dict[str, int]:
        """How many jobs compute or wait, by kind, as it was at most a second ago."""
        from ...runs.jobs import at_work

        made, found = self._working
        if not 0 <= time.monotonic() - made < _LISTED:
            found = at_work(self.data)
            self._working = (time.monotonic(), found)
        return found

    def run(self, id: str) -> RunEntry:
        """The run of an id.

        Raises:
            InputNotFoundError: there is none.
        """
        for fresh in (False, True):
            for entry in self.list_runs(fresh=fresh):
                if entry.id == id:
                    return entry
        raise InputNotFoundError(
            "この学習はありません（名前が変わったか、ごみ箱にあります）。",
            "there is no such run (renamed, or in the trash).",
        )

    def folder(self, id: str) -> Path:
        """The folder of a run, for what is asked every second: runs are listed anew where it is not known, or is gone.

        Raises:
            InputNotFoundError: there is none.
        """
        from ...config.run_folder import RUN

        made, entries = self._listing
        if 0 <= time.monotonic() - made < _NAMED:
            for entry in entries:
                if entry.id == id and (entry.path / RUN).is_file():
                    return entry.path
        return self.run(id).path


def site_of(request: Request) -> Site:
    """The server that a request came to."""
    site: Site = request.app.state.site
    return site


def language_of(request: Request) -> Language:
    """The language of whoever asks: the one that was chosen, else the first that the browser names."""
    chosen = site_of(request).language
    if chosen is not None:
        return chosen
    wanted = request.headers.get("accept-language", "").lower()
    first = next((part.strip()[:2] for part in wanted.split(",") if part.strip()[:2] in ("ja", "en")), "en")
    return "ja" if first == "ja" else "en"
