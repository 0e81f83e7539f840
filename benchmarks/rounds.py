"""One process per variant, stepped in turn: A B C A B C."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import plot
from benchmarks.variants import OWN, Variant
from benchmarks.workers.channel import Spec

ROOT = Path(__file__).resolve().parents[1]


class WorkerError(Exception):
    """A variant's process ended or wrote something else than its protocol."""


def environment(threads: int, device: str, root: Path = ROOT) -> dict[str, str]:
    """A worker's environment: its threads, no network, the device and no other; code from `root`."""
    settings = {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
        "DISABLE_VERSION_CHECK": "1",
        "AIFT_LANG": "en",
        "PYTHONPATH": str(root / "src"),
        "PYTHONUTF8": "1",
        "PYTHONWARNINGS": "ignore",
    }
    # One GPU at most: transformers' Trainer would spread every batch over all of them.
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    settings["CUDA_VISIBLE_DEVICES"] = "" if device == "cpu" else first
    return os.environ | settings


class Worker:
    """A variant's process; built on construction, at its first step once ready() returns.

    Args:
        python: the interpreter of the variant's environment.
        folder: for the spec and the log.
        root: the repository whose code runs.
    """

    def __init__(
        self,
        name: str,
        variant: Variant,
        spec: Spec,
        *,
        python: str,
        folder: Path,
        threads: int,
        root: Path = ROOT,
    ) -> None:
        self.name = name
        self._log = folder / f"{name}.log"
        path = folder / f"{name}.json"
        path.write_text(json.dumps(asdict(spec)), encoding="utf-8")
        with self._log.open("w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                [python, "-m", f"benchmarks.workers.{variant.worker}", str(path)],
                cwd=root,
                stderr=log,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                env=environment(threads, spec.device, root),
            )

    def ready(self) -> dict[str, Any]:
        """What the worker says of itself, once it stands before its first step."""
        return self._read()

    def step(self) -> dict[str, Any]:
        """Lets the worker do one optimizer step; its measurements, and how busy the machine was meanwhile."""
        before = busy_seconds()
        self._write("step")
        measured = self._read()
        after = busy_seconds()
        return measured | {"machine_busy": None if before is None or after is None else after - before}

    def kill(self) -> None:
        """Ends the process whatever it does; who waits for it gets a WorkerError."""
        self._process.kill()

    def stop(self) -> None:
        """Ends the process."""
        if self._process.poll() is None:
            try:
                self._write("stop")
                self._process.wait(timeout=30)
            except (WorkerError, subprocess.TimeoutExpired):
                self._process.kill()
                self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise self._ended() from error

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        return dict(json.loads(line))

    def _ended(self) -> WorkerError:
        tail = "\n".join(self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
        return WorkerError(f"{self.name} ended with exit code {self._process.wait()}; the end of {self._log}:\n{tail}")


def open_gate(
    spec: Spec,
    settings: Sequence[str],
    folder: Path,
    threads: int,
    timeout: float | None = None,
    module: str = "benchmarks.gate",
) -> dict[str, Any]:
    """The gate's findings.

    Args:
        module: the gate.

    Raises:
        WorkerError: the gate stays shut; no speed is a result.
        subprocess.TimeoutExpired: it has not answered in `timeout` seconds.
    """
    path = folder / f"gate-{spec.method}.json"
    path.write_text(json.dumps(asdict(spec) | {"settings": list(settings)}), encoding="utf-8")
    with path.with_suffix(".log").open("w", encoding="utf-8") as log:
        ended = subprocess.run(
            [sys.executable, "-m", module, str(path)],
            cwd=ROOT,
            env=environment(threads, spec.device),
            check=False,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            encoding="utf-8",
            timeout=timeout,
        )
    lines = ended.stdout.splitlines()
    answer = (
        json.loads(lines[-1]) if lines else {"error": f"exit code {ended.returncode}, see {path.with_suffix('.log')}"}
    )
    if "findings" not in answer:
        raise WorkerError(f"The gate stays shut, so no speed is measured: {answer['error']}")
    return dict(answer)


def busy_seconds() -> float | None:
    """CPU seconds that all processes (and stolen time) have taken since boot; None outside Linux."""
    try:
        line = Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0]
    except OSError:
        return None
    user, nice, system, _idle, _wait, irq, softirq, steal = map(int, line.split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def machine(device: str) -> dict[str, Any]:
    """The hardware."""
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.split(":", 1)[1].strip() for line in info if line.startswith("model name")]
    facts: dict[str, Any] = {"cpu": names[0] if names else platform.processor(), "cores": len(os.sched_getaffinity(0))}
    memory = Path("/proc/meminfo").read_text(encoding="utf-8").split()[1]
    facts |= {
        "memory_gib": round(int(memory) / 2**20, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
    }
    if device == "cuda":
        import torch

        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def circumstances(device: str, load: Sequence[float]) -> dict[str, Any]:
    """When a result was made, of which commit, on what, and beside how much else; `load` is the one before."""
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": plot.commit(),
        "hardware": machine(device),
        "load": {"before": load, "after": os.getloadavg()},
    }


def interpreters(variants: Iterable[Variant], folders: Mapping[str, str]) -> dict[str, str]:
    """The Python of every environment.

    Args:
        folders: of the peers' environments, by their names.

    Raises:
        SystemExit: one that the variants need is not there, saying how to make it.
    """
    obtained = {OWN: sys.executable} | {name: f"{folder}/bin/python" for name, folder in folders.items()}
    for name in {variant.environment for variant in variants}:
        if not Path(obtained[name]).is_file():
            raise SystemExit(
                f"{obtained[name]} does not exist; `make bench-peers-setup` makes the peers' environments."
            )
    return obtained


def run_rounds(
    workers: Mapping[str, Worker], *, warmup: int, counted: int, say: Any, until: float | None = None
) -> dict[str, list[dict[str, Any]]]:
    """All steps of all workers, one at a time and in turn; the first `warmup` steps of each are marked.

    Args:
        until: of time.monotonic(); once there is a counted round, none begins that would likely end later.
    """
    steps: dict[str, list[dict[str, Any]]] = {name: [] for name in workers}
    for turn in range(warmup + counted):
        spent = sum(obtained[-1]["wall"] for obtained in steps.values()) if turn else 0.0
        if until is not None and turn > warmup and time.monotonic() + spent > until:
            break
        for name, worker in workers.items():
            steps[name].append(worker.step() | {"round": turn, "warmup": turn < warmup})
        last = "  ".join(f"{name} {obtained[-1]['wall']:.1f}s" for name, obtained in steps.items())
        say(f"{'warm-up' if turn < warmup else 'round'} {turn + 1}/{warmup + counted}: {last}")
    return steps
