"""The whole comparison on a GPU in one command under ten minutes (`training_step.py --device cuda`; protocol:
docs/performance.md).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ai_finetuning.planner.gpus import card_named
from benchmarks import corpus, gpu_cells, plot
from benchmarks.gpu_cells import DOCUMENTS_A_ROW, Cell, Interpreter, LeftOut
from benchmarks.inputs import save_documents
from benchmarks.ratios import spread
from benchmarks.rounds import ROOT, Worker, WorkerError, environment, machine, open_gate
from benchmarks.shapes import SHAPES, flops_per_token
from benchmarks.variants import FACTORY, PEERS, VARIANTS
from benchmarks.workers.channel import Spec

# EX_UNAVAILABLE: what the command needs is not there.
UNAVAILABLE = 69
# Seconds: of the whole, which leaves some of ten minutes for what overruns; that models or the gate may take; a group's
# at least, most of which its processes take to begin; and that a group may overrun before its processes are ended.
BUDGET, PREPARING, LEAST, GRACE = 540.0, 150.0, 60.0, 15.0

# Where everything computes; tests rehearse the command with a CPU in its place.
DEVICE = "cuda"
# What a WorkerError says of a process that was ended.
KILLED = "exit code -9"

Steps = dict[str, list[dict[str, Any]]]
Say = Callable[[str], None]


@dataclass
class Measured:
    """Of one group or cell: raw steps by group, versions by variant, and why a variant has no steps or ended early."""

    groups: list[Steps] = field(default_factory=list)
    versions: dict[str, Any] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def probe() -> dict[str, Any]:
    """What torch says of the machine, and on a GPU how fast its products are; for a process of its own, so that the
    driver takes no memory of the GPU.
    """
    import torch

    if not torch.cuda.is_available():
        return {"cuda": False, "torch": torch.__version__}
    from ai_finetuning.execution.self_check.facts import facts
    from ai_finetuning.execution.self_check.speed import products

    device = torch.device("cuda", 0)
    found = facts(device)
    return found | {"cuda": True, "tflops": products(device) if found["sixteen_bit"] == "bfloat16" else {}}


def _ask(code: str, *arguments: str, threads: int, timeout: float) -> dict[str, Any]:
    """The JSON that a process of our own prints last; `error` where it does not."""
    try:
        ended = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=ROOT,
            env=environment(threads, DEVICE),
            check=False,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {timeout:.0f} s"}
    lines = ended.stdout.splitlines()
    if ended.returncode or not lines:
        errors = ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"]
        return {"error": errors[-1]}
    return dict(json.loads(lines[-1]))


def find(threads: int) -> dict[str, Any]:
    """probe() of a process of its own."""
    code = "import json; from benchmarks.gpu_run import probe; print(json.dumps(probe()))"
    return _ask(code, threads=threads, timeout=120)


def make_model(model: str, folder: Path, threads: int) -> str | None:
    """Random weights, made on the GPU in a process of its own; why not, where they cannot be."""
    code = (
        "import sys; from pathlib import Path; from benchmarks.inputs import save_random_shards; "
        "from benchmarks.shapes import SHAPES; "
        "save_random_shards(Path(sys.argv[2]), SHAPES[sys.argv[1]], device=sys.argv[3]); print('{}')"
    )
    error = _ask(code, model, str(folder), DEVICE, threads=threads, timeout=PREPARING).get("error")
    return None if error is None else str(error)


def open_gates(given: argparse.Namespace, methods: Sequence[str]) -> dict[str, Any]:
    """Findings of the gate on the tiny shape by method, `error` where it stays shut."""
    from benchmarks.inputs import save_model

    folder = given.work / "cuda" / "gate"
    documents = corpus.documents(64, vocabulary=SHAPES["tiny"].vocabulary)
    documents = corpus.shuffled(documents, per_step=8, warmup=1, counted=1)
    save_documents(folder / "documents", documents)
    model = save_model(given.work / "models" / "tiny", SHAPES["tiny"])
    obtained = {}
    for method in methods:
        spec = replace(_spec(given, folder, model, method), steps=[0])
        try:
            obtained[method] = open_gate(spec, (), folder, given.threads, timeout=PREPARING / len(methods))
        except (WorkerError, subprocess.TimeoutExpired) as error:
            obtained[method] = {"error": str(error)}
    return obtained


def _spec(given: argparse.Namespace, folder: Path, model: Path, method: str, rows: int = 1) -> Spec:
    """What the workers of a cell have in common."""
    per_step = DOCUMENTS_A_ROW * rows
    count = _count(given, rows)
    return Spec(
        model=str(model),
        documents=str(folder / "documents"),
        scratch=str(folder / "scratch"),
        method=method,
        device=DEVICE,
        per_step=per_step,
        micro_batch=rows,
        rows_per_step=rows,
        pack_tokens=gpu_cells.row_tokens(),
        steps=corpus.picked_steps(count // per_step, warmup=given.warmup, counted=given.steps),
    )


def _count(given: argparse.Namespace, rows: int) -> int:
    """Documents of an epoch: whole steps, enough of them, and as many as stand for the lengths."""
    per_step = DOCUMENTS_A_ROW * rows
    return -(-max(corpus.MIN_DOCUMENTS, per_step * (given.warmup + given.steps)) // per_step) * per_step


def run_group(
    workers: dict[str, Worker], *, warmup: int, counted: int, until: float, failed: dict[str, str], say: Say
) -> Steps:
    """All steps of all workers in turn, as many as the time allows (one counted step is always tried); a worker that
    ends drops out with its reason.
    """
    steps: Steps = {name: [] for name in workers}
    for turn in range(warmup + counted):
        if turn > warmup and time.monotonic() > until:
            break
        for name in [item for item in workers if item not in failed]:
            try:
                steps[name].append(workers[name].step() | {"round": turn, "warmup": turn < warmup})
            except WorkerError as error:
                failed[name] = str(error)
        last = "  ".join(f"{name} {obtained[-1]['wall']:.2f}s" for name, obtained in steps.items() if obtained)
        say(f"{'warm-up' if turn < warmup else 'round'} {turn + 1}/{warmup + counted}: {last}")
    return steps


def measure_group(
    given: argparse.Namespace,
    specs: Mapping[str, Spec],
    python: Mapping[str, str],
    folder: Path,
    until: float,
    say: Say,
) -> Measured:
    """One group: its processes load at the same time and step in turn."""
    obtained, workers = Measured(), dict[str, Worker]()
    began, late = time.monotonic(), threading.Event()

    def end() -> None:
        late.set()
        for worker in list(workers.values()):
            worker.kill()

    timer = threading.Timer(max(1.0, until - began + GRACE), end)
    timer.daemon = True
    timer.start()
    try:
        for name, spec in specs.items():
            workers[name] = Worker(
                name, VARIANTS[name], spec, python=python[name], folder=folder, threads=given.threads
            )
        for name, worker in workers.items():
            try:
                obtained.versions[name] = worker.ready()["versions"]
                say(f"ready: {name} ({VARIANTS[name].label})")
            except WorkerError as error:
                obtained.failed[name] = str(error)
        obtained.groups = [
            run_group(workers, warmup=given.warmup, counted=given.steps, until=until, failed=obtained.failed, say=say)
        ]
    finally:
        timer.cancel()
        for worker in workers.values():
            worker.stop()
    if late.is_set():
        share = max(1.0, until - began + GRACE)
        for name, reason in obtained.failed.items():
            if KILLED in reason:
                obtained.failed[name] = f"ended after {share:.0f} s, its share of the time"
    return obtained


def measure_cell(
    given: argparse.Namespace, cell: Cell, there: Mapping[str, Sequence[Interpreter]], until: float, say: Say
) -> dict[str, Any]:
    """One cell: its documents, its groups, what each variant reached."""
    folder = given.work / "cuda" / cell.name.replace(" ", "-")
    shape = SHAPES[cell.model]
    documents = corpus.shuffled(
        corpus.documents(_count(given, cell.rows), vocabulary=shape.vocabulary),
        per_step=DOCUMENTS_A_ROW * cell.rows,
        counted=given.steps,
        warmup=given.warmup,
    )
    save_documents(folder / "documents", documents)
    common = _spec(given, folder, given.work / "models" / cell.model, cell.method, cell.rows)
    common = replace(common, checkpointing=cell.checkpointing)
    specs, python = {}, {}
    for name in cell.variants:
        variant = VARIANTS[name]
        found = gpu_cells.choose(variant, there[variant.environment], cell.method)
        assert isinstance(found, Interpreter)
        kernels = [item for item in variant.kernels if item in found.packages]
        python[name] = found.python
        specs[name] = replace(common, scratch=f"{common.scratch}-{name}", best=variant.best, kernels=kernels)
    whole = Measured()
    for number, names in enumerate(cell.groups):
        left = until - time.monotonic()
        if number and left < LEAST / 2:
            reason = f"{max(0.0, left):.0f} s of its cell's time were left"
            whole.failed |= {name: reason for name in names if name != "ours" or cell.together == 1}
            continue
        end = time.monotonic() + left / (len(cell.groups) - number)
        part = measure_group(given, {name: specs[name] for name in names}, python, folder, end, say)
        whole.groups += part.groups
        whole.versions |= part.versions
        whole.failed |= part.failed
    share, length = corpus.label_share(documents), corpus.token_mean_length(documents)
    return {
        **asdict(cell),
        "row_tokens": common.pack_tokens,
        "documents_a_step": common.per_step,
        "kernels": {name: spec.kernels for name, spec in specs.items()},
        "label_share": share,
        "token_mean_length": length,
        "flops_per_token": flops_per_token(shape, cell.method, label_share=share, mean_length=length),
        "versions": whole.versions,
        "failed": whole.failed,
        "groups": whole.groups,
    }


def summarise(cell: Mapping[str, Any], *, table: float | None, measured: float | None) -> dict[str, dict[str, Any]]:
    """What every variant with counted steps reached.

    Args:
        cell: measure_cell()'s.
        table, measured: peaks in 10^12 operations a second, of the table of GPUs and of the products measured.
    """
    counted = [
        {name: [step for step in steps if not step["warmup"]] for name, steps in group.items()}
        for group in cell["groups"]
    ]
    rows = {}
    for name in cell["variants"]:
        steps = [step for group in counted for step in group.get(name, [])]
        if not steps:
            continue
        speed = spread([step["tokens"] / step["wall"] for step in steps])
        flops = cell["flops_per_token"]
        rows[name] = {
            "steps": len(steps),
            "tokens_per_second": speed,
            "mfu_of_table": gpu_cells.mfu(speed["median"], flops, table),
            "mfu_of_measured": gpu_cells.mfu(speed["median"], flops, measured),
            "useful_slots": sum(step["tokens"] for step in steps) / sum(step["slots"] for step in steps),
            "allocated_bytes": max(step["device_peak_bytes"] or step["peak_bytes"] for step in steps),
            "reserved_bytes": max(step["device_reserved_bytes"] or step["peak_bytes"] for step in steps),
            "ours_is_faster": _faster(counted, name),
        }
    return rows


def _faster(groups: Sequence[Steps], name: str) -> dict[str, Any] | None:
    """How often our speed a variant's is: round by round where both took turns, else by medians; None without ours."""
    ratios = []
    for group in groups:
        ours, other = ({step["round"]: step for step in group.get(item, [])} for item in ("ours", name))
        ratios += [_speed(ours[turn]) / _speed(step) for turn, step in other.items() if turn in ours]
    if ratios:
        return spread(ratios) | {"paired": True}
    medians = [
        statistics.median(map(_speed, steps))
        for item in ("ours", name)
        if (steps := [step for group in groups for step in group.get(item, [])])
    ]
    return {"median": medians[0] / medians[1], "paired": False} if len(medians) == 2 else None


def _speed(step: Mapping[str, Any]) -> float:
    return float(step["tokens"] / step["wall"])


def text(result: Mapping[str, Any]) -> str:
    """The tables, and everything that is not in them with its reason."""
    found = result["gpu"]
    lines = [
        f"{found['device']}, driver {found['driver']}, torch {found['torch']}; {result['date'][:10]}, "
        f"commit {result['commit'][:8]}; {result['seconds']:.0f} s."
    ]
    shut = [f"{method}: {gate['error']}" for method, gate in result["gate"].items() if "error" in gate]
    if shut:
        lines += ["", f"THE GATE IS SHUT, so these speeds are no result: {'; '.join(shut)}"]
    for cell in result["cells"]:
        again = "activations computed again" if cell["checkpointing"] else "no checkpointing"
        lines += [
            "",
            f"**{cell['model']} {cell['method']}**: {cell['rows']} x {cell['row_tokens']} tokens a step, {again}",
            "",
            "| variant | tokens/s (min - max) | MFU of the table | MFU of products measured | allocated | reserved "
            "| ours is faster by |",
            "|---|---|---|---|---|---|---|",
        ]
        for name, row in cell["summary"].items():
            speed, ratio = row["tokens_per_second"], row["ours_is_faster"]
            compared = "-" if ratio is None else f"{ratio['median']:.2f}x" + ("" if ratio["paired"] else ", not paired")
            shares = " | ".join(
                "-" if row[share] is None else f"{row[share]:.1%}" for share in ("mfu_of_table", "mfu_of_measured")
            )
            lines.append(
                f"| {VARIANTS[name].label} | {speed['median']:,.0f} ({speed['min']:,.0f} - {speed['max']:,.0f}) "
                f"| {shares} | {row['allocated_bytes'] / 2**30:.2f} GiB | {row['reserved_bytes'] / 2**30:.2f} GiB "
                f"| {'1' if name == 'ours' else compared} |"
            )
    if result["left_out"]:
        lines += ["", "Left out:", *(f"- {item['what']}: {_last(item['reason'])}" for item in result["left_out"])]
    return "\n".join(lines)


def _last(reason: str) -> str:
    return (reason.strip().splitlines() or [""])[-1]


def _prepare(given: argparse.Namespace, chosen: gpu_cells.Plan) -> tuple[dict[str, Any], list[Cell]]:
    """(the gate's findings, cells whose model is there): models and gate at the same time, nothing is timed yet."""
    models = list(dict.fromkeys(cell.model for cell in chosen.cells))
    methods = ["full"] * any(cell.method == "full" for cell in chosen.cells) + ["lora"]
    with ThreadPoolExecutor() as pool:
        gate = pool.submit(open_gates, given, methods)
        made = {name: pool.submit(make_model, name, given.work / "models" / name, given.threads) for name in models}
        errors = {name: future.result() for name, future in made.items()}
        findings = gate.result()
    for cell in chosen.cells:
        if errors[cell.model] is not None:
            chosen.left_out.append(LeftOut(cell.name, f"its model could not be made: {errors[cell.model]}"))
    return findings, [cell for cell in chosen.cells if errors[cell.model] is None]


def benchmark(given: argparse.Namespace, say: Say) -> int:
    """Measures what the time allows, writes the JSON after every cell, prints the tables; returns the exit code: 69
    without a GPU that can be measured, 1 where the gate is shut or ours has no speed.
    """
    began = time.monotonic()
    found = find(given.threads)
    why = gpu_cells.refusal(found)
    if why is not None:
        print(why, file=sys.stderr)
        return UNAVAILABLE
    given.work.mkdir(parents=True, exist_ok=True)
    there = gpu_cells.interpreters(sys.executable, {PEERS: given.peers, FACTORY: given.peers_lf})
    chosen = gpu_cells.plan(
        [(model, method) for model in given.models for method in given.methods],
        there,
        free_bytes=found["free_bytes"],
        disk_bytes=shutil.disk_usage(given.work).free + _made_bytes(given.work / "models"),
        variants=given.variants,
    )
    say(f"{found['device']}: {', '.join(cell.name for cell in chosen.cells) or 'nothing can be measured'}")
    findings, cells = _prepare(given, chosen)
    card = card_named(found["device"])
    table, measured = None if card is None else card.tflops.get("bf16"), found["tflops"].get("bfloat16")
    result: dict[str, Any] = {
        "device": "cuda",
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": plot.commit(),
        "hardware": machine("cpu"),
        "gpu": found | {"table_tflops": table, "card": None if card is None else card.name},
        "interpreters": {name: [asdict(item) for item in items] for name, items in there.items()},
        "load": os.getloadavg(),
        "budget_seconds": BUDGET,
        "gate": findings,
        "cells": [],
    }
    path = given.json or given.out / f"{result['date'][:10]}_training-step-cuda.json"
    for number, cell in enumerate(cells):
        left = BUDGET - (time.monotonic() - began)
        if left < LEAST:
            chosen.left_out.append(LeftOut(cell.name, f"{left:.0f} s of {BUDGET:.0f} s were left"))
            continue
        share = len(cell.groups) / sum(len(item.groups) for item in cells[number:])
        until = time.monotonic() + min(left, max(LEAST * len(cell.groups), left * share)) - GRACE
        say(f"{cell.name}: {', '.join(cell.variants)}; until {until - began:.0f} s")
        obtained = measure_cell(given, cell, there, until, say)
        obtained["summary"] = summarise(obtained, table=table, measured=measured)
        result["cells"].append(obtained)
        chosen.left_out += [LeftOut(f"{cell.name}: {name}", reason) for name, reason in obtained["failed"].items()]
        _write(path, result, chosen, began)
    _write(path, result, chosen, began)
    print(text(result))
    say(f"wrote {path}")
    shut = any("error" in gate for gate in findings.values())
    return int(shut or not any("ours" in cell["summary"] for cell in result["cells"]))


def _made_bytes(folder: Path) -> int:
    """Bytes of models that an earlier run has left, which need no room again."""
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def _write(path: Path, result: dict[str, Any], chosen: gpu_cells.Plan, began: float) -> None:
    result |= {"seconds": time.monotonic() - began, "left_out": [asdict(item) for item in chosen.left_out]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1), encoding="utf-8")
