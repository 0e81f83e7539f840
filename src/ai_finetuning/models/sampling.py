"""The rules for the numbers that shape an answer; needs no torch, so that a command can refuse them at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

from ..errors import ConfigError

_WHOLE = ("batch_size", "max_new_tokens", "top_k")


def validate_sampling(
    *,
    max_new_tokens: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    do_sample: bool = True,
    batch_size: int = 1,
) -> None:
    """Refuses values of generation that cannot be.

    Raises:
        ConfigError: with name, value and rule.
    """
    rules: tuple[tuple[str, Any, Callable[[Any], bool], str, str], ...] = (
        ("batch_size", batch_size, lambda value: value >= 1, "1 以上の整数", "a whole number of at least 1"),
        ("max_new_tokens", max_new_tokens, lambda value: value >= 1, "1 以上の整数", "a whole number of at least 1"),
        (
            "temperature",
            temperature,
            lambda value: value > 0 or not do_sample,
            "0 より大きい値（毎回同じ答えにするなら do_sample=False、コマンドでは --greedy）",
            "above 0 (for the same answer every time do_sample=False, --greedy on the command line)",
        ),
        ("top_p", top_p, lambda value: 0 < value <= 1, "0 より大きく 1 以下", "above 0 and at most 1"),
        ("top_k", top_k, lambda value: value >= 0, "0 以上の整数", "a whole number, 0 or more"),
    )
    for name, value, holds, ja, en in rules:
        number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
        if not number or (name in _WHOLE and value != int(value)) or not holds(value):
            raise ConfigError(
                f"{name} が {value!r} です。{ja}にしてください。", f"{name} is {value!r}; it must be {en}."
            )
