"""Speed and memory of preference training (DPO) against TRL's DPOTrainer (protocol: docs/performance.md).

python benchmarks/preference.py --model small --method lora --kind dolly
python benchmarks/preference.py --publish benchmarks/results/RESULT.json        # its table in docs/performance.md
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# As a script this file's folder would stand where the repository has to.
sys.path[0] = str(ROOT)

from benchmarks import plot, ratios  # noqa: E402
from benchmarks.inputs import save_model  # noqa: E402
from benchmarks.pairs import KINDS, Pair, pairs, save_pairs  # noqa: E402
from benchmarks.preference_gate import PAIRS, gate_pairs  # noqa: E402
from benchmarks.rounds import Worker, WorkerError, circumstances, interpreters, open_gate, run_rounds  # noqa: E402
from benchmarks.shapes import SHAPES, Shape  # noqa: E402
from benchmarks.variants import PAIR_VARIANTS, PEERS, Variant  # noqa: E402
from benchmarks.workers.channel import Spec  # noqa: E402

PER_STEP = 8
# What TRL's fp32 loss and gradients may be off from the plain computation, relatively: its cross-check.
PEER_LIMIT = 1e-4
Steps = dict[str, list[dict[str, Any]]]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("tiny", "small"), default="small")
    parser.add_argument("--method", choices=("lora", "full"), default="lora")
    parser.add_argument("--kind", choices=KINDS, default="dolly", help="lengths of the pairs")
    parser.add_argument(
        "--variants", nargs="+", choices=PAIR_VARIANTS, default=["ours", "trl", "trl-bf16-1", "trl-fp32-1"]
    )
    parser.add_argument("--steps", type=int, default=4, help="counted steps of each variant")
    parser.add_argument("--warmup", type=int, default=1, help="steps of each variant that are not counted")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--peers", default=str(ROOT / "build" / "peers"), help="environment of requirements-peers.txt")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bench", help="models, pairs, logs")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--seconds", type=float, default=420.0, help="after which no further round begins")
    parser.add_argument(
        "--gate",
        choices=("now", "only", "kept"),
        default="now",
        help="only: measure nothing; kept: by --gate only before",
    )
    parser.add_argument("--publish", type=Path, metavar="RESULT", help="measure nothing; write a result's table")
    given = parser.parse_args()
    if given.variants[0] != "ours":
        parser.error("--variants begins with `ours`: the others take its order of the pairs, and are compared with it")
    return given


def build_spec(given: argparse.Namespace, folder: Path, model: Path) -> Spec:
    """What all workers have in common."""
    return Spec(
        model=str(model),
        documents=str(folder / "pairs"),
        scratch=str(folder / "scratch"),
        method=given.method,
        device="cpu",
        per_step=PER_STEP,
        micro_batch=PER_STEP,
        rows_per_step=PER_STEP,
        pack_tokens=2048,
        steps=list(range(given.warmup + given.steps)),
        pairs=True,
    )


def open_gates(given: argparse.Namespace, spec: Spec, made: Sequence[Pair], folder: Path) -> dict[str, Any]:
    """What every kind of variant is off by from the plain computation, before anything is timed.

    Raises:
        WorkerError: a loss or gradient is another one.
    """
    found: dict[str, Any] = {}
    weights = folder / "gate.safetensors"
    own = replace(spec, micro_batch=2, weights=str(weights))
    for name in _by(given, "ours"):
        settings = PAIR_VARIANTS[name].settings
        found[name] = open_gate(own, settings, folder, given.threads, module="benchmarks.preference_gate")["findings"]
        say(f"gate open: {name}: " + "; ".join(_told(finding) for finding in found[name]))
    if _by(given, "trl_dpo"):
        few = replace(
            spec,
            documents=str(gate_pairs(spec, made[:PAIRS])),
            per_step=PAIRS,
            weights=str(weights),
            best=True,
            settings=("bf16=False",),
        )
        peer = _worker("trl-gate", Variant("trl_dpo", PEERS, ""), few, given, folder)
        try:
            told = peer.ready()
        finally:
            peer.stop()
        wanted = float(_metadata(weights)["loss"])
        off = {"loss": abs(told["loss"] - wanted) / wanted, "gradient": told["gradient"]}
        say(f"gate: TRL in fp32: loss {off['loss']:.1e}, gradient {off['gradient']:.1e}")
        if not all(value <= PEER_LIMIT for value in off.values()):
            raise WorkerError(f"TRL computes another loss than ours, so their speeds are not compared: {off}")
        found["trl"] = off
    weights.unlink()
    return found


def gate_of(given: argparse.Namespace, shape: Shape) -> dict[str, Any]:
    """What open_gates() finds on dolly pairs, or has found: a quiet machine need not wait for it.

    Raises:
        WorkerError: the gate is to be kept, and what it was opened for is not this commit's, or another variant is asked for,
            or the tree has changes that nobody can tell from others.
    """
    folder = given.work / f"preference-{given.model}-{given.method}-gate"
    path, commit = folder / "gate.json", plot.commit()
    if given.gate == "kept":
        kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        needed = [*_by(given, "ours"), *(["trl"] if _by(given, "trl_dpo") else [])]
        if "+" in commit or kept.get("commit") != commit or not kept["findings"].keys() >= {*needed}:
            raise WorkerError(f"{path} has no gate of {commit} for {' '.join(needed)}: open it with --gate only")
        return dict(kept["findings"])
    made = pairs("dolly", PER_STEP, vocabulary=shape.vocabulary)
    save_pairs(folder / "pairs", made)
    spec = build_spec(given, folder, save_model(given.work / "models" / given.model, shape))
    found = open_gates(given, spec, made, folder)
    path.write_text(json.dumps({"commit": commit, "findings": found}), encoding="utf-8")
    return found


def _told(finding: Mapping[str, Any]) -> str:
    return (
        f"{finding['precision']} loss {finding['loss']:.1e}, gradient {finding['gradient']:.1e}, worst tensor "
        f"{finding['worst']:.1e}, references within {finding['reference']:.1e} nats"
    )


def _by(given: argparse.Namespace, worker: str) -> list[str]:
    """The variants of a worker."""
    return [name for name in given.variants if PAIR_VARIANTS[name].worker == worker]


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        return dict(file.metadata())


def _worker(name: str, variant: Variant, spec: Spec, given: argparse.Namespace, folder: Path) -> Worker:
    python = interpreters([variant], {PEERS: given.peers})[variant.environment]
    return Worker(name, variant, spec, python=python, folder=folder, threads=given.threads)


def measure(given: argparse.Namespace, spec: Spec, folder: Path) -> tuple[Steps, dict[str, Any], dict[str, Any]]:
    """(steps, versions, what the references took) of all variants, stepped in turn over the same pairs."""
    workers: dict[str, Worker] = {}
    versions, references = {}, {}
    order: Sequence[Sequence[int]] = ()
    try:
        for name in given.variants:
            variant = PAIR_VARIANTS[name]
            own = replace(
                spec,
                scratch=f"{spec.scratch}-{name}",
                best=variant.best,
                settings=variant.settings,
                micro_batch=variant.micro_batch or PER_STEP,
                order=order,
            )
            workers[name] = _worker(name, variant, own, given, folder)
            told = workers[name].ready()
            versions[name], references[name] = told["versions"], told["reference"]
            order = order or told["order"]
            if told.get("order", order) != order:
                raise WorkerError(f"{name} has other pairs in its steps")
            say(f"ready: {name} ({variant.label}), references {told['reference']['wall']:.1f} s")
        rounds = run_rounds(workers, warmup=given.warmup, counted=given.steps, say=say, until=given.until)
        return rounds, versions, references
    finally:
        for worker in workers.values():
            worker.stop()


def summarise(steps: Steps, *, threads: int, cores: int) -> dict[str, dict[str, Any]]:
    """The table's row of every variant, from all its steps; those of the warm-up count for memory alone."""
    peaks = {name: max(step["peak_bytes"] for step in obtained) for name, obtained in steps.items()}
    counted = {name: [step for step in obtained if not step["warmup"]] for name, obtained in steps.items()}
    rows = {}
    for name, obtained in counted.items():
        rows[name] = {
            "steps": len(obtained),
            "tokens_per_second": ratios.spread([ratios.speed(step, "wall") for step in obtained]),
            "tokens_per_cpu_second": ratios.spread([ratios.speed(step, "cpu") for step in obtained]),
            "slots_per_token": sum(step["slots"] for step in obtained) / sum(step["tokens"] for step in obtained),
            "peak_bytes": peaks[name],
            "stretch": statistics.median(ratios.stretch(step, threads) for step in obtained),
            "contaminated_steps": sum(ratios.contaminated(step, threads, cores) for step in obtained),
            "ours_is_faster_wall": ratios.paired_ratios(counted["ours"], obtained, "wall"),
            "ours_is_faster_cpu": ratios.paired_ratios(counted["ours"], obtained, "cpu"),
            "ours_memory_ratio": peaks["ours"] / peaks[name],
        }
    return rows


def say(text: str) -> None:
    """A line with the time; speeds are not among them until the end."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def table(result: Mapping[str, Any]) -> str:
    """One row a variant."""
    hardware, shown = result["hardware"], result["pairs"]
    lines = [
        f"{result['model']} model, {result['method']}, {result['kind']} pairs (mean {shown['mean_tokens']:.0f} tokens of both "
        f"conversations, {shown['prompt_share']:.0%} of them a prompt that is there twice), {result['threads']} threads, "
        f"{hardware['cpu']}; {min(row['steps'] for row in result['summary'].values())} counted rounds of {PER_STEP} pairs, "
        f"medians; {result['date'][:10]}, commit {result['commit'][:8]}.",
        "",
        "| variant | tokens of pairs/s (min - max) | ours is faster by (min - max) | the same by CPU time | positions computed "
        "a token | peak memory | memory, ours / peer | references, once |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in result["summary"].items():
        speed, wall, cpu = row["tokens_per_second"], row["ours_is_faster_wall"], row["ours_is_faster_cpu"]
        mark = " *" if row["contaminated_steps"] else ""
        compared = (
            "1 | 1"
            if name == "ours"
            else f"{wall['median']:.2f}x ({wall['min']:.2f} - {wall['max']:.2f}) | {cpu['median']:.2f}x"
        )
        taken = result["references"][name]["wall"]
        once = f"{taken:.1f} s" if taken else "every step"
        lines.append(
            f"| {result['labels'][name]} | {speed['median']:.0f} ({speed['min']:.0f} - {speed['max']:.0f}){mark} | {compared} "
            f"| {row['slots_per_token']:.2f} | {row['peak_bytes'] / 2**20:.0f} MiB | {row['ours_memory_ratio']:.2f} | {once} |"
        )
    return "\n".join([*lines, *plot.contamination(result)])


def publish(result: Mapping[str, Any]) -> Path:
    """Writes the table between its marks in docs/performance.md."""
    plot.put(plot.PAGE, f"preference-{result['model']}-{result['method']}-{result['kind']}", table(result))
    return plot.PAGE


def benchmark(given: argparse.Namespace) -> dict[str, Any]:
    """The whole run: pairs, gate, rounds."""
    shape = SHAPES[given.model]
    folder = given.work / f"preference-{given.model}-{given.method}-{given.kind}"
    made = pairs(given.kind, PER_STEP * (given.warmup + given.steps), vocabulary=shape.vocabulary)
    save_pairs(folder / "pairs", made)
    # A cache of the run's own: references that an earlier run has left would take no time.
    os.environ["AIFT_CACHE"] = str(folder / f"cache-{os.getpid()}")
    spec = build_spec(given, folder, save_model(given.work / "models" / given.model, shape))
    load = os.getloadavg()
    gates = gate_of(given, shape)
    if given.gate == "only":
        raise SystemExit(0)
    steps, versions, references = measure(given, spec, folder)
    where = circumstances("cpu", load)
    tokens = sum(pair.tokens for pair in made)
    return {
        "model": given.model,
        "method": given.method,
        "kind": given.kind,
        "threads": given.threads,
        **where,
        "versions": versions,
        "pairs": {
            "count": len(made),
            "per_step": PER_STEP,
            "mean_tokens": tokens / len(made),
            "prompt_share": sum(len(pair.prompt) for pair in made) / tokens,
        },
        "gate": gates,
        "references": references,
        "summary": summarise(steps, threads=given.threads, cores=where["hardware"]["cores"]),
        "labels": {name: PAIR_VARIANTS[name].label for name in given.variants},
        "steps": steps,
    }


def main() -> None:
    """Runs, prints the table, writes the JSON."""
    given = arguments()
    if given.publish:
        print(publish(json.loads(given.publish.read_text(encoding="utf-8"))))
        return
    given.until = time.monotonic() + given.seconds
    interpreters((PAIR_VARIANTS[name] for name in given.variants), {PEERS: given.peers})
    try:
        result = benchmark(given)
    except WorkerError as error:
        raise SystemExit(str(error)) from error
    path = given.out / f"preference_{result['date'][:10]}_{given.model}-{given.method}-{given.kind}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1), encoding="utf-8")
    print(table(result))
    say(f"wrote {path}")


if __name__ == "__main__":
    main()
