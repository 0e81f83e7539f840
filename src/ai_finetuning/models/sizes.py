"""What a configuration may ask for: sizes that no model has are refused before anything is built from them.

A config.json of a few bytes can name 10^8 layers. Whoever builds that model, if only on the meta device, does not come
back. Needs neither torch nor transformers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ModelError


@dataclass(frozen=True)
class Size:
    """A kind of size: which keys name it, and the most it may be, far above what models of 2026 have."""

    keys: re.Pattern[str]
    most: int


# The first that matches counts. Largest known: some 200 layers, 2,000 experts, a width of 65,536, 2 million pieces, 10
# million positions.
MOST_LAYERS, MOST_WIDTH, MOST_POSITIONS = 1000, 1 << 20, 1 << 27
_SIZES = (
    Size(re.compile("vocab"), 1 << 26),
    Size(re.compile("position|n_ctx|seq_len|seq_length"), MOST_POSITIONS),
    Size(re.compile(r"(^|_)n(um)?_(\w+_)?(layers?|blocks?|stages?)$|_layers$|^depths?$|attention_types"), MOST_LAYERS),
    Size(re.compile("num_labels"), 1 << 20),
    Size(re.compile("expert|head|group"), 1 << 16),
    Size(re.compile("window|chunk|block_size|batch|token|_id$"), 1 << 62),
    Size(
        re.compile("_size$|_dim$|_rank$|_width$|^d_|^dim$|n_embd|n_inner|expand|kernel|^r$|queries|latents"), MOST_WIDTH
    ),
)
# What families call them.
LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers")
WIDTH = ("hidden_size", "n_embd", "d_model", "dim")
HEADS = ("num_attention_heads", "n_head", "num_heads")
INNER = ("intermediate_size", "n_inner", "ffn_dim", "d_ff", "ffn_hidden_size", "moe_intermediate_size")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx")
_WHOLE = (*LAYERS, *WIDTH, *HEADS, *INNER, "vocab_size", "head_dim", "num_key_value_heads")
# Elements of one matrix kind, over all layers, of a model of which no weights are there to compare with; and what the
# weights that are there allow for each of their bytes and in any case.
_MOST_ELEMENTS, _PER_BYTE, _FREE = 1 << 44, 16, 1 << 25
_MOST_MODULES = 1 << 20


def validate_sizes(name: str, config: Mapping[str, Any], weight_bytes: int = 0) -> None:
    """Refuses a configuration with sizes beyond those of any model, or far beyond the weights that come with it.

    Args:
        name: what messages call the model.
        config: its config.json, parts such as text_config included.
        weight_bytes: of the files of weights beside it; 0 where there are none yet.

    Raises:
        ModelError: with the key, its value and the most it may be.
    """
    for key, value in _numbers(config):
        size = next((size for size in _SIZES if size.keys.search(key.lower())), None)
        if size is not None and abs(value) > size.most:
            raise ModelError(
                f"{name} の config.json の {key[:60]} が {_short(value)} です。{size.most:,} 以下にしてください（それほど大きなモデルはありません）。",
                f"{name}: {key[:60]} in its config.json is {_short(value)}; it may be at most {size.most:,}, more than any "
                "model has.",
            )
    for part in _parts(config):
        for key in _WHOLE:
            given = part.get(key)
            if isinstance(given, float) and not given.is_integer():
                raise ModelError(
                    f"{name} の config.json の {key} が {given!r} です。整数にしてください。",
                    f"{name}: {key} in its config.json is {given!r}; it must be a whole number.",
                )
    most = _PER_BYTE * weight_bytes + _FREE if weight_bytes else _MOST_ELEMENTS
    for part in _parts(config):
        for keys in _products(part):
            elements = math.prod(part[key] for key in keys)
            if elements > most:
                sizes = ", ".join(f"{key} {part[key]:,}" for key in keys)
                beside = f"（重みのファイルは {weight_bytes:,} バイト）" if weight_bytes else ""
                with_files = f", but its files of weights have {weight_bytes:,} bytes" if weight_bytes else ""
                raise ModelError(
                    f"{name} の config.json の大きさ（{sizes}）は、読み込めるモデルの大きさを超えています{beside}。config.json を確かめてください。",
                    f"{name}: the sizes in its config.json ({sizes}) make a model that cannot be{with_files}; check "
                    "config.json.",
                )
        counted = (first_key(part, LAYERS), first_key(part, EXPERTS))
        modules = math.prod(part[key] for key in counted if key is not None)
        if modules > _MOST_MODULES:
            raise ModelError(
                f"{name} の config.json は、層とエキスパートの積が {modules:,} です。{_MOST_MODULES:,} 以下にしてください。",
                f"{name}: its config.json has {modules:,} experts over all layers; at most {_MOST_MODULES:,}.",
            )


def _short(value: float) -> str:
    return f"{value:,}" if abs(value) < 10**20 else f"{value:.0e}" if abs(value) < 1e300 else "10^300 and more"


def _parts(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """A configuration and those inside it, whatever they are inside of."""
    waiting: list[Any] = [config]
    while waiting:
        part = waiting.pop()
        if isinstance(part, Mapping):
            yield part
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part


def _numbers(config: Mapping[str, Any]) -> Iterator[tuple[str, int | float]]:
    """Every number with the name of the key that it stands under, in lists too."""
    waiting: list[tuple[str, Any]] = [("", config)]
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, Mapping):
            waiting += [(str(name), item) for name, item in value.items()]
        elif isinstance(value, list):
            waiting += [(key, item) for item in value]
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield key, value


def first_key(part: Mapping[str, Any], keys: tuple[str, ...]) -> str | None:
    """The first of these keys that has a whole number above 0."""
    return next((key for key in keys if type(part.get(key)) is int and part[key] > 0), None)


def _products(part: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Keys of one configuration whose product is the elements of a kind of matrix."""
    width = first_key(part, WIDTH)
    if width is None:
        return
    layers, experts = first_key(part, LAYERS), first_key(part, EXPERTS)
    # Rotary positions have no matrix.
    rotary = any(key.startswith("rope_") for key in part)
    for other in (first_key(part, ("vocab_size",)), None if rotary else first_key(part, _POSITIONS)):
        if other is not None:
            yield width, other
    if layers is None:
        return
    for inner in INNER:
        if first_key(part, (inner,)) is not None:
            yield layers, width, inner
            if experts is not None and (inner == INNER[-1] or first_key(part, INNER[-1:]) is None):
                yield layers, width, inner, experts
    heads = first_key(part, HEADS)
    if heads is not None:
        yield (layers, width, heads, "head_dim") if first_key(part, ("head_dim",)) else (layers, width, width)


def positions_in(config: Mapping[str, Any]) -> int | None:
    """Tokens that the model of a config.json was made for, before anything is loaded; None where it does not say."""
    part = config.get("text_config") or config
    key = first_key(part, _POSITIONS)
    return None if key is None else int(part[key])
