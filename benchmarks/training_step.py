"""Speed and memory of a training step against other ways to train (protocol:
docs/performance.md).

python benchmarks/training_step.py --quick                         # ours against a plain loop, a minute
python benchmarks/training_step.py --model small --method lora     # against all peers
python benchmarks/training_step.py --device cuda                   # on a GPU, 1b and 8b, every method, under ten minutes
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# As a script this file's folder would stand where the repository has to.
sys.path[0] = str(ROOT)

from benchmarks import corpus, plot, ratios  # noqa: E402
from benchmarks.inputs import save_documents, save_model  # noqa: E402
from benchmarks.own import PRECISIONS  # noqa: E402
from benchmarks.rounds import (  # noqa: E402
    Worker,
    WorkerError,
    circumstances,
    environment,
    interpreters,
    open_gate,
    run_rounds,
)
from benchmarks.shapes import SHAPES, flops_per_token  # noqa: E402
from benchmarks.variants import FACTORY, GPU_ONLY, ON_GPU, PEERS, QUICK, STUDIES, VARIANTS  # noqa: E402
from benchmarks.variants import groups as variant_groups  # noqa: E402
from benchmarks.workers.channel import Spec  # noqa: E402

# A packed row holds as many tokens as this many documents of mean length: then all variants step over equally many
# documents.
DOCUMENTS_A_ROW = 8
# Processes at a time that 24 GB hold (one that waits keeps most of its peak), and rows of a padded micro-batch: eight
# rows of 1024 tokens take transformers' Trainer 10 GB, and would take it twice that with 100k words.
TOGETHER, TOGETHER_BIG = 3, 2
MICRO_BATCH, MICRO_BATCH_BIG = 8, 4


METHODS = ("lora", "full", "qlora")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny model, ours against the plain loop")
    parser.add_argument("--model", choices=SHAPES, help="default: small; with --device cuda 1b and 8b")
    parser.add_argument("--method", choices=METHODS, help="default: lora; with --device cuda all three")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=PRECISIONS, default="bf16", help="what everybody computes in on a CPU")
    parser.add_argument(
        "--former", type=Path, metavar="DIR", help="a checkout of an earlier commit, for variant `former`"
    )
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=None)
    parser.add_argument("--steps", type=int, default=10, help="counted steps of each variant")
    parser.add_argument("--warmup", type=int, default=2, help="steps of each variant that are not counted")
    parser.add_argument(
        "--documents-per-step", type=int, default=DOCUMENTS_A_ROW, help=f"a multiple of {DOCUMENTS_A_ROW}"
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--together", type=int, help="most processes at a time (default: what 24 GB hold)")
    parser.add_argument("--peers", default=str(ROOT / "build" / "peers"), help="environment of requirements-peers.txt")
    parser.add_argument(
        "--peers-lf", default=str(ROOT / "build" / "peers-lf"), help="environment of requirements-llamafactory.txt"
    )
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bench", help="models, documents, logs")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="the result's file (default: a name of its own in --out)"
    )
    parser.add_argument(
        "--plot", action="store_true", help="also write the picture and the table of docs/performance.md"
    )
    given = parser.parse_args()
    if given.device == "cuda":
        return _on_gpu(parser, given)
    given.model, given.method = "tiny" if given.quick else given.model or "small", given.method or "lora"
    given.variants = given.variants or list(
        QUICK if given.quick else (name for name in VARIANTS if name not in (*STUDIES, *GPU_ONLY))
    )
    if only := [name for name in given.variants if name in GPU_ONLY]:
        parser.error(f"--variants {' '.join(only)} needs --device cuda")
    if given.documents_per_step % DOCUMENTS_A_ROW or given.documents_per_step < DOCUMENTS_A_ROW:
        parser.error(f"--documents-per-step {given.documents_per_step} is not a multiple of {DOCUMENTS_A_ROW}")
    if given.together is None:
        given.together = TOGETHER_BIG if given.model == "big" else TOGETHER
    if given.together < 2:
        parser.error(f"--together {given.together} leaves no room for a peer beside ours")
    if "ours" not in given.variants:
        parser.error("--variants needs `ours`: everything is compared with it")
    if ("former" in given.variants) != (given.former is not None):
        parser.error("--former DIR and the variant `former` belong together")
    return given


def _on_gpu(parser: argparse.ArgumentParser, given: argparse.Namespace) -> argparse.Namespace:
    """The command line with a GPU: models and methods, of which each may be narrowed to one."""
    if given.quick or given.plot:
        parser.error("--quick and --plot are for --device cpu; --device cuda takes under ten minutes and writes a JSON")
    if given.precision != "bf16" or given.former is not None:
        parser.error("--precision and --former are for --device cpu; --device cuda measures this commit in bf16")
    given.models = [given.model] if given.model else ["1b", "8b"]
    given.methods = [given.method] if given.method else list(METHODS)
    given.variants = given.variants or list(ON_GPU)
    if given.model not in (None, "1b", "8b"):
        parser.error(f"--model {given.model} is for --device cpu; --device cuda measures 1b and 8b")
    if only := [name for name in given.variants if name not in ON_GPU]:
        parser.error(f"--variants {' '.join(only)} is for --device cpu; --device cuda measures {', '.join(ON_GPU)}")
    if "ours" not in given.variants:
        parser.error("--variants needs `ours`: everything is compared with it")
    return given


def build_spec(given: argparse.Namespace, folder: Path, model: Path, documents: Sequence[corpus.Document]) -> Spec:
    """What all workers have in common."""
    mean = sum(map(len, documents)) / len(documents)
    per_step = given.documents_per_step
    tokens = -(-round(DOCUMENTS_A_ROW * mean) // 8) * 8
    return Spec(
        model=str(model),
        documents=str(folder / "documents"),
        scratch=str(folder / "scratch"),
        method=given.method,
        device=given.device,
        per_step=per_step,
        micro_batch=MICRO_BATCH_BIG if given.model == "big" else MICRO_BATCH,
        rows_per_step=per_step // DOCUMENTS_A_ROW,
        pack_tokens=tokens,
        steps=corpus.picked_steps(len(documents) // per_step, warmup=given.warmup, counted=given.steps),
        precision=given.precision,
    )


def ceiling(given: argparse.Namespace, spec: Spec, share: float) -> dict[str, float]:
    """GFLOP/s at the shapes of a step, measured in a process of its own with the run's threads."""
    code = (
        "import json, sys; from benchmarks.shapes import SHAPES, matmul_ceiling; "
        "model, tokens, device, share, precision = sys.argv[1:]; "
        "print(json.dumps(matmul_ceiling(SHAPES[model], tokens=int(tokens), device=device, label_share=float(share), "
        "precision=precision)))"
    )
    tokens = str(spec.pack_tokens * spec.rows_per_step)
    ended = subprocess.run(
        [sys.executable, "-c", code, given.model, tokens, given.device, str(share), given.precision],
        cwd=ROOT,
        check=True,
        env=environment(given.threads, given.device),
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    return dict(json.loads(ended.stdout.splitlines()[-1]))


Steps = dict[str, list[dict[str, Any]]]


def measure(
    given: argparse.Namespace, spec: Spec, folder: Path, python: Mapping[str, str], names: Sequence[str]
) -> tuple[Steps, dict[str, Any]]:
    """(raw steps, versions) of variants that are stepped in turn."""
    workers: dict[str, Worker] = {}
    versions = {}
    try:
        for name in names:
            variant = VARIANTS[name]
            # An earlier commit may not know `precision`; the settings that it stands for are as old as the benchmark.
            settings = (*PRECISIONS[given.precision], *variant.settings) if variant.former else variant.settings
            own = replace(spec, scratch=f"{spec.scratch}-{name}", best=variant.best, settings=settings)
            workers[name] = Worker(
                name,
                variant,
                own,
                python=python[variant.environment],
                folder=folder,
                threads=given.threads,
                root=given.former.resolve() if variant.former else ROOT,
            )
            versions[name] = workers[name].ready()["versions"]
            say(f"ready: {name} ({variant.label})")
        return run_rounds(workers, warmup=given.warmup, counted=given.steps, say=say), versions
    finally:
        for worker in workers.values():
            worker.stop()


def say(text: str) -> None:
    """A line with the time; speeds are not among them until the end."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def benchmark(given: argparse.Namespace) -> dict[str, Any]:
    """The whole run: inputs, gate, ceiling, rounds, ceiling."""
    python = interpreters((VARIANTS[name] for name in given.variants), {PEERS: given.peers, FACTORY: given.peers_lf})
    shape = SHAPES[given.model]
    kind = "" if given.precision == "bf16" else f"-{given.precision}"
    folder = given.work / f"{given.model}-{given.method}-{given.device}{kind}"
    count = max(corpus.MIN_DOCUMENTS, given.documents_per_step * (given.warmup + given.steps))
    count = -(-count // given.documents_per_step) * given.documents_per_step
    documents = corpus.shuffled(
        corpus.documents(count, vocabulary=shape.vocabulary),
        per_step=given.documents_per_step,
        counted=given.steps,
        warmup=given.warmup,
    )
    save_documents(folder / "documents", documents)
    model = save_model(
        given.work / "models" / f"{given.model}{kind}", shape, device=given.device, precision=given.precision
    )
    spec = build_spec(given, folder, model, documents)
    share, mean_length = corpus.label_share(documents), corpus.token_mean_length(documents)
    load = os.getloadavg()
    gates = {}
    for name in given.variants:
        if VARIANTS[name].worker == "ours" and not VARIANTS[name].former:
            gates[name] = open_gate(spec, VARIANTS[name].settings, folder, given.threads)["findings"]
            say(
                f"gate open: {name}: "
                + "; ".join(
                    f"{g['precision']} loss {g['loss']:.1e}, gradient {g['gradient']:.1e}, leak {g['leak']:.1e}"
                    for g in gates[name]
                )
            )
    before = ceiling(given, spec, share)
    groups, versions = [], {}
    for names in variant_groups(given.variants, together=given.together):
        steps, used = measure(given, spec, folder, python, names)
        groups.append(steps)
        versions |= used
    after = ceiling(given, spec, share)
    best = max(*before.values(), *after.values())
    flops = flops_per_token(shape, given.method, label_share=share, mean_length=mean_length)
    counted = [
        {name: [step for step in obtained if not step["warmup"]] for name, obtained in steps.items()}
        for steps in groups
    ]
    made = circumstances(given.device, load)
    return {
        "model": given.model,
        "method": given.method,
        "precision": given.precision,
        "device": given.device,
        "threads": given.threads,
        **made,
        "versions": versions,
        "documents": {
            "count": count,
            "per_step": given.documents_per_step,
            "label_share": share,
            "token_mean_length": mean_length,
            "pack_tokens": spec.pack_tokens,
        },
        "gate": gates,
        "ceiling_gflops": {"before": before, "after": after, "used": best},
        "flops_per_token": flops,
        "limit_tokens_per_second": best * 1e9 / flops,
        "summary": ratios.summarise(
            counted,
            base="ours",
            flops=flops,
            ceiling=best * 1e9,
            threads=given.threads,
            cores=made["hardware"]["cores"],
            device=given.device,
        ),
        "labels": {name: VARIANTS[name].label for name in given.variants},
        "groups": groups,
    }


def main() -> None:
    """Runs, prints the table, writes the JSON."""
    given = arguments()
    if given.device == "cuda":
        from benchmarks.gpu_run import benchmark as on_gpu

        sys.exit(on_gpu(given, say))
    try:
        result = benchmark(given)
    except WorkerError as error:
        raise SystemExit(str(error)) from error
    kind = "" if given.precision == "bf16" else f"-{given.precision}"
    name = f"{result['date'][:10]}_{given.model}-{given.method}-{given.device}{kind}-{given.threads}t" + (
        "_quick" if given.quick else ""
    )
    path = given.json or given.out / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1), encoding="utf-8")
    print(plot.table(result))
    say(f"wrote {path}")
    if given.plot:
        for written in plot.publish(path):
            say(f"wrote {written}")


if __name__ == "__main__":
    main()
