"""Compiles kernels/cpu.cpp once per machine and source, and loads it; where that is impossible, training continues
without.

This file answers whether the kernels can run here. Whether a step gains by them is another question, which
models/fused.py answers (`why_not_worth`).
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch

from ..errors import Reason
from ..system.files import is_private
from ..system.folders import private_cache, temporary_cache

_SOURCE = Path(__file__).with_name("cpu.cpp")
# -march=native: the library is built for this processor, and its name says for which.
FLAGS = ("-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-std=c++17", "-fPIC")
# The types that it computes on, each in a library of its own that is made when it is asked for, and its option.
_TYPES = {torch.bfloat16: ("bf16", ()), torch.float32: ("fp32", ("-DAIFT_FLOAT",))}
# A second of work; beside other busy processes it may wait long for a processor. It ends a compiler that hangs.
_TIMEOUT_SECONDS = 600


class KernelsUnavailableError(Exception):
    """Why there are no compiled kernels here; never reaches the user as an error."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.en)
        self.reason = reason


def processor() -> str:
    """The processor's name and its instruction sets: what -march=native stands for."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags"))}))


def _compile(compiler: str, options: Sequence[str], target: Path) -> None:
    """Writes the library under its final name in one rename, so that processes that start together agree."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        code, library = Path(folder) / "cpu.o", Path(folder) / "cpu.so"
        # Linked without OpenMP: its symbols come from the copy that torch has loaded, so that there is one pool of
        # threads.
        for command in (
            [compiler, *FLAGS, *options, "-c", str(_SOURCE), "-o", str(code)],
            [compiler, "-shared", str(code), "-o", str(library)],
        ):
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False)
            if done.returncode != 0:
                raise KernelsUnavailableError(_as_is(f"{compiler}: {done.stderr.strip()[:200]}"))
        os.replace(library, target)


def _share_openmp() -> None:
    """Makes the OpenMP runtime that torch uses visible to the kernels."""
    maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    loaded = {line.split()[-1] for line in maps if "libgomp" in line or "libomp" in line}
    if not loaded:
        raise KernelsUnavailableError(Reason("torch が OpenMP なしで動いています", "torch runs without OpenMP"))
    for path in sorted(loaded):
        ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)


@lru_cache(maxsize=len(_TYPES))
def library(dtype: torch.dtype) -> ctypes.CDLL:
    """The compiled kernels on numbers of a type.

    Raises:
        KernelsUnavailableError: with the reason: another system than Linux, no compiler, a failed build.
    """
    if sys.platform != "linux":
        raise KernelsUnavailableError(_not_built(sys.platform))
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise KernelsUnavailableError(
            Reason("C++ コンパイラー（g++ か clang++）がありません", "no C++ compiler (g++ or clang++)")
        )
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    name, options = _TYPES[dtype]
    text = "\n".join([_SOURCE.read_text(encoding="utf-8"), *FLAGS, *options, version, processor()])
    target = private_cache("kernels") / f"cpu-{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.so"
    try:
        if not is_private(target):  # not there, or somebody else may have written it
            if not os.access(target.parent, os.W_OK):
                target = temporary_cache() / target.name
            _compile(compiler, options, target)
        _share_openmp()
        return ctypes.CDLL(str(target))
    except (OSError, subprocess.SubprocessError) as error:
        raise KernelsUnavailableError(_as_is(str(error)[:200])) from error


def why_unavailable(device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Reason | None:
    """None where compiled kernels for numbers of a type can run on this device, fast or not, else the reason in a few words."""
    if device.type != "cpu":
        return _not_built(device.type)
    try:
        library(dtype)
    except KernelsUnavailableError as error:
        return error.reason
    return None


def _not_built(name: str) -> Reason:
    return Reason(f"{name} には対応していません", f"not built for {name}")


def _as_is(text: str) -> Reason:
    """What a compiler or the system says, which has one language."""
    return Reason(text, text)
