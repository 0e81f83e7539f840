"""What a model is made of, whoever wrote it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

_WINDOW = re.compile("window|chunk|local_attention|block_size|topk")


def unwrapped(model: nn.Module) -> Any:
    """The transformers model inside an adapter; a model without one is itself."""
    get_base = getattr(model, "get_base_model", None)
    return get_base() if get_base is not None else model


def layer_list(model: nn.Module) -> nn.ModuleList | None:
    """The repeated blocks: the largest ModuleList."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=lambda obtained: sum(p.numel() for p in obtained.parameters()), default=None)


def decoder_layers(model: Any) -> nn.ModuleList | None:
    """The layers of a transformers causal LM: the one list beside the embedding and the final norm; None where there is
    not exactly one.
    """
    lists = [child for child in model.get_decoder().children() if isinstance(child, nn.ModuleList) and len(child)]
    return lists[0] if len(lists) == 1 else None


def positions_of(config: Any) -> int | None:
    """Tokens that a model was made for; None where its configuration does not say."""
    text = config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
        obtained = getattr(text, name, None)
        if isinstance(obtained, int) and obtained > 0:
            return obtained
    return None


def windows_of(config: Any) -> list[int]:
    """Lengths beyond which a model no longer sees its whole past: windows, chunks, the most keys that it chooses.

    Families call them differently, so every number is taken whose name says it may be one; one too many costs a longer
    probe.
    """
    text = config.get_text_config().to_dict()
    found = {value for name, value in text.items() if _WINDOW.search(name) and type(value) is int and value > 0}
    return sorted(found)


def turn_of(config: Any) -> tuple[int, str] | None:
    """(tokens, kind) beyond which a model turns its positions otherwise, by the longest document that is computed at once
    (LongRoPE of Phi-3 and MiniCPM, dynamic NTK); None for models whose positions do not depend on that.
    """
    text = config.get_text_config()
    given = getattr(text, "rope_parameters", None) or {}
    for settings in [given, *given.values()]:
        if isinstance(settings, dict) and settings.get("rope_type") in ("longrope", "dynamic"):
            for value in (
                settings.get("original_max_position_embeddings"),
                getattr(text, "original_max_position_embeddings", None),
                positions_of(config),
            ):
                if isinstance(value, int) and value > 0:
                    return value, str(settings["rope_type"])
    return None


def tensors_of(module: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers."""
    yield from module.parameters()
    yield from module.buffers()


def probe_documents(model: Any, sizes: Sequence[int]) -> list[Tensor]:
    """Documents [1, tokens] of these sizes to try a model on, the same ones every time, on the model's device."""
    rows = model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, rows, (1, size), generator=generator).to(model.device) for size in sizes]
