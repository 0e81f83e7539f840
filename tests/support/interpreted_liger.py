"""Liger's kernels in Triton's interpreter against plain torch, in fp32: one JSON line of the relative error of each.

A program of its own, as TRITON_INTERPRET has to be set before Triton is first imported. The interpreter knows neither the
functions of CUDA's library nor Python's own numbers as arguments of kernels; numpy's and constants stand in for them.
"""

from __future__ import annotations

import json
import os

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch
import triton.language as tl
from liger_kernel.ops import geglu, rms_norm
from transformers import LlamaConfig
from triton.runtime import interpreter

from ai_finetuning.models import liger

_converted = interpreter._implicit_cvt


def _with_numbers(argument: object) -> object:
    if isinstance(argument, float):
        return tl.tensor(interpreter.TensorHandle(np.array([argument], dtype=np.float32), tl.float32), tl.float32)
    return _converted(argument)


def _rsqrt(x: tl.tensor) -> tl.tensor:
    return tl.rsqrt(x)  # looked up when it runs: the interpreter replaces it by then


def _tanh(x: tl.tensor) -> tl.tensor:
    return 2 * tl.sigmoid(2 * x) - 1


def main() -> None:
    """Every kernel, on the widths of a small model."""
    interpreter._implicit_cvt = _with_numbers
    rms_norm.rsqrt, geglu.tanh = _rsqrt, _tanh
    config = LlamaConfig(hidden_size=96, intermediate_size=160, num_attention_heads=4, num_key_value_heads=2)
    kernels = liger._ligers()
    for kind in ("llama", "gemma", "silu", "gelu", "rotate"):
        mine, theirs = (
            liger._results(k, kind, torch.device("cpu"), torch.float32, config) for k in (kernels, liger.PLAIN)
        )
        errors = [float((a - b).norm() / b.norm()) for a, b in zip(mine, theirs, strict=True)]
        print(json.dumps({"kind": kind, "errors": errors}))


if __name__ == "__main__":
    main()
