"""What a LoRA adapter lies on: the layers of a model that can carry one, and the names that a user gave.

Everything here is known from the modules alone, so a model on the meta device answers as well as a loaded one.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from ..errors import ConfigError, Reason
from ..messages import notice
from ._upstream import peft_refuses, peft_turns_into_experts

ALL_LINEAR = "all-linear"
# What a layer is tried on: [rows, tokens, features].
_ROWS, _TOKENS = 2, 3
# What the linear layer that chooses experts, or the module around it, is called.
_ROUTERS, _ROUTER = {"router", "gate"}, Reason("エキスパートを選ぶルーター", "the router of the experts")


@dataclass(frozen=True)
class LoraTargets:
    """Where an adapter goes.

    Attributes:
        modules: names of layers or ends of names, as short as they can be.
        parameters: names of the experts' tensors.
        left: linear layers beside the head that carry none, without their numbers, and why.
        experts: tensors of experts that carry none, without their numbers.
        parameter_sizes: (experts, inputs + outputs) of every tensor in `parameters`.
    """

    modules: list[str]
    parameters: list[str]
    left: dict[str, Reason]
    experts: list[str]
    parameter_sizes: tuple[tuple[int, int], ...] = ()

    def parameter_weights(self, r: int) -> int:
        """Weights of an adapter of rank r on the experts' tensors."""
        return sum(count * r * features for count, features in self.parameter_sizes)

    def say(self) -> None:
        """One line where linear layers or experts carry no adapter, or experts carry one."""
        left = [
            Reason(f"{names}（{why.ja}）", f"{names} ({why.en})")
            for why in dict.fromkeys(self.left.values())
            for names in [", ".join(name for name, other in self.left.items() if other == why)]
        ]
        if self.experts:
            names = ", ".join(self.experts)
            left.append(
                Reason(
                    f"{names}（エキスパートの重み。学習するには lora.target_parameters に指定）",
                    f"{names} (weights of experts; lora.target_parameters trains them)",
                )
            )
        if not left and not self.parameters:
            return
        trains = [Reason(name, name) for name in sorted({_end(name) for name in self.modules})]
        trains += [Reason(f"{name}（ドロップアウト 0）", f"{name} (dropout 0)") for name in self.parameters]
        yes, no = Reason.joined(trains, ", "), Reason.joined(left)
        notice(
            f"LoRA を付ける重み: {yes.ja}。" + (f"付けない重み: {no.ja}。" if left else ""),
            f"LoRA goes on {yes.en}" + (f"; not on {no.en}." if left else "."),
        )


def resolve_targets(
    model: nn.Module,
    modules: Sequence[str] | str | None,
    parameters: Sequence[str] | None = None,
    *,
    use_dora: bool = False,
) -> LoraTargets:
    """The layers that an adapter goes on.

    Where nothing is named it is every linear layer but the head that PEFT can wrap; experts, which are tensors and not
    layers, only where `parameters` names them (docs/decisions/0076).

    Args:
        model: a transformers causal LM, on any device (meta too).
        modules: names, or their ends, of layers; None or `all-linear` for the choice above.
        parameters: names, or their ends, of tensors with one matrix an expert.
        use_dora: DoRA, which tensors cannot have.

    Raises:
        ConfigError: a name that the model does not have or that cannot carry an adapter; a model without such layers.
    """
    asked = _parameters(model, parameters, use_dora=use_dora)
    sizes = tuple(_size(weight) for name, weight in model.named_parameters() if _matches(name, asked))
    experts = sorted({_numberless(name) for name, _ in expert_weights(model) if not _matches(name, asked)})
    if modules is not None and modules != ALL_LINEAR:
        named = [modules] if isinstance(modules, str) else list(modules)
        _validate_modules(model, named)
        return LoraTargets(named, asked, {}, experts if not asked else [], sizes)
    linear = dict(_linear(model))
    refused = _refusals(model, linear)
    own_choice = not refused and not peft_turns_into_experts(model, ALL_LINEAR)
    if not own_choice:  # PEFT's choice is kept where it works, routers included
        refused |= {name: _ROUTER for name in linear if _ROUTERS & set(name.split(".")[-2:])}
    kept = [name for name in linear if name not in refused]
    if not kept:
        raise ConfigError(
            f"{type(model).__name__} には LoRA を付けられる線形層がありません。method: full を使ってください。",
            f"{type(model).__name__} has no linear layer that can carry LoRA; use method: full.",
        )
    left = {_numberless(name): why for name, why in refused.items()}
    return LoraTargets(_short(model, kept), asked, left, experts, sizes)


def resolve_modules_to_save(model: nn.Module, names: Sequence[str] | None) -> list[str]:
    """The modules of lora.modules_to_save, so that PEFT takes those and no other: it looks for the end of a name without
    regard to its parts, and would find `input_layernorm` for `norm`.

    Raises:
        ConfigError: a name that no module has, with those that are near to it.
    """
    everything = [name for name, _ in model.named_modules()]
    known = [name for name, module in model.named_modules() if name and any(True for _ in module.parameters())]
    obtained: list[str] = []
    for name in names or ():
        found = _found(name, known)
        if not found:
            _refuse_unknown("lora.modules_to_save", name, {_end(other) for other in known} - _NUMBERS)
        loosely = [other for other in everything if other.endswith(name)]
        obtained += [name] if set(loosely) <= set(found) else found
    return obtained


_NUMBERS = frozenset(str(number) for number in range(1000))


def _linear(model: Any) -> Iterable[tuple[str, nn.Module]]:
    """Linear layers but the head, as PEFT's `all-linear` finds them."""
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and module is not head:
            yield name, module


def expert_weights(model: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
    """Tensors with one matrix an expert: the three-dimensional ones that are no convolution's."""
    for prefix, module in model.named_modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            continue
        kind = type(module).__name__
        for name, weight in module.named_parameters(prefix, recurse=False):
            if weight.dim() == 3 and "expert" in f"{kind}.{name}".lower():
                yield name, weight


def _refusals(model: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, Reason]:
    """Which of some layers cannot carry an adapter, and why."""
    by_end = {end: _refused_by_name(model, end) for end in {_end(name) for name in layers}}
    obtained = {}
    for name, module in layers.items():
        why = by_end[_end(name)]
        if why is None and not _is_plain(module):
            why = Reason("通常の線形層と違う計算", "computes more than a linear layer")
        if why is not None:
            obtained[name] = why
    return obtained


def _refused_by_name(model: nn.Module, end: str) -> Reason | None:
    if peft_refuses(model, end):
        return Reason("高速な計算が重みを直接読むため", "fast kernels read its weight directly")
    if peft_turns_into_experts(model, end):
        return Reason("PEFT ではエキスパートの重みの名前", "PEFT takes this name for weights of the experts")
    return None


def _is_plain(module: nn.Module) -> bool:
    """Whether a layer gives [..., outputs] for [..., inputs], as what PEFT puts in its place does.

    A model's own subclass of Linear may return something else (routers of experts: a tuple); it is run without weights.
    """
    if not type(module).__module__.startswith("transformers") or isinstance(module, Conv1D):
        return True
    weights = {name: torch.empty_like(weight, device="meta") for name, weight in module.named_parameters()}
    try:
        given = torch.empty(_ROWS, _TOKENS, int(module.in_features), device="meta")  # type: ignore[arg-type]
        obtained = torch.func.functional_call(module, weights, (given.to(next(iter(weights.values())).dtype),))
    except Exception:  # any failure says that it wants other arguments
        return False
    return isinstance(obtained, torch.Tensor) and obtained.shape == (_ROWS, _TOKENS, module.out_features)


def _validate_modules(model: nn.Module, names: Sequence[str]) -> None:
    wrappable = {name: module for name, module in model.named_modules() if _can_be_named(module)}
    for name in names:
        found = _found(name, wrappable)
        if not found:
            _refuse_unknown("lora.target_modules", name, {_end(other) for other in wrappable})
        for other, why in _refusals(model, {other: wrappable[other] for other in found}).items():
            raise ConfigError(
                f"lora.target_modules の {name} には LoRA を付けられません（{other}: {why.ja}）。この名前を外してください。"
                "エキスパートの重みは lora.target_parameters に書けます。",
                f"lora.target_modules names {name}, which cannot carry LoRA ({other}: {why.en}); leave it out. "
                "Weights of experts can be named in lora.target_parameters.",
            )


def _can_be_named(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D | nn.Embedding | nn.Conv1d | nn.Conv2d) or (
        getattr(module, "weight", None) is not None and hasattr(module, "in_features")
    )


def _parameters(model: nn.Module, names: Sequence[str] | None, *, use_dora: bool) -> list[str]:
    known = {name: weight for name, weight in model.named_parameters() if weight.dim() in (2, 3)}
    for name in names or ():
        if not _found(name, known):
            near = {".".join(other.split(".")[-2:]) for other, _ in expert_weights(model)}
            _refuse_unknown("lora.target_parameters", name, near)
    if names and (use_dora or any(isinstance(module, Conv1D) for module in model.modules())):
        raise ConfigError(
            f"lora.target_parameters（{', '.join(names)}）は、use_dora: true や GPT-2 型のモデルでは使えません。",
            f"lora.target_parameters ({', '.join(names)}) goes neither with use_dora: true nor with models of GPT-2's "
            "kind.",
        )
    return list(names or ())


def _refuse_unknown(setting: str, name: str, known: set[str]) -> None:
    near = difflib.get_close_matches(_end(name), sorted({_end(other) for other in known}), n=3, cutoff=0.6)
    listed = near or sorted(known)[:20]
    what_ja, what_en = ("近い名前", "near names") if near else ("使える名前", "names it has")
    raise ConfigError(
        f"{setting} の {name} はこのモデルにありません。{what_ja}: {', '.join(listed) or 'なし'}",
        f"{setting} names {name}, which this model does not have; {what_en}: {', '.join(listed) or 'none'}.",
    )


def _found(name: str, known: Iterable[str]) -> list[str]:
    """The names that are this one or end in it, as PEFT matches them."""
    return [other for other in known if other == name or other.endswith(f".{name}")]


def _matches(name: str, ends: Sequence[str]) -> bool:
    return any(name == end or name.endswith(f".{end}") for end in ends)


def _size(weight: torch.Tensor) -> tuple[int, int]:
    return (weight.shape[0], sum(weight.shape[1:])) if weight.dim() == 3 else (1, sum(weight.shape))


def _end(name: str) -> str:
    return name.rpartition(".")[2]


def _numberless(name: str) -> str:
    """The last two parts of a name: `mlp.gate`, `experts.down_proj`."""
    return ".".join(re.sub(r"\.\d+(?=\.)", "", f".{name}").split(".")[-2:])


def _short(model: nn.Module, names: Sequence[str]) -> list[str]:
    """The shortest ends of names that match these modules of a model and no other.

    An adapter that says `q_proj`, not the name of every layer's, cannot go unnoticed onto a deeper model.
    """
    wanted, known = set(names), [name for name, _ in model.named_modules()]
    for parts in (1, 2, 3):
        ends = sorted({".".join(name.split(".")[-parts:]) for name in names})
        if {name for name in known if _matches(name, ends)} == wanted:
            return ends
    return list(names)
