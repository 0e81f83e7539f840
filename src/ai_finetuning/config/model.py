"""ModelConfig: which model, and how it is loaded."""

from __future__ import annotations

from typing import ClassVar, Literal

from .section import require, section


@section
class ArchitectureConfig:
    """A new Llama-architecture model (arXiv:2302.13971), for method: pretrain."""

    SECTION: ClassVar[str] = "model.architecture"

    hidden_size: int = 256
    """Width."""
    num_hidden_layers: int = 8
    """Layers."""
    num_attention_heads: int = 4
    """Heads; each has hidden_size / num_attention_heads features."""
    num_key_value_heads: int | None = None
    """Heads of keys and values; None for as many as heads."""
    intermediate_size: int | None = None
    """Width of the gated layer; None for 8/3 of hidden_size, rounded up to 32."""
    max_position_embeddings: int = 1024
    """Most tokens in a sequence."""
    rope_theta: float = 10000.0
    """Base of the rotary position embedding."""
    tie_word_embeddings: bool = True
    """One matrix for input embedding and head."""

    def __post_init__(self) -> None:
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings"):
            value = getattr(self, name)
            require(value >= 1, f"model.architecture.{name}", value, "1 以上にしてください。", "it must be at least 1.")
        heads, pairs = self.num_attention_heads, self.num_key_value_heads
        require(
            self.hidden_size % (2 * heads) == 0,
            "model.architecture.hidden_size",
            self.hidden_size,
            f"num_attention_heads ({heads}) の 2 倍で割り切れる数にしてください。",
            f"it must be a multiple of twice num_attention_heads ({heads}).",
        )
        require(
            pairs is None or (pairs >= 1 and heads % pairs == 0),
            "model.architecture.num_key_value_heads",
            pairs,
            f"num_attention_heads ({heads}) を割り切る数にしてください。",
            f"it must divide num_attention_heads ({heads}).",
        )


@section
class ModelConfig:
    """A model by hub id, folder or embedded name."""

    SECTION: ClassVar[str] = "model"

    name: str = "embedded:kotoha-tiny"
    """Hub id, local folder, or embedded:kotoha-tiny, the small model that ships: no hub and no download."""
    chat_template: str | None = None
    """A template's name in the catalog, a file, or Jinja text; None takes the tokenizer's, then the catalog's."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the frozen weights."""
    attention: Literal["auto", "flash_attention_2", "sdpa", "eager"] = "auto"
    """Attention implementation; auto takes the fastest that the model and the machine allow."""
    trust_remote_code: bool = False
    """Run code from the model's repository: only for repositories that you trust."""
    architecture: ArchitectureConfig | None = None
    """A new model's sizes, for method: pretrain; None reads config.json beside the tokenizer in the folder `name`."""

    def __post_init__(self) -> None:
        require(bool(self.name.strip()), "model.name", self.name, "モデル名を書いてください。", "it must name a model.")
