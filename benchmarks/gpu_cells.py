"""What `training_step.py --device cuda` measures on the GPU that is there, what it leaves out and why; and MFU."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ai_finetuning.planner.gpus import UNCALIBRATED
from ai_finetuning.planner.memory import Workload, estimate
from ai_finetuning.planner.shape import ModelShape
from benchmarks import corpus
from benchmarks.rounds import ROOT, environment
from benchmarks.shapes import SHAPES, Shape
from benchmarks.variants import FACTORY, ON_GPU, OWN, VARIANTS, Variant

# Where time ends before the list does, the last ones are left out.
ORDER = (("1b", "lora"), ("8b", "qlora"), ("8b", "lora"), ("1b", "full"), ("1b", "qlora"), ("8b", "full"))
# A packed row holds as many tokens as this many documents of mean length (1992; the shapes have 2048 positions).
DOCUMENTS_A_ROW = 13
# (rows of a step, activations are computed again), best first.
_KEPT, _AGAIN = ((4, False), (2, False), (1, False)), ((4, True), (2, True), (1, True))
# Oldest torch that the toolkit takes, and what QLoRA needs beside it.
TORCH, FOUR_BIT = (2, 10), "bitsandbytes"
_GIB = 2**30


@dataclass(frozen=True)
class Interpreter:
    """A Python that trains, and the distributions in it that the plan asks for."""

    python: str
    packages: Mapping[str, str]


@dataclass(frozen=True)
class LeftOut:
    """What is not measured and why."""

    what: str
    reason: str


@dataclass(frozen=True)
class Cell:
    """One model and method, and who trains it.

    Attributes:
        rows: packed rows of a step.
        together: most processes at a time that the memory holds; 1: each alone, so that no rounds are paired.
        variants: `ours` first.
        needed_bytes: by the formula, of `ours` and of a peer, which makes all logits at once.
    """

    model: str
    method: str
    rows: int
    checkpointing: bool
    together: int
    variants: tuple[str, ...]
    needed_bytes: Mapping[str, int]

    @property
    def name(self) -> str:
        """As results name it."""
        return f"{self.model} {self.method}"

    @property
    def groups(self) -> list[list[str]]:
        """Who is stepped in turn with whom: ours with as many peers as fit beside it, or everybody alone."""
        ours, *peers = self.variants
        if self.together == 1 or not peers:
            return [[name] for name in self.variants]
        most = self.together - 1
        return [[ours, *peers[start : start + most]] for start in range(0, len(peers), most)]


@dataclass
class Plan:
    """Cells in the order in which they are measured, and everything that is left out."""

    cells: list[Cell] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


def row_tokens() -> int:
    """Tokens of a packed row."""
    lengths = corpus.lengths(corpus.MIN_DOCUMENTS)
    return -(-round(DOCUMENTS_A_ROW * sum(lengths) / len(lengths)) // 8) * 8


def model_shape(shape: Shape) -> ModelShape:
    """The benchmark's shape as the planner's formula takes it."""
    embeddings = shape.vocabulary * shape.hidden * (1 if shape.tied else 2)
    norms = (2 * shape.layers + 1) * shape.hidden
    features = [(f"layers.{layer}.{index}", *sizes) for layer in range(shape.layers) for index, sizes in _named(shape)]
    return ModelShape(
        parameters=shape.linear_parameters + embeddings + norms,
        embedding_parameters=embeddings,
        linear_features=tuple(features),
        layers=shape.layers,
        hidden=shape.hidden,
        intermediate=shape.ffn,
        vocabulary=shape.vocabulary,
        positions=2048,
        heads=shape.heads,
        head_dim=shape.head_dim,
        norms=max(2.0, norms / (shape.hidden * shape.layers)),
    )


def _named(shape: Shape) -> list[tuple[int, tuple[int, int]]]:
    return list(enumerate(shape.linears))


def needed_bytes(shape: Shape, method: str, *, rows: int, checkpointing: bool, peer: bool) -> int:
    """Peak of a step by the planner's formula; a peer is taken to make the logits of all tokens at once."""
    full, sizes = method == "full", model_shape(shape)
    work = Workload(
        trainable=sizes.parameters if full else shape.lora_parameters,
        bits=4 if method == "qlora" else None,
        frozen_bytes=4 if full else 2,
        tokens=rows * row_tokens(),
        compute_bytes=2,
        full=full,
        longest=corpus.LONGEST,
        adapted=0 if full else sizes.adapted_inputs(None),
        gpu=True,
        documents=not peer,
    )
    return estimate(sizes, work, checkpointing=checkpointing).total


def packages_of(python: str) -> dict[str, str]:
    """Versions of the distributions that the plan asks for, as an interpreter has them; empty where it does not run."""
    names = sorted({"torch", FOUR_BIT} | {name for v in VARIANTS.values() for name in (*v.needs, *v.kernels)})
    code = (
        "import json, sys; from importlib.metadata import distributions; "
        "have = {(d.metadata['Name'] or '').lower().replace('_', '-'): d.version for d in distributions()}; "
        "print(json.dumps({name: have[name] for name in sys.argv[1:] if name in have}))"
    )
    try:
        ended = subprocess.run(
            [python, "-c", code, *names],
            check=True,
            timeout=60,
            env=environment(1, "cpu"),
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(json.loads(ended.stdout.splitlines()[-1]))


def interpreters(own: str, folders: Mapping[str, str]) -> dict[str, list[Interpreter]]:
    """Pythons of every environment, best first: its own where somebody made it, else the one that runs this.

    Args:
        own: that one.
        folders: of the environments of PEERS and FACTORY.
    """
    mine = Interpreter(own, packages_of(own))
    obtained = {OWN: [mine]}
    for name, folder in folders.items():
        python = Path(folder) / "bin" / "python"
        made = [Interpreter(str(python), packages_of(str(python)))] if python.is_file() else []
        obtained[name] = [*made, mine]
    return obtained


def choose(variant: Variant, there: Sequence[Interpreter], method: str) -> Interpreter | str:
    """The first interpreter that can train so, or why none can."""
    needs = [*variant.needs, *([FOUR_BIT] if method == "qlora" else [])]
    reasons = []
    for interpreter in there:
        packages = interpreter.packages
        missing = [name for name in needs if name not in packages]
        torch = packages.get("torch", "")
        numbers = re.match(r"(\d+)\.(\d+)", torch)
        if missing:
            reasons.append(f"{', '.join(missing)} not installed in {interpreter.python}")
        elif numbers is None:
            reasons.append(f"no torch in {interpreter.python}")
        elif "+cpu" in torch:
            reasons.append(f"torch {torch} in {interpreter.python} is built for CPUs only")
        elif variant.environment != FACTORY and tuple(map(int, numbers.groups())) < TORCH:
            reasons.append(f"torch {torch} in {interpreter.python} is older than {'.'.join(map(str, TORCH))}")
        else:
            return interpreter
    return "; ".join(reasons)


def plan(
    wanted: Sequence[tuple[str, str]],
    there: Mapping[str, Sequence[Interpreter]],
    *,
    free_bytes: int,
    disk_bytes: int,
    variants: Sequence[str] = ON_GPU,
) -> Plan:
    """What is measured.

    Args:
        wanted: pairs of model and method.
        there: interpreters(), by environment.
        free_bytes: of the GPU's memory; the formula may fill 80 % of it.
        disk_bytes: free where the models are written, 2 bytes a weight.
    """
    obtained = Plan()
    for model, method in (pair for pair in ORDER if pair in wanted):
        name, shape = f"{model} {method}", SHAPES[model]
        weights = 2 * model_shape(shape).parameters
        if weights > disk_bytes:
            reason = f"its weights need {_gib(weights)} of disk, {_gib(disk_bytes)} are free"
            obtained.left_out.append(LeftOut(name, reason))
            continue
        if (model, method) == ("8b", "full"):
            least = needed_bytes(shape, method, rows=1, checkpointing=True, peer=False)
            reason = (
                f"full fine-tuning is measured at 1b only; this would need {_gib(least)}, {_gib(free_bytes)} are free"
            )
            obtained.left_out.append(LeftOut(name, reason))
            continue
        taken = _taken(name, method, there, variants, obtained.left_out)
        if "ours" not in taken:
            continue
        cell = _fitted(model, method, taken, int(free_bytes * UNCALIBRATED), obtained.left_out)
        if cell is not None:
            obtained.cells.append(cell)
    return obtained


def _taken(
    name: str,
    method: str,
    there: Mapping[str, Sequence[Interpreter]],
    variants: Sequence[str],
    left_out: list[LeftOut],
) -> list[str]:
    """Variants that are installed; the plain TRL only where TRL with Liger is not."""
    taken: list[str] = []
    for variant in (item for item in ON_GPU if item in variants):
        if variant == "trl-packing" and "trl-liger" in taken:
            continue
        found = choose(VARIANTS[variant], there[VARIANTS[variant].environment], method)
        if isinstance(found, str):
            left_out.append(LeftOut(f"{name}: {variant}", found))
        else:
            taken.append(variant)
    return taken


def _fitted(model: str, method: str, taken: Sequence[str], limit: int, left_out: list[LeftOut]) -> Cell | None:
    """The cell with the largest step that fits: everybody in memory at the same time if that can be (processes take
    longer to begin than to step), else ours and one peer, else each of them alone, else ours only.
    """
    name, peers = f"{model} {method}", taken[1:]
    sizes = [
        (rows, again, *(_bytes_of(model, method, rows, again, peer) for peer in (False, True)))
        for rows, again in (*_KEPT, *_AGAIN)
    ]
    for beside in dict.fromkeys((len(peers), min(1, len(peers)))) if peers else ():
        for rows, again, ours, peer in sizes:
            if ours + beside * peer <= limit:
                together = 1 + min(len(peers), (limit - ours) // peer)
                return Cell(model, method, rows, again, together, tuple(taken), {"ours": ours, "peer": peer})
    for rows, again, ours, peer in sizes:
        if peers and max(ours, peer) <= limit:
            return Cell(model, method, rows, again, 1, tuple(taken), {"ours": ours, "peer": peer})
    for rows, again, ours, peer in sizes:
        if ours <= limit:
            left_out.extend(LeftOut(f"{name}: {item}", _too_large(peer, limit)) for item in peers)
            return Cell(model, method, rows, again, 1, tuple(taken[:1]), {"ours": ours, "peer": peer})
    left_out.append(LeftOut(name, _too_large(min(ours for _, _, ours, _ in sizes), limit)))
    return None


def _bytes_of(model: str, method: str, rows: int, again: bool, peer: bool) -> int:
    return needed_bytes(SHAPES[model], method, rows=rows, checkpointing=again, peer=peer)


def _too_large(needed: int, limit: int) -> str:
    return f"needs {_gib(needed)} by the formula, {_gib(limit)} may be filled ({UNCALIBRATED:.0%} of what is free)"


def _gib(size: int) -> str:
    return f"{size / _GIB:.2f} GiB"


def mfu(tokens_per_second: float, flops_per_token: float, tflops: float | None) -> float | None:
    """Share of a peak (10^12 operations a second) that the useful operations reach; None without a peak."""
    return None if not tflops else tokens_per_second * flops_per_token / (tflops * 1e12)


def refusal(found: Mapping[str, Any]) -> str | None:
    """Why nothing can be measured here, or None.

    Args:
        found: gpu_run.probe()'s.
    """
    version = re.match(r"(\d+)\.(\d+)", str(found.get("torch", "")))
    if version is None:
        return f"--device cuda needs torch, which does not start here: {found.get('error', 'no answer')}"
    if tuple(map(int, version.groups())) < TORCH:
        return f"--device cuda needs torch {'.'.join(map(str, TORCH))} or newer; torch {found['torch']} is installed."
    if not found.get("cuda"):
        return f"--device cuda needs an NVIDIA GPU, and torch {found['torch']} finds none here; nothing was measured."
    if found.get("sixteen_bit") != "bfloat16":
        return f"--device cuda compares bf16, which {found['device']} has not (it needs Ampere or newer)."
    return None
