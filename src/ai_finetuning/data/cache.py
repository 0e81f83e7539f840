"""What decides tokens beside files and settings: the code and the tokenizer, as digests."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from .offset_tokenizer import OffsetTokenizer


@cache
def code_version() -> str:
    """A digest of the code that turns files into tokens."""
    import sentencepiece
    import tokenizers
    import transformers

    versions = [library.__version__ for library in (sentencepiece, tokenizers, transformers, np)]
    digest = hashlib.sha256(" ".join(versions).encode())
    here = Path(__file__).parent
    for folder in (here, here.parent / "japanese"):
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def tokenizer_digest(tokenizer: Any) -> str:
    """A digest of everything in a tokenizer that decides ids and rendering."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and hasattr(backend, "to_str"):
        core = backend.to_str()
    elif isinstance(tokenizer, OffsetTokenizer):
        core = tokenizer.identity()
    else:
        core = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=False)
        file = getattr(tokenizer, "vocab_file", None)
        if file and Path(file).is_file():
            core += hashlib.sha256(Path(file).read_bytes()).hexdigest()
    parts = (core, str(tokenizer.chat_template), str(sorted(map(str, tokenizer.special_tokens_map.items()))))
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()
