"""Several adapters over one base, each a model of its own whose weights are those of the others.

Only modules, biases and buffers are made for each adapter. So every check of load_adapter() and everything that an
adapter may bring, such as a larger embedding, holds for each as it does alone (docs/decisions/0182).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import ModelError
from ..models.adapters import load_adapter, saved_tokenizer
from ..models.hub import locate_base
from ..models.loading import bits_as_trained, load_causal_lm
from ..models.shared_base import shared_base
from ..models.source import ModelSource, find_model
from ..models.tokenizers import load_tokenizer
from .session import OpenModel
from .usable import usable


def open_adapters(
    names: Sequence[str], *, place: Callable[[ModelSource, int | None, str], object] | None = None
) -> list[OpenModel]:
    """The adapters as open_model() opens each, over one set of weights.

    Args:
        names: folders of adapters or runs for which shared_base() says the same.
        place: is shown the base with its bits and dtype before it is loaded, and may refuse it.

    Raises:
        ModelError: they have no base in common. ToolkitError: as loading raises.
    """
    found = [usable(name) for name in names]
    shared = {shared_base(Path(one.path)) if one.kind == "adapter" else None for one in found}
    if len(shared) != 1 or None in shared:
        listed = ", ".join(names)
        raise ModelError(
            f"{listed} は 1 つのベースに並べられません。1 つずつ読み込んでください。",
            f"{listed} cannot lie on one base; load them one by one.",
        )
    base = locate_base(found[0].path)
    source = find_model(base)
    held = bits_as_trained(found[0].path, source, None)
    if place is not None:
        place(source, held, "auto")
    model = load_causal_lm(source, dtype="auto", load_in_4bit=held == 4)
    # Before the base itself takes an adapter.
    models: list[Any] = [*(_of_the_same_weights(model) for _ in found[1:]), model]
    return [
        OpenModel(
            load_adapter(own, one.path).eval(),
            load_tokenizer(saved_tokenizer(one.path) or base),
            base,
            has_adapter=True,
        )
        for one, own in zip(found, models, strict=True)
    ]


def _of_the_same_weights(model: nn.Module) -> nn.Module:
    """A copy of a model's modules over its weights.

    A parameter is another object over the same storage: what is given another storage, as an embedding that grows is,
    changes in the copy alone. Biases are copies, since adapters may bring theirs into them.
    """
    kept: dict[int, Any] = {}
    for name, weight in model.named_parameters():
        if "bias" not in name:
            plain = type(weight) is nn.Parameter
            kept[id(weight)] = nn.Parameter(weight.detach(), weight.requires_grad) if plain else weight
    return copy.deepcopy(model, kept)
