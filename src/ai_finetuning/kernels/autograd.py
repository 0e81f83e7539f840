"""torch's autograd.Function with the types that it lacks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch


class Function(torch.autograd.Function):
    """Base of the toolkit's own operations; `apply` takes what `forward` takes after its context."""

    if TYPE_CHECKING:

        @classmethod
        def apply(cls, *inputs: Any) -> Any:
            """Runs the operation; the caller names the type of its result."""
