"""Kernels of others than torch that a training step calls, and how their bytes are known.

A simulated step counts what operations give. A kernel that it does not know may work in place, or take room of its own,
and the figure would be worse than a formula's; so every kernel stands here, and a test refuses others
(tests/unit/planner/test_declared.py).
"""

from __future__ import annotations

# Namespaces of operations that torch brings, with fake implementations of their own.
_TORCHS = frozenset(
    {"aten", "prims", "prim", "profiler", "c10d", "_c10d_functional", "fsdp", "higher_order", "torch_attn", "inductor"}
)
# Operations of other libraries; all of them give what they allocate, by fake implementations that they bring.
# Those of our own, whose fake implementations stand beside them.
_OURS = frozenset({"ai_finetuning::cross_entropy_rows"})
OPERATIONS = frozenset(
    {
        "bitsandbytes::dequantize_4bit",
        "bitsandbytes::dequantize_4bit.out",
        "bitsandbytes::dequantize_blockwise",
        "bitsandbytes::dequantize_blockwise.out",
        "bitsandbytes::gemm_4bit",
        "bitsandbytes::gemv_4bit",
        "bitsandbytes::int8_double_quant",
        "bitsandbytes::int8_linear_matmul",
        "bitsandbytes::int8_mixed_scaled_mm",
        "bitsandbytes::int8_mm_dequant",
        "bitsandbytes::int8_scaled_mm",
        "bitsandbytes::int8_vectorwise_dequant",
        "bitsandbytes::int8_vectorwise_quant",
        "bitsandbytes::optimizer_update_32bit",
        "bitsandbytes::optimizer_update_8bit_blockwise",
        "bitsandbytes::quantize_4bit",
        "bitsandbytes::quantize_blockwise",
    }
)
# Functions of kernels/cpu.cpp: kernels/native.py makes their outputs in Python, and they take no more than a thread's scratch
# themselves.
NATIVE = frozenset(
    {
        "norm_forward",
        "norm_backward",
        "rope",
        "softmax_forward",
        "softmax_backward",
        "gated_forward",
        "gated_backward",
        "cross_entropy",
        "dropout",
        "product",
        "product_in_pieces",
        "attention_forward",
        "attention_backward",
    }
)


def is_declared(namespace: str, name: str) -> bool:
    """Whether the bytes of an operation are known.

    Args:
        namespace: before the `::` of its name.
        name: in full, with its overload.
    """
    return namespace in _TORCHS or name in OPERATIONS | _OURS
