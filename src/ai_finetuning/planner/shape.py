"""What a model's configuration says of its size, without its weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from ..errors import ModelError
from ..models.parts import positions_of
from ..models.source import ModelSource, described, find_model


@dataclass(frozen=True)
class ModelShape:
    """Sizes that memory depends on.

    Attributes:
        parameters: all of them, tied ones once.
        embedding_parameters: input embedding and head.
        linear_features: (name, inputs, outputs) of every linear layer but the head.
        layers, hidden, intermediate: as in the configuration.
        vocabulary: rows of the input embedding.
        positions: tokens that the model was made for; None where its configuration does not say.
        heads, head_dim: of the queries.
        norms: of a layer, as wide as the hidden states.
        softcap: scores of attention are capped, so that all of them are computed and kept (Gemma 2).
        capped_logits: its logits are capped as well.
        inner_dropout: the model has dropout of its own in its attention.
    """

    parameters: int
    embedding_parameters: int
    linear_features: tuple[tuple[str, int, int], ...]
    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    positions: int | None
    heads: int = 1
    head_dim: int = 0
    norms: float = 2
    softcap: bool = False
    capped_logits: bool = False
    inner_dropout: bool = False

    @property
    def quantizable(self) -> int:
        """Weights that quantizers take: of linear layers, so not the embedding, the head, nor tensors of experts."""
        inside = sum(inputs * outputs for _, inputs, outputs in self.linear_features)
        return min(inside, self.parameters - self.embedding_parameters)

    @property
    def looked_up(self) -> int:
        """Weights that no product needs: an input embedding that is not the head as well."""
        return max(0, self.embedding_parameters - self.vocabulary * self.hidden)

    def validate_fit(self, *, max_token_id: int, max_length: int) -> None:
        """Refuses data that the model cannot take: a token id without an embedding row, or too many positions.

        Raises:
            ModelError: with the numbers and the way out (stock code raises IndexError, or passes silently with RoPE).
        """
        if max_token_id >= self.vocabulary:
            raise ModelError(
                f"トークン ID {max_token_id} がモデルの語彙 {self.vocabulary} 行を超えています。このモデル用のトークナイザーを使ってください。",
                f"Token id {max_token_id} is beyond the model's {self.vocabulary} embedding rows; use the "
                "tokenizer that belongs to this model.",
            )
        if self.positions is not None and max_length > self.positions:
            raise ModelError(
                f"{max_length} トークンの行がありますが、このモデルは {self.positions} トークンまでです。data.max_length を {self.positions} "
                "以下にしてください。",
                f"There is a row of {max_length} tokens, but this model takes at most {self.positions}; set "
                f"data.max_length to {self.positions} or less.",
            )

    def adapted_inputs(self, targets: Sequence[str] | None) -> int:
        """Numbers that a token brings to all layers that get an adapter (targets as below)."""
        return sum(inputs for _, inputs, _ in self._adapted(targets))

    def _adapted(self, targets: Sequence[str] | None) -> list[tuple[str, int, int]]:
        return [
            item
            for item in self.linear_features
            if targets is None or any(f".{item[0]}".endswith(f".{target}") for target in targets)
        ]

    def lora_parameters(self, r: int, targets: Sequence[str] | None) -> int:
        """Weights of a LoRA adapter of rank r on the layers whose names end in one of targets (None: all)."""
        return sum(r * (inputs + outputs) for _, inputs, outputs in self._adapted(targets))


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
