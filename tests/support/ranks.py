"""Runs a function on forked gloo ranks; every wait has a time limit."""

from __future__ import annotations

import os
import queue
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from . import failed_verdicts
from .patience import patience

LIMIT_SECONDS = 120.0


def run_ranks(
    world: int, function: Callable[..., Any], *args: Any, folder: Path, limit: float = LIMIT_SECONDS
) -> list[Any]:
    """What function(rank, *args) returned on each of `world` forked processes of one gloo group, by rank.

    Args:
        folder: an empty place for the FileStore.
        limit: seconds of a quiet machine.

    Raises:
        AssertionError: with the trace of the first rank that failed, or the ranks that gave no answer in time.
    """
    context = mp.get_context("fork")
    answers = context.Queue()
    store = folder / f"store-{time.monotonic_ns()}"
    workers = [
        context.Process(target=_rank, args=(rank, world, store, answers, function, args), daemon=True)
        for rank in range(world)
    ]
    for worker in workers:
        worker.start()
    results: dict[int, Any] = {}
    end = time.monotonic() + patience(limit)
    try:
        while len(results) < world:
            try:
                rank, value, trace, verdicts = answers.get(timeout=max(0.1, min(1.0, end - time.monotonic())))
            except queue.Empty:
                dead = [number for number, worker in enumerate(workers) if number not in results and worker.exitcode]
                assert not dead, f"ranks {dead} died: {[workers[number].exitcode for number in dead]}"
                assert time.monotonic() < end, f"no answer from ranks {sorted(set(range(world)) - results.keys())}"
                continue
            assert trace is None, f"rank {rank}:\n{trace}"
            results[rank] = value
            failed_verdicts.FOUND.extend(verdicts)
    finally:
        for worker in workers:
            worker.join(timeout=patience(5) if len(results) == world else 0.1)
            if worker.is_alive():
                worker.kill()
    return [results[rank] for rank in range(world)]


def _rank(rank: int, world: int, store: Path, answers: Any, function: Callable[..., Any], args: tuple) -> None:
    import torch.distributed as dist

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world)}
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=timedelta(seconds=patience(60))
        )
        value = function(rank, *args)
        answers.put((rank, value, None, failed_verdicts.FOUND))
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        answers.put((rank, None, traceback.format_exc(), []))
    answers.close()
    answers.join_thread()
    os._exit(0)
