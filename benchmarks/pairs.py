"""The seeded pairs of the preference benchmark: lengths of real pairs, random token ids.

python -m benchmarks.pairs dolly_ja_dev.jsonl      # writes the lengths of dolly pairs (docs/performance.md) anew
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.corpus import EOS, FIRST_WORD

LENGTHS = Path(__file__).with_name("dolly_pairs.json")
KINDS = ("dolly", "long")
# As much as TRL's max_length takes whole: no variant cuts an answer.
LONGEST = 1024
_KEPT = 128


@dataclass(frozen=True)
class Pair:
    """A prompt and two answers as token ids; each answer ends with EOS."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]

    def sides(self) -> tuple[list[int], list[int]]:
        """Both whole conversations."""
        return self.prompt + self.chosen, self.prompt + self.rejected

    @property
    def tokens(self) -> int:
        """Of both whole conversations: what a pair is worth, however it is computed."""
        return 2 * len(self.prompt) + len(self.chosen) + len(self.rejected)


def lengths_of(kind: str, count: int) -> list[tuple[int, int, int]]:
    """(prompt, chosen, rejected) of `count` pairs, EOS counted. `dolly`: real rows, spread evenly over their whole lengths, so
    that few stand for all; `long`: prompts of 320 to 480 tokens and answers of 70 to 130.
    """
    draw = random.Random(count)
    if kind == "long":
        return [(draw.randint(320, 480), draw.randint(70, 130), draw.randint(70, 130)) for _ in range(count)]
    rows = sorted((tuple(row) for row in json.loads(LENGTHS.read_text(encoding="utf-8"))), key=sum)
    picked = [rows[(2 * index + 1) * len(rows) // (2 * count)] for index in range(count)]
    draw.shuffle(picked)
    return picked


def pairs(kind: str, count: int, *, vocabulary: int, seed: int = 0) -> list[Pair]:
    """The same for the same kind, count, vocabulary and seed."""
    draw = random.Random(f"{seed}/{kind}")

    def words(number: int) -> list[int]:
        return [draw.randrange(FIRST_WORD, vocabulary) for _ in range(number)]

    return [
        Pair(words(prompt), [*words(chosen - 1), EOS], [*words(rejected - 1), EOS])
        for prompt, chosen, rejected in lengths_of(kind, count)
    ]


def save_pairs(folder: Path, made: Sequence[Pair]) -> Path:
    """pairs.jsonl (ids), and rows.jsonl: messages that the benchmark's tokenizer and template turn into exactly these ids."""
    folder.mkdir(parents=True, exist_ok=True)

    def message(role: str, ids: Sequence[int]) -> list[dict[str, str]]:
        return [{"role": role, "content": " ".join(f"w{token}" for token in ids)}]

    with (
        (folder / "pairs.jsonl").open("w", encoding="utf-8") as ids,
        (folder / "rows.jsonl").open("w", encoding="utf-8") as rows,
    ):
        for pair in made:
            ids.write(json.dumps(asdict(pair)) + "\n")
            row = {
                "prompt": message("user", pair.prompt),
                "chosen": message("assistant", pair.chosen[:-1]),
                "rejected": message("assistant", pair.rejected[:-1]),
            }
            rows.write(json.dumps(row) + "\n")
    return folder


def read_pairs(folder: Path) -> list[Pair]:
    """pairs.jsonl back."""
    return [Pair(**json.loads(line)) for line in (folder / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]


def dolly_lengths(path: Path) -> list[list[int]]:
    """[prompt, chosen, rejected] of rows of databricks-dolly-15k-ja, the rejected answer another row's, in tokens of
    kotoha-tiny; the turn end counts as one.
    """
    from transformers import AutoTokenizer

    from ai_finetuning.embedded import model_folder

    tokenizer = AutoTokenizer.from_pretrained(model_folder("embedded:kotoha-tiny"))

    def size(text: str) -> int:
        return len(tokenizer(text)["input_ids"])

    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    random.Random(0).shuffle(rows)
    found = []
    for row, other in zip(rows, rows[1:], strict=False):
        prompt = row["instruction"] + ("\n" + row["input"] if row["input"] else "")
        made = [size(prompt), size(row["output"]) + 1, size(other["output"]) + 1]
        if made[0] + max(made[1:]) <= LONGEST:
            found.append(made)
    return found[:_KEPT]


if __name__ == "__main__":
    LENGTHS.write_text(json.dumps(dolly_lengths(Path(sys.argv[1]))) + "\n", encoding="utf-8")
