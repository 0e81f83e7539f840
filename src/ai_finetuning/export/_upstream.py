"""Private names of transformers that serving needs: looked through at every upgrade."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

from ..models.growing_text import GrowingText


class _Pieces:
    """What DirectStreamer asks of tokenizers' DecodeStream, by the tokenizer's own decode: the new end of the answer."""

    def __init__(self, skip_special_tokens: bool) -> None:
        self._skip_special_tokens = skip_special_tokens
        self._text: GrowingText | None = None
        self._shown = 0

    def step(self, tokenizer: Any, number: int) -> str | None:
        if self._text is None:
            self._text = GrowingText(partial(tokenizer.decode, skip_special_tokens=self._skip_special_tokens))
        text = self._text.add([number]).rstrip("\ufffd")
        piece, self._shown = text[self._shown :], max(self._shown, len(text))
        return piece or None


# Seconds that the server gives requests when it is told to stop.
_GRACE = 2


def run_server(load_tokenizer: Callable[[str], Any] | None, behind: Callable[[Any], Any]) -> None:
    """Runs `transformers serve` with the arguments of this process, behind another ASGI application.

    Args:
        load_tokenizer: makes tokenizers in place of transformers' own; None leaves those.
        behind: makes the application that stands in front of transformers' one.

    transformers 5.23: the server makes its application itself and hands it to uvicorn.Config, which it looks up then.
    """
    import uvicorn
    from transformers.cli import transformers as program

    original: Any = uvicorn.Config

    def config(app: Any, **options: Any) -> Any:
        quiet = {"timeout_graceful_shutdown": _GRACE, "log_level": "warning"}
        return original(behind(app), **(options | quiet))

    servers: Any = uvicorn
    servers.Config = config
    if load_tokenizer is not None:
        _take_tokenizers(load_tokenizer)
    run: Any = program.main
    run()


def _take_tokenizers(load_tokenizer: Callable[[str], Any]) -> None:
    """transformers 5.23: the server takes AutoProcessor.from_pretrained, and streams with DirectStreamer, which decodes by
    the Rust object in `tokenizer._tokenizer` and keeps the state in `_decode_stream`; a tokenizer in Python has none. A
    version without DirectStreamer streams by the tokenizer's own decode.
    """
    from transformers import AutoProcessor

    def processor(name: str, **_: Any) -> Any:
        tokenizer = load_tokenizer(name)
        tokenizer._tokenizer = tokenizer
        return tokenizer

    processors: Any = AutoProcessor
    processors.from_pretrained = processor
    serving: Any = importlib.import_module("transformers.cli.serve")
    with contextlib.suppress(ImportError):
        serving = importlib.import_module("transformers.cli.serving.utils")
    if hasattr(serving, "DirectStreamer"):
        original = serving.DirectStreamer

        def streamer(*arguments: Any, **options: Any) -> Any:
            made = original(*arguments, **options)
            made._decode_stream = _Pieces(options.get("response_parser") is None)
            return made

        serving.DirectStreamer = streamer
