"""How long a run takes: by its own steps, by a few steps tried before it, or by the last run like it. Needs no torch."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from ..errors import Reason, localized
from ..system import nvml
from ..system.files import is_private, write_in_place
from ..system.folders import cache_folder, private_cache

# Steps of a process after which it says how long is left.
STEPS_BEFORE = 5
# Steps whose pace counts.
_WINDOW = 50
# Generated tokens by whose pace others are told.
_ENOUGH = 16
_KIND = "speed"
Clock = Callable[[], float]


def duration(seconds: float) -> str:
    """A length of time as people say it, rounded to what an estimate is worth: `40 秒`, `2 分 30 秒`, `1 時間 20 分`."""
    if seconds < 120:
        rounded = max(1, round(seconds)) if seconds < 20 else 5 * round(seconds / 5)
        return localized(f"{rounded} 秒", f"{rounded} s")
    if seconds < 600:
        minutes, rest = divmod(30 * round(seconds / 30), 60)
        return localized(f"{minutes} 分", f"{minutes} min") + (localized(f" {rest} 秒", f" {rest} s") if rest else "")
    minutes = round(seconds / 60) if seconds < 3570 else 5 * round(seconds / 300)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24) if hours >= 48 else (0, hours)
    parts = [(days, "日", "d"), (hours, "時間", "h"), (0 if days else minutes, "分", "min")]
    return " ".join(localized(f"{number} {ja}", f"{number} {en}") for number, ja, en in parts if number)


class Remaining:
    """How long a run still takes, by the pace of its last steps and what its evaluations took.

    The first step of a process is left out: it compiles and warms up.

    Args:
        eval_every: steps between evaluations; None without any.
        clock: seconds from anywhere.
    """

    def __init__(self, eval_every: float | None = None, clock: Clock = time.monotonic) -> None:
        self._eval_every, self._clock = eval_every, clock
        self._last = clock()
        self._steps: list[float] = []
        self._evaluations: list[float] = []
        self._seen = self._left = self._total = 0

    def begin(self) -> None:
        """The first step or evaluation begins now."""
        self._last = self._clock()

    def step(self, row: Mapping[str, Any]) -> None:
        """A step has ended, with its row of metrics."""
        self._seen += 1
        if self._seen > 1:
            self._steps = [*self._steps[1 - _WINDOW :], self._clock() - self._last]
        self._total = int(row["total_steps"])
        self._left = self._total - int(row["step"])
        self._last = self._clock()

    def evaluated(self) -> None:
        """An evaluation has ended."""
        self._evaluations = [*self._evaluations[1 - _WINDOW :], self._clock() - self._last]
        self._last = self._clock()

    @property
    def ready(self) -> bool:
        """Whether enough steps were seen."""
        return self._seen >= STEPS_BEFORE

    def seconds(self) -> float | None:
        """Seconds from the end of the last step to that of the run; None before it can be told."""
        if not self.ready:
            return None
        left = self._left * sum(self._steps) / len(self._steps)
        if self._evaluations and self._eval_every:
            # One at every multiple and one at the end; that of the last step itself is still to come.
            due = math.ceil(self._total / self._eval_every) - int((self._total - self._left - 1) / self._eval_every)
            left += due * sum(self._evaluations) / len(self._evaluations)
        return left

    def text(self) -> str:
        """`残り 約 3 分`; empty before it can be told."""
        left = self.seconds()
        return "" if left is None else localized(f"残り 約 {duration(left)}", f"about {duration(left)} left")


@dataclass(frozen=True)
class Speed:
    """How fast steps are.

    Attributes:
        tokens_per_second: that go through the model, of all processes.
        source: where the number is from.
        token_seconds: of a generated token, of an answer by itself; None where none was timed.
    """

    tokens_per_second: float
    source: Reason
    token_seconds: float | None = None

    def seconds(self, tokens: float) -> float:
        """How long so many tokens take."""
        return tokens / self.tokens_per_second


LAST_RUN = Reason("この PC での前回の学習の速さから", "by the speed of the last such run on this PC")
PILOT = Reason("いま試した 3 ステップの速さから", "by three steps that were tried now")


def speed_of(history: Sequence[Mapping[str, Any]]) -> float | None:
    """Tokens a second of the last process that wrote rows of metrics, without its first step and without those behind an
    evaluation, whose time is in their rows; None where too few.
    """
    rows = [row for row in history if "seconds" in row and row.get("loss") is not None or "eval_loss" in row]
    steps = [at for at, row in enumerate(rows) if "seconds" in row]
    begin = next((at for at in steps[:0:-1] if rows[at]["seconds"] < _before(rows, at)), 0)
    own = rows[begin:]
    steps_alone = [pair for pair in itertools.pairwise(own) if all("seconds" in row for row in pair)]
    pairs = steps_alone or list(itertools.pairwise([row for row in own if "seconds" in row]))
    seconds = sum(after["seconds"] - before["seconds"] for before, after in pairs)
    tokens = sum(after["tokens"] - before["tokens"] for before, after in pairs)
    return tokens / seconds if seconds > 0 else None


def _before(rows: Sequence[Mapping[str, Any]], at: int) -> float:
    """Seconds of the step before one."""
    return float(next((row["seconds"] for row in rows[at - 1 :: -1] if "seconds" in row), 0.0))


class AnswerPace:
    """How long a generated token takes, of answers that a run has written.

    Args:
        clock: seconds from anywhere.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._seconds, self._tokens = 0.0, 0

    @contextlib.contextmanager
    def timed(self, count: Callable[[], int]) -> Iterator[None]:
        """Times what is done in it.

        Args:
            count: tokens that were generated, asked at its end.
        """
        began = self._clock()
        yield
        self._seconds += self._clock() - began
        self._tokens += count()

    @property
    def seconds(self) -> float | None:
        """Of a token; None before enough of them were seen to tell."""
        return self._seconds / self._tokens if self._tokens >= _ENOUGH else None


def remember(
    model: str, method: str, device: str, tokens_per_second: float, token_seconds: float | None = None
) -> None:
    """Keeps the speed of a run, in the user's cache folder, for the plans of the next ones; never a reason to fail.

    Args:
        token_seconds: see Speed; of a run that timed no answers (None) what an earlier one has measured stays.
    """
    key = {"model": model, "method": method, "device": device}
    with contextlib.suppress(OSError):
        earlier = last_speed(**key) if token_seconds is None else None
        answering = token_seconds if earlier is None else earlier.token_seconds
        speed = {"tokens_per_second": round(tokens_per_second, 3), "token_seconds": answering}
        text = json.dumps(key | speed, ensure_ascii=False)
        write_in_place(private_cache(_KIND) / _file_name(**key), text.encode("utf-8"))


def last_speed(model: str, method: str, device: str) -> Speed | None:
    """The speed of the last run of a model and method on this PC's device; None without one."""
    if not cache_folder(_KIND).is_dir():
        return None
    file = private_cache(_KIND) / _file_name(model, method, device)
    try:
        kept = json.loads(file.read_text(encoding="utf-8")) if is_private(file) else {}
        value, answering = kept.get("tokens_per_second"), kept.get("token_seconds")
    except (OSError, ValueError, AttributeError):
        return None
    return Speed(float(value), LAST_RUN, answering if _is_rate(answering) else None) if _is_rate(value) else None


def _is_rate(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def place_of(device: str, index: int | None, strategy: str, processes: int) -> str:
    """What a run computed on, as its speed is kept by: kind and name of the device, and how the run is spread."""
    cards = nvml.gpus() if device == "cuda" else []
    name = cards[index or 0].name if (index or 0) < len(cards) else ""
    return " ".join(filter(None, (device, name, strategy, str(processes))))


def _file_name(model: str, method: str, device: str) -> str:
    return hashlib.sha256(json.dumps([model, method, device]).encode("utf-8")).hexdigest()[:32] + ".json"
