"""What a model's configuration says of its size, without its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from ..errors import ModelError
from ..models import catalog, hub


@dataclass(frozen=True)
class ModelShape:
    """Sizes that memory depends on.

    Attributes:
        parameters: all of them, tied ones once.
        embedding_parameters: input embedding and head; they stay in 16 bit where the rest is quantized.
        linear_features: (name, inputs, outputs) of every linear layer but the head.
        layers, hidden, intermediate, vocabulary: as in the configuration.
    """

    parameters: int
    embedding_parameters: int
    linear_features: tuple[tuple[str, int, int], ...]
    layers: int
    hidden: int
    intermediate: int
    vocabulary: int

    def lora_parameters(self, r: int, targets: Sequence[str] | None) -> int:
        """Weights of a LoRA adapter of rank r on the layers whose last name is in targets (None: all)."""
        return sum(
            r * (inputs + outputs)
            for name, inputs, outputs in self.linear_features
            if targets is None or name.split(".")[-1] in targets or name in targets
        )


def shape_of(model: nn.Module) -> ModelShape:
    """The shape of a model, loaded or on the meta device."""
    config = model.config.get_text_config()  # type: ignore[operator, union-attr]
    head = model.get_output_embeddings()  # type: ignore[operator]
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    own = {id(weight): weight for module in (embedding, head) if module is not None for weight in module.parameters()}
    features = []
    for name, module in model.named_modules():
        if module is head:
            continue
        if isinstance(module, nn.Linear):
            features.append((name, module.in_features, module.out_features))
        elif isinstance(module, Conv1D):
            features.append((name, module.nx, module.nf))
    hidden = int(config.hidden_size)
    return ModelShape(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        embedding_parameters=sum(weight.numel() for weight in own.values()),
        linear_features=tuple(features),
        layers=int(config.num_hidden_layers),
        hidden=hidden,
        intermediate=int(getattr(config, "intermediate_size", None) or 4 * hidden),
        vocabulary=int(config.vocab_size),
    )


def read_shape(name: str) -> ModelShape:
    """The shape of a model by name, built on the meta device: no weight is read, no memory taken.

    Raises:
        ModelError: the configuration is no causal language model that transformers knows.
    """
    real = catalog.resolve(name)
    local_only = hub.locate(real)
    try:
        config = AutoConfig.from_pretrained(real, local_files_only=local_only, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (ValueError, KeyError, OSError, ImportError) as error:
        reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"{real} の config.json から文章生成モデルを組み立てられません（{reason}）。",
            f"no causal language model can be built from the config.json of {real} ({reason}).",
        ) from error
    return shape_of(model)
