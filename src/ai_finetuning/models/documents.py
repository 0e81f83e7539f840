"""How a training step runs a model: documents of a row isolated by their lengths, no padding, no mask, no cache.

Three paths behind one call: fused blocks (models/fused.py), the model's own modules with document attention
("portable"), or none, where a model does not take lengths; then batches are padded and transformers' masks part the
documents.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from ..errors import Reason
from ..kernels.attention import BY_DEVICE, IMPLEMENTATIONS, NAME
from ..kernels.build import why_unavailable
from . import fused
from ._upstream import attention_name
from .modes import evaluating
from .parts import probe_documents

for _name, _attention in IMPLEMENTATIONS.items():
    AttentionInterface.register(_name, _attention)

# Most relative difference to the model's own answer, by what is computed in.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 4e-2, torch.float16: 1e-2}
# Tokens of the two documents that a path is tried on.
_PROBE = (7, 12)


@dataclass
class VarlenForward:
    """A model opened for training on documents.

    Attributes:
        name: `fused` or `portable`.
        model: the transformers model inside any adapter.
        head: the linear layer from hidden states to logits.
        cap: logits become cap * tanh(logit / cap); 0 for none.
        cast: a weight in the dtype of the products.
        compiled: whether the compiled loss kernel runs.
        compute: dtype of the products.
    """

    name: str
    model: Any
    head: nn.Linear
    cap: float
    cast: Callable[[Tensor], Tensor]
    compiled: bool
    compute: torch.dtype
    _attention: str = "eager"

    def hidden(self, input_ids: Tensor, position_ids: Tensor, lengths: tuple[int, ...]) -> Tensor:
        """Last hidden states [tokens, d] of input_ids, position_ids [1, tokens] that hold documents of these
        lengths.
        """
        decoder = self.model.get_decoder()
        output = decoder(
            input_ids=input_ids,
            position_ids=position_ids,
            attention_mask=None,
            use_cache=False,
            **self._arguments(lengths),
        )
        states: Tensor = output.last_hidden_state
        return states[0]

    def watch(self, optimizer: torch.optim.Optimizer) -> None:
        """Lets the optimizer report its updates to the path; otherwise fused steps would keep using the weights of
        the first.
        """
        if isinstance(self.cast, fused.MasterCasts):
            optimizer.register_step_post_hook(self.cast.updated)

    def _arguments(self, lengths: tuple[int, ...]) -> dict[str, Any]:
        if attention_name(self.model) in IMPLEMENTATIONS:
            return {"seq_lens": lengths}
        ends = torch.tensor([0, *lengths], device=self.model.device).cumsum(0).to(torch.int32)
        longest = max(lengths)
        return {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}

    def close(self) -> None:
        """The model as it was."""
        if self.name == "fused":
            fused.detach(self.model)
        self.model.set_attn_implementation(self._attention)


def select_forward_path(
    model: Any, device: torch.device, *, autocast: torch.dtype | None, kernels: str
) -> tuple[VarlenForward | None, Reason | None]:
    """The fastest path that computes what the model itself computes, and why it is not a faster one.

    The path is tried on the real model before it is used: two documents in a row against each of them alone.

    Args:
        model: a transformers causal LM (inside any adapter), with its adapter on.
        kernels: `auto`, or `portable` (no fused blocks), or `plain` (the padded way), or `fused`: like `auto`, also on
            a processor where the compiled kernels gain nothing. No setting asks for `fused`; tests and benchmarks do.
    """
    if kernels == "plain":
        return None, None
    head, reason = _head(model)
    if head is None:
        return None, reason
    weights = next(model.parameters()).dtype
    compute = autocast or (head.weight.dtype if head.weight.dtype.is_floating_point else torch.float32)
    cap = float(getattr(model.config, "final_logit_softcapping", None) or 0.0)
    before = attention_name(model) or "eager"
    forced = kernels == "fused"
    why_not_fused: Reason | None = Reason("指定どおり", "as requested")
    if kernels != "portable":
        why_not_fused = fused.why_not(model, device, autocast=autocast, if_slow=forced)
    worth = forced or fused.why_not_worth(device) is None
    answers = _answers(model, autocast)
    names = ("portable",) if why_not_fused else ("fused", "portable")
    for name, attention in itertools.product(names, _attentions(before, weights, device)):
        model.set_attn_implementation(attention)
        cast: Callable[[Tensor], Tensor] = fused.attach(model) if name == "fused" else _to(compute)
        compiled = compute is torch.bfloat16 and worth and why_unavailable(device) is None
        path = VarlenForward(name, model, head, cap, cast, compiled, compute, before)
        problem = _differs(path, answers, autocast)
        if problem is None:
            return path, why_not_fused
        path.close()
        why_not_fused = problem
    return None, why_not_fused


def _attentions(before: str, weights: torch.dtype, device: torch.device) -> tuple[str, ...]:
    """Implementations to try, best first. flash-attention computes in 16 bit only and gets the lengths as its own
    arguments.
    """
    if before == "flash_attention_2" and weights is not torch.float32:
        return (before,)
    return BY_DEVICE.get(device.type, (NAME,))


def _to(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda weight: weight.to(dtype)


def _head(model: Any) -> tuple[nn.Linear | None, Reason | None]:
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or head.bias is not None:
        return None, Reason("出力層が通常の線形層ではありません", "the head is not a plain linear layer")
    return head, None


def _computing(device: torch.device, autocast: torch.dtype | None) -> Any:
    return torch.autocast(device.type, dtype=autocast or torch.bfloat16, enabled=autocast is not None)


def _answers(model: Any, autocast: torch.dtype | None) -> list[Tensor]:
    """The model's own logits [tokens, vocabulary] of each probe, alone."""
    with evaluating(model), _computing(model.device, autocast):
        return [model(input_ids=ids, use_cache=False).logits[0].float() for ids in probe_documents(model, _PROBE)]


@torch.no_grad()
def _differs(path: VarlenForward, answers: list[Tensor], autocast: torch.dtype | None) -> Reason | None:
    """Why the path is not the model: it failed, or its logits of two documents in one row differ."""
    model, probes = path.model, probe_documents(path.model, _PROBE)
    lengths = tuple(ids.shape[1] for ids in probes)
    positions = torch.cat([torch.arange(length, device=model.device) for length in lengths])[None]
    try:
        with evaluating(model), _computing(model.device, autocast):
            hidden = path.hidden(torch.cat(probes, dim=1), positions, lengths)
            logits = (hidden.to(path.compute) @ path.cast(path.head.weight).t()).float()
    except (ValueError, TypeError, RuntimeError, KeyError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        text = f"{type(error).__name__}: {str(error)[:100]}"
        return Reason(text, text)
    logits = torch.tanh(logits / path.cap) * path.cap if path.cap else logits
    expected = torch.cat(answers)
    difference = float((logits - expected).norm() / expected.norm().clamp_min(1e-12))
    if difference <= _TOLERANCE[path.compute]:
        return None
    return Reason(f"出力がモデルと {difference:.1%} 違います", f"its answers differ by {difference:.1%}")
