"""How values travel between processes: JSON with marks for tuples and arrays, so that no peer can send code."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np


def encode(value: Any) -> bytes:
    """None, numbers, texts, arrays, and lists, tuples and dictionaries of them, as bytes.

    Raises:
        TypeError: anything else.
    """
    return json.dumps(_marked(value)).encode()


def decode(content: bytes) -> Any:
    """What encode() was given."""
    return _plain(json.loads(content))


def _marked(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = np.asarray(value)
        return ["scalar", value.dtype.str, [], _text(value)]
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            raise TypeError("arrays of objects do not travel between processes")
        return ["array", value.dtype.str, list(value.shape), _text(value)]
    if isinstance(value, list | tuple):
        return ["list" if isinstance(value, list) else "tuple", *map(_marked, value)]
    if isinstance(value, dict):
        return ["dict", *([_marked(key), _marked(item)] for key, item in value.items())]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{type(value).__name__} does not travel between processes")


def _text(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")


def _plain(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    kind, *items = value
    if kind in ("array", "scalar"):
        dtype, shape, text = items
        array = np.frombuffer(bytearray(base64.b64decode(text)), dtype=np.dtype(dtype)).reshape(shape)
        return array[()] if kind == "scalar" else array
    if kind == "dict":
        return {_plain(key): _plain(item) for key, item in items}
    plain = [_plain(item) for item in items]
    return plain if kind == "list" else tuple(plain)
