"""Causal attention of one document on a CPU: SDPA of torch against plain matrix products, forward and backward, by
length.

python benchmarks/attention.py            # a minute on one core
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor  # noqa: E402

from ai_finetuning.kernels.attention import document_attention  # noqa: E402

HEADS, SHARED, WIDTH = 12, 4, 64
LENGTHS = (16, 32, 64, 116, 200, 350, 512, 1024)


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """What transformers would call."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=WIDTH**-0.5, enable_gqa=True).transpose(1, 2)


def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The portable path's."""
    return document_attention(None, q, k, v, None, seq_lens=(q.shape[2],), scaling=WIDTH**-0.5)[0]


def inputs(tokens: int, dtype: torch.dtype) -> list[Tensor]:
    """q, k and v as a projection leaves them, [1, heads, tokens, width], and a gradient [1, tokens, heads, width]."""
    generator = torch.Generator().manual_seed(0)
    sizes = [HEADS, SHARED, SHARED]
    obtained = [torch.randn(1, tokens, heads, WIDTH, generator=generator).to(dtype).transpose(1, 2) for heads in sizes]
    return [
        *(x.requires_grad_() for x in obtained),
        torch.randn(1, tokens, HEADS, WIDTH, generator=generator).to(dtype),
    ]


def once(attention: Callable[..., Tensor], given: list[Tensor]) -> tuple[float, float, list[Tensor]]:
    """Milliseconds forward and backward; the output and the gradients."""
    *leaves, toward = given
    began = time.perf_counter()
    out = attention(*leaves)
    between = time.perf_counter()
    gradients = torch.autograd.grad(out, leaves, toward)
    return 1e3 * (between - began), 1e3 * (time.perf_counter() - between), [out.detach(), *gradients]


def error(obtained: list[Tensor], right: list[Tensor]) -> float:
    """The largest relative distance of output and gradients."""
    return max(float((a.float() - b).norm() / b.norm()) for a, b in zip(obtained, right, strict=True))


def main() -> None:
    """Prints a Markdown table; both sides in turn, medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(
        "| dtype | tokens | SDPA forward + backward, ms | products, ms | faster | error of SDPA | error of products |"
    )
    print("|---|---|---|---|---|---|---|")
    for dtype in (torch.bfloat16, torch.float32):
        for tokens in LENGTHS:
            right = once(sdpa, inputs(tokens, torch.float32))[2]
            case = inputs(tokens, dtype)
            errors = [error(once(attention, case)[2], right) for attention in (sdpa, ours)]  # and warm-up
            rounds = [
                [sum(once(attention, case)[:2]) for attention in (sdpa, ours)] for _ in range(max(5, 3000 // tokens))
            ]
            slow, fast = (statistics.median(column) for column in zip(*rounds, strict=True))
            print(
                f"| {str(dtype)[6:]} | {tokens} | {slow:.2f} | {fast:.2f} | {slow / fast:.1f}x | {errors[0]:.1e} "
                f"| {errors[1]:.1e} |"
            )


if __name__ == "__main__":
    main()
