"""The page's server: the screens behind the gate, on a port of this PC."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import threading
import webbrowser
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import uvicorn
from starlette.applications import Starlette

from ...errors import ConfigError, ToolkitError, localized
from ...messages import notice, warn
from ...runs import OUTPUTS
from ...system import collector, heap
from . import pages, tickets
from .api import refuse
from .gate import App, Gate
from .screens import ROUTES
from .site import Site

HERE = "127.0.0.1"
# Ports that are tried, from the one that was named.
_PORTS = 50


def application(site: Site, hosts: frozenset[str]) -> App:
    """The ASGI application: the gate, and behind it the screens."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        if site.workers is not None:
            site.workers.close()

    app = Starlette(
        routes=[*pages.ROUTES, *tickets.ROUTES, *ROUTES],
        exception_handlers={404: refuse, 405: refuse, ToolkitError: refuse, Exception: refuse},
        lifespan=lifespan,
    )
    app.state.site = site
    app.state.tickets = {}
    return Gate(app, hosts, site.token)


def serve(site: Site, *, port: int = 8050, listen: str = HERE, browser: bool = True) -> int:
    """Serves until it is told to end. Trainings that were started go on.

    Args:
        site: with its folders.
        port: of this PC; the next free one where it is taken; 0 takes any.
        listen: the address at which others reach the page; 127.0.0.1 is this PC only.
        browser: whether to open the page in this PC's browser.

    Raises:
        ConfigError: the address is none of this PC, or no port is free.
    """
    bound = _bind(listen, port)
    taken = bound.getsockname()[1]
    if port not in (0, taken):
        notice(
            f"ポート {port} は使われているため、{taken} を使います。", f"port {port} is taken; this is port {taken}."
        )
    names = names_of(listen)
    if not ipaddress.ip_address(listen).is_loopback:
        _warn_of_others(listen)
    address = f"http://{names[0]}:{taken}/#token={site.token}"
    print(localized(f"ブラウザーで開いてください: {address}", f"open this in your browser: {address}"), flush=True)
    print(localized("終わるには Ctrl+C（学習は続きます）", "Ctrl+C ends it; trainings go on"), flush=True)
    config = uvicorn.Config(
        application(site, frozenset(f"{name}:{taken}" for name in names)),
        loop="asyncio",
        http="h11",
        ws="none",
        log_level="critical",  # api.refuse tells of errors, without secrets
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=1,
    )
    collector.as_usual()  # it serves for days
    heap.give_back()
    if browser:
        threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[bound])
    return 0


def _bind(listen: str, port: int) -> socket.socket:
    """A socket at the address, with the first free port."""
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(listen).version == 6 else socket.AF_INET
    except ValueError:
        raise ConfigError(
            f"--listen {listen} は IP アドレスではありません。例: --listen 192.168.1.10",
            f"--listen {listen} is no IP address; an example is --listen 192.168.1.10",
        ) from None
    reason = ""
    for number in range(port, min(port + (_PORTS if port else 1), 65536)):
        bound = socket.socket(family, socket.SOCK_STREAM)
        if os.name != "nt":
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind((listen, number))
            bound.listen(128)
        except OSError as error:
            bound.close()
            reason = str(error)
            continue
        return bound
    raise ConfigError(
        f"{listen} のポート {port} を使えません（{reason}）。--port で別の番号を指定してください。",
        f"port {port} of {listen} cannot be used ({reason}); name another one with --port.",
    )


def names_of(listen: str) -> list[str]:
    """Names under which the server is asked; the first is for the address that is printed."""
    here = [HERE, "localhost"]
    address = ipaddress.ip_address(listen)
    if listen == HERE:
        return here
    if not address.is_unspecified:
        return [f"[{listen}]" if address.version == 6 else listen]
    # Numbers only: a name could be one that somebody else has pointed to this PC.
    cards = psutil.net_if_addrs().values()
    return [
        *here,
        *(one.address for card in cards for one in card if one.family == socket.AF_INET and one.address != HERE),
    ]


def _warn_of_others(listen: str) -> None:
    warn(
        f"--listen {listen}: 同じネットワークの人がこのページに接続でき、通信は暗号化されません。アドレスのトークンを知る人は、学習を"
        "始め、データを読めます。別の PC から使うには、--listen ではなく ssh -L 8050:127.0.0.1:8050 を使ってください。",
        f"--listen {listen}: people in the same network reach this page, and nothing is encrypted. Whoever knows the token in "
        "the address can start trainings and read data. To use it from another PC, prefer ssh -L 8050:127.0.0.1:8050.",
    )


def site_in(here: Path, *, runs: Path | None = None, models: Path | None = None, data: Path | None = None) -> Site:
    """A server over the runs here and in `outputs`, the models in `models` and the data in `aift-data`.

    Args:
        here: the folder that the others are in where they are not named.
        runs: the one folder of runs.
        models: of models.
        data: of uploads.
    """
    chosen = None if runs is None else runs.absolute()
    return Site(
        runs=chosen or here / OUTPUTS,
        roots=(chosen or here,),
        models=(models or here / "models").absolute(),
        data=(data or here / "aift-data").absolute(),
    )
