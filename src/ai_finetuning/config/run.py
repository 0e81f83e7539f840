"""RunConfig: all sections of one run, and the rules that hold between them."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

from ..errors import ConfigError
from .data import DataConfig
from .lora import LoRAConfig
from .model import ModelConfig
from .parallel import ParallelConfig
from .section import section, typed, with_values
from .training import TrainingConfig


@section
class RunConfig:
    """What `aift train` runs: the YAML's sections."""

    SECTION: ClassVar[str] = ""

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    """The model."""
    method: Literal["full", "lora", "qlora"] = "lora"
    """Train all weights, LoRA adapters, or LoRA adapters on a quantized base."""
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    """The data."""
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)
    """The training settings."""
    lora: LoRAConfig = dataclasses.field(default_factory=LoRAConfig)
    """The adapter; without effect for method full."""
    parallel: ParallelConfig = dataclasses.field(default_factory=ParallelConfig)
    """The strategy."""

    def __post_init__(self) -> None:
        if self.method == "full" and self.lora.use_qlora:
            raise ConfigError(
                "method が full で lora.use_qlora が true です。量子化した重みはそのままでは訓練できません。method: qlora にしてください。",
                "method is full and lora.use_qlora is true; quantized weights cannot be trained in full: use method: qlora.",
            )
        if self.method == "lora" and self.lora.use_qlora:
            self.method = "qlora"
        if self.method == "qlora" and not self.lora.use_qlora:
            if "use_qlora" in typed(self.lora):
                raise ConfigError(
                    "method が qlora で lora.use_qlora が false です。どちらかに揃えてください。",
                    "method is qlora and lora.use_qlora is false; make them agree.",
                )
            self.lora = with_values(self.lora, use_qlora=True)
        if self.method == "full" and typed(self.lora):
            names = ", ".join(sorted(typed(self.lora)))
            raise ConfigError(
                f"method が full なので lora の設定（{names}）は使われません。lora を消すか method: lora にしてください。",
                f"method is full, so lora settings ({names}) have no effect; remove them or use method: lora.",
            )
