"""What the user requested of a run: the base, the settings and the data. Nothing is decided here, and nothing is
loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..config.lora import LoRAConfig
from ..config.model import ModelConfig
from ..config.run import RunConfig
from ..config.section import explicitly_set, with_values
from ..errors import ConfigError
from ..messages import notice
from ..models.base_model import BaseModel
from ..models.japanese_model import JapaneseModel
from ..models.loading import DTYPES
from ..models.random_init import ScratchModel
from ..models.source import ModelSource
from ..planner.cuts import Cut
from ..planner.gpus import Gpus
from ..planner.phases import Timeline
from .sources import config_source
from .trainer_hooks import TrainerHooks


@dataclass(frozen=True)
class ResolvedStrategy:
    """What the process that starts the processes of a run has resolved; they take it as it is.

    Attributes:
        strategy: behind `parallel.strategy: auto`.
        processes: of the run.
        cut: of a step's rows, where GPUs compute; None where each process takes what the settings say.
        second_step: the simulated bytes of the first process's second step, to be compared with it; None without one.
    """

    strategy: str
    processes: int
    cut: Cut | None = None
    second_step: Timeline | None = None


@dataclass(frozen=True)
class TrainRequest:
    """What a trainer, or `aift train`, hands over.

    Attributes:
        model: the base.
        config: all settings, as they were given.
        train, eval_data: data in any form that data.prepare takes.
        use_accelerate: run the step through Accelerate.
        resolved_strategy: in a process that another one of ours has started: what that one resolved.
        hooks: callbacks and metrics of a script.
        elsewhere: GPUs that a plan is made for although they are not here; nothing can be trained then.
        exact_plan: simulate the memory of a step however much is free, and compare it with the run's second step.
    """

    model: BaseModel
    config: RunConfig
    train: Any
    eval_data: Any = None
    use_accelerate: bool = False
    resolved_strategy: ResolvedStrategy | None = None
    hooks: TrainerHooks = TrainerHooks()
    elsewhere: Gpus | None = None
    exact_plan: bool = False

    @property
    def full(self) -> bool:
        """Whether all weights train."""
        return self.config.trains_all

    @property
    def bits(self) -> int | None:
        """Bits of the base that is trained on: 4 or 8, or None for 16 and 32."""
        config, model = self.config, self.model
        if config.trains_all:
            return None
        if config.uses_qlora:
            return 4 if config.lora.qlora_4bit else 8
        return 4 if model.load_in_4bit else 8 if model.load_in_8bit else None


def with_processes(config: RunConfig, *, gpus: int, cpu_processes: int) -> RunConfig:
    """The configuration for so many processes of this machine.

    Raises:
        ConfigError: more GPUs than there are, or both kinds.
    """
    there = torch.cuda.device_count()
    if gpus and cpu_processes:
        raise ConfigError(
            "--gpus と --cpu-processes は同時に使えません。どちらか一方にしてください。",
            "--gpus and --cpu-processes cannot be used together; give only one of them.",
        )
    if gpus > there:
        raise ConfigError(
            f"--gpus が {gpus} ですが、GPU は {there} 個です。GPU なしで試すには --cpu-processes {gpus} を使ってください。",
            f"--gpus is {gpus}, but there are {there} GPUs; to try without GPUs use --cpu-processes {gpus}.",
        )
    return with_values(config, parallel=with_values(config.parallel, processes=gpus or cpu_processes))


def model_settings(model: BaseModel) -> ModelConfig:
    """What a model object of the Python interface is, as settings: config.yaml of its run says all of it."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    attention = getattr(model, "attention", "auto")
    if attention == "auto" and not getattr(model, "use_flash_attention", True):
        attention = "sdpa"
    own = {
        "chat_template": getattr(model, "chat_template", None),
        "dtype": names.get(model.torch_dtype, "auto") if model.torch_dtype is not None else "auto",
        "attention": attention,
        "trust_remote_code": bool(getattr(model, "trust_remote_code", False)),
    }
    usual = ModelConfig()
    values: dict[str, Any] = {name: value for name, value in own.items() if value != getattr(usual, name)}
    return ModelConfig(name=model.model_name, **values)


def adapter_settings(model: BaseModel, lora: LoRAConfig) -> LoRAConfig:
    """The adapter's settings, which say too that the model's own weights are held in 4 or 8 bits."""
    if lora.use_qlora or not (model.load_in_4bit or model.load_in_8bit):
        return lora
    return with_values(lora, use_qlora=True, qlora_4bit=model.load_in_4bit)


def request_of(config: RunConfig, device: str | None = None, source: ModelSource | None = None) -> TrainRequest:
    """The request that a configuration describes.

    Args:
        config: all settings.
        device: None takes the best one.
        source: where the base is, if that has been looked up.
    """
    target_device = torch.device(device) if device is not None else None
    if "name" not in explicitly_set(config.model):
        notice(
            f"model の指定がないので、同梱の {config.model.name} を使います（実用には model=ID かフォルダーを指定してください）。",
            f"no model is named: using the embedded {config.model.name} (for real work choose one with "
            "model=ID_OR_FOLDER).",
        )
    train, eval_data = config_source(config.data.train), config_source(config.data.eval)
    if config.method == "pretrain":
        scratch = ScratchModel(
            config.model.name,
            config.model.architecture,
            torch_dtype=DTYPES.get(config.model.dtype),
            attention=config.model.attention,
            chat_template=config.model.chat_template,
            device=target_device,
            seed=config.training.runtime.seed,
        )
        return TrainRequest(_found(scratch, source), config, train, eval_data)
    model = JapaneseModel(
        config.model.name,
        device=target_device,
        torch_dtype=DTYPES.get(config.model.dtype),
        attention=config.model.attention,
        chat_template=config.model.chat_template,
        trust_remote_code=config.model.trust_remote_code,
    )
    return TrainRequest(_found(model, source), config, train, eval_data)


def _found(model: BaseModel, source: ModelSource | None) -> BaseModel:
    if source is not None:
        model.use_source(source)
    return model
