"""An OpenAI-compatible server on this machine: `transformers serve`, pinned to one model and to 127.0.0.1."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError, UsageError, refusing
from ..japanese.default_system import split_default_system
from ..messages import notice, on_one_line
from ..models.options import validate_bits
from ..system.children import OWNER, isolated_environment, isolated_python
from ..system.files import read_bounded
from .serve_names import short_name, validate_alias
from .serve_needs import validate_server
from .source import model_folder

HOST = "127.0.0.1"
_KEY = re.compile(r"[!-~]{1,512}")


@dataclass(frozen=True)
class Clients:
    """What clients of a server may ask, and how they find it.

    Attributes:
        alias: what they call the model; None takes the name of its folder or id.
        max_tokens: most tokens of an answer.
        key_file: a file with the key that every request must carry; None leaves AIFT_SERVE_KEY, where it is set.
        told: a file to write base_url and model to, as JSON, once the server answers; one that is there is removed.
    """

    alias: str | None = None
    max_tokens: int = 4096
    key_file: Path | None = None
    told: Path | None = None


def serve_command(folder: Path, *, port: int, device: str = "auto", bits: int | None = None) -> list[str]:
    """The server's arguments. The model is pinned: an unpinned server loads any path that a client names."""
    command = [
        *isolated_python("ai_finetuning.export.serve_process"),
        "serve",
        str(folder.resolve()),  # a name that begins with "--" would be read as an option
        "--host",
        HOST,
        "--port",
        str(port),
        "--device",
        device,
        "--log-level",
        "error",  # below that, transformers reports every request
    ]
    return command + (["--quantization", f"bnb-{bits}bit"] if bits is not None else [])


def server_environment(clients: Clients, name: str) -> dict[str, str]:
    """The environment of the server: no hub, and a hub cache that exists; AIFT_SERVE_KEY is handed on.

    Args:
        name: of the model.

    Raises:
        ConfigError: the alias, or what is in the key's file, cannot be one.
    """
    from huggingface_hub.constants import HF_HUB_CACHE

    Path(HF_HUB_CACHE).mkdir(parents=True, exist_ok=True)
    own = {"AIFT_SERVE_KEY": _key(clients.key_file)} if clients.key_file is not None else {}
    told = {"AIFT_SERVE_TOLD": str(clients.told.absolute())} if clients.told is not None else {}
    owner = {OWNER: os.environ[OWNER]} if OWNER in os.environ else {}  # the server takes this process over
    return isolated_environment() | {
        "HF_HUB_OFFLINE": "1",
        "AIFT_SERVE_MAX_TOKENS": str(clients.max_tokens),
        "AIFT_SERVE_NAMES": json.dumps(_names(clients.alias, name)),
        "PYTHONWARNINGS": os.environ.get("PYTHONWARNINGS", "ignore"),
        **own,
        **told,
        **owner,
    }


def _names(alias: str | None, name: str) -> list[str]:
    """What clients may call the model, the one that they are told first."""
    return list(dict.fromkeys([*([validate_alias(alias)] if alias is not None else []), short_name(name)]))


def _key(file: Path) -> str:
    with refusing(
        ConfigError,
        f"--key-file {file} を読めません（{{reason}}）。",
        f"--key-file {file} cannot be read ({{reason}}).",
    ):
        key = read_bounded(file, 4096).decode().strip()
    if not _KEY.fullmatch(key):
        raise ConfigError(
            f"--key-file {file} の中身が鍵になりません。空白のない英数字と記号を 1 文字から 512 文字、1 行で書いてください。",
            f"--key-file {file} holds no key: one line of 1 to 512 letters, digits and signs without blanks.",
        )
    return key


def serve(
    name: str,
    *,
    port: int = 8000,
    device: str = "auto",
    bits: int | None = None,
    base: str = "auto",
    clients: Clients = Clients(),
) -> int:
    """Runs the server until it is stopped; on Linux and macOS it takes this process over.

    Args:
        name: a model, or an adapter, which is merged into a cache folder first.
        port: a free one; 0 takes any.
        device: as transformers names it.
        bits: 4 or 8 loads the model quantized.
        base: what an adapter is merged into.

    Returns:
        The server's exit code, on Windows.

    Raises:
        UsageError: a port in use, other bits. ConfigError: an alias or a key that cannot be one. ModelError: packages are missing. ToolkitError: as loading and merging
            raise.
    """
    validate_server()
    validate_bits(bits, "--bits")
    environment = server_environment(clients, name)
    _free_port(port)
    if clients.told is not None:
        clients.told.unlink(missing_ok=True)
    folder = model_folder(name, base=base)
    command = serve_command(folder, port=_free_port(port), device=device, bits=bits)
    _say_system(folder)
    notice(
        f"OpenAI 互換サーバーを起動しています（モデル {_names(clients.alias, name)[0]}、この PC からのみ接続できます。止めるには Ctrl-C）。",
        f"starting an OpenAI-compatible server (model {_names(clients.alias, name)[0]}, this machine only; Ctrl-C stops it).",
    )
    if os.name == "posix":
        os.execve(command[0], command, environment)
    return subprocess.run(command, env=environment, check=False).returncode


def _free_port(port: int) -> int:
    """The port, or for 0 one that is free now."""
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, port))
            return int(probe.getsockname()[1])
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"ポート {port} は使えません（{error}）。--port で別の番号を指定してください。",
            f"port {port} cannot be used ({error}); choose another with --port.",
        ) from error


def _say_system(folder: Path) -> None:
    file = folder / "chat_template.jinja"
    system = split_default_system(file.read_text(encoding="utf-8"))[1] if file.is_file() else None
    if system:
        notice(
            f"システムプロンプトのない会話には学習時のものを使います: {on_one_line(system)}",
            f"conversations without a system prompt take the one of the training: {on_one_line(system)}",
        )
