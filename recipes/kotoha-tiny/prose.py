"""The prose that ships for `data.replay`: passages of the works that kotoha-tiny trained on, and of no work that
prepare.py holds out.

    python recipes/kotoha-tiny/prose.py SHARED [OUT]

SHARED is the folder of real data (../shared), OUT the package's embedded/prose.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # prepare.py and passages.py, which lie beside it

from passages import CHARACTERS, CREDITS, MISSING, beginnings
from prepare import held_out

MAX_BYTES = 1_000_000  # of the folder
PLACE = Path(__file__).resolve().parents[2] / "src" / "ai_finetuning" / "embedded" / "prose"


def rank(work: str) -> str:
    """Where a work stands among those to choose from: by a hash of its id, the same on every machine."""
    return hashlib.sha256(f"prose {work}".encode()).hexdigest()


def grams(text: str) -> set[str]:
    """Every run of eight characters, without whitespace."""
    joined = "".join(text.split())
    return {joined[start : start + 8] for start in range(len(joined) - 7)}


def readme(rows: list[dict[str, Any]]) -> str:
    """The card with the credits that Aozora Bunko asks to keep."""
    table = "\n".join(
        f"| {row['author']} | {row['title']} | {row['source_book']} | {row['input_by']} | {row['proofread_by']} |"
        for row in rows
    )
    return f"""# prose

{len(rows)} passages of {CHARACTERS} characters of Japanese prose, each from another work, in `train.jsonl`: general text to mix into a training, so that the model keeps its Japanese (`data.replay: {{path: embedded:prose, share: 0.5}}`).
The works are some that kotoha-tiny was trained on. None of them is held out by `recipes/kotoha-tiny/prepare.py`, so that the passages of `general-prose`, on which `aift eval` counts what a model has forgotten, stay unseen.
`recipes/kotoha-tiny/prose.py` of the repository writes this folder.

Public domain: the authors died in 1945 or earlier. The texts are those of [Aozora Bunko](https://www.aozora.gr.jp/), whose credits stay with them; ruby and notes were removed.

| 著者 | 作品 | 底本 | 入力 | 校正 |
|---|---|---|---|---|
{table}
"""


def passage_of(work: dict[str, Any]) -> dict[str, Any] | None:
    """The passage of a work, behind a third of it; None where no whole one has all its characters."""
    starts = [start for start in beginnings(work["text"]) if start + CHARACTERS <= len(work["text"])]
    if not starts or MISSING in (text := work["text"][starts[0] : starts[0] + CHARACTERS]):
        return None
    return {"work": work["id"], **{name: work.get(name) for name in CREDITS}, "start": starts[0], "text": text}


def chosen(works: list[dict[str, Any]], kept: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As many passages as MAX_BYTES holds.

    Args:
        works: to choose from.
        kept: held-out works; a work that stands in them too, under another id, is left out.
    """
    unseen = set().union(*(grams(work["text"]) for work in kept))
    titles = {(work["author"], work["title"]) for work in kept}
    rows: list[dict[str, Any]] = []
    for work in sorted(works, key=lambda work: rank(work["id"])):
        row = passage_of(work)
        if row is None or (row["author"], row["title"]) in titles:
            continue
        own = grams(row["text"])
        if len(own & unseen) > len(own) / 10:
            continue
        if size_of([*rows, row]) > MAX_BYTES:
            break
        rows.append(row)
    return sorted(rows, key=lambda row: row["work"])


def lines(rows: list[dict[str, Any]]) -> str:
    """train.jsonl."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def size_of(rows: list[dict[str, Any]]) -> int:
    """Bytes of the folder."""
    return len(lines(rows).encode()) + len(readme(rows).encode())


def main(shared: Path, out: Path = PLACE) -> None:
    """Writes train.jsonl and README.md."""
    with gzip.open(shared / "data" / "prose" / "aozora_large.jsonl.gz", "rt", encoding="utf-8") as source:
        works = {row["id"]: row for row in map(json.loads, source)}  # one stands twice
    kept = [work for name, work in works.items() if held_out(name)]
    rows = chosen([work for name, work in works.items() if not held_out(name)], kept)
    out.mkdir(parents=True, exist_ok=True)
    (out / "train.jsonl").write_text(lines(rows), encoding="utf-8", newline="\n")
    (out / "README.md").write_text(readme(rows), encoding="utf-8", newline="\n")
    size = sum(path.stat().st_size for path in out.iterdir())
    print(f"{len(rows)} passages of {len({row['author'] for row in rows})} authors, {size:,} bytes")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
