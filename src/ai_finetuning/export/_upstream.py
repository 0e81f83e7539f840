"""Private names of transformers that serving needs: looked through at every upgrade."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class _Pieces:
    """What DirectStreamer asks of tokenizers' DecodeStream, by the tokenizer's own decode: all of the answer each time,
    of which the new end is handed on.
    """

    def __init__(self, skip_special_tokens: bool) -> None:
        self._skip_special_tokens = skip_special_tokens
        self._ids: list[int] = []
        self._shown = 0

    def step(self, tokenizer: Any, number: int) -> str | None:
        self._ids.append(number)
        text = str(tokenizer.decode(self._ids, skip_special_tokens=self._skip_special_tokens)).rstrip("\ufffd")
        piece, self._shown = text[self._shown :], max(self._shown, len(text))
        return piece or None


def run_server(load_tokenizer: Callable[[str], Any]) -> None:
    """Runs `transformers serve` with the arguments of this process and with tokenizers from `load_tokenizer`.

    transformers 5.23: the server takes AutoProcessor.from_pretrained, and streams with DirectStreamer, which decodes by
    the Rust object in `tokenizer._tokenizer` and keeps the state in `_decode_stream`; a tokenizer in Python has none.
    Versions without DirectStreamer (before 5.6) stream by the tokenizer's decode.
    """
    from transformers import AutoProcessor
    from transformers.cli import transformers as program

    def processor(name: str, **_: Any) -> Any:
        tokenizer = load_tokenizer(name)
        tokenizer._tokenizer = tokenizer
        return tokenizer

    AutoProcessor.from_pretrained = processor
    try:
        from transformers.cli.serving import utils
    except ImportError:
        pass
    else:

        class Streamer(utils.DirectStreamer):  # type: ignore[misc]
            def __init__(self, *args: Any, response_parser: Any = None, **kwargs: Any) -> None:
                super().__init__(*args, response_parser=response_parser, **kwargs)
                self._decode_stream = _Pieces(response_parser is None)

        utils.DirectStreamer = Streamer
    program.main()
