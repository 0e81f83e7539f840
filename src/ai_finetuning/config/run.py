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
    method: Literal["full", "lora", "qlora", "pretrain"] = "lora"
    """Train all weights, LoRA adapters, LoRA adapters on a quantized base, or a new model from scratch."""
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    """The data."""
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)
    """The training settings."""
    lora: LoRAConfig = dataclasses.field(default_factory=LoRAConfig)
    """The adapter; without effect for method full."""
    parallel: ParallelConfig = dataclasses.field(default_factory=ParallelConfig)
    """The strategy."""

    @property
    def trains_all(self) -> bool:
        """Whether every weight trains, and the whole model is saved."""
        return self.method in ("full", "pretrain")

    def __post_init__(self) -> None:
        if self.model.architecture is not None and self.method != "pretrain":
            raise ConfigError(
                f"model.architecture は最初から訓練するとき（method: pretrain）だけ使えます。いまは method: {self.method} です。",
                f"model.architecture is for training from scratch (method: pretrain); the method is {self.method}.",
            )
        if self.trains_all and self.lora.use_qlora:
            raise ConfigError(
                f"method が {self.method} で lora.use_qlora が true です。量子化した重みはそのままでは訓練できません。method: qlora にしてください。",
                f"method is {self.method} and lora.use_qlora is true; quantized weights cannot be trained in "
                "full: use method: qlora.",
            )
        if self.training.optimizer.name == "muon" and not self.trains_all:
            raise ConfigError(
                "training.optimizer.name: muon は全部の重みを訓練するとき（method: full, pretrain）だけ使えます。いまは method: "
                f"{self.method} です。adamw にしてください。",
                "training.optimizer.name: muon is for training all weights (method: full, pretrain); the method "
                f"is {self.method}: use adamw.",
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
        if self.trains_all and typed(self.lora):
            names = ", ".join(sorted(typed(self.lora)))
            raise ConfigError(
                f"method が {self.method} なので lora の設定（{names}）は使われません。lora を消すか method: lora にしてください。",
                f"method is {self.method}, so lora settings ({names}) have no effect; remove them or use method: lora.",
            )
