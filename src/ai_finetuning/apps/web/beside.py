"""One question to several models: which of them share weights, and what the page is told while they answer."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import ToolkitError
from .talking import both
from .workers import Workers

if TYPE_CHECKING:
    from .screens.chosen import Choice

Turn = tuple["Choice", ...]


def turns_of(choices: Sequence[Choice]) -> list[Turn]:
    """Models in the groups in which they are loaded, one group after the other: adapters over one base share its weights,
    any other model is a group.
    """
    from ...models.shared_base import shared_base

    groups: dict[object, list[Choice]] = {}
    for choice in choices:
        base = shared_base(Path(choice.name)) if choice.kind == "adapter" else None
        groups.setdefault(base or choice.id, []).append(choice)
    return [tuple(group) for group in groups.values()]


async def answers(
    workers: Workers, turns: Sequence[Turn], asked: Mapping[str, Mapping[str, Any]], given: Mapping[str, Any]
) -> AsyncGenerator[dict[str, Any], None]:
    """What the page is told, by the ids of the models: {"state": "loading" or "answering", "ids"}; {"id", "t"};
    {"id", "end", "tokens", "forgotten"} or {"id", "refused"} once for each; {"done": true}.

    Args:
        turns: from turns_of().
        asked: by id what talker.py takes of a side.
        given: its seed and options.
    """
    left_over = list(turns)
    while left_over:
        turn = left_over.pop(0)
        ids = [choice.id for choice in turn]
        yield {"state": "loading", "ids": ids}
        try:
            worker = await workers.take(tuple(choice.name for choice in turn))
            await worker.ready()
        except ToolkitError as error:
            if len(turn) > 1:  # one of them may be damaged, which is no reason against the others
                left_over[:0] = [(choice,) for choice in turn]
            else:
                yield {"id": ids[0], "refused": both(error)}
            continue
        yield {"state": "answering", "ids": ids}
        left = dict(enumerate(ids))
        request = {**given, "asked": {str(at): asked[id] for at, id in left.items()}}
        async with contextlib.aclosing(worker.answer(request)) as messages:
            async for message in messages:
                why = both(message["ended"]) if "ended" in message else message.get("refused")
                if "side" not in message and why is not None:  # of all that have not ended yet
                    for id in left.values():
                        yield {"id": id, "refused": why}
                elif "side" in message:
                    at = int(message["side"])
                    yield {key: value for key, value in message.items() if key != "side"} | {"id": ids[at]}
                    if "end" in message:
                        left.pop(at)
    yield {"done": True}
