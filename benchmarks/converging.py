"""200 steps with every path of the training step, several seeds: does a path learn what the plain one learns?

python benchmarks/converging.py            # about 45 minutes on one core
python benchmarks/converging.py --publish benchmarks/results/RESULT.json

Every run is `aift train` in a process of its own. Runs of one seed see the same rows in the same order from the same
weights, so that they differ by arithmetic alone; runs of two seeds say how much the order of the rows changes. LoRA
trains without dropout, because the paths draw their masks in different orders.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from benchmarks import plot  # noqa: E402

PAGE = ROOT / "docs" / "converging.md"
# Variant -> (what it is called, its settings, the path that must have run).
VARIANTS = {
    "plain": ("plain, bf16", ("kernels=plain", "precision=bf16"), "plain"),
    "fused": ("fused, bf16", ("kernels=auto", "precision=bf16"), "fused"),
    "portable": ("portable, bf16", ("kernels=portable", "precision=bf16"), "portable"),
    "fp32": ("plain, fp32", ("kernels=plain", "precision=fp32"), "plain"),
}
# The rates of `aift demo --full`.
METHODS = {
    "full": ("learning_rate=1e-3",),
    "lora": ("learning_rate=3e-3", "lora.r=64", "lora.lora_alpha=64", "lora.lora_dropout=0"),
}
SEEDS = tuple(range(1, 11))
STEPS, EVERY = 200, 50
ROWS, TOKENS = 2, 128
# A packed row holds other documents for every seed: single steps are compared as means of this many.
WINDOW = 20

Run = dict[str, Any]


def train(method: str, variant: str, seed: int, steps: int, out: Path) -> Run:
    """One run's losses; a run that has ended in this folder is not repeated.

    Raises:
        SystemExit: the run failed, or took another path than the one it stands for.
    """
    obtained = losses(out / "metrics.jsonl")
    if len(obtained["loss"]) < steps or str(steps) not in obtained["held_out"]:
        shutil.rmtree(out, ignore_errors=True)
        _train(method, variant, seed, steps, out)
        obtained = losses(out / "metrics.jsonl")
    return {"method": method, "variant": variant, "seed": seed} | obtained


def losses(path: Path) -> Run:
    """Every step's training loss, and the evaluation losses by step."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    return {
        "loss": [row["loss"] for row in rows if "loss" in row],
        "held_out": {str(row["step"]): row["eval_loss"] for row in rows if "eval_loss" in row},
    }


def _train(method: str, variant: str, seed: int, steps: int, out: Path) -> None:
    _, settings, expected = VARIANTS[variant]
    arguments = [
        f"method={method}",
        "model=embedded:kotoha-tiny",
        "data.train=embedded:kotoha-qa",
        "data.eval=embedded:kotoha-qa/held_out_phrasings",
        "data.packing=true",
        f"data.max_length={TOKENS}",
        f"training.batch_size={ROWS}",
        "training.gradient_accumulation_steps=1",
        f"training.schedule.max_steps={steps}",
        f"training.eval_steps={min(EVERY, steps)}",
        "training.save_steps=100000",
        "training.runtime.progress=false",
        f"training.runtime.seed={seed}",
        f"training.output_dir={out}",
        *METHODS[method],
        *(f"training.runtime.{setting}" for setting in settings),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1", "AIFT_LANG": "en"}
    done = subprocess.run(
        [sys.executable, "-m", "ai_finetuning", "train", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    logged = done.stdout + done.stderr
    if done.returncode != 0 or f"training step: {expected}" not in logged:
        raise SystemExit(f"{method}, {variant}, seed {seed}: no run on the {expected} path\n{logged[-2000:]}")


def smooth(loss: Sequence[float]) -> list[float]:
    """Means of WINDOW consecutive steps."""
    return [statistics.fmean(loss[at : at + WINDOW]) for at in range(0, len(loss) - WINDOW + 1, WINDOW)]


def apart(one: Run, other: Run) -> dict[str, float]:
    """Two runs' distance in nats a token: RMS over the smoothed training curve and over the evaluations, and the
    signed difference at the end.
    """
    eval_data = [one["held_out"][step] - other["held_out"][step] for step in one["held_out"]]
    return {"curve": _rms(_gaps(one, other)), "held_out": _rms(eval_data), "end": eval_data[-1]}


def _gaps(one: Run, other: Run) -> list[float]:
    return [a - b for a, b in zip(smooth(one["loss"]), smooth(other["loss"]), strict=True)]


def _rms(gaps: Sequence[float]) -> float:
    return math.sqrt(statistics.fmean(gap * gap for gap in gaps))


def compare(runs: Sequence[Run]) -> dict[str, Any]:
    """Per method: each path against the plain one seed by seed, the plain one between seeds, and whether the first
    is the smaller.
    """
    obtained: dict[str, Any] = {}
    for method in dict.fromkeys(run["method"] for run in runs):
        of = {(run["variant"], run["seed"]): run for run in runs if run["method"] == method}
        seeds = sorted({seed for _, seed in of})
        between = [apart(of["plain", one], of["plain", other]) for one, other in itertools.combinations(seeds, 2)]
        spread = {key: [abs(item[key]) for item in between] for key in ("curve", "held_out", "end")}
        paths = {}
        for variant in VARIANTS:
            if variant == "plain":
                continue
            gaps = [apart(of[variant, seed], of["plain", seed]) for seed in seeds if (variant, seed) in of]
            found_here = {key: [item[key] for item in gaps] for key in ("curve", "held_out", "end")}
            near = all(
                statistics.fmean(found_here[key]) < statistics.fmean(spread[key]) for key in ("curve", "held_out")
            )
            bias, error = mean_of(found_here["end"])
            paths[variant] = found_here | {"within_noise": near and abs(bias) < 2 * error}
        obtained[method] = {"between_seeds": spread, "paths": paths}
    return obtained


def mean_of(gaps: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error; what a path does wrongly in every run stays in the mean, what is chance falls
    with more seeds.
    """
    return statistics.fmean(gaps), statistics.stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else math.inf


def table(result: dict[str, Any]) -> str:
    """One row a method and path; the noise between seeds beside it."""
    lines = [
        f"{result['steps']} steps of {ROWS} packed rows of {TOKENS} tokens, seeds "
        f"{', '.join(map(str, result['seeds']))}, one thread; nats a token; "
        f"{result['date'][:10]}, commit {result['commit'][:8]}.",
        "",
        (
            "| method | compared with plain bf16, same seed | training loss apart, RMS: mean (max) | evaluation loss "
            "apart, RMS: mean (max) | held-out at the end: mean difference ± standard error | within the noise |"
        ),
        "|---|---|---|---|---|---|",
    ]
    for method, obtained in result["comparison"].items():
        for variant, gaps in obtained["paths"].items():
            signed = "{:+.4f} ± {:.4f}".format(*mean_of(gaps["end"]))
            logged = "yes" if gaps["within_noise"] else "**no**"
            lines.append(
                f"| {method} | {VARIANTS[variant][0]} | {_of(gaps['curve'])} | {_of(gaps['held_out'])} | {signed} "
                f"| {logged} |"
            )
        spread = obtained["between_seeds"]
        lines.append(
            f"| {method} | *the noise: plain, another seed* | *{_of(spread['curve'])}* | "
            f"*{_of(spread['held_out'])}* | *{statistics.fmean(spread['end']):.4f} apart* | |"
        )
    ends = {
        method: [
            run["held_out"][str(result["steps"])]
            for run in result["runs"]
            if run["method"] == method and run["variant"] == "plain"
        ]
        for method in result["comparison"]
    }
    logged = "; ".join(f"{method} {min(values):.3f} - {max(values):.3f}" for method, values in ends.items())
    return "\n".join([*lines, "", f"Held-out loss of the plain path at the end: {logged}."])


def _of(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.4f} ({max(values):.4f})"


def picture(result: dict[str, Any], path: Path) -> Path:
    """Above the smoothed curves, below each path's distance from the plain one beside the distance between seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    methods = list(result["comparison"])
    figure, axes = pyplot.subplots(2, len(methods), figsize=(11, 7), sharex=True, squeeze=False, layout="constrained")
    colours = {"plain": "#8d99ae", "fused": "#c8553d", "portable": "#2a6f97", "fp32": "#3a3a3a"}
    for column, method in enumerate(methods):
        runs = {(run["variant"], run["seed"]): run for run in result["runs"] if run["method"] == method}
        above, below = axes[0][column], axes[1][column]
        first = result["seeds"][0]
        steps = [WINDOW * (at + 1) for at in range(result["steps"] // WINDOW)]
        for (variant, seed), run in runs.items():
            name = VARIANTS[variant][0] if seed == first else None
            above.plot(steps, smooth(run["loss"]), color=colours[variant], lw=0.6, label=name)
            if variant != "plain":
                below.plot(
                    steps,
                    [abs(gap) for gap in _gaps(run, runs["plain", seed])],
                    color=colours[variant],
                    lw=0.6,
                    label=name,
                )
        for one, other in itertools.combinations(result["seeds"], 2):
            name = "plain, another seed" if (one, other) == tuple(result["seeds"][:2]) else None
            below.plot(
                steps,
                [abs(gap) for gap in _gaps(runs["plain", one], runs["plain", other])],
                color="#8d99ae",
                ls="--",
                lw=0.4,
                label=name,
            )
        above.set(title=f"{method}", ylabel="training loss, nats a token")
        below.set(xlabel="step", ylabel="distance from plain, same seed", yscale="log")
        above.legend(fontsize=8)
        below.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path


def publish(path: Path) -> None:
    """Writes the picture, and the table into docs/converging.md."""
    result = json.loads(path.read_text(encoding="utf-8"))
    result["comparison"] = compare(result["runs"])
    image = picture(result, PAGE.parent / "images" / "converging.png")
    plot.put(PAGE, "converging", f"{table(result)}\n\n![Loss curves and distances](images/{image.name})")


def main() -> None:
    """Trains, compares, writes the JSON and the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build" / "converging", help="the runs; ended ones are taken up"
    )
    parser.add_argument("--publish", type=Path, metavar="RESULT", help="only write the page from a result")
    given = parser.parse_args()
    if given.publish is not None:
        publish(given.publish)
        return
    runs, spent = [], time.time()
    for method, seed, variant in itertools.product(METHODS, given.seeds, VARIANTS):
        runs.append(train(method, variant, seed, given.steps, given.work / f"{method}-{seed}-{variant}"))
        ended = list(runs[-1]["held_out"].values())[-1]
        print(f"{time.time() - spent:6.0f} s  {method} seed {seed} {variant}: held-out {ended:.4f}", flush=True)
    result = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": plot.commit(),
        "steps": given.steps,
        "seeds": given.seeds,
        "comparison": compare(runs),
        "runs": runs,
    }
    path = given.out / f"{result['date'][:10]}_converging-cpu.json"
    path.write_text(json.dumps(result) + "\n", encoding="utf-8")
    print(table(result))
    publish(path)


if __name__ == "__main__":
    main()
