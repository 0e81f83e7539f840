"""The passages of general prose that ship for `aift eval`: from the works that prepare.py holds out, and from no others.

    python recipes/kotoha-tiny/passages.py SHARED [OUT]

SHARED is the folder of real data (../shared), OUT the package's embedded/general-prose.
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # prepare.py, which lies beside it

from prepare import held_out

PASSAGES, CHARACTERS, MOST_OF_A_WORK = 48, 600, 2
MISSING = "〓"  # a character that the source lacks
CREDITS = ("author", "title", "source_book", "input_by", "proofread_by")
PLACE = Path(__file__).resolve().parents[2] / "src" / "ai_finetuning" / "embedded" / "general-prose"


def beginnings(text: str) -> list[int]:
    """Where a work's passages begin: with the first whole paragraph behind a third, and behind two thirds, of it, after
    which come enough characters that the source could write; of a short work its beginning alone.
    """
    if len(text) < 3 * CHARACTERS:
        return [0] if len(text) >= CHARACTERS else []
    found: list[int] = []
    for part in range(1, MOST_OF_A_WORK + 1):
        start = len(text) * part // (MOST_OF_A_WORK + 1)
        while (start := text.find("\n", start) + 1) and start + CHARACTERS <= len(text):
            begins = start + len(text[start:]) - len(text[start:].lstrip())
            passage = text[begins : begins + CHARACTERS]
            apart = not found or begins >= found[-1] + CHARACTERS
            if len(passage) == CHARACTERS and MISSING not in passage and apart:
                found.append(begins)
                break
    return found or [0]


def passages(works: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One passage of every work, and a second one of the longest ones, until there are enough."""
    chosen = {work["id"]: beginnings(work["text"]) for work in works}
    spare = PASSAGES - sum(bool(starts) for starts in chosen.values())
    longest = sorted((work for work in works if len(chosen[work["id"]]) > 1), key=lambda w: (-len(w["text"]), w["id"]))
    twice = {work["id"] for work in longest[:spare]}
    rows = []
    for work in sorted(works, key=lambda work: work["id"]):
        for start in chosen[work["id"]][: MOST_OF_A_WORK if work["id"] in twice else 1]:
            credit = {name: work.get(name) for name in CREDITS}
            rows.append(
                {"work": work["id"], **credit, "start": start, "text": work["text"][start : start + CHARACTERS]}
            )
    return rows


def readme(rows: list[dict[str, Any]]) -> str:
    """The card with the credits that Aozora Bunko asks to keep."""
    works = {row["work"]: row for row in rows}
    table = "\n".join(
        f"| {row['author']} | {row['title']} | {row['source_book']} | {row['input_by']} | {row['proofread_by']} |"
        for row in works.values()
    )
    return f"""# general-prose

{len(rows)} passages of {CHARACTERS} characters of Japanese prose from {len(works)} works, at most {MOST_OF_A_WORK} of a work, in `passages.jsonl`. `aift eval` counts a model's bits per character on them before and after
training: what it has forgotten of general Japanese. The works are those that `recipes/kotoha-tiny/prepare.py` of the repository holds out; nothing that ships was trained on them, and nothing should be.
`recipes/kotoha-tiny/passages.py` writes this folder.

Public domain: the authors died in 1945 or earlier. The texts are those of [Aozora Bunko](https://www.aozora.gr.jp/), whose credits stay with them; ruby and notes were removed.

| 著者 | 作品 | 底本 | 入力 | 校正 |
|---|---|---|---|---|
{table}
"""


def main(shared: Path, out: Path = PLACE) -> None:
    """Writes passages.jsonl and README.md."""
    with gzip.open(shared / "data" / "prose" / "aozora_large.jsonl.gz", "rt", encoding="utf-8") as source:
        works = {row["id"]: row for row in map(json.loads, source) if held_out(row["id"])}  # one stands twice
    rows = passages(list(works.values()))
    out.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (out / "passages.jsonl").write_text(lines, encoding="utf-8", newline="\n")
    (out / "README.md").write_text(readme(rows), encoding="utf-8", newline="\n")
    print(f"{len(rows)} passages of {len({row['work'] for row in rows})} works")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
