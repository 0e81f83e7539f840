"""A port of this machine that nobody uses."""

from __future__ import annotations

import socket


def free_port() -> int:
    """Free at this moment."""
    with socket.socket() as obtained:
        obtained.bind(("127.0.0.1", 0))
        return int(obtained.getsockname()[1])
