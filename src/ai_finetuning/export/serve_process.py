"""The process of `aift serve` for a sentencepiece tokenizer: `transformers serve`, with ids and text as in training."""

from __future__ import annotations

from ..models.tokenizers import load_tokenizer
from ._upstream import run_server

if __name__ == "__main__":
    run_server(load_tokenizer)
