"""What training one model takes of one device, each method by a simulated step of its own, from its configuration alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from ..data.collate import collate
from ..data.example import Example
from ..engine.optimizer import NamedParameters, build_optimizer
from ..engine.precision import precision_for
from ..errors import ToolkitError
from ..models.adapters import add_lora
from ..parallel.batch import Batch
from ..parallel.limits import BASE_BYTES
from ..planner.gpus import Gpus
from ..planner.phases import Timeline
from ..planner.shape import meta_model, shape_of
from ..planner.simulate import Job, simulate
from ..planner.timelines import remembered
from ..system.gpu import get_available_device
from .build import loss_of
from .place import place_for

# A row, and an adapter on every linear layer, as the catalog counts them; activations are computed again.
TOKENS, RANK, DROPOUT = 2048, 16, 0.05
METHODS = {"lora": None, "qlora": 4, "full": None}


def simulated_needs(name: str, elsewhere: Gpus | None = None) -> dict[str, int]:
    """Bytes that a step of one row takes of a device, by method; empty for a model whose configuration is not here, or
    whose code cannot be followed without data. What a GPU's allocator reserves counts; of a CPU the program as well.

    Args:
        name: of a model on this PC.
        elsewhere: GPUs, of which one counts; None for this machine.
    """
    place = place_for(torch.device("cuda") if elsewhere is not None else get_available_device(), elsewhere)
    try:
        module: Any = meta_model(name)
        row = np.arange(min(TOKENS, shape_of(module).positions or TOKENS), dtype=np.int32) % 32
    except ToolkitError:
        return {}
    group = [collate([[Example(row, row.copy())]], pad_token_id=0, packed=False)]
    sixteen = place.sixteen_bit()
    precision = precision_for("auto", fp16=True, device=place.device, best=sixteen)
    frozen = torch.float32 if precision.name == "fp32" else sixteen or torch.float32
    found = {}
    for method, bits in METHODS.items():
        full = method == "full"
        job = Job(
            module=module,
            device=place.device,
            dtype=torch.float32 if full else frozen,
            bits=bits,
            autocast=precision.autocast,
            kernels="auto",
            adapter=None if full else partial(add_lora, r=RANK, alpha=2 * RANK, dropout=DROPOUT),
            loss=loss_of,
            optimizer=_optimizer,
            checkpointing=True,
            scaler=precision.scaler,
        )
        key = {
            "one_model": [method, RANK, DROPOUT, place.device.type, str(job.dtype), str(precision.autocast)],
            "model": module.config.to_dict(),
        }
        try:
            (told,) = remembered(key, group, partial(_simulated, job, group))
        except MemoryError:
            raise
        except Exception:  # a model's own code, however it says so: the formula tells that method
            continue
        gpu = place.device.type == "cuda"
        found[method] = told.reserved + place.libraries(0) if gpu else told.peak + BASE_BYTES
    return found


def _simulated(job: Job, group: Sequence[Batch]) -> list[Timeline]:
    return [simulate(job, group)]


def _optimizer(named: NamedParameters, _: Any) -> torch.optim.Optimizer:
    """AdamW, over what trains."""
    return build_optimizer([(name, weight) for name, weight in named if weight.requires_grad], learning_rate=1e-5)
