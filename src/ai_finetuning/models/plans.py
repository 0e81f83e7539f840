"""How a model is cut for tensor parallelism: transformers' own plan, or one by the names of its modules."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from ..errors import ModelError

# For models without a plan of their own (StableLM): the names that Llama gave to the parts of a layer.
BY_NAME = {
    "self_attn.q_proj": "colwise",
    "self_attn.k_proj": "colwise",
    "self_attn.v_proj": "colwise",
    "self_attn.o_proj": "rowwise",
    "mlp.gate_proj": "colwise",
    "mlp.up_proj": "colwise",
    "mlp.down_proj": "rowwise",
}


def tensor_plan(model: Any) -> dict[str, str]:
    """Module names, numbers written as *, to transformers' word for the cut.

    Args:
        model: a transformers causal LM, with or without an adapter, on any device (meta too).

    Raises:
        ModelError: it has no plan, and its modules have other names than Llama's.
    """
    get_base = getattr(model, "get_base_model", None)
    inner = get_base() if get_base is not None else model
    modules = {re.sub(r"\d+", "*", name): module for name, module in inner.named_modules()}
    plan = dict(inner.tp_plan or {}) or {
        name: style for name in modules for end, style in BY_NAME.items() if name.endswith(end)
    }
    if not any(style.startswith("colwise") and name.count(".") > 1 for name, style in plan.items()):
        kind = type(inner).__name__
        raise ModelError(
            f"{kind} にはテンソル並列の計画がなく、層の名前も Llama と違います。strategy: fsdp または pipeline を使ってください。",
            f"{kind} has no plan for tensor parallelism and its layers are not named as Llama's; use strategy: fsdp or pipeline.",
        )
    # Both ends are cut by vocabulary whatever the plan says: tied weights have to be cut alike.
    ends = ((inner.get_input_embeddings(), "embedding_rowwise"), (inner.get_output_embeddings(), "colwise_gather_output"))
    for module, style in ends:
        plan |= {name: style for name, found in modules.items() if found is module and isinstance(module, nn.Module)}
    return {name: style for name, style in plan.items() if name in modules}
