"""What linear layers are given: a tensor as it is, or one that is cheap to make. The latter is made again in the backward pass
instead of kept, by the same arithmetic, beside the gradients of what it is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor

from . import native

Gradients = tuple[Tensor | None, ...]


class Source(Protocol):
    """What an input [rows, features] is made of: Given, Normed, Gated, or attention (attention_blocks.py, attention_pieces.py).

    Attributes:
        takes: tensors that make() takes.
    """

    takes: ClassVar[int]

    def make(self, *origin: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        """(the input, what its gradients need and is not cheap to make again)."""

    def back(
        self, dy: Tensor, kept: Sequence[Tensor], needed: Sequence[bool], again: bool, *origin: Any
    ) -> tuple[Gradients, Tensor | None]:
        """(gradients of what make() takes, None where not needed; the input, None where it is not asked for `again`).

        Args:
            dy: [rows, features], the gradient of the input.
            kept: what make() gave beside the input.
            needed: of each tensor that make() takes, whether its gradient is.
        """


@dataclass(frozen=True)
class Given:
    """An input as it is."""

    takes: ClassVar[int] = 1

    def make(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return x, ()

    def back(
        self, dy: Tensor, kept: Sequence[Tensor], needed: Sequence[bool], again: bool, x: Tensor
    ) -> tuple[Gradients, Tensor | None]:
        return (dy,), x


@dataclass(frozen=True)
class Normed:
    """RMSNorm (arXiv:1910.07467), or LayerNorm (arXiv:1607.06450) where it is centered: norm(x) * (offset + weight) + bias.

    Of x [rows, d], weight and bias [d]; bias may be None.
    """

    eps: float
    offset: float
    centered: bool
    takes: ClassVar[int] = 3

    def make(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        y, stats = native.norm_forward(
            x, weight.float(), _wide(bias), eps=self.eps, offset=self.offset, centered=self.centered
        )
        return y, (stats,)

    def back(
        self,
        dy: Tensor,
        kept: Sequence[Tensor],
        needed: Sequence[bool],
        again: bool,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> tuple[Gradients, Tensor | None]:
        dx, dw, db, y = native.norm_backward(
            dy,
            x,
            weight.float(),
            _wide(bias),
            kept[0],
            offset=self.offset,
            centered=self.centered,
            wanted=(needed[0], needed[1] or needed[2], again),
        )
        dw = None if dw is None else dw.to(weight.dtype)
        return (dx, dw, db.to(weight.dtype) if db is not None and bias is not None else None), y


def _wide(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.float()


@dataclass(frozen=True)
class Gated:
    """act(gate) * up (arXiv:2002.05202), of gate and up [rows, features]."""

    activation: str
    takes: ClassVar[int] = 2

    def make(self, gate: Tensor, up: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return native.gated_forward(gate, up, self.activation), ()

    def back(
        self, dy: Tensor, kept: Sequence[Tensor], needed: Sequence[bool], again: bool, gate: Tensor, up: Tensor
    ) -> tuple[Gradients, Tensor | None]:
        dgate, dup, h = native.gated_backward(dy, gate, up, self.activation, again=again)
        return (dgate, dup), h
