"""How fast a device is: products, copies, and a step of training against what the device can."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from ...planner.gpus import card_named
from ...planner.shape import ModelShape
from ...system.gpu import dtype_name
from .four_bit import four_bit_layer
from .one_step import BILLION, TINY, Step, make_step
from .parity import dtypes, exact
from .results import NotHere

# Steps that are timed, after those that compile and warm up.
_WARM, _STEPS = 3, 20
_GB = 1e9


def seconds_of(work: Callable[[], Any], device: torch.device, *, warm: int = 2, times: int = 5) -> float:
    """Mean seconds of a piece of work, which the device has finished."""
    for _ in range(warm):
        work()
    _finish(device)
    began = time.perf_counter()
    for _ in range(times):
        work()
    _finish(device)
    return (time.perf_counter() - began) / times


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def products(device: torch.device) -> dict[str, float]:
    """TFLOP/s of large square products by type; `tf32` where the device has it."""
    side = 8192 if device.type == "cuda" else 512
    obtained = {}
    for dtype in dtypes(device):
        one, other = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        work = _product(one, other)
        with exact():
            obtained[dtype_name(dtype)] = 2 * side**3 / seconds_of(work, device) / 1e12
        if device.type == "cuda" and dtype is torch.float32 and torch.cuda.get_device_capability(device) >= (8, 0):
            before = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision("high")
            obtained["tf32"] = 2 * side**3 / seconds_of(work, device) / 1e12
            torch.set_float32_matmul_precision(before)
    return obtained


def _product(one: torch.Tensor, other: torch.Tensor) -> Callable[[], torch.Tensor]:
    return lambda: torch.mm(one, other)


def copies(device: torch.device) -> dict[str, float]:
    """GB/s: of the device's own memory (read and written), and from and to the host where it is another memory."""
    size = 2**29 if device.type == "cuda" else 2**25
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    obtained = {"memory": 2 * size / seconds_of(lambda: target.copy_(source), device) / _GB}
    if device.type == "cuda":
        for name, pinned in (("host_pinned", True), ("host_pageable", False)):
            host = torch.zeros(size, dtype=torch.uint8, pin_memory=pinned)
            obtained[name] = size / seconds_of(_copy(target, host), device) / _GB
    return obtained


def _copy(target: torch.Tensor, host: torch.Tensor) -> Callable[[], torch.Tensor]:
    return lambda: target.copy_(host, non_blocking=True)


def four_bit(device: torch.device) -> dict[str, float]:
    """Milliseconds of a 4-bit layer on 4,096 tokens as bitsandbytes computes it, and dequantized first; empty without
    the library. Neither is chosen by it: it tells which one should be.
    """
    width, tokens = (4096, 4096) if device.type == "cuda" else (256, 64)
    dtype = dtypes(device)[-1]
    try:
        layer, dequantized = four_bit_layer(torch.randn(width, width).to(dtype), device)
    except NotHere:
        return {}
    states = torch.randn(tokens, width, device=device).to(dtype)
    with torch.no_grad():
        return {
            "library_ms": 1e3 * seconds_of(lambda: layer(states), device),
            "dequantized_ms": 1e3 * seconds_of(lambda: torch.mm(states, dequantized().t()), device),
        }


def useful_operations(shape: ModelShape, step: Step) -> float:
    """Of the products of a step, without recomputation: twice a weight and token forward, as much for the gradient of
    what goes in, and again for that of the weight where it trains.
    """
    products = sum(inputs * outputs for _, inputs, outputs in shape.linear_features)
    return 2.0 * step.tokens * (products + shape.vocabulary * shape.hidden) * (3 if step.work.full else 2)


def training(device: torch.device, measured: dict[str, float]) -> dict[str, Any]:
    """A LoRA step of a model shaped as one of 10^9 parameters (a tiny one on a CPU): tokens a second, and the share of
    what the device can (MFU) by the table and by the products measured here.

    Args:
        measured: products().
    """
    step = make_step(BILLION if device.type == "cuda" else TINY, device, full=False)
    seconds = seconds_of(step.take, device, warm=_WARM, times=_STEPS if device.type == "cuda" else 3)
    reached = useful_operations(step.shape, step) / seconds / 1e12
    best = measured.get({"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}[step.precision.name])
    card = card_named(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return {
        "parameters": step.shape.parameters,
        "precision": step.precision.name,
        "tokens": step.tokens,
        "seconds": seconds,
        "tokens_per_second": step.tokens / seconds,
        "mfu_of_table": None if card is None else reached / card.tflops[step.precision.name],
        "mfu_of_measured": None if best is None else reached / best,
    }


def measure(device: torch.device) -> dict[str, Any]:
    """All of it."""
    measured = products(device)
    return {
        "tflops": measured,
        "gb_per_second": copies(device),
        "four_bit": four_bit(device),
        "training": training(device, measured),
    }
