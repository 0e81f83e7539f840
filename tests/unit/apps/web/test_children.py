"""What goes with the request that asks for it, and what children say that end otherwise than they should."""

from __future__ import annotations

import sys

import anyio
import pytest
from starlette.requests import ClientDisconnect, Request
from tests.support.systems import needs_sigkill

from ai_finetuning.apps.web import children
from ai_finetuning.apps.web.children import while_there
from ai_finetuning.errors import DataError, UsageError


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


@needs_sigkill
def test_a_child_that_was_killed_is_told_as_that_and_not_by_what_it_said_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code = "import os, sys; print('準備しています…', file=sys.stderr, flush=True); os.kill(os.getpid(), 9)"
    monkeypatch.setattr(children, "isolated_python", lambda module: [sys.executable, "-c", code, module])
    with pytest.raises(UsageError) as told:
        children.wait(["data", "glance"], "ja", 60)
    assert told.value.ja.startswith("aift data が途中で終わらされました（シグナル 9）。")
    assert told.value.en.startswith("aift data was ended (signal 9), ")
