"""The text of kotoha-tiny: public-domain prose and text of our own program, split by whole works.

    python recipes/kotoha-tiny/prepare.py SHARED OUT

SHARED is the folder of real data (../shared); OUT gets train.jsonl, held_out.jsonl and split.json.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # `recipes`, where this is run by its path

from recipes.kotoha.corpus import corpus

HELD_OUT_PERCENT = 1
OWN_DOCUMENTS = 10_000


def held_out(work: str) -> bool:
    """Whether a work is kept for validation: by a hash of its id, the same on every machine."""
    return int(hashlib.sha256(work.encode("utf-8")).hexdigest(), 16) % 100 < HELD_OUT_PERCENT


def main(shared: Path, out: Path) -> None:
    """Writes the split."""
    out.mkdir(parents=True, exist_ok=True)
    counts = {"train": [0, 0], "held_out": [0, 0], "own": [0, 0]}
    names = []
    with (
        gzip.open(shared / "data" / "prose" / "aozora_large.jsonl.gz", "rt", encoding="utf-8") as source,
        (out / "train.jsonl").open("w", encoding="utf-8") as train,
        (out / "held_out.jsonl").open("w", encoding="utf-8") as validation,
    ):
        for line in source:
            row = json.loads(line)
            kind, file = ("held_out", validation) if held_out(row["id"]) else ("train", train)
            file.write(json.dumps({"text": row["text"]}, ensure_ascii=False) + "\n")
            counts[kind][0] += 1
            counts[kind][1] += len(row["text"])
            if kind == "held_out":
                names.append(f"{row['author']} {row['title']}")
        for text in corpus(OWN_DOCUMENTS, seed=1):
            train.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            counts["own"][0] += 1
            counts["own"][1] += len(text)
    split = {name: {"documents": number, "characters": size} for name, (number, size) in counts.items()}
    (out / "split.json").write_text(
        json.dumps(split | {"held_out_works": names}, ensure_ascii=False, indent=1), encoding="utf-8"
    )
    print(json.dumps(split, ensure_ascii=False))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
