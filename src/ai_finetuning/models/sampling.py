"""The rules for the numbers that shape an answer; needs no torch, so that a command can refuse them at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

from ..errors import ConfigError
from ..messages import excerpt

_WHOLE = ("batch_size", "max_new_tokens", "top_k")
# Arguments of transformers' generate that no answer here can have another value of -> that value, and the way out.
_FIXED: dict[str, tuple[Any, str, str]] = {
    "num_return_sequences": (
        1,
        "質問 1 件の回答は 1 つです。同じ質問を generate_batch() に必要な数だけ渡してください。",
        "a question has one answer here; give generate_batch() the question as often as answers are wanted.",
    ),
    "return_dict_in_generate": (
        False,
        "回答は文字列で返します。トークンやスコアは load_model() の generate() で得てください。",
        "answers are text; for tokens and scores call generate() of load_model().",
    ),
    "streamer": (
        None,
        "少しずつ受け取るには stream_japanese() を使ってください。",
        "for an answer piece by piece use stream_japanese().",
    ),
    "stopping_criteria": (
        None,
        "回答の終わりはモデルのテンプレートが決めます。独自の条件には load_model() の generate() を使ってください。",
        "the model's template says where answers end; for conditions of your own call generate() of load_model().",
    ),
}


def validate_further(options: Mapping[str, Any]) -> None:
    """Refuses arguments of transformers' generate under which it returns no single text.

    Raises:
        ConfigError: with name, value and the way out.
    """
    for name, (only, ja, en) in _FIXED.items():
        value = options.get(name, only)
        if value is not only and value != only:
            raise ConfigError(f"{name} が {excerpt(repr(value))} です。{ja}", f"{name} is {excerpt(repr(value))}; {en}")


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
