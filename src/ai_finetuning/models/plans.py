"""How a model is cut for tensor parallelism: transformers' own plan, or one by the names of its modules."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from ..errors import ModelError
from .parts import unwrapped

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


# The cuts of transformers' plans that parallel/strategies/tensor.py makes; mixtures of experts and latent attention need others.
CUTS = frozenset(
    {
        "colwise",
        "colwise_gather_output",
        "rowwise",
        "rowwise_split_input",
        "embedding_rowwise",
        "replicated_with_grad_allreduce",
    }
)


def tensor_plan(model: Any) -> dict[str, str]:
    """Module names, numbers written as *, to transformers' word for the cut.

    Args:
        model: a transformers causal LM, with or without an adapter, on any device (meta too).

    Raises:
        ModelError: it has no plan and its modules have other names than Llama's, or its plan would train it wrongly.
    """
    inner = unwrapped(model)
    modules = {re.sub(r"\d+", "*", name): module for name, module in inner.named_modules()}
    plan = dict(inner.tp_plan or {}) or {
        name: style for name in modules for end, style in BY_NAME.items() if name.endswith(end)
    }
    # Both ends are cut by vocabulary whatever the plan says: tied weights have to be cut alike.
    ends = (
        (inner.get_input_embeddings(), "embedding_rowwise"),
        (inner.get_output_embeddings(), "colwise_gather_output"),
    )
    for end, style in ends:
        plan |= {name: style for name, module in modules.items() if module is end}
    plan = {name: style for name, style in plan.items() if name in modules}
    _refuse(type(inner).__name__, plan, modules)
    return plan


def _refuse(kind: str, plan: dict[str, str], modules: dict[str, nn.Module]) -> None:
    if "rowwise" not in {style[:7] for style in plan.values()}:
        raise ModelError(
            f"{kind} にはテンソル並列の計画がなく、層の名前も Llama と違います。strategy: fsdp または pipeline を使ってください。",
            f"{kind} has no plan for tensor parallelism and its layers are not named as Llama's; use strategy: "
            "fsdp or pipeline.",
        )
    unknown = sorted(set(plan.values()) - CUTS)
    if unknown:
        raise ModelError(
            f"{kind} の分割計画には、対応していない {', '.join(unknown)} があります。strategy: fsdp または pipeline を使ってください。",
            f"the plan of {kind} asks for {', '.join(unknown)}, which is not supported; use strategy: fsdp or "
            "pipeline.",
        )
    for parent in {name.rpartition(".")[0] for name, style in plan.items() if style == "colwise"}:
        module = modules[parent]
        own = [name for name, _ in module.named_parameters(recurse=False)]
        own += [name for name, child in module.named_children() if any(True for _ in child.parameters())]
        left = [name for name in own if f"{parent}.{name}" not in plan]
        if left:
            # They would work on this rank's values only, and their gradients would not be all-reduced.
            raise ModelError(
                f"{kind} の {parent} には分割計画にない重み {', '.join(left)} があります。strategy: fsdp または pipeline を使ってください。",
                f"{parent} of {kind} has weights that its plan does not cover ({', '.join(left)}); use "
                "strategy: fsdp or pipeline.",
            )
