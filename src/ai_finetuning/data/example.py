"""One row of tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Example:
    """One row of tokens.

    Attributes:
        input_ids: [tokens] int32.
        labels: [tokens] int32, unshifted; -100 where a token is not a label token.
        characters: characters that people wrote among the label tokens: no turn ends and other markup.
        source: where the sample came from.
        question: a digest of the question that its row asks; empty where there is none.
        fork: of a pair of answers (prefix, rest of the chosen one, rest of the rejected one), in tokens (data/forks.py).
        mark: 1 where people call the answer good, -1 where they call it bad, 0 where they say nothing.
    """

    input_ids: NDArray[np.int32]
    labels: NDArray[np.int32]
    characters: int = 0
    source: str = ""
    question: str = ""
    fork: tuple[int, ...] = ()
    mark: int = 0

    def __len__(self) -> int:
        return len(self.input_ids)
