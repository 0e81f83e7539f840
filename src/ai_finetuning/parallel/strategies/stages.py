"""A model cut into pipeline stages without losing its shape: parameter-free modules stand where other stages' layers
were.

The model stays the Hugging Face model, so list indices and parameter names survive, and whatever the loss does with it
(masks by positions, document lengths, logits on some positions) continues as in one process. Three stand-ins do the
work:

- `Gap` in the place of a layer: before the stage it hands on what the previous stage sent, whatever the body made of
its own
  embeddings (positions of GPT-2, the scale of Gemma 2, dropout), so that nothing is added twice; after the stage it
  ends the forward.
- `Blank` in the place of what comes before the layers: zeros of the right shape, from which the body builds its masks.
- what comes after the layers is never reached on earlier stages.

`validate_stages` tries the cut on the whole model before any weight is dropped (docs/design/distributed.md, fault 5).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ModelError
from ...labels import IGNORED
from ...models.modes import evaluating
from ...models.parts import layer_list, tensors_of
from ..batch import Batch, LossFunction, Rows

# Most relative difference of the staged loss: the same operations in the same order, so only kernels that are not
# deterministic may make one.
_TOLERANCE = {torch.float32: 1e-5}
_TOLERANCE_16_BIT = 1e-3


@dataclass(frozen=True)
class Span:
    """One stage: layers start to stop of the model, and its place."""

    index: int
    start: int
    stop: int
    first: bool
    last: bool


def spans_of(sizes: Sequence[int]) -> list[Span]:
    """Stages of so many layers each."""
    stops = [sum(sizes[: index + 1]) for index in range(len(sizes))]
    return [
        Span(index, stop - size, stop, index == 0, index == len(sizes) - 1)
        for index, (size, stop) in enumerate(zip(sizes, stops, strict=True))
    ]


def split_layers(weights: Sequence[float], stages: int, *, before: float = 0.0, after: float = 0.0) -> list[int]:
    """Numbers of layers per stage, every stage at least one, so that the heaviest stage is as light as can be.

    Args:
        weights: of the layers, in order, in any unit.
        before, after: what the first stage (embedding) and the last one (norm, head) have besides.
    """
    total = [0.0]
    for weight in weights:
        total.append(total[-1] + weight)
    # By number of layers placed: (heaviest stage, sum of squares, sizes); the squares decide among equals.
    best: dict[int, tuple[float, float, list[int]]] = {0: (0.0, 0.0, [])}
    for stage in range(stages):
        extra = before * (stage == 0) + after * (stage == stages - 1)
        obtained: dict[int, tuple[float, float, list[int]]] = {}
        for done, (heaviest, squares, sizes) in best.items():
            for stop in range(done + 1, len(weights) - (stages - stage - 1) + 1):
                load = total[stop] - total[done] + extra
                option = (max(heaviest, load), squares + load**2, [*sizes, stop - done])
                if stop not in obtained or option[:2] < obtained[stop][:2]:
                    obtained[stop] = option
        best = obtained
    return best[len(weights)][2]


class StageEnd(Exception):
    """The end of a stage inside the model's forward."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


class PlaceholderLayer(nn.Module):
    """In the place of a layer that the running stage does not have."""

    def __init__(self, layer: nn.Module, staging: StageSplitter) -> None:
        super().__init__()
        for name, value in vars(layer).items():
            # Bodies choose masks by such marks (`attention_type`).
            if isinstance(value, (str, int, float)) and not name.startswith("_") and name != "training":
                setattr(self, name, value)
        self._staging = staging
        self.after = False

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Any:
        """Ends the stage, or gives what it received in the shape that the body asks for."""
        if self.after:
            raise StageEnd(hidden_states)
        received = self._staging.received
        assert received is not None
        hidden = received[: hidden_states.shape[:-1].numel()].view(hidden_states.shape)
        return (hidden,) if self._staging.in_tuples else hidden


class PlaceholderEmbedding(nn.Module):
    """In the place of an embedding: zeros that take no memory; floats pass through."""

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self._width, self._dtype = width, dtype

    def forward(self, inputs: Tensor, *_: Any, **__: Any) -> Tensor:
        """[..., width] for integers [...]."""
        if inputs.is_floating_point():
            return inputs
        return torch.zeros((), dtype=self._dtype, device=inputs.device).expand(*inputs.shape, self._width)


@dataclass(frozen=True)
class Part:
    """A module with weights outside of the layers: `owner.name` is `module` on the stages that hold it, else
    `blank`.
    """

    owner: nn.Module
    name: str
    module: nn.Module
    blank: nn.Module


class Probe:
    """A row of one document, as engine/loss.py wants it, for a look at the model before training."""

    def __init__(self, device: torch.device, tokens: int = 12) -> None:
        self.input_ids = self.labels = torch.arange(1, tokens + 1, device=device)[None]
        self.position_ids = self.input_ids - 1
        self.attention_mask = torch.ones_like(self.input_ids)
        self.num_label_tokens = self.num_label_columns = tokens - 1
        self.targets = torch.cat([self.labels[0, 1:], self.labels.new_tensor([IGNORED])])
        self.lengths, self.row_lengths, self.answers = (tokens,), ((tokens,),), None

    def documents(self) -> Probe:
        """Itself: one row without padding."""
        return self


class StageSplitter:
    """The cut model: shows it as one stage or another, and runs that stage.

    Attributes:
        device: where the model runs.
        dtype, width: of the hidden states between layers.
        in_tuples: whether layers answer with a tuple.
        shared: weights that both the first and the last stage hold (a head tied to the embedding).
        whole: the loss of the probe before the cut.
    """

    def __init__(
        self, model: nn.Module, loss: LossFunction, *, autocast: torch.dtype | None, device: torch.device
    ) -> None:
        layers = layer_list(model)
        if layers is None:
            raise ModelError(
                f"{type(model).__name__} に繰り返しの層がないため、パイプラインに分けられません。strategy: fsdp を使ってください。",
                f"{type(model).__name__} has no list of layers, so it cannot be split into pipeline stages; use "
                "strategy: fsdp.",
            )
        self.model, self.layers, self.device = model, layers, device
        self.received: Tensor | None = None
        self._loss, self._autocast, self._holds_first = loss, autocast, True
        self._real: list[nn.Module | None] = list(layers)
        self._gaps = [PlaceholderLayer(layer, self) for layer in layers]
        self._examine()

    def _examine(self) -> None:
        """One forward pass of the whole model: what runs before the layers, and how hidden states look."""
        outputs: dict[nn.Module, Any] = {}
        outside = list(_outside(self.model, self.layers))
        first_layer = self.layers[0]
        early: set[nn.Module] = set()

        def note(module: nn.Module, _: Any, output: Any) -> None:
            if first_layer not in outputs and module is not first_layer:
                early.add(module)
            outputs[module] = output

        watched = [first_layer, *(part for _, _, part in outside)]
        hooks = [module.register_forward_hook(note) for module in watched]
        try:
            with evaluating(self.model):
                self.whole = float(self._forward(Probe(self.device)))
        finally:
            for hook in hooks:
                hook.remove()
        hidden = outputs[first_layer]
        self.in_tuples = isinstance(hidden, tuple)
        hidden = hidden[0] if self.in_tuples else hidden
        self.dtype, self.width = hidden.dtype, hidden.shape[-1]
        parts = [
            (
                module in early,
                Part(
                    owner,
                    name,
                    module,
                    PlaceholderEmbedding(self.width, getattr(outputs.get(module), "dtype", self.dtype)),
                ),
            )
            for owner, name, module in outside
        ]
        self.before = [part for is_early, part in parts if is_early]
        self.after = [part for is_early, part in parts if not is_early]
        at_start, at_end = (
            {id(p) for part in side for p in part.module.parameters()} for side in (self.before, self.after)
        )
        self.shared = at_start & at_end

    def costs(self) -> tuple[list[float], float, float]:
        """Products a token in the layers, in what comes before them and in what comes after.

        A pipeline is as fast as its slowest stage. An embedding is looked up and multiplies nothing, a head of the same
        size does; attention itself and tokens without a label (whose logits nobody computes) are left out.
        """
        return (
            [_products(layer) for layer in self.layers],
            sum(_products(part.module) for part in self.before),
            sum(_products(part.module) for part in self.after),
        )

    def modules_of(self, span: Span) -> list[nn.Module]:
        """What a stage holds: its layers, and the parts around them."""
        ends = [part.module for part in (*self.before * span.first, *self.after * span.last)]
        return [*self.blocks_of(span), *ends]

    def blocks_of(self, span: Span) -> list[nn.Module]:
        """The layers of a stage."""
        return [layer for layer in self._real[span.start : span.stop] if layer is not None]

    def show(self, span: Span | None) -> None:
        """The model as one stage; None: with everything that this process holds."""
        for index, (real, gap) in enumerate(zip(self._real, self._gaps, strict=True)):
            inside = real is not None and (span is None or span.start <= index < span.stop)
            gap.after = span is not None and index >= span.stop
            self.layers[index] = real if inside and real is not None else gap
        for part in self.before:
            shown = part.module if self._holds_first and (span is None or span.first) else part.blank
            setattr(part.owner, part.name, shown)

    def prune(self, spans: Sequence[Span]) -> None:
        """Drops the weights of all other stages."""
        held = {id(tensor) for span in spans for module in self.modules_of(span) for tensor in tensors_of(module)}
        for index, layer in enumerate(self._real):
            if layer is not None and not any(span.start <= index < span.stop for span in spans):
                _release(layer, held)
                self._real[index] = None
        self._holds_first = any(span.first for span in spans)
        for part in self.before if not self._holds_first else ():
            _release(part.module, held)
        for part in self.after if not any(span.last for span in spans) else ():
            setattr(part.owner, part.name, part.blank)
            _release(part.module, held)
        self.show(None)

    def run(self, span: Span, batch: Rows, received: Tensor | None) -> Tensor:
        """Hidden states [..., width] at the end of the stage, or the loss of the last one.

        Args:
            received: hidden states of the previous stage, [tokens or more, width]; None for the first.
        """
        self.received = received
        try:
            loss = self._forward(batch)
        except StageEnd as end:
            return end.hidden
        finally:
            self.received = None
        assert span.last, f"stage {span.index} never reached its end"
        return loss

    def _forward(self, batch: Rows) -> Tensor:
        if self._autocast is None:
            return self._loss(self.model, batch)
        with torch.autocast(batch.input_ids.device.type, dtype=self._autocast):
            return self._loss(self.model, batch)


def pack(hidden: Tensor, tokens: int, dtype: torch.dtype) -> Tensor:
    """Hidden states [..., width] as [tokens, width], zeros behind: all micro-batches of a step travel in one shape."""
    flat = hidden.reshape(-1, hidden.shape[-1]).to(dtype)
    packed = torch.cat([flat, flat.new_zeros(tokens - flat.shape[0], flat.shape[1])])
    if torch.is_grad_enabled() and not packed.requires_grad:
        packed.requires_grad_()  # nothing trains up to here, yet the next stage sends a gradient
    return packed


class Stage(nn.Module):
    """What torch's schedules run: one stage on the micro-batch of a number.

    Attributes:
        batches, num_valid, tokens: of the step: micro-batches, what the loss is divided by, length of what is sent.
        total: sum of the losses (last stage).
    """

    def __init__(self, staging: StageSplitter, span: Span) -> None:
        super().__init__()
        self.own = nn.ModuleList(staging.modules_of(span))
        self.span, self._staging = span, staging
        self.begin([], 1.0, 0)

    def begin(self, batches: Sequence[Batch], num_valid: float, tokens: int) -> None:
        """Takes the micro-batches of a step."""
        self.batches, self.num_valid, self.tokens = batches, num_valid, tokens
        self.total: Tensor | float = 0.0

    def forward(self, received: Tensor | None = None, *, number: Tensor) -> Tensor:
        """The packed hidden states, or the loss / num_valid."""
        staging, span = self._staging, self.span
        staging.show(span)
        out = staging.run(span, self.batches[int(number)], None if span.first else received)
        if not span.last:
            return pack(out, self.tokens, staging.dtype)
        loss = out / self.num_valid
        self.total = self.total + loss.detach().double()
        return loss


@torch.no_grad()
def validate_stages(staging: StageSplitter, spans: Sequence[Span]) -> None:
    """Runs the stages one after the other on the whole model; call before prune().

    Raises:
        ModelError: the loss is another one than the model's own.
    """
    probe, received = Probe(staging.device), None
    with evaluating(staging.model):
        for span in spans:
            staging.show(span)
            out = staging.run(span, probe, received)
            received = out.reshape(-1, out.shape[-1]).to(staging.dtype) if not span.last else out
    staging.show(None)
    staged = float(out)
    if not abs(staged - staging.whole) <= _TOLERANCE.get(staging.dtype, _TOLERANCE_16_BIT) * abs(staging.whole):
        name = type(staging.model).__name__
        raise ModelError(
            f"{name} を {len(spans)} 段に分けると損失が変わるため（{staging.whole:.6g} が {staged:.6g} に）、パイプラインでは学習できません。"
            "strategy: fsdp か ddp を使ってください。",
            f"split into {len(spans)} stages, {name} computes a different loss ({staged:.6g} instead of "
            f"{staging.whole:.6g}), so "
            "pipeline training would be wrong; use strategy: fsdp or ddp.",
        )


def _outside(module: nn.Module, layers: nn.ModuleList) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """(owner, name, module) of everything with weights around the layers, as large as it comes."""
    for name, child in module.named_children():
        if child is layers:
            continue
        if any(inner is layers for inner in child.modules()):
            yield from _outside(child, layers)
        elif any(True for _ in child.parameters()):
            yield module, name, child


def _products(module: nn.Module) -> float:
    """Number of weights that something is multiplied by; 4-bit ones are counted, not their bytes."""
    multiplying = (part for part in module.modules() if not isinstance(part, nn.Embedding))
    packed = ((p, getattr(p, "quant_state", None)) for part in multiplying for p in part.parameters(recurse=False))
    return float(sum(p.numel() if state is None else torch.Size(state.shape).numel() for p, state in packed))


def _release(module: nn.Module, held: set[int]) -> None:
    """Frees the memory even where somebody (a loss that knows the head) still refers to the module."""
    for tensor in tensors_of(module):
        if id(tensor) not in held:
            tensor.data = tensor.data.new_empty(0)
