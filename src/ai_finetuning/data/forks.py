"""A pair of answers as one document: what both begin with, then the rest of each.

Rows of pairs are then rows like others: what holds, orders, cuts off and resumes documents needs no idea of pairs, and no
pair can be torn. Attention, positions and labels know of the fork (docs/preference.md).
"""

from __future__ import annotations

import numpy as np

from .example import Example

CHOSEN, REJECTED = 0, 1


def forked(chosen: Example, rejected: Example) -> Example:
    """One document of two whole ones: the ids that both begin with, then the rest of each.

    The prefix may reach into answers that begin alike. It ends before the first token whose id or label differs, and each
    rest has a token at least, so that one side may be the beginning of the other.

    Args:
        chosen, rejected: whole conversations, tokenized each by itself.
    """
    most = min(len(chosen), len(rejected)) - 1
    same = chosen.input_ids[:most] == rejected.input_ids[:most]
    same &= chosen.labels[:most] == rejected.labels[:most]
    prefix = most if same.all() else int(np.argmin(same))
    return Example(
        np.concatenate([chosen.input_ids, rejected.input_ids[prefix:]]),
        np.concatenate([chosen.labels, rejected.labels[prefix:]]),
        chosen.characters + rejected.characters,
        chosen.source,
        chosen.question,
        (prefix, len(chosen) - prefix, len(rejected) - prefix),
    )


def side_of(pair: Example, side: int) -> Example:
    """The whole conversation of one side (CHOSEN, REJECTED) of a forked document; its characters are not known."""
    prefix, chosen, _ = pair.fork
    rest = slice(prefix, prefix + chosen) if side == CHOSEN else slice(prefix + chosen, None)
    return Example(
        np.concatenate([pair.input_ids[:prefix], pair.input_ids[rest]]),
        np.concatenate([pair.labels[:prefix], pair.labels[rest]]),
        0,
        pair.source,
        pair.question,
    )
