"""Bits per character of PPMd (order 8, 1 GiB) on the held-out works, after the training text: pip install pyppmd

python recipes/kotoha-tiny/baseline.py outputs/kotoha
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyppmd

ORDER, MEMORY_BYTES, BLOCK = 8, 1 << 30, 1 << 20


def text(path: Path) -> str:
    """All documents of a file, a line end between them."""
    with path.open(encoding="utf-8") as file:
        return "\n".join(json.loads(line)["text"] for line in file)


def compressed_bytes(content: bytes) -> int:
    """Size after PPMd variant H."""
    encoder = pyppmd.Ppmd7Encoder(ORDER, MEMORY_BYTES)
    size = sum(len(encoder.encode(content[start : start + BLOCK])) for start in range(0, len(content), BLOCK))
    return size + len(encoder.flush())


folder = Path(sys.argv[1])
train, held_out = text(folder / "train.jsonl").encode("utf-8"), text(folder / "held_out.jsonl")
extra = compressed_bytes(train + held_out.encode("utf-8")) - compressed_bytes(train)
bits = 8 * extra / len(held_out)
(folder / "baseline.json").write_text(json.dumps({"bits_per_character": round(bits, 4)}), encoding="utf-8")
print(f"PPMd order {ORDER}: {bits:.3f} bits per character on {len(held_out):,} characters")
