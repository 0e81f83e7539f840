"""Answers of the command line for the page: what needs torch is asked of a child, so that the server never imports it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import anyio
import anyio.abc
from starlette.requests import ClientDisconnect, Request

from ...errors import (
    ConfigError,
    DataError,
    HubError,
    InputNotFoundError,
    RunLockedError,
    StorageError,
    ToolkitError,
    UsageError,
)
from ...system.children import isolated_environment, isolated_python
from .site import language_of, site_of

T = TypeVar("T")
# Bytes of what a child says about an error.
_SAID = 16_384
# Errors by the exit code with which a command ends.
_KINDS: dict[int, type[ToolkitError]] = {
    64: UsageError,
    65: DataError,
    66: InputNotFoundError,
    69: HubError,
    74: StorageError,
    75: RunLockedError,
    78: ConfigError,
}
_PREFIXES = ("エラー: ", "error: ")


async def run(
    request: Request,
    arguments: Sequence[str],
    *,
    seconds: float = 120,
    most_bytes: int = 32 << 20,
    given: bytes = b"",
    also: Sequence[int] = (),
    alone: str | None = None,
) -> Any:
    """The JSON that `aift ARGUMENTS` prints, which goes with the request that asks for it.

    Args:
        arguments: the verb and what follows, with `--json -` where it takes one; a path among them is absolute.
        seconds: after which it is ended.
        most_bytes: that it may print.
        given: to its standard input.
        also: exit codes with which it may end beside 0, where it has printed JSON all the same.
        alone: one child of this name is at work at a time; None takes the verb.

    Raises:
        ToolkitError: what the command refused, in the language of whoever asks; or it took too long, or printed no JSON.
    """
    name = arguments[0]
    async with site_of(request).locks[f"child {alone or name}"]:
        code, out, said = await while_there(
            request, partial(_run, arguments, language_of(request), seconds, most_bytes, given)
        )
    if code == 0 or code in also:
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(out)
    raise _refusal(name, code, said.decode("utf-8", "replace"))


def wait(arguments: Sequence[str], language: str, seconds: float) -> Any:
    """The JSON that `aift ARGUMENTS` prints, for functions that run beside the event loop and end what they have begun.

    Args:
        arguments: as for run().
        language: of what it refuses.
        seconds: after which it is ended.

    Raises:
        ToolkitError: as run().
    """
    command = [*isolated_python("ai_finetuning"), *arguments]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            env=_environment(language),
            capture_output=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _too_long(arguments[0], seconds) from None
    if done.returncode == 0:
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(done.stdout)
    raise _refusal(arguments[0], done.returncode, done.stderr[-_SAID:].decode("utf-8", "replace"))


def _environment(language: str) -> dict[str, str]:
    # A page that is looked at asks no hub: only a training or a job that somebody starts does.
    return isolated_environment() | {"PYTHONUTF8": "1", "AIFT_LANG": language, "HF_HUB_OFFLINE": "1"}


def _too_long(verb: str, seconds: float) -> UsageError:
    return UsageError(
        f"aift {verb} が {seconds:.0f} 秒で終わりませんでした。",
        f"aift {verb} did not end within {seconds:.0f} seconds.",
    )


async def while_there(request: Request, work: Callable[[], Awaitable[T]]) -> T:
    """What `work` returns, which is cancelled when whoever asked has gone. The request's body is read by then.

    Raises:
        ClientDisconnect: nobody waits any more. What `work` raises.
    """
    with contextlib.suppress(RuntimeError):  # api.body() has read it already
        await request.body()
    with anyio.CancelScope() as scope:

        async def watch() -> None:
            while not await request.is_disconnected():
                await asyncio.sleep(0.2)
            scope.cancel()

        # No group of tasks: that would wrap what `work` raises.
        watching = asyncio.create_task(watch())
        try:
            return await work()
        finally:
            watching.cancel()
    raise ClientDisconnect


async def _run(
    arguments: Sequence[str], language: str, seconds: float, most: int, given: bytes
) -> tuple[int, bytes, bytes]:
    """(exit code, what it printed, the end of what it said) of one command."""
    command = [*isolated_python("ai_finetuning"), *arguments]
    process = await anyio.open_process(
        command, stdin=subprocess.PIPE, env=_environment(language), start_new_session=os.name != "nt"
    )
    try:
        with anyio.fail_after(seconds):
            return await _talk(process, given, most)
    except TimeoutError:
        raise _too_long(arguments[0], seconds) from None
    finally:
        _end(process)
        with anyio.CancelScope(shield=True):
            await process.aclose()


async def _talk(process: anyio.abc.Process, given: bytes, most: int) -> tuple[int, bytes, bytes]:
    printed = {"out": bytearray(), "said": bytearray()}
    large = False

    async def read(name: str, stream: anyio.abc.ByteReceiveStream | None) -> None:
        nonlocal large
        assert stream is not None
        async for part in stream:
            printed[name] += part
            if name == "said":
                del printed[name][:-_SAID]
            elif len(printed[name]) > most:
                large = True
                return _end(process)

    async with anyio.create_task_group() as group:
        group.start_soon(read, "out", process.stdout)
        group.start_soon(read, "said", process.stderr)
        assert process.stdin is not None
        with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
            await process.stdin.send(given)
        await process.stdin.aclose()
    if large:
        raise UsageError(f"答えが {most:,} バイトを超えました。", f"the answer has more than {most:,} bytes.")
    return await process.wait(), bytes(printed["out"]), bytes(printed["said"])


def _end(process: anyio.abc.Process) -> None:
    """Ends a child and what it started, where it has not ended."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if os.name == "nt":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)


def _refusal(verb: str, code: int, said: str) -> ToolkitError:
    lines = said.strip().splitlines()
    start = next((at for at in range(len(lines) - 1, -1, -1) if lines[at].startswith(_PREFIXES)), None)
    if start is None and code < 0:  # what it said before was not about that
        return UsageError(
            f"aift {verb} が途中で終わらされました（シグナル {-code}）。この PC のメモリーが足りないときに起こります。",
            f"aift {verb} was ended (signal {-code}), as happens where this PC's memory runs out.",
        )
    start = max(0, len(lines) - 1) if start is None else start
    text = "\n".join(lines[start:])[:4000]
    for prefix in _PREFIXES:
        text = text.removeprefix(prefix)
    text = text or f"aift {verb}: {code}"
    return _KINDS.get(code, ToolkitError)(text, text)
