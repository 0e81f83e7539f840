"""How much several processes gain: ddp, fsdp and pipeline against one process and against processes that do not
communicate.

python benchmarks/scaling.py --quick                  # a minute
python benchmarks/scaling.py --plot                   # two cores; also writes docs/performance.md's table and picture
python benchmarks/scaling.py --device cuda --model 1b # all GPUs, NCCL
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if not __package__:  # as a script this file's folder would stand where the repository has to
    sys.path[0] = str(ROOT)

from benchmarks import corpus, plot, ratios  # noqa: E402
from benchmarks.rounds import WorkerError, circumstances  # noqa: E402
from benchmarks.shapes import SHAPES  # noqa: E402
from benchmarks.workers.channel import versions  # noqa: E402

# Micro-batches of each process in a turn; "accumulation 4" makes one optimizer step of them, "accumulation 1" four.
MICRO_BATCHES = 4
CLOCKS = ("wall", "cpu")


@dataclass(frozen=True)
class Variant:
    """A set of processes (process_sets.Job.kind) and the micro-batches of a process in an optimizer step."""

    kind: str
    accumulation: int
    label: str

    @property
    def control(self) -> str:
        """The variant that does the same without communication."""
        return f"control-{self.accumulation}"


VARIANTS = {
    "one": Variant("one", MICRO_BATCHES, "one process"),
    "control-1": Variant("control", 1, "no communication, accumulation 1"),
    "ddp-1": Variant("ddp", 1, "ddp, accumulation 1"),
    "control-4": Variant("control", 4, "no communication, accumulation 4"),
    "ddp-4": Variant("ddp", 4, "ddp, accumulation 4"),
    "fsdp-4": Variant("fsdp", 4, "fsdp, accumulation 4"),
    "pipeline": Variant("pipeline", MICRO_BATCHES, "pipeline, 1F1B"),
}
PORTABLE_ONLY = ("fsdp", "pipeline")
Steps = Sequence[Mapping[str, Any]]


def bubble_speedup(stages: int, micro_batches: int) -> float:
    """Times one process that a pipeline without communication and with equal stages reaches: P M / (M + P - 1)
    (arXiv:1811.06965).
    """
    return stages * micro_batches / (micro_batches + stages - 1)


def paired(steps: Steps, base: Steps, clock: str, *, divided_by: float = 1.0) -> dict[str, float]:
    """Quartiles of the speed over the base's, round by round; what disturbs the machine for a while disturbs both
    sides.
    """
    speeds = [
        ratios.speed(dict(ours), clock) / ratios.speed(dict(theirs), clock)
        for ours, theirs in zip(steps, base, strict=True)
    ]
    return ratios.quartiles([speed / divided_by for speed in speeds])


def summarise(obtained: Mapping[str, Steps], *, processes: int, cores: int) -> dict[str, dict[str, Any]]:
    """The table's row of every variant, from its counted turns.

    Args:
        found: turns by name of the variant, `one` and the controls among them.
        processes: of every set but `one`.
    """
    micro_batches = processes * MICRO_BATCHES
    formula = bubble_speedup(processes, micro_batches)
    rows = {}
    for name, steps in obtained.items():
        variant = VARIANTS[name]
        row: dict[str, Any] = {
            "tokens_per_second": ratios.quartiles([ratios.speed(dict(step), "wall") for step in steps]),
            "tokens_per_cpu_second": ratios.quartiles([ratios.speed(dict(step), "cpu") for step in steps]),
            "sent_bytes_per_step": steps[0]["sent"] / steps[0]["steps"],
            "contaminated_turns": sum(ratios.contaminated(dict(step), threads=1, cores=cores) for step in steps),
        }
        for clock in CLOCKS:
            row[f"times_one_{clock}"] = paired(steps, obtained["one"], clock)
            if variant.kind not in ("one", "control"):
                row[f"share_of_control_{clock}"] = paired(steps, obtained[variant.control], clock)
        if variant.kind == "pipeline":
            row["formula"] = formula
            row["share_of_formula"] = paired(steps, obtained["one"], "wall", divided_by=formula)
            # What two processes cannot reach on this machine even without communication is no fault of the schedule.
            row["share_of_formula_by_control"] = paired(
                steps, obtained[variant.control], "wall", divided_by=formula / processes
            )
        rows[name] = row
    return rows


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two short rounds")
    parser.add_argument("--model", choices=SHAPES, default="deep")
    parser.add_argument("--methods", nargs="+", choices=("full", "lora"), default=["full", "lora"])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--processes", type=int, help="default: two, or one for each GPU")
    parser.add_argument(
        "--kernels",
        choices=("portable", "auto"),
        default="portable",
        help=(
            "portable: every variant computes alike; auto: fused blocks where the strategy can (without fsdp and "
            "pipeline)"
        ),
    )
    parser.add_argument("--tokens", type=int, default=1024, help="of a micro-batch")
    parser.add_argument("--rounds", type=int, default=10, help="counted turns of each variant")
    parser.add_argument("--warmup", type=int, default=2, help="turns of each variant that are not counted")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument(
        "--plot", action="store_true", help="also write the picture and the table of docs/performance.md"
    )
    parser.add_argument("--replot", type=Path, help="a result to publish again; nothing is measured")
    given = parser.parse_args()
    if given.quick:
        given.tokens, given.rounds, given.warmup = 256, 2, 1
    return given


def count_processes(given: argparse.Namespace) -> int:
    """Of every set but the one process.

    Raises:
        SystemExit: fewer than two.
    """
    if given.device == "cuda":
        import torch

        visible = torch.cuda.device_count()  # asks the driver library: CUDA must not start before the sets are forked
        obtained = given.processes or visible
        if obtained > visible:
            raise SystemExit(f"--processes {obtained}: {visible} GPUs are visible.")
    else:
        obtained = given.processes or 2
    if obtained < 2:
        raise SystemExit(f"{obtained} process: there is nothing to compare; two GPUs or --processes 2 are needed.")
    return int(obtained)


def measure(
    given: argparse.Namespace, method: str, processes: int, documents: Sequence[corpus.Document]
) -> dict[str, Any]:
    """Turns of all variants of one method, one after the other, round by round."""
    from benchmarks.process_sets import Job, ProcessSet

    chosen = {
        name: variant
        for name, variant in VARIANTS.items()
        if given.kernels == "portable" or variant.kind not in PORTABLE_ONLY
    }
    sets: dict[str, ProcessSet] = {}
    obtained: dict[str, list[dict[str, Any]]] = {name: [] for name in chosen}
    paths = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for kind in dict.fromkeys(variant.kind for variant in chosen.values()):
                job = Job(
                    kind, method, given.model, given.device, given.kernels, processes, given.tokens, MICRO_BATCHES
                )
                sets[kind] = ProcessSet(kind, job, documents, Path(folder))
                paths[kind] = sets[kind].ready()[0]["path"]
            say(f"{method}: all processes are ready ({', '.join(f'{kind} {path}' for kind, path in paths.items())})")
            for turn in range(given.warmup + given.rounds):
                for name, variant in chosen.items():
                    obtained[name].append(sets[variant.kind].turn(turn, variant.accumulation))
                last = "  ".join(f"{name} {steps[-1]['wall']:.1f}s" for name, steps in obtained.items())
                say(
                    f"{method}: {'warm-up' if turn < given.warmup else 'round'} "
                    f"{turn + 1}/{given.warmup + given.rounds}: {last}"
                )
        finally:
            for one in sets.values():
                one.stop()
    return {"paths": paths, "turns": {name: steps[given.warmup :] for name, steps in obtained.items()}}


def say(text: str) -> None:
    """A line with the time."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def benchmark(given: argparse.Namespace) -> dict[str, Any]:
    """The whole run."""
    processes = count_processes(given)
    documents = corpus.documents(vocabulary=SHAPES[given.model].vocabulary)
    load = os.getloadavg()
    raw = {method: measure(given, method, processes, documents) for method in given.methods}
    made = circumstances(given.device, load)  # only now: on GPUs it starts CUDA
    return {
        "model": given.model,
        "device": given.device,
        "processes": processes,
        "threads": 1,
        "kernels": given.kernels,
        "micro_batch_tokens": given.tokens,
        "micro_batches": MICRO_BATCHES,
        "rounds": given.rounds,
        **made,
        "versions": versions(),
        "summary": {
            method: summarise(part["turns"], processes=processes, cores=made["hardware"]["cores"])
            for method, part in raw.items()
        },
        "raw": raw,
    }


def table(result: Mapping[str, Any]) -> str:
    """One table a method; every number with its quartiles."""
    hardware = result["hardware"]
    lines = [
        f"{result['model']} model, {result['processes']} processes of one thread, {result['kernels']} kernels, "
        f"{hardware.get('gpu', hardware['cpu'])}, "
        f"{hardware['cores']} cores; micro-batches of {result['micro_batch_tokens']} tokens, "
        f"{result['micro_batches']} of each process in a turn; "
        f"{result['rounds']} counted rounds, medians (quartiles); torch {result['versions']['torch']}; "
        f"{result['date'][:10]}, commit {result['commit'][:8]}."
    ]
    head = "| | tokens/s | times one process | share of the control | the same, by CPU time | gradients sent a step |"
    for method, rows in result["summary"].items():
        lines += ["", f"**{method}**", "", head, "|" + "---|" * 6]
        for name, row in rows.items():
            mark = " *" if row["contaminated_turns"] else ""
            shares = [_share(row.get(f"share_of_control_{clock}")) for clock in CLOCKS]
            sent = f"{row['sent_bytes_per_step'] / 1e6:.2f} MB" if row["sent_bytes_per_step"] else "-"
            speed = f"{row['tokens_per_second']['median']:,.0f}{mark}"
            lines.append(
                f"| {VARIANTS[name].label} | {speed} | {_times(row['times_one_wall'])} | {shares[0]} | "
                f"{shares[1]} | {sent} |"
            )
        if "pipeline" in rows:
            row = rows["pipeline"]
            lines += [
                "",
                (
                    f"Pipeline's bubble formula: {row['formula']:.2f}x; reached {_share(row['share_of_formula'])} of "
                    f"it, {_share(row['share_of_formula_by_control'])} where one process's speed is taken from the "
                    "control."
                ),
            ]
    if any(row["contaminated_turns"] for rows in result["summary"].values() for row in rows.values()):
        lines += [
            "",
            "\\* other processes took more than 5 % of the machine in some of these turns: not a quiet measurement.",
        ]
    return "\n".join(lines)


def _times(values: Mapping[str, float]) -> str:
    return f"{values['median']:.2f}x ({values['q1']:.2f} - {values['q3']:.2f})"


def _share(values: Mapping[str, float] | None) -> str:
    if values is None:
        return "-"
    return f"{values['median']:.1%} ({values['q1']:.1%} - {values['q3']:.1%})"


def picture(result: Mapping[str, Any], path: Path) -> Path:
    """Times one process as bars with quartiles; dotted lines: as many times as there are processes, and the
    pipeline's formula.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    methods = result["summary"]
    figure = Figure(figsize=(5 * len(methods) + 2, 4), layout="constrained")
    panels = figure.subplots(1, len(methods), sharey=True, squeeze=False)[0]
    for axes, (method, rows) in zip(panels, methods.items(), strict=True):
        names = list(rows)[::-1]
        obtained = [rows[name]["times_one_wall"] for name in names]
        middle = [values["median"] for values in obtained]
        reach = [[v["median"] - v["q1"] for v in obtained], [v["q3"] - v["median"] for v in obtained]]
        colours = ["#8d99ae" if VARIANTS[name].kind in ("one", "control") else "#c8553d" for name in names]
        bars = axes.barh(
            [VARIANTS[name].label for name in names], middle, xerr=reach, color=colours, error_kw={"lw": 0.8}
        )
        axes.bar_label(bars, fmt="%.2f", padding=6)
        axes.axvline(result["processes"], color="black", ls=":", lw=1)
        if "pipeline" in rows:
            place = names.index("pipeline")
            axes.plot([rows["pipeline"]["formula"]] * 2, [place - 0.5, place + 0.5], color="black", ls=":", lw=1)
        axes.margins(x=0.15)
        axes.set(title=method, xlabel="times one process; dotted: ideal")
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(str(path))
    return path


def publish(result: Mapping[str, Any], page: Path = plot.PAGE) -> list[Path]:
    """Writes the picture and puts the tables between the page's marks.

    Raises:
        SystemExit: the page has no such marks.
    """
    key = f"scaling-{result['model']}-{result['device']}-{result['kernels']}"
    image = picture(result, page.parent / "images" / f"{key}.png")
    plot.put(page, key, f"{table(result)}\n\n![Times one process, {key}](images/{image.name})")
    return [image, page]


def main() -> None:
    """Measures, prints the tables, writes the JSON."""
    given = arguments()
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "AIFT_LANG": "en"}
    sys.path.insert(0, str(ROOT / "src"))
    if given.replot:
        for written in publish(json.loads(given.replot.read_text(encoding="utf-8"))):
            say(f"wrote {written}")
        return
    try:
        result = benchmark(given)
    except WorkerError as error:
        raise SystemExit(str(error)) from error
    given.out.mkdir(parents=True, exist_ok=True)
    name = f"{result['date'][:10]}_scaling-{given.model}-{given.device}-{given.kernels}-{result['processes']}p"
    path = given.out / f"{name}{'_quick' if given.quick else ''}.json"
    path.write_text(json.dumps(result, indent=1), encoding="utf-8")
    print(table(result))
    say(f"wrote {path}")
    if given.plot:
        for written in publish(result):
            say(f"wrote {written}")


if __name__ == "__main__":
    main()
