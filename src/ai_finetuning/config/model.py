"""ModelConfig: which model, and how it is loaded."""

from __future__ import annotations

from typing import ClassVar, Literal

from .section import require, section


@section
class ModelConfig:
    """A model by hub id, folder or embedded name."""

    SECTION: ClassVar[str] = "model"

    name: str = "stabilityai/japanese-stablelm-3b-4e1t-instruct"
    """Hub id or local folder."""
    chat_template: str | None = None
    """A template's name in the catalog, a file, or Jinja text; None takes the tokenizer's, then the catalog's."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the frozen weights."""
    attention: Literal["auto", "flash_attention_2", "sdpa", "eager"] = "auto"
    """Attention implementation; auto takes the fastest that the model and the machine allow."""
    trust_remote_code: bool = False
    """Run code from the model's repository: only for repositories that you trust."""

    def __post_init__(self) -> None:
        require(bool(self.name.strip()), "model.name", self.name, "モデル名を書いてください。", "it must name a model.")
