"""How a training step runs a model: documents of a row isolated by their lengths, no padding, no mask, no cache.

Three paths behind one call: fused blocks (models/fused.py), the model's own modules with document attention
("portable"), or none, where a model does not take lengths; then batches are padded and transformers' masks part the
documents.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from ..errors import ModelError, Reason, ToolkitError
from ..kernels.attention import (
    IMPLEMENTATIONS,
    LABELS,
    NAME,
    Length,
    Unsuited,
    document_attention,
    implementations_for,
)
from ..kernels.build import why_unavailable
from ..kernels.loss import why_not_one_kernel
from ..kernels.products import TORCH
from ..system.transfer import send
from . import fused, liger
from ._upstream import attention_name, attention_setting
from .modes import evaluating
from .parts import decoder_layers, positions_of, probe_documents, windows_of
from .quantized import linear_modules


class _Watched:
    """Attention by documents that remembers how often it was called, and with which windows.

    Attributes:
        given: while it is tried, one call of each kind: queries, keys, values, mask and options; else None.
    """

    def __init__(self, attention: Callable[..., tuple[Tensor, None]]) -> None:
        self._attention = attention
        self.calls, self.windows = 0, set[int]()
        self.given: dict[Any, tuple[tuple[Any, ...], dict[str, Any]]] | None = None

    def __call__(self, *arguments: Any, **options: Any) -> tuple[Tensor, None]:
        self.calls += 1
        if options.get("sliding_window"):
            self.windows.add(int(options["sliding_window"]))
        if self.given is not None:
            shapes = tuple((item.shape, item.dtype) for item in arguments[1:4])
            numbers = tuple(options.get(name) for name in ("scaling", "sliding_window", "softcap"))
            self.given.setdefault((shapes, numbers), (arguments[1:], options))
        return self._attention(*arguments, **options)

    @contextlib.contextmanager
    def tried(self) -> Iterator[None]:
        """Counts from zero, and notes what it is given inside the block."""
        self.calls, self.windows, self.given = 0, set(), {}
        try:
            yield
        finally:
            self.given = None

    def worst_gradient(self) -> float:
        """Largest relative difference of what it computes on the calls of tried(), forward and backward, to the loop over
        documents, on random numbers of the same shapes and types.

        A kernel is compiled for the backward pass apart, and may fail or err there only.
        """
        ways: tuple[Callable[..., tuple[Tensor, None]], ...] = (document_attention, self._attention)
        worst, generator = 0.0, torch.Generator().manual_seed(0)  # the run's own random numbers stay untouched
        for (*inputs, mask), options in list((self.given or {}).values()):
            leaves = [torch.randn(x.shape, generator=generator).to(x.device, x.dtype).requires_grad_() for x in inputs]
            results: list[list[Tensor]] = []
            for attention in ways:
                mixed, _ = attention(None, *leaves, mask, **options)
                seed = torch.linspace(-1, 1, mixed.numel(), device=mixed.device).view_as(mixed).to(mixed.dtype)
                results.append([mixed.detach(), *torch.autograd.grad(mixed, leaves, seed)])
            for expected, obtained in zip(*results, strict=True):
                apart = (obtained.float() - expected.float()).norm() / expected.float().norm().clamp_min(1e-12)
                worst = max(worst, float(apart.nan_to_num(float("inf"))))
        return worst


_WATCHED = {name: _Watched(attention) for name, attention in IMPLEMENTATIONS.items()}
for _name, _attention in _WATCHED.items():
    AttentionInterface.register(_name, _attention)

# Most relative difference to the model's own answer, by what is computed in.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 4e-2, torch.float16: 1e-2}
# Tokens of the two documents that a path is tried on, and of one with a fork, and how many logits at the end of each
# document are compared.
_PROBE, _FORK, _COMPARED = (7, 12), (7, 5, 9), 16
# Most that padding may change answers in 16 bit, where rounding can send a token to another expert of a mixture.
_ROUTED = 0.25


@dataclass
class VarlenForward:
    """A model opened for training on documents.

    Attributes:
        name: `fused` or `portable`.
        model: the transformers model inside any adapter.
        head: the linear layer from hidden states to logits.
        cap: logits become cap * tanh(logit / cap); 0 for none.
        scale: factor of the logits before that (Cohere, Granite); hidden states carry it.
        cast: a weight in the dtype of the products.
        compiled: whether the compiled loss kernel runs.
        compute: dtype of the products.
        chosen: its attention and the kernels of its layers, for messages, where there was a choice; else None.
    """

    name: str
    model: Any
    head: nn.Linear
    cap: float
    cast: Callable[[Tensor], Tensor]
    compiled: bool
    compute: torch.dtype
    _attention: str | dict[str, str] = "eager"
    chosen: Reason | None = None
    scale: float = 1.0
    _layers: liger.Replacements = field(default_factory=liger.Replacements)

    def hidden(self, input_ids: Tensor, position_ids: Tensor, lengths: tuple[Length, ...]) -> Tensor:
        """Last hidden states [tokens, d] of input_ids, position_ids [1, tokens] that hold documents of these
        lengths.
        """
        decoder = self.model.get_decoder()
        tokens = input_ids.shape[1]
        if padding := fused.padding_of(self.cast, tokens):
            input_ids, position_ids = (nn.functional.pad(part, (0, padding)) for part in (input_ids, position_ids))
        output = decoder(
            input_ids=input_ids,
            position_ids=position_ids,
            attention_mask=None,
            use_cache=False,
            **self._arguments(lengths),
        )
        states: Tensor = output.last_hidden_state
        # [0], and a slice of all rows, would be filled into zeros in the backward pass.
        rows = states.squeeze(0)[:tokens] if padding else states.squeeze(0)
        return rows if self.scale == 1 else rows * self.scale

    def watch(self, optimizer: torch.optim.Optimizer) -> None:
        """Lets the optimizer report its updates to the path; otherwise fused steps would keep using the weights of
        the first.
        """
        if isinstance(self.cast, fused.MasterCasts):
            optimizer.register_step_post_hook(self.cast.updated)

    def _arguments(self, lengths: tuple[Length, ...]) -> dict[str, Any]:
        if attention_name(self.model) in IMPLEMENTATIONS:
            return {"seq_lens": lengths}
        whole = [length for length in lengths if isinstance(length, int)]
        if len(whole) < len(lengths):
            raise Unsuited("分かれ目のある文書に対応していません", "it takes no documents with a fork")
        ends = send(torch.tensor([0, *whole]).cumsum(0).to(torch.int32), self.model.device)
        longest = max(whole)
        return {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """The model's own attention inside the block, with which it generates; afterwards the path's again."""
        taken = attention_setting(self.model)
        self.model.set_attn_implementation(self._attention)
        try:
            yield
        finally:
            self.model.set_attn_implementation(taken)

    def close(self) -> None:
        """The model as it was."""
        if self.name == "fused":
            fused.detach(self.model)
        self._layers.take_off()
        self.model.set_attn_implementation(self._attention)


def select_forward_path(
    model: Any,
    device: torch.device,
    *,
    autocast: torch.dtype | None,
    kernels: str,
    longest: int | None = None,
    layer_kernels: bool = False,
    products: str = TORCH,
) -> tuple[VarlenForward | None, Reason | None]:
    """The fastest path that computes what the model itself computes, and why it is not a faster one.

    The path is tried on the real model before it is used: documents in a row against each of them alone. Where the model
    sees its past through a window, and documents are longer, one of them is: a window may lie in a mask that the path
    does not make.

    Args:
        model: a transformers causal LM (inside any adapter), with its adapter on.
        kernels: `auto`, or `portable` (no fused blocks), or `plain` (the padded way), or `fused`: like `auto`, also on
            a processor where the compiled kernels gain nothing. No setting asks for `fused`; tests and benchmarks do.
        longest: tokens of the longest document; None where it is not known.
        layer_kernels: whether Liger may compute parts of layers on a GPU. Not where a backward pass comes twice over one
            graph (pipelines), as its kernels write over what they have saved, nor where layers are cut.
        products: whose matrix products the fused blocks take in fp32 (kernels/products.py).

    Raises:
        ModelError: the model's own forward pass fails, or a token's answer depends on later tokens.
    """
    validate_causal(model, autocast)
    if kernels == "plain":
        return None, None
    head, reason = _head(model)
    if head is None:
        return None, reason
    setting, forced = attention_setting(model), kernels == "fused"
    why_not_fused = _why_not_fused(model, device, autocast, kernels)
    why = [] if why_not_fused is None else [why_not_fused]
    attentions = _attentions(attention_name(model) or "eager", next(model.parameters()).dtype, device)
    compute = _computed_in(head, autocast)
    why_plain_loss = _why_plain_loss(device, compute, _cap(model), forced=forced)
    beside_fused = _compiles_beside_fused_only(device, compute)
    if device.type == "cuda" and why_plain_loss is not None:
        why.append(
            Reason.joined([Reason("損失は torch のまま", "the loss stays in plain torch"), why_plain_loss], ": ")
        )
    none = liger.Replacements()
    usable = layer_kernels and device.type in liger.DEVICES
    layers = liger.find_replacements(model, device, compute) if usable else none
    why += [layers.why] if layers.why else []
    probes = probe_documents(model, _sizes(model.config, longest))
    answers = _answers(model, probes, autocast)
    names = ("portable",) if why_not_fused else ("fused", "portable")
    for taken, name, attention in itertools.product((layers, none) if layers.chosen else (none,), names, attentions):
        model.set_attn_implementation(attention)
        taken.put_on()
        chosen = _chosen(attention if len(attentions) > 1 else None, taken)
        compiled = why_plain_loss is None and (name == "fused" or not beside_fused)
        path = _opened(name, model, head, autocast, setting, compiled=compiled, products=products)
        path = replace(path, chosen=chosen, _layers=taken)
        problem = _differs(path, probes, answers, autocast)
        if problem is None:
            return path, Reason.joined(why) if why else None
        path.close()
        why = [problem] if chosen is None else [*why, Reason.joined([chosen, problem], ": ")]
    return None, Reason.joined(why)


def _why_not_fused(model: Any, device: torch.device, autocast: torch.dtype | None, kernels: str) -> Reason | None:
    if kernels == "portable":
        return Reason("指定どおり", "as requested")
    return fused.why_not(model, device, compute=fused.computed_in(model, autocast), if_slow=kernels == "fused")


def _computed_in(head: nn.Linear, autocast: torch.dtype | None) -> torch.dtype:
    return autocast or (head.weight.dtype if head.weight.dtype.is_floating_point else torch.float32)


def _cap(model: Any) -> float:
    return float(getattr(model.config, "final_logit_softcapping", None) or 0.0)


def _opened(
    name: str,
    model: Any,
    head: nn.Linear,
    autocast: torch.dtype | None,
    setting: str | dict[str, str],
    *,
    compiled: bool,
    products: str = TORCH,
) -> VarlenForward:
    """A path on a model whose attention is in its place; `setting` brings its own back."""
    compute = _computed_in(head, autocast)
    cast: Callable[[Tensor], Tensor] = fused.attach(model, compute, products) if name == "fused" else _to(compute)
    return VarlenForward(name, model, head, _cap(model), cast, compiled, compute, setting, scale=_logit_scale(model))


def _chosen(attention: str | None, layers: liger.Replacements) -> Reason | None:
    """What messages say of a way: its attention, where there is a choice, and the kernels of its layers."""
    label = LABELS[attention] if attention is not None else None
    parts = [Reason(f"アテンションは {label.ja}", f"attention by {label.en}")] if label is not None else []
    parts += [layers.chosen] if layers.chosen is not None else []
    return Reason.joined(parts, ", ") if parts else None


def _logit_scale(model: Any) -> float:
    """What a model multiplies its logits by: Cohere's logit_scale, or one over Granite's logits_scaling."""
    config = model.config.get_text_config()
    return float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)


def _why_plain_loss(device: torch.device, compute: torch.dtype, cap: float, *, forced: bool) -> Reason | None:
    """None where a compiled kernel computes the loss."""
    if device.type == "cuda":
        return why_not_one_kernel(compute, device, cap)
    if compute not in (torch.bfloat16, torch.float32):
        return Reason("bf16 と fp32 の計算のみ", "it computes in bf16 and fp32")
    return (None if forced else fused.why_not_worth(device, compute)) or why_unavailable(device, compute)


def _compiles_beside_fused_only(device: torch.device, compute: torch.dtype) -> bool:
    """Whether the compiled loss stays with the fused blocks: portable fp32 runs on CPUs keep their bits."""
    return device.type == "cpu" and compute is torch.float32


def assumed_forward_path(
    model: Any, device: torch.device, *, autocast: torch.dtype | None, kernels: str
) -> VarlenForward | None:
    """The path that select_forward_path() tries first, without a trial: for a plan, on weights that hold no data.

    Args:
        device: that the plan is for.
    """
    head, _ = _head(model)
    decoder = model.get_decoder()
    recurrent = any(isinstance(module, nn.Conv1d) for module in decoder.modules())
    if kernels == "plain" or head is None or recurrent or not _knows_position_ids(model):
        return None
    setting, forced = attention_setting(model), kernels == "fused"
    name = "portable" if _why_not_fused(model, device, autocast, kernels) else "fused"
    model.set_attn_implementation(implementations_for(device)[0])
    compute = _computed_in(head, autocast)
    if device.type == "cuda":  # without Triton, as on Windows, a run here will take plain torch
        compiled = importlib.util.find_spec("triton") is not None or not torch.cuda.is_available()
    else:
        plain = name != "fused" and _compiles_beside_fused_only(device, compute)
        compiled = not (plain or _why_plain_loss(device, compute, _cap(model), forced=forced))
    return _opened(name, model, head, autocast, setting, compiled=compiled)


def _knows_position_ids(model: Any) -> bool:
    return "position_ids" in inspect.signature(model.get_decoder().forward).parameters


def _attentions(before: str, weights: torch.dtype, device: torch.device) -> tuple[str, ...]:
    """Implementations to try, best first. flash-attention computes in 16 bit only and gets the lengths as its own
    arguments.
    """
    if before == "flash_attention_2" and weights is not torch.float32:
        return (before,)
    return implementations_for(device)


def _to(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda weight: weight.to(dtype)


def _head(model: Any) -> tuple[nn.Linear | None, Reason | None]:
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or head.bias is not None:
        return None, Reason("出力層が通常の線形層ではありません", "the head is not a plain linear layer")
    return head, None


def _computing(device: torch.device, autocast: torch.dtype | None) -> Any:
    return torch.autocast(device.type, dtype=autocast or torch.bfloat16, enabled=autocast is not None)


def validate_causal(model: Any, autocast: torch.dtype | None = None) -> None:
    """Refuses a model that cannot be trained to continue texts.

    Raises:
        ModelError: its own forward pass fails, or what it answers at a token changes with the tokens behind it (a
            bidirectional encoder under a causal model's name).
    """
    short, long = _PROBE
    (ids,) = probe_documents(model, (long,))
    other = ids.clone()
    other[:, short:] = ids[:, short:].flip(1).roll(1, 1)
    (logits,) = _own(model, [torch.cat([ids, other])], autocast)
    first, second = logits[:, :short].float().unbind()
    difference = float((first - second).norm() / first.norm().clamp_min(1e-12))
    if not difference <= (1e-4 if (autocast or logits.dtype) is torch.float32 else 2e-3):
        name = type(model).__name__
        raise ModelError(
            f"{name} は、後のトークンによって前の予測が変わる（{difference:.2%}）ため、文章生成モデルとして学習できません。デコーダーとして使うモデルなら "
            "config.json の is_decoder を true にしてください。",
            f"{name} changes what it predicts at a token with the tokens behind it ({difference:.2%}), so it cannot be "
            "trained to generate text; a model that is meant as a decoder needs is_decoder: true in its config.json.",
        )


def takes_positions(model: Any, autocast: torch.dtype | None = None) -> bool:
    """Whether padded rows are given positions that count from 0, as packing needs them; False: the model has to number
    its tokens itself (RoBERTa begins behind the id of its padding).

    Raises:
        ModelError: neither gives the answers that the model has for each document alone.
    """
    probes = probe_documents(model, _PROBE)
    expected, computed = torch.cat(_answers(model, probes, autocast)), autocast or next(model.parameters()).dtype
    width = max(_PROBE)
    rows = torch.zeros((len(probes), width), dtype=torch.int64, device=model.device)
    mask = torch.zeros_like(rows)
    for row, ids in enumerate(probes):
        rows[row, : ids.shape[1]], mask[row, : ids.shape[1]] = ids[0], 1
    inputs = {"input_ids": rows, "attention_mask": mask, "use_cache": False}
    counted = {"position_ids": torch.arange(width, device=model.device).expand_as(rows)}
    apart, why = {True: float("inf"), False: float("inf")}, ""
    for given in (True, False):
        try:
            with evaluating(model), _computing(model.device, autocast):
                logits = model(**inputs, **(counted if given else {})).logits.float()
        except Exception as error:  # not its arguments, however it says so
            if isinstance(error, torch.OutOfMemoryError):
                raise
            why = f"{type(error).__name__}: {str(error)[:200]}"
            continue
        obtained = torch.cat([logits[row, : ids.shape[1]] for row, ids in enumerate(probes)])
        apart[given] = float((obtained - expected).norm() / expected.norm().clamp_min(1e-12))
        if apart[given] <= _allowed(model, computed):
            return given
    closest = min(apart, key=lambda given: apart[given])
    if computed is not torch.float32 and apart[closest] <= _ROUTED:
        return closest
    why = f"{apart[closest]:.1%}" if apart[closest] < float("inf") else why
    raise ModelError(
        f"{type(model).__name__} は、長さをそろえるパディングで予測が変わります（{why}）。正しく学習できません。",
        f"{type(model).__name__} answers differently in padded rows ({why}), so it cannot be trained rightly.",
    )


def _allowed(model: nn.Module, compute: torch.dtype) -> float:
    """How far the same documents may lie apart, computed in two ways. LLM.int8() (arXiv:2208.07339) rounds activations to 8
    bit, and which of their columns it does not round depends on all rows of a batch: that is as coarse as bf16.
    """
    coarse = _TOLERANCE[torch.bfloat16]
    return coarse if linear_modules(model, 8) else _TOLERANCE.get(compute, coarse)


def _sizes(config: Any, longest: int | None) -> tuple[int, ...]:
    """Tokens of the documents to try: a third one beyond every window that a document of the run outgrows."""
    limits = [limit for limit in (longest, positions_of(config)) if limit is not None]
    room = min(limits, default=None)
    outgrown = [window for window in windows_of(config) if room is None or window < room]
    if not outgrown:
        return _PROBE
    beyond = 2 * max(outgrown)
    return (*_PROBE, beyond if room is None else min(beyond, room))


def _own(
    model: Any, batches: Sequence[Tensor], autocast: torch.dtype | None, *, kept: int | None = None
) -> list[Tensor]:
    """The model's own logits of each [rows, tokens] batch; of the last `kept` tokens.

    Raises:
        ModelError: the model fails on them.
    """
    fewer = kept is not None and "logits_to_keep" in inspect.signature(model.forward).parameters
    options = {"logits_to_keep": kept} if fewer else {}
    try:
        with evaluating(model), _computing(model.device, autocast):
            whole = [model(input_ids=ids, use_cache=False, **options).logits for ids in batches]
    except Exception as error:  # whatever a model's own code raises; it is no failure of this program
        if isinstance(error, torch.OutOfMemoryError | ToolkitError):
            raise
        text = f"{type(error).__name__}: {str(error)[:200]}"
        raise ModelError(
            f"{type(model).__name__} 自体が、短い文の計算に失敗します（{text}）。config.json と重みが合っているか、transformers "
            "だけで動くかを確かめてください。",
            f"{type(model).__name__} itself fails on a short text ({text}); check that config.json and weights belong "
            "together, and that it runs in plain transformers.",
        ) from error
    return [logits if kept is None else logits[:, -kept:] for logits in whole]


def _answers(model: Any, probes: Sequence[Tensor], autocast: torch.dtype | None) -> list[Tensor]:
    """The model's own logits [tokens, vocabulary] at the end of each probe, alone."""
    return [logits[0].float() for logits in _own(model, probes, autocast, kept=_COMPARED)]


def _not_by_documents(model: Any, watched: _Watched, longest: int) -> Reason | None:
    """What a path leaves out that answers alone may be too near to show, in 16 bit most of all: layers that mix tokens
    otherwise (a recurrent state, an attention of their own), and a window that no attention was told.
    """
    layers, text = decoder_layers(model), model.config.get_text_config()
    count = len(layers) if layers is not None else int(text.num_hidden_layers)
    inside = layers if layers is not None else model.get_decoder()
    recurrent = any(isinstance(module, nn.Conv1d) for module in inside.modules())
    if watched.calls < count or recurrent:
        return Reason("文書ごとのアテンションを使わない層があります", "some layers do not use attention by documents")
    kinds = getattr(text, "layer_types", None)
    all_full = kinds is not None and not any("sliding" in kind or "chunked" in kind for kind in kinds)
    windows = [getattr(text, name, None) for name in ("sliding_window", "attention_chunk_size")]
    hidden = [window for window in windows if isinstance(window, int) and 0 < window < longest]
    if hidden and not watched.windows and not all_full:
        return Reason("ウィンドウがマスクの中だけにあります", "its window is in the mask only")
    return None


@torch.no_grad()
def why_no_forks(path: VarlenForward, *, autocast: torch.dtype | None, longest: int | None = None) -> Reason | None:
    """None where a path computes a document with a fork as it does each of its conversations by itself, which it is known to
    do rightly; else the reason. Then the two answers of a pair are two documents.

    Args:
        longest: tokens of the longest document; None where it is not known.
    """
    model, forks = path.model, [_FORK]
    beyond = max(_sizes(model.config, longest))
    if beyond > max(_PROBE):  # behind a window, with a prefix that only a part of each branch sees
        forks.append((beyond // 2, 5, beyond - beyond // 2))
    watched = _WATCHED.get(attention_name(model) or "") if path.name == "portable" else None
    apart, differences = 0.0, []
    try:
        with (
            evaluating(model),
            _computing(model.device, autocast),
            watched.tried() if watched is not None else contextlib.nullcontext(),
        ):
            for prefix, chosen, rejected in forks:
                (ids,) = probe_documents(model, (prefix + chosen + rejected,))
                other = torch.cat([ids[:, :prefix], ids[:, prefix + chosen :]], dim=1)
                first, second = prefix + chosen, prefix + rejected
                count = torch.arange(max(first, second), device=model.device)
                alone = path.hidden(
                    torch.cat([ids[:, :first], other], dim=1),
                    torch.cat([count[:first], count[:second]])[None],
                    (first, second),
                )
                expected = torch.cat([alone[:first], alone[first + prefix :]])
                places = torch.cat([count[:first], count[prefix:second]])[None]
                obtained = path.hidden(ids, places, ((prefix, chosen, rejected),))
                differences.append(float((obtained - expected).norm() / expected.norm().clamp_min(1e-12)))
            if watched is not None and attention_name(model) != NAME:  # a kernel of its own
                with torch.enable_grad():
                    apart = watched.worst_gradient()
    except Unsuited as error:
        return error.reason
    # FlexAttention's compiler, or a model's own code, however it says so; tests hold that our own ways take forks.
    except Exception as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        text = f"{type(error).__name__}: {str(error)[:100]}"
        return Reason(text, text)
    worst = max(apart, *differences)
    if worst <= _allowed(model, path.compute):
        return None
    return Reason(f"分かれ目のある文書の結果が {worst:.1%} 違います", f"documents with a fork differ by {worst:.1%}")


@torch.no_grad()
def _differs(
    path: VarlenForward, probes: Sequence[Tensor], answers: Sequence[Tensor], autocast: torch.dtype | None
) -> Reason | None:
    """Why the path is not the model: it failed, or its logits of documents in one row differ."""
    model = path.model
    lengths = tuple(ids.shape[1] for ids in probes)
    positions = torch.cat([torch.arange(length, device=model.device) for length in lengths])[None]
    attention = attention_name(model) or ""
    if not _knows_position_ids(model):
        return Reason("位置（position_ids）を受け取らないモデルです", "it takes no positions")
    replaced = path.name != "portable" or attention in (*_WATCHED, "flash_attention_2")
    if not replaced and path.compute is not torch.float32:  # right or wrong, its answers would be too near to tell
        return Reason("アテンションを置き換えられないモデルです", "its attention cannot be replaced")
    watched = _WATCHED.get(attention) if path.name == "portable" else None
    apart = 0.0
    try:
        with (
            evaluating(model),
            _computing(model.device, autocast),
            watched.tried() if watched is not None else contextlib.nullcontext(),
        ):
            hidden = path.hidden(torch.cat(list(probes), dim=1), positions, lengths)
            ends = torch.cat([part[-_COMPARED:] for part in torch.split(hidden, list(lengths))])
            logits = (ends.to(path.compute) @ path.cast(path.head.weight).t()).float()
            if watched is not None and attention != NAME:  # a kernel of its own
                with torch.enable_grad():
                    apart = watched.worst_gradient()
    except Unsuited as error:
        return error.reason
    except Exception as error:  # a faster way that a model does not take, however it says so
        if isinstance(error, torch.OutOfMemoryError):
            raise
        text = f"{type(error).__name__}: {str(error)[:100]}"
        return Reason(text, text)
    missing = _not_by_documents(model, watched, max(lengths)) if watched is not None else None
    if missing is not None:
        return missing
    logits = torch.tanh(logits / path.cap) * path.cap if path.cap else logits
    expected = torch.cat(list(answers))
    difference = float((logits - expected).norm() / expected.norm().clamp_min(1e-12))
    if apart > _allowed(model, path.compute):
        return Reason(
            f"アテンションの勾配が {apart:.1%} 違います", f"the gradients of its attention differ by {apart:.1%}"
        )
    if difference <= _allowed(model, path.compute):
        return None
    return Reason(f"出力がモデルと {difference:.1%} 違います", f"its answers differ by {difference:.1%}")
