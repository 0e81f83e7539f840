"""The process of `aift serve`: `transformers serve` behind the gate, with ids and text as in training."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from ..messages import notice
from ..models.log_filters import quiet_backends
from ..models.parts import positions_of
from ..models.sentencepiece_tokenizer import deciding_file
from ..models.tokenizers import load_tokenizer
from ..system.children import end_with_owner
from ..system.files import write_in_place
from ._upstream import run_server
from .gate import Gate, Rules
from .serve_names import Named, room_of

# How the key, the longest answer, the model's names and a file to tell come to this process: other users of the machine
# can read a command line.
KEY, MAX_TOKENS, NAMES = "AIFT_SERVE_KEY", "AIFT_SERVE_MAX_TOKENS", "AIFT_SERVE_NAMES"
TOLD = "AIFT_SERVE_TOLD"

if __name__ == "__main__":
    end_with_owner()
    from transformers import AutoConfig
    from transformers.utils.logging import disable_progress_bar

    quiet_backends()
    quiet: Any = disable_progress_bar  # untyped
    quiet()
    folder = sys.argv[2]
    names: list[str] = json.loads(os.environ.pop(NAMES))
    rules = Rules(names[0], int(os.environ[MAX_TOKENS]), os.environ.pop(KEY, None), aliases=tuple(names[1:]))
    room = room_of(load_tokenizer(folder), positions_of(AutoConfig.from_pretrained(folder)))
    address = f"http://127.0.0.1:{sys.argv[sys.argv.index('--port') + 1]}/v1"
    told = os.environ.pop(TOLD, None)

    def ready() -> None:
        """Says where the server answers."""
        notice(
            f'準備ができました: base_url="{address}", model="{names[0]}"',
            f'ready: base_url="{address}", model="{names[0]}"',
        )
        if told is not None:
            write_in_place(Path(told), json.dumps({"base_url": address, "model": names[0]}).encode())

    by_pieces = deciding_file(Path(folder)) is not None
    run_server(
        load_tokenizer if by_pieces else None,
        lambda app: Gate(Named(app, folder, tuple(names), rules.max_tokens, room, ready), rules),
    )
