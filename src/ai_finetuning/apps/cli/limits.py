"""Bounds of time and memory for what the page's server has done with a stranger's file; beyond them a refusal in words."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from ...errors import DataError


class OutOfTime(BaseException):
    """The seconds are over. No error of a row or of a file: what collects those does not take it for one and go on."""


@contextlib.contextmanager
def limited(file: str | Path, memory: int, seconds: int, slow: tuple[str, str] = ("", "")) -> Iterator[None]:
    """Does something with a file within limits, see limit().

    Args:
        file: as the user knows it, for the message.
        slow: what makes it take long (Japanese, English), for the message.

    Raises:
        DataError: it takes more.
    """
    ja, en = slow
    try:
        limit(memory, seconds)
        yield
    except OutOfTime:
        raise DataError(
            f"{file} を調べるのに {seconds} 秒を超える計算が要るため、やめました。ファイルを分けてください{ja and f'（{ja}）'}。",
            f"examining {file} takes more than {seconds} seconds of computing; divide it{en and f' ({en})'}.",
        ) from None
    except MemoryError:
        raise DataError(
            f"{file} を読むのに {memory >> 30} GiB を超えるメモリーが要ります。ファイルを分けてください。",
            f"{file} takes more than {memory >> 30} GiB of memory to read; divide it.",
        ) from None


def limit(memory: int, seconds: int) -> None:
    """Bounds this process, where the operating system can: beyond the memory Python raises MemoryError, beyond the seconds
    of computing OutOfTime comes out of whatever is at work.

    Args:
        memory: bytes of addresses.
        seconds: of CPU time.
    """
    if os.name == "nt":
        return
    import resource
    import signal

    def end(*_: object) -> None:
        signal.signal(signal.SIGXCPU, signal.SIG_IGN)  # once is enough
        raise OutOfTime

    signal.signal(signal.SIGXCPU, end)
    for what, most in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, seconds)):
        _, hard = resource.getrlimit(what)
        resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
