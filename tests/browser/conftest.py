"""A real server in a process of its own, a real browser, and what holds at the end of every test.

At its end no request has left 127.0.0.1, nothing stands in the console as an error (what the content security policy
refuses does), and no process is left over in the test's folder.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTHONPATH = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
# Chromium asks nobody: not for updates of itself, and no name but this PC's is found.
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
)
# What the browser itself writes of an answer that is a refusal; the page's own errors are others.
_EXPECTED = re.compile(r"^Failed to load resource: ")
# Every screen, with a run that need not be there.
PATHS = (
    *("/", "/data", "/models", "/train", "/chat", "/answers", "/compare", "/export"),
    *("/runs/none", "/runs/none/result"),
)
# Milliseconds that a page, and seconds that a process which was told to end, may take: a busy machine is no failure.
_PATIENT, _END = 60_000, 60.0


def absent(reason: str) -> None:
    """Skips a test that lacks its browser; where a browser was installed for the tests, that is a failure."""
    if os.environ.get("AIFT_NEED_BROWSER") == "1":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    """Chromium of the system, for the tests of this folder: while it is there, playwright's event loop runs in this thread."""
    try:
        from playwright.sync_api import expect, sync_playwright
    except ImportError:
        absent("playwright is not installed: pip install -e '.[web-test]'")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        absent("no chromium: apt-get install chromium fonts-noto-cjk")
    fonts = shutil.which("fc-list") and subprocess.run(
        ["fc-list", ":lang=ja"], capture_output=True, text=True, check=False
    )
    if not fonts or not fonts.stdout.strip():
        absent("no Japanese font (fc-list :lang=ja): apt-get install fonts-noto-cjk")
    expect.set_options(timeout=_PATIENT)
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield opened
        opened.close()


@dataclass
class Web:
    """One server.

    Attributes:
        folder: where it stands; runs go to `outputs`, data to `aift-data`, models to `models`.
    """

    folder: Path
    port: int = 0
    token: str = ""
    process: subprocess.Popen[str] | None = None
    arguments: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """Of the server, and of whatever a test starts beside it: nothing of the user's own folders."""
        state = {"AIFT_STATE": str(self.folder / "state"), "AIFT_CACHE": os.environ["AIFT_CACHE"]}
        own = {"PYTHONPATH": PYTHONPATH, "HF_HUB_OFFLINE": "1", "HOME": str(self.folder), "OMP_NUM_THREADS": "1"}
        kept = {name: value for name, value in os.environ.items() if name not in ("AIFT_LANG", "PYTHONSAFEPATH")}
        return kept | state | own

    def start(self) -> None:
        """Starts the server; once more on the port that it had."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ai_finetuning", "web", "--no-open", "--port", str(self.port), *self.arguments],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=(self.folder / "server.log").open("a"),
            text=True,
        )
        assert self.process.stdout is not None
        found = re.search(r"127\.0\.0\.1:(\d+)/#token=(\S+)", self.process.stdout.readline())
        assert found is not None, (self.folder / "server.log").read_text()
        self.port, self.token = int(found[1]), found[2]

    def end(self) -> None:
        """Ends it as Ctrl-C does."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait(_END)

    def open(self, page: Any, path: str = "/") -> None:
        """Shows a screen, with the token."""
        page.goto(f"{self.url}{path}#token={self.token}")

    def said(self) -> str:
        """What the server's terminal shows."""
        return (self.folder / "server.log").read_text(encoding="utf-8")


@pytest.fixture
def start_web(tmp_path: Path) -> Iterator[Callable[..., Web]]:
    """A function: a server in a folder (that of the test), with further arguments of `aift web`."""
    started: list[Web] = []

    def start(*arguments: str, folder: Path = tmp_path) -> Web:
        web = Web(folder, arguments=list(arguments))
        started.append(web)
        web.start()
        return web

    yield start
    for web in started:
        web.end()
        assert "Traceback" not in web.said(), web.said()
    assert not left_over(tmp_path), left_over(tmp_path)


def left_over(folder: Path) -> list[str]:
    """Processes of a test's folder that are at work, after a while in which they may end; they are ended."""
    deadline = time.monotonic() + _END
    while (found := _processes_of(folder)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for process in found:
        process.kill()
    return [str(process) for process in found]


def _processes_of(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            of_this_test = any(str(folder) in word for word in [process.cwd(), *process.cmdline()])
            if of_this_test and process.status() != psutil.STATUS_ZOMBIE and process.pid != os.getpid():
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture
def web(start_web: Callable[..., Web]) -> Web:
    """A server in the test's folder."""
    return start_web()


@pytest.fixture
def new_context(browser: Any) -> Iterator[Callable[..., Any]]:
    """A function: another profile of the browser, with playwright's options; a Japanese one where they do not say."""
    contexts: list[Any] = []
    problems: list[str] = []

    def heard(message: Any) -> None:
        if message.type == "error" and not _EXPECTED.match(message.text):
            problems.append(f"console: {message.text}")

    def asked(request: Any) -> None:
        if not re.match(r"(http://127\.0\.0\.1:\d+/|data:|blob:)", request.url):
            problems.append(f"request: {request.url}")

    def opened(page: Any) -> None:
        page.on("pageerror", lambda error: problems.append(f"error: {error}"))

    def new(**options: Any) -> Any:
        context = browser.new_context(**{"locale": "ja-JP", "viewport": {"width": 1280, "height": 800}} | options)
        context.set_default_timeout(_PATIENT)
        context.on("console", heard)
        context.on("request", asked)
        context.on("page", opened)
        contexts.append(context)
        return context

    yield new
    for context in contexts:
        context.close()
    assert not problems, "\n".join(problems)


@pytest.fixture
def page(new_context: Callable[..., Any]) -> Any:
    """A tab."""
    return new_context().new_page()
