"""What goes with the request that asks for it."""

from __future__ import annotations

import anyio
import pytest
from starlette.requests import ClientDisconnect, Request

from ai_finetuning.apps.web.children import while_there
from ai_finetuning.errors import DataError


def _request(leaves: bool) -> Request:
    """A request whose body is empty, of somebody who goes at once or never."""
    told = False

    async def receive() -> dict[str, object]:
        nonlocal told
        if not told:
            told = True
            return {"type": "http.request", "body": b"", "more_body": False}
        if not leaves:
            await anyio.sleep_forever()
        return {"type": "http.disconnect"}

    return Request({"type": "http", "method": "POST", "headers": []}, receive)


def test_a_result_and_an_error_come_back_as_they_are() -> None:
    async def seven() -> int:
        await anyio.sleep(0)
        return 7

    async def refused() -> int:
        raise DataError("読めません。", "it cannot be read.")

    async def both() -> None:
        assert await while_there(_request(leaves=False), seven) == 7
        with pytest.raises(DataError):
            await while_there(_request(leaves=False), refused)

    anyio.run(both)


def test_work_ends_when_nobody_waits_any_more() -> None:
    ended = []

    async def long() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append(True)

    async def ask() -> None:
        with pytest.raises(ClientDisconnect):
            await while_there(_request(leaves=True), long)

    anyio.run(ask)
    assert ended == [True]
