"""The phases of a training step, and who is told of them: a simulation, or the measurement of a real step."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from ..kernels.stand_in import note_documents
from ..models.parts import decoder_layers, unwrapped
from ..parallel.batch import LossFunction, Rows

# In their order; the last two come between steps.
PHASES = ("load", "forward", "loss", "backward", "clip", "optimizer", "save", "evaluation")


@dataclass(frozen=True, order=True)
class Moment:
    """A stretch of a step.

    Attributes:
        phase: one of PHASES.
        part: of the backward pass: "" around the layers, else the number of the layer.
    """

    phase: str
    part: str = ""


@dataclass(frozen=True)
class Timeline:
    """What a step holds.

    Attributes:
        phases: the most bytes of tensors in each phase, in the phases' order.
        reserved: bytes that a GPU's allocator takes for it.
        layers: numbers of layers that were computed where the model was too deep to compute all; else empty.
        unknown: operations whose bytes are not known, so that the figures may be wrong.
        seconds: that the simulation took.
        device: whose step it is, of a model that lies on several devices of one process.
    """

    phases: Mapping[str, int]
    reserved: int
    layers: tuple[int, ...] = ()
    unknown: tuple[str, ...] = ()
    seconds: float = 0.0
    device: int | None = None

    @property
    def peak(self) -> int:
        """The most bytes of tensors at any time."""
        return max(self.phases.values())

    def shown(self) -> list[tuple[str, int]]:
        """The phases worth a line: a save that takes nothing beside what lies there anyway is none."""
        return [
            (phase, size) for phase, size in self.phases.items() if phase != "save" or size > self.phases.get("load", 0)
        ]


def size_text(count: int) -> str:
    """Bytes for people: `1.25 GiB`, `12.5 MiB`."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**29 else f"{count / 2**20:.1f} MiB"


class Phases(Protocol):
    """Who is told of the phases of a step.

    Attributes:
        full_masks: whether the rows that come have no padding.
    """

    full_masks: bool

    def at(self, phase: str, part: str = "") -> None:
        """Another moment begins."""


def marked(phases: Phases, loss: LossFunction) -> LossFunction:
    """The loss, telling a listener where the forward pass and the backward pass begin."""

    def marked_loss(model: nn.Module, batch: Rows) -> Tensor:
        note_documents(tuple(itertools.chain.from_iterable(batch.row_lengths)))
        phases.full_masks = batch.attention_mask is not None and _num_tokens(batch) == batch.input_ids.numel()
        phases.at("forward")
        value = loss(model, batch)
        if value.requires_grad:
            _when_differentiated(value, lambda: phases.at("backward"))
        return value

    return marked_loss


def _when_differentiated(tensor: Any, then: Callable[[], None]) -> None:
    """Calls back once the tensor's gradient is there."""

    def arrived(_: Tensor) -> None:
        then()

    tensor.register_hook(arrived)


def _num_tokens(batch: Rows) -> int:
    return sum(map(sum, batch.row_lengths))


def mark_phases(phases: Phases, model: Any) -> None:
    """Hooks that tell the listener of the end of the layers, forward, and of each layer, backward."""
    inner = unwrapped(model)
    inner.get_decoder().register_forward_hook(lambda *_: phases.at("loss"))
    for number, layer in enumerate(decoder_layers(inner) or ()):
        layer.register_forward_hook(_marks(phases, str(number)))


def _marks(phases: Phases, number: str) -> Callable[[nn.Module, Any, Any], None]:
    def mark(_: nn.Module, __: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        if isinstance(hidden, Tensor) and hidden.requires_grad:
            _when_differentiated(hidden, lambda: phases.at("backward", number))

    return mark
