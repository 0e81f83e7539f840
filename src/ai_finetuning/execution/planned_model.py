"""What is known of the base and of the machine before a run is decided: what its steps ask for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..config.section import explicitly_set
from ..engine.precision import Precision
from ..models import fused
from ..models.lora_targets import LoraTargets
from ..models.parts import decoder_layers
from ..models.source import ModelSource
from ..parallel.plan import ParallelPlan
from ..planner import memory
from ..planner.layers import blocks_of
from ..planner.shape import ModelShape
from ..planner.spread import on_fullest_device
from . import base_facts
from .derived import kernels_of
from .place import Place
from .request import TrainRequest

# Bytes of optimizer state a trained weight; muon's matrices have one moment, which most weights of a model belong to.
_OPTIMIZER_BYTES = {"adamw": 8, "adamw_8bit": 2, "muon": 4}


@dataclass(frozen=True)
class PlannedModel:
    """What is known of the base and the machine: the parts of a plan that the choice of a strategy needs."""

    request: TrainRequest
    source: ModelSource
    module: nn.Module
    shape: ModelShape
    place: Place
    precision: Precision
    taken: dict[str, Any]
    targets: LoraTargets | None

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return self.place.device

    @property
    def adapted(self) -> list[str] | None:
        """Names, or their ends, of the layers that carry an adapter; None for full fine-tuning."""
        return self.targets.modules if self.targets is not None else None

    def workload(self, width: int, longest: int | None = None, *, rows: int | None = None) -> memory.Workload:
        """What a micro-batch of rows of `width` tokens, and documents of at most `longest`, asks of the machine.

        Args:
            rows: of the micro-batch; None: as the settings say.
        """
        request, training = self.request, self.request.config.training
        compute = 2 if self.precision.autocast is not None else 4
        return memory.Workload(
            trainable=self._trainable(),
            bits=request.bits,
            frozen_bytes=_frozen_bytes(request, compute),
            tokens=(rows or training.batch_size) * width,
            compute_bytes=compute,
            optimizer_bytes=_OPTIMIZER_BYTES[training.optimizer.name],
            full=request.full,
            longest=longest or width,
            adapted=0 if request.full else self.shape.adapted_inputs(self.adapted),
            dropout=not request.full and request.config.lora.lora_dropout > 0,
            fused=self._fused(),
            gpu=self.device.type == "cuda",
            documents=training.runtime.kernels != "plain",
        )

    def _fused(self) -> bool:
        """Whether fused blocks will compute the layers, as far as settings and configuration tell."""
        request, training = self.request, self.request.config.training
        fp32 = self.precision.autocast is None
        kernels = kernels_of(training.runtime.kernels, self.taken, resumed=bool(self.taken), fp32=fp32)
        plain = request.bits is not None or kernels != "auto" or self.device.type != "cpu"
        if plain or (not request.full and request.config.lora.use_dora):
            return False
        in_fp32 = request.full or _frozen_bytes(request, 4) == 4
        compute = self.precision.autocast or (torch.float32 if in_fp32 else None)
        return fused.why_not(self.module, self.device, compute=compute) is None

    def _trainable(self) -> int:
        if self.targets is None:
            return self.shape.parameters
        r = self.request.config.lora.r
        return self.shape.lora_parameters(r, self.adapted) + self.targets.parameter_weights(r)

    def checkpointing(self, work: memory.Workload, free: int, parallel: ParallelPlan) -> bool:
        """Gradient checkpointing: as given, as the run began, else on where memory would be short without it."""
        training = self.request.config.training
        if "gradient_checkpointing" in explicitly_set(training):
            return training.gradient_checkpointing
        if self.taken.get("gradient_checkpointing") is not None:
            return bool(self.taken["gradient_checkpointing"])
        return self.needs(work, parallel, checkpointing=False).total > self.place.comfortable(free)

    def needs(
        self, work: memory.Workload, parallel: ParallelPlan, *, checkpointing: bool, accumulation: int | None = None
    ) -> memory.MemoryEstimate:
        """The peak of the process that holds most of the run.

        Args:
            accumulation: micro-batches of a step over all devices; None: as the settings say.
        """
        whole = memory.estimate(self.shape, work, checkpointing=checkpointing)
        if not parallel.in_parts or decoder_layers(self.module) is None:  # fsdp then gathers all of it
            return whole
        blocks = blocks_of(self.module, work, checkpointing=checkpointing, targets=self.adapted)
        count = accumulation or self.request.config.training.gradient_accumulation_steps
        return on_fullest_device(whole, self.shape, work, blocks, parallel, -(-count // parallel.sizes.dp))


def _frozen_bytes(request: TrainRequest, compute: int) -> int:
    """Bytes of a frozen weight: as it is loaded, as the user asked, or else as the run computes."""
    loaded = base_facts.plain_module(request.model)
    dtype = next(loaded.parameters()).dtype if loaded is not None else request.model.torch_dtype
    return dtype.itemsize if dtype is not None else compute
