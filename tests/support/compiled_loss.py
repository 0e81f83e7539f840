"""The Triton loss kernel compiled for NVIDIA GPUs that are not here: one JSON line a GPU, with its shared memory and its own of the GPU's.

It shows that the kernel exists for a GPU and fits it, not that its numbers are right there.
"""

from __future__ import annotations

import json

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ai_finetuning.kernels.triton_loss import _row


def main() -> None:
    for capability in (75, 80, 86, 89, 90, 100, 120):
        for dtype in ("fp16", "fp32") if capability < 80 else ("bf16", "fp32"):
            for cap in (0.0, 30.0):
                source = ASTSource(
                    _row,
                    {
                        "logits": f"*{dtype}",
                        "targets": "*i64",
                        "losses": "*fp32",
                        "words": "i32",
                        "cap": "constexpr",
                        "with_gradient": "constexpr",
                        "block": "constexpr",
                    },
                    {"cap": cap, "with_gradient": True, "block": 2048},
                )
                made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 8})
                metadata = made.metadata
                sizes = {"shared": metadata.shared, "scratch": metadata.global_scratch_size}
                print(json.dumps({"capability": capability, "dtype": dtype, "cap": cap, **sizes}))


if __name__ == "__main__":
    main()
