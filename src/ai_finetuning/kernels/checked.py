"""Whether a faster way to compute gives on a device what plain torch gives there: tried once, before it is taken."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ..errors import Reason

Pairs = Iterable[tuple[Tensor, Tensor]]


def worst_difference(pairs: Pairs) -> float:
    """Largest relative difference (of norms) of obtained tensors to expected ones; infinite where one is not a number."""
    apart = [
        (obtained.float() - expected.float()).norm() / expected.float().norm().clamp_min(1e-12)
        for obtained, expected in pairs
    ]
    return max(float(one.nan_to_num(float("inf"))) for one in apart)


def why_not_taken(compute: Callable[[], Pairs], tolerance: float) -> Reason | None:
    """None where a way gives what plain torch gives, else the reason: it fails on this device, or differs.

    Args:
        compute: both ways; (obtained, expected) results and gradients.
        tolerance: the largest difference, as worst_difference() has it.
    """
    try:
        apart = worst_difference(compute())
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # no Triton, no compiler for it, a GPU or a torch that lacks the product
        text = f"{type(error).__name__}: {str(error)[:100]}"
        return Reason(text, text)
    if apart <= tolerance:
        return None
    return Reason(f"結果か勾配が {apart:.1%} 違います", f"results or gradients differ by {apart:.1%}")
