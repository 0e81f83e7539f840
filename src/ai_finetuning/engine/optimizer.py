"""Optimizers by name, and their state as flat tensors under parameter names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from ..errors import ConfigError

NamedParameters = list[tuple[str, nn.Parameter]]
_NO_DECAY = re.compile(r"(bias$|norm|ln_|layernorm)", re.IGNORECASE)


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]],
    *,
    learning_rate: float,
    weight_decay: float,
    lora_plus_ratio: float | None,
) -> list[dict[str, Any]]:
    """Groups by weight decay (matrices only) and learning rate (LoRA+, arXiv:2402.12354: lora_B learns faster)."""
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in named:
        decay = 0.0 if parameter.ndim < 2 or _NO_DECAY.search(name) else weight_decay
        ratio = lora_plus_ratio if lora_plus_ratio is not None and "lora_B" in name else 1.0
        key = (decay, ratio)
        group = groups.setdefault(
            key,
            {
                "params": [],
                "names": [],
                "weight_decay": decay,
                "lr": learning_rate * ratio,
                "peak": learning_rate * ratio,
            },
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


class Muon(torch.optim.Optimizer):
    """Muon (Jordan 2024; step size matched to AdamW's, arXiv:2502.16982) for hidden matrices, AdamW for everything
    else.

    One optimizer to the loop: both parts share parameter groups and state.

    Args:
        matrices: groups of 2-D weights of hidden layers.
        rest: groups of embeddings, head, norms and biases.
    """

    def __init__(
        self, matrices: list[dict[str, Any]], rest: list[dict[str, Any]], *, betas: tuple[float, float], eps: float
    ) -> None:
        super().__init__([*matrices, *rest], {})
        self._parts: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, momentum=0.95, adjust_lr_fn="match_rms_adamw")
        ]
        if rest:
            self._parts.append(torch.optim.AdamW(rest, betas=betas, eps=eps, fused=True))
        for part in self._parts:
            part.state = self.state

    @property
    def parts(self) -> list[torch.optim.Optimizer]:
        """Muon, and AdamW where it has something left to do; their state is this one's."""
        return self._parts

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Both parts' updates."""
        for part in self._parts:
            part.step()


def _is_matrix(parameter: nn.Parameter, embeddings: Iterable[nn.Parameter]) -> bool:
    return parameter.ndim == 2 and all(parameter is not embedding for embedding in embeddings)


def build_optimizer(
    named: NamedParameters,
    *,
    name: str = "adamw",
    learning_rate: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    lora_plus_ratio: float | None = None,
    embeddings: Sequence[nn.Parameter] = (),
) -> torch.optim.Optimizer:
    """An optimizer over the trainable parameters.

    Args:
        embeddings: weights that Muon leaves to AdamW although they are matrices.

    Raises:
        ConfigError: 8-bit states asked for where bitsandbytes is not installed.
    """
    trainable = [(key, parameter) for key, parameter in named if parameter.requires_grad]
    rates: dict[str, Any] = {
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "lora_plus_ratio": lora_plus_ratio,
    }
    if name == "muon":
        matrices = [item for item in trainable if _is_matrix(item[1], embeddings)]
        rest = [item for item in trainable if not _is_matrix(item[1], embeddings)]
        return Muon(parameter_groups(matrices, **rates), parameter_groups(rest, **rates), betas=betas, eps=eps)
    groups = parameter_groups(trainable, **rates)
    if name == "adamw_8bit":
        try:
            from bitsandbytes.optim.adamw import AdamW8bit
        except ImportError as error:
            raise ConfigError(
                "training.optimizer.name が adamw_8bit ですが、bitsandbytes がありません。adamw にするか bitsandbytes を入れてください。",
                "training.optimizer.name is adamw_8bit, but bitsandbytes is not installed; use adamw or install it.",
            ) from error
        return AdamW8bit(groups, lr=learning_rate, betas=betas, eps=eps)  # type: ignore[no-untyped-call]
    devices = {parameter.device.type for _, parameter in trainable}
    fused = devices <= {"cpu", "cuda"} and all(parameter.is_floating_point() for _, parameter in trainable)
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=eps, fused=fused)


# Tensors as large as the weight that the first step of an optimizer would make.
_MOMENTS: dict[type[torch.optim.Optimizer], tuple[str, ...]] = {
    torch.optim.AdamW: ("exp_avg", "exp_avg_sq"),
    torch.optim.Muon: ("momentum_buffer",),
}


def make_state(optimizer: torch.optim.Optimizer, made: Callable[[nn.Parameter], None] | None = None) -> None:
    """Makes the state that the first step would make, so that it is there, or known not to fit, before that step.

    Weights that have a state keep it; the first step gives the same bits as without this call.

    Args:
        made: told of every weight whose state is there, to move it away before that of the next one is made.

    Raises:
        RuntimeError, MemoryError: memory ran out; nothing of what was begun here stays.
    """
    begun: list[nn.Parameter] = []
    try:
        for part in optimizer.parts if isinstance(optimizer, Muon) else [optimizer]:
            for index, group in enumerate(part.param_groups):
                for place, parameter in enumerate(group["params"]):
                    if optimizer.state.get(parameter):
                        continue
                    begun.append(parameter)
                    _make_state_of(part, (index, place), parameter)
                    if made is not None:
                        made(parameter)
    except (RuntimeError, MemoryError):
        for parameter in begun:
            optimizer.state.pop(parameter, None)
        raise


def _make_state_of(optimizer: Any, place: tuple[int, int], parameter: nn.Parameter) -> None:
    group = optimizer.param_groups[place[0]]
    if hasattr(optimizer, "init_state"):  # bitsandbytes
        optimizer.init_state(group, parameter, *place)
        return
    state: dict[str, Any] = {}
    if isinstance(optimizer, torch.optim.AdamW):
        state["step"] = torch.zeros((), device=parameter.device if group["fused"] else "cpu")
    for kind, moments in _MOMENTS.items():
        if isinstance(optimizer, kind):
            state |= {name: torch.zeros_like(parameter, memory_format=torch.preserve_format) for name in moments}
    optimizer.state[parameter] = state


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Multiplies every group's peak learning rate by the schedule's factor."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
