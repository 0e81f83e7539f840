"""The rules for the numbers that shape an answer; needs no torch, so that a command can refuse them at once."""

from __future__ import annotations

from ..errors import ConfigError


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
    rules = (
        ("batch_size", batch_size, batch_size >= 1, "1 以上", "at least 1"),
        ("max_new_tokens", max_new_tokens, max_new_tokens >= 1, "1 以上", "at least 1"),
        (
            "temperature",
            temperature,
            temperature > 0 or not do_sample,
            "0 より大きい値（0 なら do_sample=False）",
            "above 0 (for 0 use do_sample=False)",
        ),
        ("top_p", top_p, 0 < top_p <= 1, "0 より大きく 1 以下", "above 0 and at most 1"),
        ("top_k", top_k, top_k >= 0, "0 以上", "0 or more"),
    )
    for name, value, holds, ja, en in rules:
        if not holds:
            raise ConfigError(
                f"{name} が {value!r} です。{ja}にしてください。", f"{name} is {value!r}; it must be {en}."
            )
