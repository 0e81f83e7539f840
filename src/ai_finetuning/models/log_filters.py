"""Harmless log lines of the quantization backends, dropped before they reach a terminal."""

from __future__ import annotations

import logging

_NOISE = {
    # One line per matrix product ("inputs will be cast from ... to float16"): thousands in a short run.
    "bitsandbytes.autograd._functions": "inputs will be cast from",
    # The optional `kernels` package is not used; bitsandbytes falls back to its own C++ code.
    "bitsandbytes.backends.cpu.ops": "from kernels-community",
    # torchao's wheel brings GPU libraries that a CPU build of torch does not load.
    "torchao": "Failed to load",
    "torch.utils._pytree": "is an Enum subclass",
}


class _DropLines(logging.Filter):
    """Drops the records of one logger whose text contains a phrase."""

    def __init__(self, phrase: str) -> None:
        super().__init__()
        self.phrase = phrase

    def filter(self, record: logging.LogRecord) -> bool:
        return self.phrase not in str(record.msg)


_FILTERS = {name: _DropLines(phrase) for name, phrase in _NOISE.items()}


def quiet_backends() -> None:
    """Filters floods of harmless log lines; calling it again changes nothing."""
    for name, drop in _FILTERS.items():
        logging.getLogger(name).addFilter(drop)
