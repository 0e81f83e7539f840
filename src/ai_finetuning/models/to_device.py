"""optimize_model_for_gpu, the documented way to put a model on a device."""

from __future__ import annotations

import torch

from ..messages import notice
from ..system.gpu import chosen_device, get_available_device, sixteen_bit
from .activation_checkpointing import enable_activation_checkpointing


def optimize_model_for_gpu(
    model: torch.nn.Module,
    device: torch.device | None = None,
    enable_mixed_precision: bool = True,
    gradient_checkpointing: bool = False,
) -> tuple[torch.nn.Module, torch.device]:
    """Moves a model to a device in the 16-bit type that the device computes in.

    Args:
        model: any module; one that is quantized keeps its weights.
        device: None takes the best one.
        enable_mixed_precision: bf16 where the device has it, fp16 on older GPUs; never fp16 on a CPU.
        gradient_checkpointing: recompute activations in the backward pass, where the model can.

    Returns:
        (model, device).

    Raises:
        ConfigError: a device that this machine does not have.
    """
    target_device = chosen_device(device) or get_available_device()
    dtype = sixteen_bit(target_device) if enable_mixed_precision else None
    if getattr(model, "is_quantized", False):
        dtype = None
    if enable_mixed_precision and dtype is None and target_device.type == "cpu":
        notice(
            "この CPU には bf16 命令がないため fp32 のまま使います。",
            "this CPU has no bf16 instructions: keeping fp32.",
        )
    model = model.to(device=target_device, dtype=dtype) if dtype is not None else model.to(target_device)
    if gradient_checkpointing and not enable_activation_checkpointing(model):
        notice(
            f"{type(model).__name__} は Gradient Checkpointing に対応していないため、そのまま使います。",
            f"{type(model).__name__} has no gradient checkpointing; using it without.",
        )
    return model, target_device
