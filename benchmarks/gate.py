"""No speed before this: our loss, every gradient and the isolation of packed documents against plain fp32.

python -m benchmarks.gate SPEC.json      # a worker's spec; prints one JSON line, exit code 1 where the gate stays shut
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.corpus import Document
from benchmarks.inputs import read_documents, save_documents
from benchmarks.workers.channel import Spec, read_spec

DOCUMENTS = 6
LOSS_LIMIT = 1e-4
# Largest relative L2 distance of all gradients together; bf16 has 8 bits of mantissa, so 1e-2 is its own error.
GRADIENT_LIMITS = {"bf16": 2e-2, "fp32": 1e-4}
# What a changed neighbour may change: nothing, up to the order of fp32 sums.
LEAK_LIMIT = 1e-6


class GateError(Exception):
    """The training step does not compute what it should; its speed means nothing."""


@dataclass(frozen=True)
class Findings:
    """Distances from the reference.

    Attributes:
        loss: relative difference of the loss.
        gradient: relative L2 distance of all gradients as one vector.
        worst: the same of the worst single tensor, and `worst_name` its name.
        leak: relative change of loss or gradients when only a neighbour without labels changes.
    """

    precision: str
    loss: float
    gradient: float
    worst: float
    worst_name: str
    leak: float

    def refuse(self) -> None:
        """Raises GateError where a limit is exceeded."""
        limits = {"loss": LOSS_LIMIT, "gradient": GRADIENT_LIMITS[self.precision], "leak": LEAK_LIMIT}
        # Written so that nan is refused too.
        over = [
            f"{name} {getattr(self, name):.2e} > {limit:g}"
            for name, limit in limits.items()
            if not getattr(self, name) <= limit
        ]
        if over:
            raise GateError(f"{self.precision}: {', '.join(over)} (worst tensor {self.worst_name}: {self.worst:.2e})")


Gradients = dict[str, Tensor]


def reference(model: nn.Module, corpus: Sequence[Document]) -> tuple[float, Gradients]:
    """(loss per label token, gradients) of an fp32 model with eager attention, one unpadded document at a time."""
    model.zero_grad(set_to_none=True)
    live = sum(len(item) - item.prompt for item in corpus)
    device = next(model.parameters()).device
    total = 0.0
    for item in corpus:
        logits = model(input_ids=torch.tensor([item.ids], device=device), use_cache=False).logits[0, :-1]
        targets = torch.tensor(item.labels[1:], device=device)
        loss = nn.functional.cross_entropy(logits.float(), targets, ignore_index=-100, reduction="sum") / live
        loss.backward()
        total += float(loss.detach())
    return total, gradients(model)


def gradients(model: nn.Module) -> Gradients:
    """fp32 copies of all gradients, under their parameters' names."""
    return {name: p.grad.detach().float().clone() for name, p in model.named_parameters() if p.grad is not None}


def distance(obtained: Gradients, expected: Gradients) -> tuple[float, float, str]:
    """(relative L2 distance, the worst tensor's, its name).

    Raises:
        GateError: gradients of one side that the other does not have.
    """
    if obtained.keys() != expected.keys():
        names = ", ".join(sorted(obtained.keys() ^ expected.keys())[:4])
        raise GateError(f"gradients on one side only: {names}")
    squares = {}
    for name, value in expected.items():
        exact = value.double()  # a norm summed in fp32 would be off by more than the limit
        squares[name] = (float((obtained[name].double() - exact).square().sum()), float(exact.square().sum()))
    whole = (sum(off for off, _ in squares.values()) / sum(size for _, size in squares.values())) ** 0.5
    worst, name = max(((off / max(size, 1e-300)) ** 0.5, name) for name, (off, size) in squares.items())
    return whole, worst, name


ForwardBackward = Callable[[Any], float]


def leak(model: nn.Module, forward_backward: ForwardBackward, neighbours: Sequence[Any]) -> float:
    """Relative change of loss and gradients between batches that differ in a document without labels only; 0 if
    isolated.

    Args:
        forward_backward: loss of a batch, its gradients left in the model.
        neighbours: two batches.
    """
    answers = []
    for batch in neighbours:
        model.zero_grad(set_to_none=True)
        answers.append((forward_backward(batch), gradients(model)))
    (loss, before), (other, after) = answers
    return max(abs(other - loss) / abs(loss), distance(after, before)[0])


def neighbour_batches(corpus: Sequence[Document], vocabulary: int) -> list[Any]:
    """Two packed rows of the two shortest documents; the first one has no labels, and its tokens differ between the
    rows.
    """
    import numpy as np

    from ai_finetuning.data.collate import collate
    from ai_finetuning.data.example import Example

    first, second = sorted(corpus, key=len)[:2]
    other = [4 + (token + vocabulary // 2) % (vocabulary - 4) for token in first.ids]
    silent = np.full(len(first), -100, dtype=np.int32)
    kept = Example(np.asarray(second.ids, np.int32), np.asarray(second.labels, np.int32))
    return [
        collate([[Example(np.asarray(ids, np.int32), silent), kept]], pad_token_id=0, packed=True)
        for ids in (first.ids, other)
    ]


def reference_model(spec: Spec, trained: nn.Module) -> nn.Module:
    """The same weights in fp32 with eager attention, adapters included."""
    from transformers import AutoModelForCausalLM

    from benchmarks.workers.subject import with_adapter

    model = AutoModelForCausalLM.from_pretrained(spec.model, dtype=torch.float32, attn_implementation="eager")
    model = with_adapter(model, spec)
    own = dict(model.named_parameters())
    for name, parameter in trained.named_parameters():
        if parameter.requires_grad:
            own[name].data.copy_(parameter.detach())
    return model.to(spec.device).train()


def _examine(run: Any, spec: Spec, corpus: Sequence[Document], precision: str) -> Findings:
    """The findings of a run that is assembled and has not stepped yet."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in run.model.named_parameters():
        if "lora_B" in name:  # zero at first, and then no gradient reaches lora_A
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
    run.model.train()
    wanted_loss, expected = reference(reference_model(spec, run.model), corpus)
    batches = run.loader.micro_batches(0, 0, run.state.micro_batch_size)
    live = sum(batch.num_label_tokens for batch in batches)
    if live != sum(len(item) - item.prompt for item in corpus):
        raise GateError(f"{live} label tokens in the first step, not those of the {len(corpus)} documents")
    run.optimizer.zero_grad(set_to_none=True)
    loss = float(run.strategy.forward_backward(batches, float(live)))
    whole, worst, name = distance(gradients(run.model), expected)
    vocabulary = run.model.get_input_embeddings().weight.shape[0]
    leaked = leak(
        run.model,
        lambda batch: float(run.strategy.forward_backward([batch], 1.0)),
        neighbour_batches(corpus, vocabulary),
    )
    return Findings(precision, abs(loss - wanted_loss) / abs(wanted_loss), whole, worst, name, leaked)


def examine(spec: Spec, precision: str) -> Findings:
    """Assembles `aift train` on the first documents of the spec, all in one step, and compares it with the
    reference.
    """
    from benchmarks.own import Finished, train

    corpus = read_documents(Path(spec.documents))[:DOCUMENTS]
    folder = save_documents(Path(spec.scratch).parent / "gate-documents", corpus)
    whole = max(spec.pack_tokens, sum(map(len, corpus)))
    small = replace(
        spec,
        documents=str(folder),
        scratch=f"{spec.scratch}-gate",
        pack_tokens=whole,
        rows_per_step=1,
        steps=[0],
        # NF4 weights are not the reference's; the code that is timed is the same as for LoRA.
        method="lora" if spec.method == "qlora" else spec.method,
        precision=precision,
    )
    obtained: list[Findings] = []

    def step(run: Any, original: Callable[[Any], Any]) -> Any:
        obtained.append(_examine(run, small, corpus, precision))
        raise Finished

    overrides = [f"training.runtime.precision={precision}"]
    try:
        code = train(small, step, overrides)
    except Finished:
        return obtained[0]
    raise GateError(f"aift train ended with exit code {code} before its first step")


def _examined(spec: Spec) -> Sequence[str]:
    return ("fp32",) if spec.precision == "fp32" else tuple(GRADIENT_LIMITS)


def main() -> None:
    """Both precisions, or fp32 where that is measured; what the driver reads is the last line."""
    spec = read_spec()
    tell(examine(spec, precision) for precision in _examined(spec))


def tell(examined: Iterable[Any]) -> None:
    """Examines, and tells the driver the findings, or why the gate stays shut (exit code 1).

    Args:
        examined: dataclasses with a refuse() that raises GateError; what making one raises shuts the gate too.
    """
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # notices of the run go to the log
    try:
        findings = list(examined)
        for obtained in findings:
            obtained.refuse()
    except GateError as error:
        print(json.dumps({"error": str(error)}), file=out, flush=True)
        sys.exit(1)
    print(json.dumps({"findings": [asdict(obtained) for obtained in findings]}), file=out, flush=True)


if __name__ == "__main__":
    main()
