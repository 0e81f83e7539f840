"""An OpenAI-compatible server on this machine: `transformers serve`, pinned to one model and to 127.0.0.1."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from ..errors import ModelError, UsageError
from ..japanese.default_system import split_default_system
from ..messages import notice, on_one_line
from ..models.options import validate_bits
from ..system.children import isolated_environment, isolated_python
from .serve_names import short_name, validate_alias
from .source import model_folder

HOST = "127.0.0.1"
_NEEDED = ("fastapi", "uvicorn", "openai")


def validate_server() -> None:
    """Raises ModelError with the way out where a package that the server needs is missing."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ModelError(
            f"aift serve には {', '.join(missing)} が必要です。`pip install 'ai-finetuning-toolkit[serve]'` してください。",
            f"aift serve needs {', '.join(missing)}: `pip install 'ai-finetuning-toolkit[serve]'`.",
        )


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


def server_environment(max_tokens: int, names: Sequence[str]) -> dict[str, str]:
    """The environment of the server: no hub, and a hub cache that exists; AIFT_SERVE_KEY is handed on.

    Args:
        names: what clients may call the model, the one that they are told first.
    """
    from huggingface_hub.constants import HF_HUB_CACHE

    Path(HF_HUB_CACHE).mkdir(parents=True, exist_ok=True)
    return isolated_environment() | {
        "HF_HUB_OFFLINE": "1",
        "AIFT_SERVE_MAX_TOKENS": str(max_tokens),
        "AIFT_SERVE_NAMES": json.dumps(list(names)),
        "PYTHONWARNINGS": os.environ.get("PYTHONWARNINGS", "ignore"),
    }


def serve(
    name: str,
    *,
    port: int = 8000,
    device: str = "auto",
    bits: int | None = None,
    base: str = "auto",
    max_tokens: int = 4096,
    alias: str | None = None,
) -> int:
    """Runs the server until it is stopped; on Linux and macOS it takes this process over.

    Args:
        name: a model, or an adapter, which is merged into a cache folder first.
        port: a free one.
        device: as transformers names it.
        bits: 4 or 8 loads the model quantized.
        base: what an adapter is merged into.
        max_tokens: most tokens of an answer.
        alias: what clients call the model; None takes the name of its folder or id.

    Returns:
        The server's exit code, on Windows.

    Raises:
        UsageError: a port in use, other bits. ModelError: packages are missing. ToolkitError: as loading and merging
            raise.
    """
    validate_server()
    validate_bits(bits, "--bits")
    names = list(dict.fromkeys([*([validate_alias(alias)] if alias is not None else []), short_name(name)]))
    _refuse_port(port)
    folder = model_folder(name, base=base)
    command = serve_command(folder, port=port, device=device, bits=bits)
    environment = server_environment(max_tokens, names)
    _say_system(folder)
    notice(
        f"OpenAI 互換サーバーを起動しています（モデル {names[0]}、この PC からのみ接続できます。止めるには Ctrl-C）。",
        f"starting an OpenAI-compatible server (model {names[0]}, this machine only; Ctrl-C stops it).",
    )
    if os.name == "posix":
        os.execve(command[0], command, environment)
    return subprocess.run(command, env=environment, check=False).returncode


def _refuse_port(port: int) -> None:
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, port))
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
