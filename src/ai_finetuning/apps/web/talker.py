"""The process of one loaded model, or of several adapters over one base: questions come in and answers go out, as lines
of JSON.

Run by workers.py as a module. It ends with whoever started it (the end of its input), when nobody has asked for a
while, and when it cannot load.

In: {"do": "answer", "id": N, "asked": {SIDE: {"history", "question", "system"}}, "seed", "options"}, {"do": "stop", "id": N}.
Out: {"ready": {...}}, {"failed": ..., "room": whether it lacked room}, {"idle": true}; of an answer {"id", "side", "t"}, {"id", "side", "end", ...}, and at
last {"id", "done": true}.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import HubError, ToolkitError
from ...messages import described

if TYPE_CHECKING:
    from ...inference.side_by_side import Side, Told

BASE, TUNED = "base", "tuned"


class _Pipe:
    """The way back: a line a message, from any thread. What anything else prints goes to stderr."""

    def __init__(self) -> None:
        self._file = os.fdopen(os.dup(1), "w", encoding="utf-8", newline="\n")
        self._lock = threading.Lock()
        os.dup2(2, 1)

    def say(self, **message: Any) -> None:
        """Sends a message. Nobody to read it is the end of this process."""
        try:
            with self._lock:
                self._file.write(json.dumps(message, ensure_ascii=False) + "\n")
                self._file.flush()
        except OSError:
            os._exit(0)


class _Requests:
    """What is asked, read at once, so that a stop reaches the answer that is being made."""

    def __init__(self) -> None:
        self.waiting: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.given_up: dict[int, threading.Event] = {}
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in sys.stdin.buffer:
            request = json.loads(line)
            if request["do"] == "stop":
                event = self.given_up.get(request["id"])
                if event is not None:
                    event.set()
            else:
                self.given_up[request["id"]] = threading.Event()
                self.waiting.put(request)
        os._exit(0)  # whoever started this process is gone, however it ended


def reason(error: Exception) -> dict[str, str]:
    """An error in both languages."""
    if isinstance(error, HubError):  # as workers.py starts this process
        return {
            "ja": f"会話のためにモデルをダウンロードすることはありません。{error.ja}",
            "en": f"A conversation downloads no model. {error.en}",
        }
    if isinstance(error, ToolkitError):
        return {"ja": error.ja, "en": error.en}
    said = described(error, for_files=True)
    return {"ja": f"予期しないエラーです: {said}", "en": f"unexpected: {said}"}


def load(name: str) -> tuple[list[Side], dict[str, str] | None]:
    """(the sides that answer, why there is only one of two): of an adapter the base and itself, which share their weights;
    of a model that a run has trained whole the model that it began with, where that fits beside it.

    Raises:
        ToolkitError: it cannot be loaded.
    """
    from ...models.named import find_named

    find_named(name)  # refused before torch is imported
    from ...inference.session import open_model
    from ...inference.side_by_side import Side
    from ...runs.folder import read_run
    from .room import refuse_without_room

    opened = open_model(name, place=refuse_without_room)
    if opened.has_adapter:
        return [Side(BASE, opened, adapter=False), Side(TUNED, opened)], None
    named = find_named(name)
    run = read_run(named.run) if named.run is not None else {}
    same = run.get("fingerprint") or run.get("planned") or {}
    before = same.get("model") if isinstance(same, dict) else None
    if not before or before == name:
        return [Side(TUNED, opened)], None
    try:
        return [Side(BASE, open_model(str(before), place=refuse_without_room)), Side(TUNED, opened)], None
    except ToolkitError as error:
        return [Side(TUNED, opened)], reason(error)


def load_each(names: list[str]) -> list[Side]:
    """A side for each name, called by its place among them: a model alone, or adapters that share their base's weights.

    Raises:
        ToolkitError: it cannot be loaded.
    """
    from ...models.named import find_named

    for name in names:
        find_named(name)
    from ...inference.one_base import open_adapters
    from ...inference.session import open_model
    from ...inference.side_by_side import Side
    from .room import refuse_without_room

    if len(names) == 1:
        return [Side("0", open_model(names[0], place=refuse_without_room))]
    return [Side(str(at), one) for at, one in enumerate(open_adapters(names, place=refuse_without_room))]


def _answer(sides: list[Side], request: dict[str, Any], given_up: threading.Event, pipe: _Pipe) -> None:
    from ...inference.side_by_side import Asked, answer_side_by_side

    number = request["id"]
    asked = {name: Asked(**values) for name, values in request["asked"].items()}
    told = answer_side_by_side(
        [(side, asked[side.name]) for side in sides if side.name in asked],
        lambda side, piece: pipe.say(id=number, side=side, t=piece),
        given_up,
        seed=request["seed"],
        options=request["options"],
    )
    for item in told:
        pipe.say(id=number, **_said(item))


def _said(told: Told) -> dict[str, Any]:
    found = {"side": told.side, "end": told.end, "tokens": told.tokens, "forgotten": told.forgotten}
    return found | ({"refused": reason(told.refused)} if told.refused is not None else {})


def main() -> None:
    """The process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever started it
    given = argparse.ArgumentParser()
    given.add_argument("names", nargs="+")
    given.add_argument("--each", action="store_true", help="a side for each name, none for their base")
    given.add_argument("--idle", type=float, default=300.0)
    options = given.parse_args()
    pipe, requests = _Pipe(), _Requests()
    from ...system.cores import wait_passively

    wait_passively()
    try:
        sides, alone = (load_each(options.names), None) if options.each else load(options.names[0])
    # The outermost frame of this process: loading runs code of several libraries, which raise what they like, and the page
    # has to say it. Without os._exit the thread that waits for input would make the interpreter abort.
    except Exception as error:
        from .room import NoRoomError

        pipe.say(failed=reason(error), room=isinstance(error, NoRoomError))
        os._exit(1)
    from ...inference.side_by_side import positions

    last = sides[-1]
    pipe.say(
        ready={
            "sides": [side.name for side in sides],
            "system": last.opened.system,
            "positions": positions(last),
            "base": Path(str(sides[0].opened.base_name)).name,
            "device": str(last.opened.model.device),
            "alone": alone,
        }
    )
    while True:
        try:
            request = requests.waiting.get(timeout=options.idle)
        except queue.Empty:
            pipe.say(idle=True)
            os._exit(0)
        number = request["id"]
        try:
            _answer(sides, request, requests.given_up[number], pipe)
        # Of one question, such as memory that ran out in the middle of it: said where the answer would stand, and the model
        # stays for the next one.
        except Exception as error:
            pipe.say(id=number, refused=reason(error))
        pipe.say(id=number, done=True)
        requests.given_up.pop(number, None)


if __name__ == "__main__":
    main()
