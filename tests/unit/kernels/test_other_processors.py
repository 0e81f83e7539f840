"""kernels/cpu.cpp as a program of its own: on this processor, and on ARM's NEON in an emulator where one is installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from ai_finetuning.kernels import build

HERE = Path(__file__).parent
# The compiler, the flags that name the processor, and what runs its programs.
PROCESSORS = {
    "this one": ("g++", ["-march=native"], []),
    "AVX2": ("g++", ["-march=haswell"], []),
    "NEON": ("aarch64-linux-gnu-g++", ["-march=armv8-a"], ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu"]),
}
OPTIONS = {"bf16": [], "fp32": ["-DAIFT_FLOAT"]}
# Most that a program may find by what it computes in. A kernel is off in its own rounding only; sums of squares of these
# sizes are off by less. A step adds up the rounding of its products; its largest distance is that of three directions for each of
# 26 tensors.
LIMITS = {"check_cpu.cpp": {"bf16": 1e-2, "fp32": 1e-6}, "check_step.cpp": {"bf16": 8e-2, "fp32": 2e-5}}


# On this processor in every run of the tests, so that the programs follow the kernels; the others are slow.
EACH = [pytest.param(name, marks=() if name == "this one" else pytest.mark.slow) for name in PROCESSORS]


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("processor", EACH)
@pytest.mark.parametrize("check", LIMITS)
def test_kernels_and_a_step_compute_their_formulas(check: str, processor: str, kind: str, tmp_path: Path):
    """`check_step.cpp` is a whole step: a Llama block with adapters on packed documents, head and loss, forward and backward."""
    compiler, march, emulator = PROCESSORS[processor]
    for program in (compiler, *emulator[:1]):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (Debian: g++-aarch64-linux-gnu, qemu-user)")
    if processor == "AVX2" and "avx2" not in Path("/proc/cpuinfo").read_text(encoding="utf-8"):
        pytest.skip("this processor has no AVX2")
    flags = [flag for flag in build.FLAGS if flag not in ("-march=native", "-fPIC")]
    program, source = tmp_path / "check", Path(build.__file__).parent
    made = [compiler, *flags, *march, *OPTIONS[kind], f"-I{source}", "-static-libstdc++", str(HERE / check)]
    subprocess.run([*made, "-o", str(program)], check=True, timeout=600)
    done = subprocess.run([*emulator, str(program)], check=True, capture_output=True, text=True, timeout=600)
    distance, name = done.stdout.strip().split(" ", 1)
    assert float(distance) <= LIMITS[check][kind], f"{distance} {name}"
