"""No speed of preference training before this: our references, loss and every gradient against plain fp32, pair by pair.

python -m benchmarks.preference_gate SPEC.json      # prints one JSON line, exit code 1 where the gate stays shut
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gate import GateError, Gradients, distance, gradients, reference_model, tell
from benchmarks.pairs import Pair, read_pairs, save_pairs
from benchmarks.workers.channel import Spec, read_spec

PAIRS = 6
BETA = 0.1
# Relative, of the loss and of all gradients together. bf16 errs by some hundredths of a nat a sum of a hundred
# log-probabilities, and the gradients of the two answers take much of each other away while what they err by stays.
LOSS_LIMITS = {"fp32": 1e-5, "bf16": 1e-2}
GRADIENT_LIMITS = {"fp32": 1e-4, "bf16": 5e-2}


@dataclass(frozen=True)
class Findings:
    """Distances from the plain computation.

    Attributes:
        loss: relative difference.
        gradient: relative L2 distance of all gradients as one vector.
        worst: the same of the worst single tensor, and `worst_name` its name.
        reference: largest difference of a sum of log-probabilities before step 1, in nats.
    """

    precision: str
    loss: float
    gradient: float
    worst: float
    worst_name: str
    reference: float

    def refuse(self) -> None:
        """Raises GateError where a limit is exceeded."""
        # Written so that nan is refused too.
        if not (self.loss <= LOSS_LIMITS[self.precision] and self.gradient <= GRADIENT_LIMITS[self.precision]):
            raise GateError(
                f"{self.precision}: loss {self.loss:.2e}, gradient {self.gradient:.2e} (worst tensor {self.worst_name}: "
                f"{self.worst:.2e})"
            )


def sums(model: nn.Module, pair: Pair) -> list[Tensor]:
    """Log-probabilities of the chosen and of the rejected answer, each conversation alone."""
    device, found = next(model.parameters()).device, []
    for side, answer in zip(pair.sides(), (pair.chosen, pair.rejected), strict=True):
        ids = torch.tensor([side], device=device)
        logits = model(input_ids=ids, use_cache=False).logits[0, -len(answer) - 1 : -1].float()
        targets = torch.tensor(answer, device=device)
        found.append(logits.log_softmax(-1).gather(1, targets[:, None]).double().sum())
    return found


def plain_step(model: nn.Module, pairs: Sequence[Pair], before: Sequence[Sequence[float]]) -> tuple[float, Gradients]:
    """(mean DPO loss, gradients) of a step.

    Args:
        before: log-probabilities of the answers before step 1.
    """
    model.zero_grad(set_to_none=True)
    total = 0.0
    for pair, (chosen_before, rejected_before) in zip(pairs, before, strict=True):
        chosen, rejected = sums(model, pair)
        lead = (chosen - chosen_before) - (rejected - rejected_before)
        loss = -nn.functional.logsigmoid(BETA * lead) / len(pairs)
        loss.backward()
        total += float(loss.detach())
    return total, gradients(model)


def change(model: nn.Module) -> None:
    """Moves what trains away from where it was before step 1, so that margins are not 0."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.requires_grad and "lora_A" not in name:
                spread = (
                    0.02 if "lora_B" in name else 0.05 * float(parameter.float().std()) if parameter.dim() > 1 else 0.0
                )
                parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.dtype) * spread)


def _examine(run: Any, spec: Spec, pairs: Sequence[Pair], precision: str, keep: Path | None) -> Findings:
    """The findings of a run that is assembled and has not stepped yet."""
    run.model.train()
    with torch.no_grad():
        plain = reference_model(spec, run.model)
        before = [[float(value) for value in sums(plain, pair)] for pair in pairs]
        del plain
    own = run.loader.answers.reference.sum(dim=-1).tolist()
    off = max(abs(a - b) for mine, plain in zip(own, before, strict=True) for a, b in zip(mine, plain, strict=True))
    change(run.model)
    plain = reference_model(spec, run.model)
    wanted, expected = plain_step(plain, pairs, before)
    if keep is not None:
        from safetensors.torch import save_file

        trained = {name: weight for name, weight in plain.named_parameters() if weight.requires_grad}
        weights = {f"weight/{name}": weight.detach().clone() for name, weight in trained.items()}
        save_file(weights | {f"gradient/{name}": expected[name] for name in trained}, keep, {"loss": repr(wanted)})
    del plain
    run.optimizer.zero_grad(set_to_none=True)
    run.preference.begin()
    loss = float(run.strategy.forward_backward(run.loader.micro_batches(0, 0, spec.micro_batch), len(pairs)))
    whole, worst, name = distance(gradients(run.model), expected)
    return Findings(precision, abs(loss - wanted) / wanted, whole, worst, name, off)


def examine(spec: Spec, precision: str, keep: Path | None = None) -> Findings:
    """Assembles `aift train` on the first pairs of the spec, all in one step, and compares it with the plain computation.

    Args:
        keep: gets the weights that are compared, and their gradients by the plain computation (weight/NAME, gradient/NAME).
    """
    from benchmarks.own import Finished, train

    pairs = read_pairs(Path(spec.documents))[:PAIRS]
    small = replace(
        spec,
        scratch=f"{spec.scratch}-gate",
        documents=str(gate_pairs(spec, pairs)),
        per_step=PAIRS,
        steps=[0],
        precision=precision,
    )
    obtained: list[Findings] = []

    def step(run: Any, original: Callable[[Any], Any]) -> Any:
        obtained.append(_examine(run, small, pairs, precision, keep))
        raise Finished

    try:
        code = train(small, step, [f"training.runtime.precision={precision}"])
    except Finished:
        return obtained[0]
    raise GateError(f"aift train ended with exit code {code} before its first step")


def gate_pairs(spec: Spec, pairs: Sequence[Pair]) -> Path:
    """The folder of the pairs that the gate takes."""
    return save_pairs(Path(spec.scratch).parent / "gate-pairs", pairs)


def main() -> None:
    """Both precisions; what the driver reads is the last line. The spec's `weights` names the file that fp32 leaves."""
    spec = read_spec()
    assert spec.weights is not None
    kept = {"fp32": Path(spec.weights)}
    tell(examine(spec, precision, kept.get(precision)) for precision in LOSS_LIMITS)


if __name__ == "__main__":
    main()
