"""Hostile and damaged inputs from a seed: bytes that are changed, JSON whose values are changed, values of every type."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Sequence
from typing import Any

PIECES = [
    b"", b'"', b"{", b"]", b"\x00", b"\xff\xfe", b",", b"\n", b"null", b"1e999", b"NaN", b'"role"', b"\xed\xa0\x80",
    "繧".encode(), b"[" * 50, b"[" * 5000, b"\x1b[2J", b"%s%n", b"../../x", b"-1", b"9" * 5000, b"\xef\xbb\xbf", b"\r",
]  # fmt: skip


def damaged(raw: bytes, rng: random.Random) -> bytes:
    """A file with a few bytes changed, lost, doubled or put in."""
    data = bytearray(raw)
    for _ in range(rng.randint(1, 6)):
        start = rng.randrange(len(data) + 1)
        stop = min(len(data), start + rng.randint(1, 40))
        own = [bytes(rng.randrange(256) for _ in range(8)), bytes(data[start:stop]) * 2]
        data[start:stop] = rng.choice([*PIECES, *own])
        if not data:
            data = bytearray(b" ")
    return bytes(data)


NUMBERS: list[Any] = [
    0, 1, -1, 2, 7, 64, 255, 10**6, 10**8, -(10**8), 2**31, 2**63, 2**64, 10**30, 10**400, 0.5, -1.5, 1e300, float("inf"),
    float("nan"), 1e-9,
]  # fmt: skip
WORDS: list[Any] = [
    "", " ", "a", "文", "<s>", "\u0000", "\ud83c", "\x1b[2J", "null", "true", "0", "-1", "1e9", "../x", "/etc/passwd", "a/b",
    "C:\\x", "%s", "{}", "[1]", '{"role": "user"}', "a" * 10_000, "llama", "gpt2", "float32", "silu", "auto", "default",
    "[", "(", "*", "(a+)+#", "{{ 1 }}", "{%",
]  # fmt: skip
NAMES = [
    "role", "from", "content", "value", "type", "text", "function", "name", "arguments", "messages", "weight", "", "model",
    "train", "size", "id", "r", "method", "__class__", "self", "path",
]  # fmt: skip


def value(rng: random.Random, depth: int = 0, names: Sequence[str] = NAMES) -> Any:
    """Any JSON value."""
    if depth > 3 or rng.random() < 0.6:
        return rng.choice([None, True, False, rng.choice(NUMBERS), rng.choice(WORDS)])
    if rng.random() < 0.5:
        return [value(rng, depth + 1, names) for _ in range(rng.randint(0, 3))]
    return {rng.choice(names): value(rng, depth + 1, names) for _ in range(rng.randint(0, 4))}


def places(tree: Any) -> list[tuple[Any, Any]]:
    """(what holds it, its key or index) of every value of a JSON tree."""
    found: list[tuple[Any, Any]] = []
    waiting = [tree]
    while waiting:
        part = waiting.pop()
        keys = list(part) if isinstance(part, dict) else range(len(part)) if isinstance(part, list) else ()
        for key in keys:
            found.append((part, key))
            waiting.append(part[key])
    return found


def changed(tree: Any, rng: random.Random, names: Sequence[str] = NAMES, times: int = 3) -> Any:
    """A JSON tree with a few values replaced, lost, doubled, renamed or put in."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.randint(1, times)):
        found = places(tree)
        if not found:
            return value(rng, names=names)
        holder, key = rng.choice(found)
        way = rng.randrange(8)
        if way < 4:
            holder[key] = value(rng, 1, names)
        elif way == 4:
            del holder[key]
        elif way == 5:
            holder[key] = [holder[key]] * rng.choice([1, 2, 50])
        elif way == 6 and isinstance(holder, dict):
            holder[rng.choice(names)] = holder.pop(key)
        elif isinstance(holder, dict):
            holder[rng.choice(names)] = value(rng, 1, names)
        else:
            holder.insert(0, value(rng, 1, names))
    return tree


def written(tree: Any, rng: random.Random) -> bytes:
    """A JSON tree as a file; now and then one that no writer makes."""
    text = json.dumps(tree, ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, 1]))
    raw = text.encode("utf-8", errors="surrogatepass")
    way = rng.randrange(24)
    if way == 0:
        return b"[" * 200_000
    if way == 1:
        return b'{"a":' * 50_000 + b"1" + b"}" * 50_000
    if way == 2:
        return text.encode("utf-16", errors="surrogatepass")
    if way in (3, 4):
        return damaged(raw, rng)
    return raw
