"""A training step of a random model in memory, put together from the product's own parts: what memory it takes, how fast
it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from ...engine.loss import make_document_loss
from ...engine.optimizer import NamedParameters, build_optimizer
from ...engine.precision import Precision, precision_for
from ...models.adapters import add_lora, without_input_casts
from ...models.documents import select_forward_path
from ...models.lora_forward import lighten
from ...parallel.batch import Batch
from ...parallel.strategies.single import SingleDevice
from ...planner.memory import Workload
from ...planner.phases import Phases, mark_phases, marked
from ...planner.shape import ModelShape, shape_of
from ...system.gpu import sixteen_bit
from .results import NotHere


@dataclass(frozen=True)
class Sizes:
    """Of a Llama, and of its micro-batch: documents x tokens."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    vocabulary: int
    documents: int = 4
    tokens: int = 512


# Shaped as models of 10^9 parameters are (Llama 3.2 1B with 32,000 words); small ones for memory and for CPUs.
BILLION = Sizes(2048, 8192, 16, 32, 8, 32000)
MIDDLE = Sizes(1024, 2816, 8, 16, 8, 32000, 2)
TINY = Sizes(128, 256, 2, 4, 2, 1000, 2, 32)


@dataclass
class Step:
    """A step that can be taken again and again.

    Attributes:
        take: takes it.
        shape, work: as the planner sees it.
        precision: that it computes in.
        tokens: that go through the model.
        model, optimizer: its own.
    """

    take: Callable[[], None]
    shape: ModelShape
    work: Workload
    precision: Precision
    tokens: int
    model: Any
    optimizer: torch.optim.Optimizer
    _held: list[Any] = field(default_factory=list)


def random_llama(sizes: Sizes, dtype: torch.dtype) -> Any:
    """A Llama of random weights on the default device."""
    import transformers

    config = transformers.LlamaConfig(
        hidden_size=sizes.hidden,
        intermediate_size=sizes.intermediate,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.key_value_heads,
        vocab_size=sizes.vocabulary,
        max_position_embeddings=max(2048, sizes.tokens),
        tie_word_embeddings=True,
    )
    build: Any = transformers.AutoModelForCausalLM.from_config  # untyped
    return build(config, dtype=dtype)


def optimizer_for(named: NamedParameters, _: Any = None) -> torch.optim.Optimizer:
    """AdamW over the weights that train."""
    return build_optimizer([(name, weight) for name, weight in named if weight.requires_grad], learning_rate=1e-5)


def make_step(sizes: Sizes, device: torch.device, *, full: bool, phases: Phases | None = None) -> Step:
    """LoRA of rank 16 on every linear layer without dropout, or full fine-tuning, in the device's mixed precision, without
    checkpointing.

    Args:
        phases: is told of the phases of the step.

    Raises:
        NotHere: the device takes no rows without padding.
    """
    precision = precision_for("auto", fp16=True, device=device, best=sixteen_bit(device))
    compute = precision.autocast or torch.float32
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(0)
        model = random_llama(sizes, torch.float32 if full else compute)
        inner, shape = model, shape_of(model)
        if not full:
            model = add_lora(model, r=16, alpha=32)
            on_gpu = device.type == "cuda"  # as a run does
            lighten(model, one_operation=on_gpu)
            if on_gpu:
                without_input_casts(model)
    model.train()
    trainable = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    path, reason = select_forward_path(inner, device, autocast=precision.autocast, kernels="auto")
    if path is None:
        raise NotHere(f"パディングのない計算を使えません（{reason}）", f"no step without padding here ({reason})")
    strategy = SingleDevice(device, autocast=precision.autocast, scaler=precision.scaler)
    loss = make_document_loss(path)
    if phases is not None:
        mark_phases(phases, model)
        loss = marked(phases, loss)
    strategy.prepare(model, loss)
    optimizer = optimizer_for(strategy.named_parameters(model))
    if phases is not None:
        optimizer.register_step_pre_hook(lambda *_: phases.at("optimizer"))
    strategy.attach(optimizer)
    path.watch(optimizer)
    group = [batch_of(sizes)]
    labels = float(sum(batch.num_label_tokens for batch in group))

    def take() -> None:
        lost = strategy.forward_backward(group, labels)
        if phases is not None:
            phases.at("clip")
        strategy.update(lost, 1.0)
        optimizer.zero_grad(set_to_none=True)
        if phases is not None:
            phases.at("load")

    tokens = sizes.documents * sizes.tokens
    work = Workload(
        trainable,
        None,
        frozen_bytes=compute.itemsize,
        tokens=tokens,
        compute_bytes=compute.itemsize,
        full=full,
    )
    return Step(take, shape, work, precision, tokens, model, optimizer, [strategy, path])


def batch_of(sizes: Sizes) -> Batch:
    """Documents of random tokens, each of which takes loss."""
    import numpy as np

    from ...data.collate import collate
    from ...data.example import Example

    random = np.random.default_rng(0)
    rows = [random.integers(3, sizes.vocabulary, sizes.tokens).astype(np.int32) for _ in range(sizes.documents)]
    return collate([[Example(ids, ids.copy())] for ids in rows], pad_token_id=0, packed=False)
