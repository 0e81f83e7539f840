"""What a preparation would come to: all rows counted, the first ones of each source encoded."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ...errors import localized
from ..bad_rows import BadRows
from ..files import RowBatch, open_data
from ..pieces import Headless, PieceMaker, Reading
from .preparing import Preparation


@dataclass(frozen=True)
class Survey:
    """Counts of some data.

    Attributes:
        rows: that can be read.
        characters: of their texts, with the names of their columns.
        encoded: rows that were encoded.
        tokens, size: estimates of all tokens, and of the bytes of the store.
    """

    rows: int
    characters: int
    encoded: int
    tokens: int
    size: int

    def as_json(self) -> dict[str, Any]:
        """The same for a program."""
        return {"dry_run": True, **asdict(self)}

    def lines(self) -> list[str]:
        """The same in the locale's language."""
        return [
            localized(
                f"{self.rows:,} 行。先頭の {self.encoded:,} 行から見積もると約 {self.tokens:,} トークン、ディスクに約 {self.size / 2**20:,.0f} MiB。"
                "何も書いていません。",
                f"{self.rows:,} rows; by the first {self.encoded:,} of them about {self.tokens:,} tokens and "
                f"{self.size / 2**20:,.0f} MiB on the disk. Nothing was written.",
            )
        ]


# Bytes that a store needs for a row beside its tokens.
_A_ROW = 64


def survey(asked: Preparation) -> Survey:
    """Counts the rows of some data and estimates its tokens.

    Raises:
        DataError: it cannot be read; rows that cannot be used are not looked for.
    """
    maker = PieceMaker(asked.tokenizer, Reading.of(asked.config, (), asked.objective))
    config = asked.config
    rows = characters = encoded = made = 0
    tokens = 0.0
    for path in asked.paths:
        _, batches = open_data(path, BadRows(True), columns=config.columns, sheet=config.sheet)
        first: RowBatch | None = None
        mine = 0
        for batch in batches:
            first = batch if first is None else first
            rows += len(batch)
            mine += batch.characters
        characters += mine
        if first is None:
            continue
        try:
            examples, account = maker.make(first, [])
        except Headless:
            continue
        encoded, made = encoded + account.rows, made + len(examples)
        tokens += account.encoded.tokens * mine / max(1, first.characters)
    width = 2 if max(asked.tokenizer.get_vocab().values(), default=0) < 2**16 else 4
    documents = made * rows / max(1, encoded)
    return Survey(rows, characters, encoded, round(tokens), round(tokens * width + documents * _A_ROW))
