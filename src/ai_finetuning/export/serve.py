"""An OpenAI-compatible server on this machine: `transformers serve`, pinned to one model and to 127.0.0.1."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
from pathlib import Path

from ..errors import ModelError, UsageError
from ..messages import notice
from ..models.options import validate_bits
from ..system.children import isolated_environment, isolated_python
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
    ]
    return command + (["--quantization", f"bnb-{bits}bit"] if bits is not None else [])


def server_environment(max_tokens: int) -> dict[str, str]:
    """The environment of the server: no hub, and a hub cache that exists; AIFT_SERVE_KEY is handed on."""
    from huggingface_hub.constants import HF_HUB_CACHE

    Path(HF_HUB_CACHE).mkdir(parents=True, exist_ok=True)
    return isolated_environment() | {"HF_HUB_OFFLINE": "1", "AIFT_SERVE_MAX_TOKENS": str(max_tokens)}


def serve(
    name: str,
    *,
    port: int = 8000,
    device: str = "auto",
    bits: int | None = None,
    base: str = "auto",
    max_tokens: int = 4096,
) -> int:
    """Runs the server until it is stopped; on Linux and macOS it takes this process over.

    Args:
        name: a model, or an adapter, which is merged into a cache folder first.
        port: a free one.
        device: as transformers names it.
        bits: 4 or 8 loads the model quantized.
        base: what an adapter is merged into.
        max_tokens: most tokens of an answer.

    Returns:
        The server's exit code, on Windows.

    Raises:
        UsageError: a port in use, other bits. ModelError: packages are missing. ToolkitError: as loading and merging
            raise.
    """
    validate_server()
    validate_bits(bits, "--bits")
    _refuse_port(port)
    folder = model_folder(name, base=base)
    command = serve_command(folder, port=port, device=device, bits=bits)
    environment = server_environment(max_tokens)
    where = f'base_url="http://{HOST}:{port}/v1", model="{folder}"'
    notice(
        f"OpenAI 互換サーバーを起動します（この PC からのみ接続できます。止めるには Ctrl+C）: {where}",
        f"starting an OpenAI-compatible server (this machine only; Ctrl+C stops it): {where}",
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
