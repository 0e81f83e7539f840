"""fp16's dynamic loss scale (arXiv:1710.03740), kept on the host."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_GROWTH, _BACKOFF, _INTERVAL = 2.0, 0.5, 2000


class LossScale:
    """Small gradients survive fp16 because the loss, and so every gradient, is multiplied by a power of two.

    The rules and the numbers are those of torch.amp.GradScaler. That one keeps the scale on the device and reads an
    overflow back per optimizer; here the gradients' norm, which the host reads once a step, tells of the overflow.

    Args:
        enabled: off, the scale is 1 and nothing is multiplied.
    """

    def __init__(self, *, enabled: bool) -> None:
        self.enabled = enabled
        self.value = 2.0**16 if enabled else 1.0
        self._good_steps = 0

    def scale(self, loss: Tensor) -> Tensor:
        """The loss that the backward pass starts from."""
        return loss * self.value if self.enabled else loss

    def unscale(self, gradients: list[Tensor]) -> None:
        """Divides gradients by the scale, in place."""
        if self.enabled and gradients:
            torch._foreach_mul_(gradients, 1.0 / self.value)

    def update(self, *, overflow: bool) -> None:
        """Halves the scale after an overflow, doubles it after 2000 steps without one."""
        if not self.enabled:
            return
        self._good_steps = 0 if overflow else self._good_steps + 1
        if overflow:
            self.value *= _BACKOFF
        elif self._good_steps == _INTERVAL:
            self.value, self._good_steps = min(self.value * _GROWTH, 2.0**127), 0

    def state_dict(self) -> dict[str, Any]:
        """What GradScaler.state_dict() holds; empty where it is off."""
        if not self.enabled:
            return {}
        return {
            "scale": self.value,
            "growth_factor": _GROWTH,
            "backoff_factor": _BACKOFF,
            "growth_interval": _INTERVAL,
            "_growth_tracker": self._good_steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts scale and counter back."""
        if self.enabled and state:
            self.value, self._good_steps = float(state["scale"]), int(state["_growth_tracker"])
