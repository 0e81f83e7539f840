"""A question to several sides at once: a model without and with its adapter, or two models, whose answers come piece by
piece in turns.

The sides do not share a batch: rounding in 16 bits depends on the rows of a batch, peft's batches of several adapters
know no trained biases, and two models have none in common. In turns each answer is, token by token, what it is alone
(docs/decisions/0172).
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from ..errors import ToolkitError
from ..japanese.default_system import system_turn
from ..models.generation import prompt_tokens
from ..models.parts import positions_of
from .session import Chat, OpenModel

# Seconds of a turn: switching an adapter off and on takes 10 ms and more (0.14 ms a layer).
TURN = 0.3


@dataclass(frozen=True)
class Side:
    """One of those who answer.

    Attributes:
        name: by which its pieces are told from others.
        opened: the model; several sides may have the same one.
        adapter: its adapter, where it has one, is in use.
    """

    name: str
    opened: OpenModel
    adapter: bool = True


@dataclass(frozen=True)
class Asked:
    """A question to one side.

    Attributes:
        history: the turns before it: user and assistant, one after the other.
        question: the text.
        system: the system text; None is the one that the model was trained with, "" none.
    """

    history: Sequence[dict[str, str]]
    question: str
    system: str | None = None


@dataclass
class Told:
    """How the answer of a side ended.

    Attributes:
        side: its name.
        end: why, as models.generation.End; None where it was given up or refused.
        tokens: of the conversation with this answer, as the next prompt will hold them.
        forgotten: turns at its beginning that no longer fit.
        refused: why there is no answer.
    """

    side: str
    end: str | None = None
    tokens: int | None = None
    forgotten: int = 0
    refused: Exception | None = None


@dataclass
class _Turns:
    """Who computes: the first in line; after a while the next one."""

    given_up: threading.Event
    line: deque[int]
    seconds: float
    changed: threading.Condition = field(default_factory=threading.Condition)

    def wait(self, place: int) -> None:
        with self.changed:
            self.changed.wait_for(lambda: self.line[0] == place)

    def pass_on(self) -> None:
        with self.changed:
            self.line.rotate(-1)
            self.changed.notify_all()

    def leave(self, place: int) -> None:
        with self.changed:
            if place in self.line:
                self.line.remove(place)
                self.changed.notify_all()


class _SidesTurn:
    """A side's share, as models.generation.Turn: inside, the adapter is as the side has it."""

    def __init__(self, turns: _Turns, place: int, side: Side) -> None:
        self._turns, self._place, self._side = turns, place, side
        self._inside = contextlib.ExitStack()
        self._began = 0.0

    def __enter__(self) -> None:
        self._turns.wait(self._place)
        self._inside.enter_context(self._side.opened.adapter(self._side.adapter))
        self._began = time.monotonic()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._inside.close()
        self._turns.leave(self._place)

    def goes_on(self) -> bool:
        """False once the answers are given up."""
        if len(self._turns.line) > 1 and time.monotonic() - self._began >= self._turns.seconds:
            self._inside.close()
            self._turns.pass_on()
            self.__enter__()
        return not self._turns.given_up.is_set()


def answer_side_by_side(
    questions: Sequence[tuple[Side, Asked]],
    say: Callable[[str, str], None],
    given_up: threading.Event,
    *,
    seed: int | None = None,
    options: Mapping[str, Any] | None = None,
    turn_seconds: float = TURN,
) -> list[Told]:
    """Lets every side answer; returns how each ended, in their order. A side that cannot be asked does not keep the others.

    Args:
        questions: what each side is asked.
        say: is told the pieces of the answers by the name of the side, from one thread a side.
        given_up: once it is set, the answers end where they are.
        seed: of the sampling: equal sides give equal answers.
        options: of generate_answers.
        turn_seconds: a side has the model so long before the next one has it.
    """
    turns = _Turns(given_up, deque(range(len(questions))), turn_seconds)

    def work(place: int) -> Told:
        side, asked = questions[place]
        told = Told(side.name)
        chat = Chat(side.opened, asked.system, list(asked.history))
        turn = _SidesTurn(turns, place, side)
        try:
            pieces = chat.stream(asked.question, seed=seed, turn=turn, **(options or {}))
            for piece in pieces:
                say(side.name, piece)
            told.end = None if given_up.is_set() else chat.ends[0]
            told.tokens = prompt_tokens(
                side.opened.tokenizer, [*system_turn(side.opened.tokenizer, asked.system), *chat.history]
            )
        except ToolkitError as error:
            told.refused = error
        finally:
            turns.leave(place)
        told.forgotten = chat.forgotten
        return told

    with ThreadPoolExecutor(max_workers=len(questions)) as threads:
        return list(threads.map(work, range(len(questions))))


def positions(side: Side) -> int | None:
    """Tokens that question and answer of a side may have together; None where its model names no end."""
    return positions_of(side.opened.model.config)
