"""Processes that train one way and take their turn when they are told: what benchmarks/scaling.py interleaves.

A set's processes are forked from the driver, which has imported everything already, and talk to it through pipes. Each
computes with one thread and goes through engine/step.py's own step.
"""

from __future__ import annotations

import contextlib
import os
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ai_finetuning.data.example import Example
from ai_finetuning.data.loader import Loader
from ai_finetuning.engine.checkpoint.store import CheckpointStore
from ai_finetuning.engine.loss import make_document_loss
from ai_finetuning.engine.optimizer import build_optimizer
from ai_finetuning.engine.precision import Precision, resolve_precision
from ai_finetuning.engine.state import Run
from ai_finetuning.engine.step import next_step, train_step
from ai_finetuning.engine.train_state import TrainState
from ai_finetuning.models.adapters import add_lora
from ai_finetuning.models.documents import select_forward_path
from ai_finetuning.parallel.collectives.mesh import Sizes, build_mesh
from ai_finetuning.parallel.processes import backend_for
from ai_finetuning.parallel.strategies.distributed import DataParallel
from ai_finetuning.parallel.strategies.pipeline import Pipeline
from ai_finetuning.parallel.strategies.single import SingleDevice
from ai_finetuning.parallel.strategy import Strategy
from benchmarks.corpus import PAD, Document
from benchmarks.rounds import WorkerError, busy_seconds
from benchmarks.shapes import LORA_ALPHA, LORA_RANK, SHAPES

# A process that hears nothing from the driver for so long ends; the driver gives a turn as long.
LIMIT_SECONDS = 600.0


@dataclass(frozen=True)
class Job:
    """What a set does.

    Attributes:
        kind: `one` process; or `processes` of them as `control` (each alone: the code of ddp without its sum of
            gradients), `ddp`, `fsdp` or `pipeline` (1F1B).
        method: `full` or `lora`.
        model: a name of SHAPES.
        kernels: as training.runtime.kernels.
        tokens: capacity of a packed row; a micro-batch is one row.
        micro_batches: of each process in a turn. A turn has the same rows in every set.
    """

    kind: str
    method: str
    model: str
    device: str
    kernels: str
    processes: int
    tokens: int
    micro_batches: int

    @property
    def size(self) -> int:
        """Processes of this set."""
        return 1 if self.kind == "one" else self.processes


def strategy_of(job: Job, device: torch.device, precision: Precision) -> Strategy:
    """The strategy; the process group is there where the set has several processes."""
    common: dict[str, Any] = {"autocast": precision.autocast, "scaler": precision.scaler}
    if job.kind == "one":
        return SingleDevice(device, **common)
    if job.kind == "pipeline":
        return Pipeline(device, build_mesh(Sizes(pp=job.processes), device.type), **common)
    # Every process of the control is a data-parallel group of its own: the same code, nothing to sum but the norm's one
    # number.
    sizes = Sizes(pp=job.processes) if job.kind == "control" else Sizes(dp=job.processes)
    return DataParallel(device, build_mesh(sizes, device.type), sharded=job.kind == "fsdp", **common)


class Trainee:
    """One process's model, data and strategy.

    Args:
        documents: of all sets.
        scratch: nothing is written there; a run wants a folder.
    """

    def __init__(self, job: Job, rank: int, documents: Sequence[Document], scratch: Path) -> None:
        self._job, self._rank = job, rank
        device = torch.device(job.device, rank) if job.device == "cuda" else torch.device(job.device)
        precision = resolve_precision("auto", fp16=True, device=device)
        strategy = strategy_of(job, device, precision)
        model, base = _model(job, device if job.kind != "pipeline" else torch.device("cpu"))
        kernels = job.kernels if job.kind in ("one", "control", "ddp") else "portable"
        self._path, reason = select_forward_path(base, device, autocast=precision.autocast, kernels=kernels)
        assert self._path is not None, reason
        strategy.prepare(model, make_document_loss(self._path))
        optimizer = build_optimizer(strategy.named_parameters(model), learning_rate=1e-5)
        strategy.attach(optimizer)
        self._path.watch(optimizer)
        self._loaders = {count: self._loader(documents, count) for count in range(1, job.micro_batches + 1)}
        self._run = Run(
            model=model,
            strategy=strategy,
            loader=self._loaders[1],
            optimizer=optimizer,
            state=TrainState(micro_batch_size=1),
            store=CheckpointStore(scratch),
            metrics_path=None,
            total_steps=10**9,
            retry_smaller=False,
            save_in_background=False,
        )

    def _loader(self, documents: Sequence[Document], accumulation: int) -> Loader:
        """Optimizer steps of `accumulation` rows of each process; one process and a pipeline see all of them."""
        job = self._job
        shared = job.kind not in ("one", "pipeline")
        examples = [
            Example(np.array(item.ids[: job.tokens], np.int32), np.array(item.labels[: job.tokens], np.int32))
            for item in documents
        ]
        return Loader(
            examples,
            rows_per_step=job.processes * accumulation,
            seed=0,
            packing=True,
            max_length=job.tokens,
            group_by_length=False,
            pad_token_id=PAD,
            share=(self._rank, job.processes) if shared else (0, 1),
        )

    def facts(self) -> dict[str, Any]:
        """What the results say of this process."""
        assert self._path is not None
        return {"path": self._path.name}

    def turn(self, number: int, accumulation: int) -> dict[str, Any]:
        """Trains on the rows of a turn, in optimizer steps of `accumulation` micro-batches a process.

        Returns:
            `tokens` that this process answers for, `wall` and `cpu` seconds, `steps`, and `sent`: bytes of gradients
                that it put into
            sums.
        """
        run, strategy, job = self._run, self._run.strategy, self._job
        run.loader = loader = self._loaders[accumulation]
        assert isinstance(loader, Loader)
        steps = job.micro_batches // accumulation
        turns = loader.num_rows // (job.processes * job.micro_batches)
        sent = getattr(strategy, "sent_bytes", 0)
        wall, cpu, tokens = time.perf_counter(), time.process_time(), 0
        for step in range(steps):
            run.state.index = number % turns * steps + step
            tokens += train_step(run, next_step(run)[0]).tokens
        if job.device == "cuda":
            torch.cuda.synchronize()
        return {
            "tokens": tokens if self._rank == 0 else 0,  # the step has counted those of all processes
            "steps": steps,
            "wall": time.perf_counter() - wall,
            "cpu": time.process_time() - cpu,
            "sent": getattr(strategy, "sent_bytes", 0) - sent,
        }


def _model(job: Job, device: torch.device) -> tuple[Any, Any]:
    """(what trains, the transformers model in it): random weights, the same in every process."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    full = job.method == "full"
    with device:
        base = AutoModelForCausalLM.from_config(
            SHAPES[job.model].config(), dtype=torch.float32 if full else torch.bfloat16
        )
    base.train()
    if full:
        return base, base
    return add_lora(base, r=LORA_RANK, alpha=LORA_ALPHA, target_modules="all-linear"), base


def _serve(job: Job, rank: int, documents: Sequence[Document], store: Path, pipe: Any) -> None:
    """A process's life: it answers (what is asked, trace of what went wrong)."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(job.size), "LOCAL_RANK": str(rank)}
    try:
        if job.device == "cuda":
            torch.cuda.set_device(rank)
        if job.size > 1:
            dist.init_process_group(
                backend_for(torch.device(job.device)),
                init_method=f"file://{store}",
                rank=rank,
                world_size=job.size,
                timeout=timedelta(seconds=LIMIT_SECONDS),
            )
        trainee = Trainee(job, rank, documents, store.parent)
        pipe.send((trainee.facts(), None))
        while pipe.poll(LIMIT_SECONDS) and (asked := pipe.recv()) is not None:
            pipe.send((trainee.turn(*asked), None))
    except (EOFError, KeyboardInterrupt):
        pass
    except BaseException:
        pipe.send((None, traceback.format_exc()))
    os._exit(0)  # nothing of it is kept; waiting for groups of processes that ended before would only take time


class ProcessSet:
    """The processes of one job, alive until stop().

    Args:
        folder: for the file through which they meet.
    """

    def __init__(self, name: str, job: Job, documents: Sequence[Document], folder: Path) -> None:
        self.name, self.job = name, job
        context = mp.get_context("fork")
        store = folder / f"{name}-{time.monotonic_ns()}"
        self._pipes, self._processes = [], []
        for rank in range(job.size):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(job, rank, documents, store, there), daemon=True)
            process.start()
            there.close()
            self._pipes.append(here)
            self._processes.append(process)

    def ready(self) -> list[dict[str, Any]]:
        """Facts of every process, once all stand before their first turn."""
        return self._answers()

    def turn(self, number: int, accumulation: int) -> dict[str, Any]:
        """One turn of all processes together: tokens and CPU seconds of all, wall seconds until the last was done."""
        before, began = busy_seconds(), time.perf_counter()
        for pipe in self._pipes:
            pipe.send((number, accumulation))
        answers = self._answers()
        wall, after = time.perf_counter() - began, busy_seconds()
        return {
            "wall": wall,
            "cpu": sum(answer["cpu"] for answer in answers),
            "tokens": sum(answer["tokens"] for answer in answers),
            "steps": answers[0]["steps"],
            "sent": answers[0]["sent"],
            "machine_busy": None if before is None or after is None else after - before,
        }

    def _answers(self) -> list[dict[str, Any]]:
        """Every process's answer.

        Raises:
            WorkerError: one that failed, with its trace; one that ended or was silent for too long.
        """
        obtained = []
        for rank, pipe in enumerate(self._pipes):
            try:
                if not pipe.poll(LIMIT_SECONDS):
                    raise WorkerError(f"{self.name}, rank {rank}: no answer within {LIMIT_SECONDS:.0f} s")
                answer, trace = pipe.recv()
            except EOFError as error:
                raise WorkerError(f"{self.name}, rank {rank} ended") from error
            if trace is not None:
                raise WorkerError(f"{self.name}, rank {rank}:\n{trace}")
            obtained.append(answer)
        return obtained

    def stop(self) -> None:
        """Ends the processes."""
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            if process.is_alive():
                with contextlib.suppress(OSError):
                    pipe.send(None)
                process.join(timeout=5)
            if process.is_alive():
                process.kill()
                process.join()
            pipe.close()
