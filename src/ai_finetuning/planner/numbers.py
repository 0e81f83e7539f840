"""The numbers of a model that its memory depends on. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import ModelError


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
