"""Tokens kept between runs. A cached entry is found only if every byte that made it is the same."""

from __future__ import annotations

import contextlib
import hashlib
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ..system.files import is_private, replacing
from ..system.folders import private_cache
from .offset_tokenizer import OffsetTokenizer
from .tokenize import EncodeReport, Example
from .vocabulary import VocabularyLoss

# Oldest entries go when the folder grows beyond this.
LIMIT_BYTES = 2 * 2**30


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


def cache_key(files: Sequence[Path], tokenizer: Any, settings: Mapping[str, Any]) -> str:
    """The name of an entry: files' bytes, tokenizer and template, settings, code."""
    digest = hashlib.sha256(code_version().encode())
    digest.update(tokenizer_digest(tokenizer).encode())
    digest.update(json.dumps(settings, sort_keys=True, ensure_ascii=False).encode())
    for path in files:
        digest.update(str(path).encode("utf-8", "surrogateescape"))
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def read(key: str) -> tuple[list[Example], EncodeReport, list[str]] | None:
    """A cached entry: examples, report, lines about the files; None where there is none or it cannot be read."""
    entry = private_cache("tokens") / f"{key}.npz"
    if not is_private(entry):  # not there, or somebody else may have written it
        return None
    try:
        with np.load(entry, allow_pickle=False) as stored:
            note = json.loads(str(stored["note"]))
            ids, labels = stored["input_ids"], stored["labels"]
            ends = np.cumsum(stored["lengths"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
    examples = [
        Example(ids[end - length : end], labels[end - length : end], characters, source, question)
        for end, length, characters, source, question in zip(
            ends, np.diff(ends, prepend=0), note["characters"], note["sources"], note["questions"], strict=True
        )
    ]
    lost: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in note["report"]["vocabulary"].items()
    }
    report = note["report"] | {"vocabulary": VocabularyLoss(**lost)}
    return examples, EncodeReport(**report), note["lines"]


def write(key: str, examples: Sequence[Example], report: EncodeReport, lines: Sequence[str]) -> None:
    """Keeps an entry; a folder that cannot be written is no error, the next run tokenizes again."""
    note = {
        "characters": [item.characters for item in examples],
        "sources": [item.source for item in examples],
        "questions": [item.question for item in examples],
        "report": asdict(report),
        "lines": list(lines),
    }
    folder = private_cache("tokens")
    with contextlib.suppress(OSError):
        with replacing(folder / f"{key}.npz", mode=0o600) as file:
            np.savez(
                file,
                input_ids=np.concatenate([item.input_ids for item in examples]),
                labels=np.concatenate([item.labels for item in examples]),
                lengths=np.array([len(item) for item in examples], dtype=np.int64),
                note=np.array(json.dumps(note, ensure_ascii=False)),
            )
        _trim(folder)


def _trim(folder: Path) -> None:
    entries = sorted(folder.glob("*.npz"), key=lambda path: path.stat().st_mtime, reverse=True)
    kept = 0
    for path in entries:
        kept += path.stat().st_size
        if kept > LIMIT_BYTES:
            path.unlink(missing_ok=True)
