"""Sizes of the benchmark's Llama models, their FLOPs, and what the machine could do at best."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

LORA_RANK, LORA_ALPHA = 16, 32


@dataclass(frozen=True)
class Shape:
    """A Llama without biases."""

    hidden: int
    layers: int
    ffn: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool = True

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.hidden // self.heads

    @property
    def linears(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of the linear layers of one block."""
        kv = self.kv_heads * self.head_dim
        body = [(self.hidden, self.hidden), (self.hidden, kv), (self.hidden, kv), (self.hidden, self.hidden)]
        return [*body, (self.hidden, self.ffn), (self.hidden, self.ffn), (self.ffn, self.hidden)]

    @property
    def linear_parameters(self) -> int:
        """Weights of all linear layers, without the head."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.linears)

    @property
    def lora_parameters(self) -> int:
        """Adapter weights with LORA_RANK on every linear layer."""
        return self.layers * sum(LORA_RANK * (inputs + outputs) for inputs, outputs in self.linears)

    def config(self) -> Any:
        """The LlamaConfig."""
        from transformers import LlamaConfig

        from benchmarks.corpus import BOS, EOS, PAD

        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.ffn,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            max_position_embeddings=2048,
            tie_word_embeddings=self.tied,
            pad_token_id=PAD,
            bos_token_id=BOS,
            eos_token_id=EOS,
        )


SHAPES = {
    "tiny": Shape(256, 6, 1024, 4, 2, 32000),
    # Layers outweigh the vocabulary, and there are many of them, as in models of billions: stages can be balanced,
    # which of eight layers and a head as heavy as one cannot (no split is better than 90 % of an even one);
    # benchmarks/scaling.py.
    "deep": Shape(192, 24, 768, 3, 1, 4000),
    "small": Shape(768, 12, 2048, 12, 4, 32000),
    "big": Shape(768, 12, 2048, 12, 4, 100000),
    # For a GPU; never measured yet.
    "1b": Shape(2048, 16, 8192, 32, 8, 128256),
    "8b": Shape(4096, 32, 14336, 32, 8, 128256, tied=False),
}


def flops_per_token(shape: Shape, method: str, *, label_share: float, mean_length: float) -> float:
    """FLOPs that a training step cannot do without, per real token (docs/design/training-step.md).

    Linear layers: 4 per weight where the weights are frozen (forward, gradient of the input), 6 where they train; the
    head likewise, on labelled tokens only; 6 per adapter weight; causal attention forward and 2.5 times that backward.

    Args:
        label_share: share of tokens that carry loss.
        mean_length: mean length of a token's document.
    """
    per_weight = 6 if method == "full" else 4
    adapters = 0 if method == "full" else 6 * shape.lora_parameters
    head = per_weight * shape.hidden * shape.vocabulary * label_share
    attention = 3.5 * 2 * mean_length * shape.hidden * shape.layers
    return per_weight * shape.linear_parameters + head + adapters + attention


def matmul_ceiling(
    shape: Shape, *, tokens: int, device: str, label_share: float, precision: str = "bf16", repeats: int = 7
) -> dict[str, float]:
    """GFLOP/s of matrix products at the shapes of a step by every library that is there, medians of `repeats`; all threads
    of this process.
    """
    import torch

    place, dtype = torch.device(device), torch.float32 if precision == "fp32" else torch.bfloat16
    rows = {"hidden-hidden": (tokens, shape.hidden, shape.hidden), "hidden-ffn": (tokens, shape.hidden, shape.ffn)}
    rows["ffn-hidden"] = (tokens, shape.ffn, shape.hidden)
    rows["head"] = (max(1, round(tokens * label_share)), shape.hidden, shape.vocabulary)
    obtained = {}
    for name, (count, inputs, outputs) in rows.items():
        left = torch.randn(count, inputs, device=place).to(dtype)
        right = torch.randn(outputs, inputs, device=place).to(dtype)
        # Into memory that is there already: fresh pages would be timed, not the product.
        out = torch.empty(count, outputs, device=place, dtype=dtype)
        for library, multiply in _libraries(device, precision).items():
            seconds = []
            for repeat in range(repeats + 1):
                _wait(device)
                began = time.perf_counter()
                multiply(left, right, out)
                _wait(device)
                if repeat:  # the first one sets the library up
                    seconds.append(time.perf_counter() - began)
            obtained[f"{name} {library}"] = 2 * count * inputs * outputs / statistics.median(seconds) / 1e9
    return obtained


def _libraries(device: str, precision: str) -> dict[str, Callable[[Any, Any, Any], Any]]:
    """Who can multiply x by the transpose of w into out, by the name of its library."""
    import torch

    from ai_finetuning.kernels.products import OPENBLAS, Products, why_not_openblas

    obtained: dict[str, Callable[[Any, Any, Any], Any]] = {"torch": lambda x, w, out: torch.mm(x, w.t(), out=out)}
    if device == "cpu" and precision == "fp32":
        if torch.backends.mkldnn.is_available():
            pointwise = torch.ops.mkldnn._linear_pointwise
            obtained["oneDNN"] = lambda x, w, out: pointwise(x, w, None, "none", [], "")
        if why_not_openblas() is None:
            products = Products(OPENBLAS)
            obtained["OpenBLAS"] = lambda x, w, out: products.add(out, x, w.t())
    return obtained


def _wait(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
