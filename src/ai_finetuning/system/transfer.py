"""Small tensors from the host to a device."""

from __future__ import annotations

import torch
from torch import Tensor


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor of the host on a device.

    A GPU takes it from pinned memory, beside what it computes; for a copy from other memory the host would wait until
    the GPU has done all that it was given before.
    """
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
