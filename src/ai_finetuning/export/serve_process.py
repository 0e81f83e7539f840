"""The process of `aift serve`: `transformers serve` behind the gate, with ids and text as in training."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ..models.sentencepiece_tokenizer import deciding_file
from ..models.tokenizers import load_tokenizer
from ._upstream import run_server
from .gate import Gate, Rules

# How the key and the longest answer come to this process: other users of the machine can read a command line.
KEY, MAX_TOKENS = "AIFT_SERVE_KEY", "AIFT_SERVE_MAX_TOKENS"

if __name__ == "__main__":
    folder = sys.argv[2]
    rules = Rules(folder, int(os.environ[MAX_TOKENS]), os.environ.pop(KEY, None))
    by_pieces = deciding_file(Path(folder)) is not None
    run_server(load_tokenizer if by_pieces else None, lambda app: Gate(app, rules))
