"""LoRAConfig with the documented fields, order and defaults."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

from .section import require, section


@section
class LoRAConfig:
    """LoRA (arXiv:2106.09685) and QLoRA (arXiv:2305.14314) settings."""

    SECTION: ClassVar[str] = "lora"

    r: int = 16
    """Rank of the update."""
    lora_alpha: int = 32
    """Scale: the update is multiplied by lora_alpha / r."""
    target_modules: list[str] | str | None = None
    """Names of the linear layers to adapt; None for all of them, `all-linear` says so in words."""
    lora_dropout: float = 0.05
    """Dropout before the update."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Which biases train."""
    task_type: str = "CAUSAL_LM"
    """Always CAUSAL_LM here."""
    use_qlora: bool = False
    """Load the base quantized."""
    qlora_4bit: bool = True
    """4 bit (NF4, double quantization); False for 8 bit."""
    use_rslora: bool = dataclasses.field(default=False, kw_only=True)
    """rsLoRA (arXiv:2312.03732): scale by lora_alpha / sqrt(r)."""
    use_dora: bool = dataclasses.field(default=False, kw_only=True)
    """DoRA (arXiv:2402.09353): magnitude and direction apart."""
    modules_to_save: list[str] | None = dataclasses.field(default=None, kw_only=True)
    """Modules trained and saved whole (embed_tokens, lm_head after adding tokens)."""

    def __post_init__(self) -> None:
        require(self.r >= 1, "lora.r", self.r, "1 以上にしてください。", "it must be at least 1.")
        require(
            self.lora_alpha >= 1, "lora.lora_alpha", self.lora_alpha, "1 以上にしてください。", "it must be at least 1."
        )
        require(
            0 <= self.lora_dropout < 1,
            "lora.lora_dropout",
            self.lora_dropout,
            "0 以上 1 未満にしてください。",
            "it must be at least 0 and below 1.",
        )
        require(
            self.task_type == "CAUSAL_LM",
            "lora.task_type",
            self.task_type,
            "CAUSAL_LM だけに対応しています。",
            "only CAUSAL_LM is supported.",
        )
        targets = self.target_modules
        require(
            targets is None or targets == "all-linear" or (isinstance(targets, list) and len(targets) > 0),
            "lora.target_modules",
            targets,
            "モジュール名のリスト、'all-linear' または None にしてください。",
            "it must be a list of module names, 'all-linear' or None.",
        )
