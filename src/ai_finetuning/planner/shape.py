"""What a model's configuration says of its size, without its weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from ..models.parts import positions_of
from ..models.source import ModelSource, described, find_model
from .numbers import ModelShape as ModelShape


def shape_of(model: Any) -> ModelShape:
    """The shape of a transformers model, loaded or on the meta device."""
    config = model.config.get_text_config()
    head = model.get_output_embeddings()
    embedding = model.get_input_embeddings()
    own = {id(weight): weight for module in (embedding, head) if module is not None for weight in module.parameters()}
    features = []
    for name, module in model.named_modules():
        if module is head:
            continue
        if isinstance(module, nn.Linear):
            features.append((name, module.in_features, module.out_features))
        elif isinstance(module, Conv1D):
            features.append((name, module.nx, module.nf))
    hidden, layers = int(config.hidden_size), int(config.num_hidden_layers)
    heads = int(getattr(config, "num_attention_heads", None) or 1)
    expert = getattr(config, "moe_intermediate_size", None) or getattr(config, "intermediate_size", None) or 4 * hidden
    chosen = int(getattr(config, "num_experts_per_tok", None) or 1)
    norms = sum(
        parameter.numel() for name, parameter in model.named_parameters() if parameter.ndim == 1 and "norm" in name
    )
    return ModelShape(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        embedding_parameters=sum(weight.numel() for weight in own.values()),
        linear_features=tuple(features),
        layers=layers,
        hidden=hidden,
        intermediate=max(int(getattr(config, "intermediate_size", None) or 4 * hidden), chosen * int(expert)),
        vocabulary=int(embedding.weight.shape[0]),
        positions=positions_of(config),
        heads=heads,
        head_dim=int(getattr(config, "head_dim", None) or hidden // heads),
        norms=max(2.0, norms / (hidden * max(1, layers))),
        softcap=bool(getattr(config, "attn_logit_softcapping", None)),
        capped_logits=bool(getattr(config, "final_logit_softcapping", None)),
        inner_dropout=any(bool(getattr(config, name, 0.0)) for name in ("attention_dropout", "attn_pdrop")),
    )


def read_shape(name: str, *, trust_remote_code: bool = False) -> ModelShape:
    """The shape of a model by name; see meta_model for what is raised."""
    return shape_of(meta_model(name, trust_remote_code=trust_remote_code))


def meta_model(name: str | ModelSource, *, trust_remote_code: bool = False) -> nn.Module:
    """A model by name, or one that find_model() has found, built on the meta device: no weight is read, no memory taken.

    Raises:
        ModelError: the configuration is no causal language model that transformers knows.
    """
    obtained = name if isinstance(name, ModelSource) else find_model(name, trust_remote_code=trust_remote_code)
    with described(obtained.name):
        config = AutoConfig.from_pretrained(
            obtained.path, local_files_only=obtained.local_only, trust_remote_code=obtained.remote_code
        )
        with torch.device("meta"):
            build: Callable[..., nn.Module] = AutoModelForCausalLM.from_config
            model = build(config, trust_remote_code=obtained.remote_code)
    return model
