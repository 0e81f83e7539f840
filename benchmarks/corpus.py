"""The seeded documents of the benchmark: lengths like those of Japanese instruction data, random token ids."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

PAD, BOS, EOS, UNK = 0, 1, 2, 3
SPECIALS = {"<pad>": PAD, "<s>": BOS, "</s>": EOS, "<unk>": UNK}
FIRST_WORD = len(SPECIALS)
MEDIAN, SIGMA, SHORTEST, LONGEST = 116, 0.75, 8, 1024
LABEL_SHARE = 0.626
MIN_DOCUMENTS = 512
_ORDERS_TRIED = 200


@dataclass(frozen=True)
class Document:
    """A prompt and its answer.

    Attributes:
        ids: token ids, the last one EOS, none of them PAD.
        prompt: how many of them belong to the prompt and carry no loss.
    """

    ids: list[int]
    prompt: int

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def labels(self) -> list[int]:
        """Unshifted labels; -100 on the prompt."""
        return [-100] * self.prompt + self.ids[self.prompt :]

    def words(self) -> tuple[str, str]:
        """(prompt, answer without EOS) as text that the benchmark's tokenizer turns into exactly these ids."""
        text = [f"w{token}" for token in self.ids[:-1]]
        return " ".join(text[: self.prompt]), " ".join(text[self.prompt :])


def lengths(count: int) -> list[int]:
    """`count` lengths at evenly spaced quantiles of the lognormal, so that a small corpus has the wanted statistics
    too.
    """
    normal = NormalDist()
    drawn = (MEDIAN * math.exp(SIGMA * normal.inv_cdf((index + 0.5) / count)) for index in range(count))
    return [min(LONGEST, max(SHORTEST, round(length))) for length in drawn]


def documents(count: int = MIN_DOCUMENTS, *, vocabulary: int, seed: int = 0) -> list[Document]:
    """Documents from the shortest to the longest; the same for the same seed and vocabulary."""
    generator = random.Random(seed)
    made = []
    for length in lengths(count):
        share = LABEL_SHARE + generator.uniform(-0.2, 0.2)
        # The first token is never predicted, so it always belongs to the prompt.
        prompt = min(length - 2, max(1, round(length * (1 - share))))
        ids = [generator.randrange(FIRST_WORD, vocabulary) for _ in range(length - 1)]
        made.append(Document([*ids, EOS], prompt))
    return made


def label_share(corpus: Sequence[Document]) -> float:
    """Share of the tokens that carry loss."""
    return sum(len(item) - item.prompt for item in corpus) / sum(map(len, corpus))


def token_mean_length(corpus: Sequence[Document]) -> float:
    """Mean document length as a token sees it, for the cost of attention."""
    return sum(len(item) ** 2 for item in corpus) / sum(map(len, corpus))


def picked_steps(available: int, *, warmup: int, counted: int) -> list[int]:
    """Which of an epoch's steps are run: `warmup` ones, then `counted` ones spread evenly over the epoch.

    Evenly spread steps stand for the epoch whatever its order is (length grouping begins with the longest). The first
    warm-up step is step 0, which holds the longest document, so that peak memory is an epoch's.

    Raises:
        ValueError: the epoch has too few steps.
    """
    if available < warmup + counted:
        raise ValueError(f"{available} steps in the epoch, {warmup} + {counted} wanted; use more documents")
    spread = [(2 * index + 1) * available // (2 * counted) for index in range(counted)]
    rest = [step for step in range(available) if step not in spread]
    return rest[:: max(1, len(rest) // max(1, warmup))][:warmup] + spread


def shuffled(corpus: Sequence[Document], *, per_step: int, counted: int, warmup: int, seed: int = 0) -> list[Document]:
    """The documents in a random order whose counted steps stand well for the whole, the longest one in step 0.

    Ten steps of eight documents would miss the mean length by a tenth, and with it every padded variant's speed. So
    many seeded orders are drawn, and the one is taken whose counted steps are nearest to the expectation in tokens and
    in padded slots.
    """
    longest, rest = corpus[-1], list(corpus[:-1])
    steps = picked_steps(len(corpus) // per_step, warmup=warmup, counted=counted)[warmup:]
    orders, measures = [], []
    for attempt in range(_ORDERS_TRIED):
        order = [longest, *random.Random(f"{seed}/{attempt}").sample(rest, len(rest))]
        groups = [[len(item) for item in order[step * per_step : (step + 1) * per_step]] for step in steps]
        orders.append(order)
        measures.append((sum(map(sum, groups)), sum(per_step * max(group) for group in groups)))
    tokens = sum(map(len, corpus)) / len(corpus) * per_step * counted
    slots = sum(slots for _, slots in measures) / len(measures)
    best = min(
        range(_ORDERS_TRIED),
        key=lambda index: abs(measures[index][0] / tokens - 1) + abs(measures[index][1] / slots - 1),
    )
    return orders[best]
