"""A hub on this machine: the part of its HTTP interface that huggingface_hub needs to download a model's folder."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
import urllib.parse
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_LARGE = ".safetensors"


class Hub(http.server.ThreadingHTTPServer):
    """Serves one folder as the model `name`.

    Attributes:
        asked: paths that were asked for.
        spoilt: names of files that are sent with other bytes than were announced.
        pages: what else it answers, by path.
    """

    def __init__(self, name: str, folder: Path, licence: str = "apache-2.0") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.name, self.folder, self.licence = name, folder, licence
        self.asked: list[str] = []
        self.spoilt: set[str] = set()
        self.pages: dict[str, bytes] = {}

    def variables(self, home: Path) -> dict[str, str]:
        """What a process needs to ask this hub and no other, with its downloads below `home`."""
        address = f"http://127.0.0.1:{self.server_port}"
        return {
            "HF_HUB_OFFLINE": "0",
            "HF_ENDPOINT": address,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "PIP_INDEX_URL": f"{address}/simple",
            "NO_PROXY": "*",
        }

    def __enter__(self) -> Hub:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *args: object) -> None:
        self.shutdown()
        self.server_close()

    def description(self) -> dict[str, object]:
        """What the hub says of the model."""
        files = []
        for path in sorted(path for path in self.folder.rglob("*") if path.is_file()):
            content = path.read_bytes()
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            entry: dict[str, object] = {
                "rfilename": path.relative_to(self.folder).as_posix(),
                "size": len(content),
                "blobId": blob,
            }
            if path.name.endswith(_LARGE):
                digest = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"size": len(content), "sha256": digest, "pointerSize": 134}
            files.append(entry)
        card = {"license": self.licence} if self.licence else {}
        return {"id": self.name, "modelId": self.name, "sha": COMMIT, "siblings": files, "cardData": card, "tags": []}


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        hub = self.server
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        hub.asked.append(path)
        name = path.removeprefix(f"/{hub.name}/resolve/").partition("/")[2]
        if path.startswith(f"/api/models/{hub.name}"):
            self._send(json.dumps(hub.description()).encode(), {"Content-Type": "application/json"}, body)
        elif path.startswith(f"/{hub.name}/resolve/") and (hub.folder / name).is_file():
            content = (hub.folder / name).read_bytes()
            tag = hashlib.sha256(content).hexdigest()
            headers = {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT}
            begin = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
            sent = bytes(reversed(content)) if name in hub.spoilt else content
            self._send(sent[begin:], headers, body, 206 if begin else 200)
        elif path in hub.pages:
            self._send(hub.pages[path], {"Content-Type": "text/html"}, body)
        else:
            self._send(
                b"",
                {"X-Error-Code": "EntryNotFound" if path.startswith(f"/{hub.name}/") else "RepoNotFound"},
                body,
                404,
            )

    def _send(self, content: bytes, headers: dict[str, str], body: bool, status: int = 200) -> None:
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        """Keeps the tests' output clean."""
