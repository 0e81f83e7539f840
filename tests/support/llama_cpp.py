"""A checkout of llama.cpp as far as the toolkit meets it."""

from __future__ import annotations

import hashlib
from pathlib import Path

TEXT = "円 3 3.3 🍣"

# A checkout of llama.cpp as far as this toolkit meets it: the table of hashes in its source, and a script that reads
# config.json and tokenizer.model and writes a GGUF with the vocabulary as llama.cpp's own converter leaves it.
CONVERTER = """
import struct, sys
from pathlib import Path
from sentencepiece import SentencePieceProcessor
def get_vocab_base_pre(self, tokenizer):
    chktxt = {text!r}
    chkhsh = ""
    if chkhsh == {hash!r}:
        res = "ours"
folder, out = Path(sys.argv[1]), Path(sys.argv[3])
assert (folder / "config.json").is_file() and (folder / "model.safetensors").stat().st_size > 0
assert sys.argv[5] == "q8_0"
pieces = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
def string(text):
    raw = text.encode(); return struct.pack("<Q", len(raw)) + raw
count = pieces.vocab_size()
types = [2 if pieces.IsUnknown(i) else 3 if pieces.IsControl(i) else 6 if pieces.IsByte(i) else 1 for i in range(count)]
values = [
    string("tokenizer.ggml.model") + struct.pack("<I", 8) + string("llama"),
    string("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, count) + b"".join(string(pieces.IdToPiece(i)) for i in range(count)),
    string("tokenizer.ggml.scores") + struct.pack("<IIQ%df" % count, 9, 6, count, *[pieces.GetScore(i) for i in range(count)]),
    string("tokenizer.ggml.token_type") + struct.pack("<IIQ%di" % count, 9, 5, count, *types),
]
head = struct.pack("<4sIQQ", b"GGUF", 3, 1, len(values)) + b"".join(values)
head += string("output.weight") + struct.pack("<IQIQ", 1, 8, 0, 0)
out.write_bytes(head + b"\\0" * (-len(head) % 32) + bytes(range(32)))
"""


def write_checkout(folder: Path) -> Path:
    """The checkout, whose table knows the byte-level tokenizer of tests/support/models.py; returns its folder."""
    from tests.support.models import build_tokenizer

    folder.mkdir()
    digest = hashlib.sha256(str(build_tokenizer().encode(TEXT)).encode()).hexdigest()
    (folder / "convert_hf_to_gguf.py").write_text(CONVERTER.format(text=TEXT, hash=digest), encoding="utf-8")
    return folder
