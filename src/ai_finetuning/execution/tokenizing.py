"""Processes that turn rows into tokens: how they are asked for, and (`python -m`) what one of them does."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from ..config.run import RunConfig
from ..data.cache import tokenizer_digest
from ..data.pieces import PieceMaker, Reading
from ..data.store.plain import from_plain
from ..data.store.preparing import Encoder
from ..data.store.wire import receive, send, serve
from ..system import collector
from ..system.children import isolated_python
from ..system.cores import physical_cores

# Bytes of files below which starting processes takes longer than they save.
_WORTH = 2**25


def encoder_for(tokenizer: Any, size: int, processes: int | None = None) -> Callable[[Reading], Encoder] | None:
    """What encodes the rows of some files: a maker of processes, or None for this process alone.

    Args:
        size: bytes of the files.
        processes: as the user asks; None takes one a core where the files are large enough.
    """
    count = processes or (physical_cores() if size >= _WORTH else 1)
    if count == 1:
        return None
    from ..data.store.pool import Pool

    return lambda reading: Pool(isolated_python(__name__), count, tokenizer, reading)


def training_tokenizer(model: str, config: RunConfig) -> Any:
    """The tokenizer of a model as a run with these settings trains under it.

    Raises:
        ModelError, HubError, InputNotFoundError: it cannot be found or loaded. ConfigError: a token that is not there.
    """
    from ..models.special_tokens import with_tokens
    from ..models.tokenizers import ensure_pad, load_tokenizer
    from .system_prompt import with_agreed_system

    options = config.model
    tokenizer = with_tokens(
        load_tokenizer(model, chat_template=options.chat_template, trust_remote_code=options.trust_remote_code), options
    )
    if options.special_tokens and "pad_token" not in options.special_tokens:
        ensure_pad(tokenizer)
    return tokenizer if config.method == "pretrain" else with_agreed_system(tokenizer, config.data.system_prompt)


def main() -> None:
    """Opens the tokenizer that it is told, then encodes batches of rows from stdin to stdout."""
    collector.hold_back()
    from ..models.tokenizers import load_tokenizer

    # What a library prints must not come between the answers.
    outgoing = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    setup, _ = receive(sys.stdin.buffer)
    tokenizer = load_tokenizer(setup["tokenizer"])
    collector.as_usual()
    send(outgoing, {"digest": tokenizer_digest(tokenizer)})
    serve(PieceMaker(tokenizer, from_plain(Reading, setup["reading"]), many=True), sys.stdin.buffer, outgoing)
    collector.leave()


if __name__ == "__main__":
    main()
