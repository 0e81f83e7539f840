"""A page as a parser and as a browser sees it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

# Elements that have no end.
_VOID = {"meta", "br", "img", "input", "hr", "link"}
# Attributes whose value a browser would fetch or run.
_LOADING = {"src", "href", "srcset", "data", "action", "poster", "background", "formaction", "ping", "xlink:href"}


class Page(HTMLParser):
    """An HTML page taken apart: refuses elements that end in another order than they began.

    Attributes:
        text: what is read, without styles.
        elements: (name, attributes) in order.
        loads: what a browser would fetch or run.
    """

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.text = ""
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.loads: list[str] = []
        self._open: list[str] = []
        self.feed(source)
        self.close()
        assert self._open == [], self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.text += "\n"
        values = dict(attrs)
        assert len(values) == len(attrs), attrs
        self.elements.append((tag, values))
        self.loads += [f"{tag} {name}" for name in values if name in _LOADING or name.startswith("on")]
        if tag in ("script", "iframe", "object", "embed", "link", "base", "form", "img", "foreignobject"):
            self.loads.append(tag)
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> ends nothing"
        assert self._open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "style":
            self.loads += [word for word in ("url(", "@import") if word in data]
        else:
            self.text += data

    def find(self, name: str, /, **attributes: str) -> list[dict[str, str | None]]:
        """The attributes of the elements of that name that have these ones (`class_` for class)."""
        expected = {key.rstrip("_"): value for key, value in attributes.items()}
        return [values for tag, values in self.elements if tag == name and expected.items() <= values.items()]


class Browser:
    """Chromium without a window, spoken to through two pipes (its DevTools protocol: JSON that ends in a zero byte)."""

    def __init__(self, process: subprocess.Popen[bytes], to: int, back: int) -> None:
        self._process, self._to, self._back = process, to, back
        self._number, self._left = 0, b""
        self.seen: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """The answer to a command; what the browser says meanwhile is in `seen`."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        os.write(self._to, json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        while True:
            while b"\0" not in self._left:
                part = os.read(self._back, 1 << 16)
                if not part:
                    raise RuntimeError("the browser has gone")
                self._left += part
            raw, _, self._left = self._left.partition(b"\0")
            answer = json.loads(raw)
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            self.seen.append(answer)

    def measure(self, file: Path, width: int, script: str, *, dark: bool = False) -> Any:
        """What a script says of a page shown at a width in pixels, as a phone does below 800."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 800}
        self.call("Emulation.setDeviceMetricsOverride", session, **size)
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", session, features=[feature])
        self.call("Page.enable", session)
        self.call("Log.enable", session)
        self.call("Network.enable", session)
        self.call("Page.navigate", session, url=file.resolve().as_uri())
        wait = "new Promise(done => document.readyState == 'complete' ? done() : addEventListener('load', done))"
        self.call("Runtime.evaluate", session, expression=wait, awaitPromise=True)
        answer = self.call("Runtime.evaluate", session, expression=script, returnByValue=True)["result"]["value"]
        self.call("Target.closeTarget", targetId=target)
        return answer

    def requests(self) -> list[str]:
        """The addresses that pages asked for."""
        sent = [item["params"] for item in self.seen if item.get("method") == "Network.requestWillBeSent"]
        return [item["request"]["url"] for item in sent]

    def complaints(self) -> list[str]:
        """What the browser logged, such as a violated policy."""
        logged = [item["params"]["entry"] for item in self.seen if item.get("method") == "Log.entryAdded"]
        return [f"{entry['level']}: {entry['text']}" for entry in logged if entry["level"] in ("warning", "error")]


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """A browser; skips the test where none is installed."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None or os.name == "nt":
        pytest.skip("no Chromium is installed (apt-get install chromium)")
    to_read, to = os.pipe()
    back, back_write = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:

        def place() -> None:  # the protocol's pipes are 3 and 4
            low, high = os.dup(to_read), os.dup(back_write)
            os.dup2(low, 3)
            os.dup2(high, 4)

        process = subprocess.Popen(
            [
                program,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--disable-background-networking",
                "--no-first-run",
                "--hide-scrollbars",
                "--host-resolver-rules=MAP * ~NOTFOUND",
                f"--user-data-dir={profile}",
                "--remote-debugging-pipe",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            close_fds=False,
            preexec_fn=place,
        )
        for unused in (to_read, back_write):
            os.close(unused)
        try:
            yield Browser(process, to, back)
        finally:
            process.terminate()
            process.wait()
            os.close(to)
            os.close(back)
