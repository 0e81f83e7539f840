"""llama.cpp's converter without git: the source archive of llama-cpp-python on PyPI, one version with a known content.

Only that archive is taken, whoever hands it over: its SHA-256 is compared before anything in it is read, so it may lie
in any folder. Of its 76 MB the converter's own Python files are unpacked, into a private folder of this process.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
import urllib.error
import urllib.parse
import urllib.request
from functools import lru_cache
from html.parser import HTMLParser
from pathlib import Path
from typing import BinaryIO

from ..errors import DataError, HubError, StorageError
from ..execution.output_folder import storage_error
from ..messages import notice
from ..system.files import replacing, sha256_of
from ..system.folders import temporary_cache
from ..system.network import carries_tokens

ARCHIVE = "llama_cpp_python-0.3.36.tar.gz"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
SIZE = 76_589_250
_PROJECT = "llama-cpp-python"
_INSIDE = f"{ARCHIVE.removesuffix('.tar.gz')}/vendor/llama.cpp/"
# The script and what it imports from beside it.
_PARTS = ("convert_hf_to_gguf.py", "conversion/", "gguf-py/")
_MAX_UNPACKED = 64 << 20
_INDEX_VARIABLE, _INDEX = "PIP_INDEX_URL", "https://pypi.org/simple"
_SECONDS = 30.0


def validate_archive(path: Path) -> None:
    """Compares the whole file with the one version whose content is known.

    Raises:
        DataError: it is another file.
    """
    try:
        right = path.stat().st_size == SIZE and sha256_of(path) == SHA256
    except OSError as error:
        raise DataError(f"{path} を読めません（{error}）。", f"{path} cannot be read ({error}).") from error
    if not right:
        raise DataError(
            f"{path} は {ARCHIVE}（SHA-256 {SHA256}）ではないため、中のプログラムを実行しません。PyPI の {_PROJECT} からそのファイルを取得するか、"
            "llama.cpp のチェックアウトのフォルダーを指定してください。",
            f"{path} is not {ARCHIVE} (SHA-256 {SHA256}), so nothing in it is run. Fetch that file from {_PROJECT} on "
            "PyPI, or name the folder of a llama.cpp checkout.",
        )


@lru_cache
def unpacked(path: Path) -> Path:
    """The folder with the converter of the archive, private to this process and removed when it ends.

    Raises:
        DataError: it is another file. StorageError: it cannot be unpacked.
    """
    validate_archive(path)
    folder = temporary_cache() / "llama.cpp"
    left = _MAX_UNPACKED
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = member.name.removeprefix(_INSIDE)
                wanted = member.name.startswith(_INSIDE) and name.startswith(_PARTS) and ".." not in name.split("/")
                if not (wanted and member.isfile()):
                    continue
                left -= member.size
                content = archive.extractfile(member)
                if left < 0 or content is None:
                    raise tarfile.ReadError(member.name)
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content.read(member.size))
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{path} を展開できません（{error}）。", f"{path} cannot be unpacked ({error}).") from error
    except OSError as error:
        raise storage_error(folder, error) from error
    return folder


def fetch(folder: Path) -> Path:
    """The archive in a folder: what is there already, else from PyPI or the index that PIP_INDEX_URL names.

    Raises:
        HubError: no answer, or another file. DataError: a file of its name that is another one. StorageError: it cannot
            be written.
    """
    path = folder / ARCHIVE
    if path.exists():
        validate_archive(path)
        return path
    index = os.environ.get(_INDEX_VARIABLE) or _INDEX
    try:
        address = _address(f"{index.rstrip('/')}/{_PROJECT}/")
        notice(f"{ARCHIVE}（{SIZE / 1e6:.0f} MB）を取得します。", f"downloading {ARCHIVE} ({SIZE / 1e6:.0f} MB).")
        with _opened(address) as answer, replacing(path) as file:
            _copy(answer, file)
    except StorageError:
        raise
    except (urllib.error.URLError, ValueError, TimeoutError, ConnectionError) as error:
        reason = str(getattr(error, "reason", error))[:200]
        raise HubError(
            f"{ARCHIVE} を取得できません（{reason}）。PyPI の {_PROJECT} からこのファイルを {folder} に置いて、同じコマンドをもう一度実行してください"
            f"（ミラーは {_INDEX_VARIABLE} で指定できます）。",
            f"{ARCHIVE} could not be fetched ({reason}). Put that file of {_PROJECT} on PyPI into {folder} and run the "
            f"same command again ({_INDEX_VARIABLE} names a mirror).",
        ) from error
    except OSError as error:
        raise storage_error(folder, error) from error
    return path


class _Links(HTMLParser):
    """The addresses that a page of an index links to."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value for name, value in attrs if tag == "a" and name == "href" and value]


def _address(page: str) -> str:
    """Where an index keeps the archive."""
    links = _Links()
    with _opened(page) as answer:
        links.feed(answer.read(16 << 20).decode("utf-8", errors="replace"))
    for address in links.addresses:
        if urllib.parse.unquote(urllib.parse.urlsplit(address).path).endswith(f"/{ARCHIVE}"):
            return urllib.parse.urljoin(page, address)
    raise ValueError(f"{ARCHIVE} is not listed")


def _opened(address: str) -> BinaryIO:
    if not carries_tokens(address):  # the index may need a password
        raise ValueError("the address must be https")
    request = urllib.request.Request(address, headers={"Accept": "text/html", "User-Agent": "ai-finetuning-toolkit"})
    answer: BinaryIO = urllib.request.urlopen(request, timeout=_SECONDS)  # nosec B310  # https or this machine
    return answer


def _copy(answer: BinaryIO, file: BinaryIO) -> None:
    """Raises ValueError where what comes is not the archive."""
    digest, size = hashlib.sha256(), 0
    while block := answer.read(1 << 20):
        size += len(block)
        if size > SIZE:
            break
        digest.update(block)
        file.write(block)
    if size != SIZE or digest.hexdigest() != SHA256:
        raise ValueError("SHA-256")
