"""kernels/cpu.cpp as a program of its own: on this processor, and on ARM's NEON in an emulator where one is installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from ai_finetuning.kernels import build

CHECK = Path(__file__).with_name("check_cpu.cpp")
# The compiler, the flags that name the processor, and what runs its programs.
PROCESSORS = {
    "this one": ("g++", ["-march=native"], []),
    "AVX2": ("g++", ["-march=haswell"], []),
    "NEON": ("aarch64-linux-gnu-g++", ["-march=armv8-a"], ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu"]),
}
# Most that a kernel may be off in its own rounding; sums of squares of these sizes are off by less.
TYPES = {"bf16": ([], 1e-2), "fp32": (["-DAIFT_FLOAT"], 1e-6)}


@pytest.mark.slow
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("processor", PROCESSORS)
def test_kernels_compute_their_formulas(processor: str, kind: str, tmp_path: Path):
    (compiler, march, emulator), (options, limit) = PROCESSORS[processor], TYPES[kind]
    for program in (compiler, *emulator[:1]):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (Debian: g++-aarch64-linux-gnu, qemu-user)")
    if processor == "AVX2" and "avx2" not in Path("/proc/cpuinfo").read_text(encoding="utf-8"):
        pytest.skip("this processor has no AVX2")
    flags = [flag for flag in build.FLAGS if flag not in ("-march=native", "-fPIC")]
    program = tmp_path / "check"
    source = Path(build.__file__).parent
    made = [compiler, *flags, *march, *options, f"-I{source}", "-static-libstdc++", str(CHECK), "-o", str(program)]
    subprocess.run(made, check=True, timeout=600)
    done = subprocess.run([*emulator, str(program)], check=True, capture_output=True, text=True, timeout=600)
    distance, name = done.stdout.strip().split(" ", 1)
    assert float(distance) <= limit, name
