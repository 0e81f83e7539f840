"""A run of the loop on a small model, and what a step costs in messages and in waits for the device."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from ai_finetuning.config.run_folder import CHECKPOINTS, METRICS
from ai_finetuning.data.loader import Loader, evaluation_batches
from ai_finetuning.engine.checkpoint.store import CheckpointStore
from ai_finetuning.engine.optimizer import build_optimizer
from ai_finetuning.engine.state import Evaluation, Run
from ai_finetuning.engine.train_state import TrainState
from ai_finetuning.parallel.processes import all_peers

from .parity import Case, documents, loss_of, model_of

HELD_OUT = 4


def run_of(case: Case, strategy: Any, folder: Path, *, rows: int = 4, steps: int = 4, **settings: Any) -> Run:
    """A run over the documents of a case; held-out documents and a store are there."""
    model = model_of(case).train()
    strategy.prepare(model, loss_of(case, model))
    optimizer = strategy.attach(build_optimizer(strategy.named_parameters(model), learning_rate=1e-3))
    loader = Loader(
        documents(case.rows),
        rows_per_step=rows,
        seed=0,
        packing=case.data != "padded",
        max_length=48,
        group_by_length=False,
        pad_token_id=0,
        share=(strategy.data_rank, strategy.data_size),
    )

    def eval_data(size: int) -> Any:
        return evaluation_batches(documents(HELD_OUT), batch_size=size, pad_token_id=0)

    folder.mkdir(parents=True, exist_ok=True)
    store = CheckpointStore(folder / CHECKPOINTS)
    store.share(all_peers())
    return Run(
        model=model,
        strategy=strategy,
        loader=loader,
        optimizer=optimizer,
        state=TrainState(micro_batch_size=1),
        store=store,
        metrics_path=folder / METRICS if strategy.is_main else None,
        total_steps=steps,
        evaluation=Evaluation(eval_data, None),
        **{"eval_steps": 100, "save_steps": 100, "save_in_background": False} | settings,
    )


class Waits(TorchDispatchMode):
    """Notes what makes the host wait for a device: reads of single numbers, and results whose size the device knows.

    On a CPU nothing waits; what is counted is where a GPU would. Numbers of micro-batches, integers that a pipeline's
    schedule keeps on the host, do not count.
    """

    def __init__(self, events: list[str]) -> None:
        super().__init__()
        self._events = events

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(function)
        number = name.startswith("aten._local_scalar_dense") and args[0].dtype is not torch.int64
        by_mask = name.startswith("aten.index.") and any(i is not None and i.dtype is torch.bool for i in args[1])
        if number or by_mask or name in ("aten.nonzero.default", "aten.masked_select.default", "aten.equal.default"):
            self._events.append("read")
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def watched(strategy: Any) -> Iterator[list[str]]:
    """What happens inside, in order: `agree` (the reduction between hosts), `sum` (of less than nine numbers, between
    devices), `begin` and `end` of forward_backward, `read`.
    """
    events: list[str] = []
    agree, reduce, to_list = strategy.agree, dist.all_reduce, torch.Tensor.tolist
    forward_backward, inside = strategy.forward_backward, [False]

    def agreeing(*args: Any) -> Any:
        events.append("agree")
        inside[0] = True
        try:
            return agree(*args)
        finally:
            inside[0] = False

    def reducing(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if inside[0]:
            events.append("message")
        elif tensor.numel() < 9:
            events.append("sum")
        return reduce(tensor, *args, **kwargs)

    def reading(tensor: torch.Tensor) -> Any:
        if not inside[0]:
            events.append("read")
        return to_list(tensor)

    def stepping(*args: Any) -> Any:
        events.append("begin")
        try:
            return forward_backward(*args)
        finally:
            events.append("end")

    strategy.agree, strategy.forward_backward = agreeing, stepping
    dist.all_reduce, torch.Tensor.tolist = reducing, reading  # type: ignore[method-assign]
    try:
        with Waits(events):
            yield events
    finally:
        del strategy.agree, strategy.forward_backward
        dist.all_reduce, torch.Tensor.tolist = reduce, to_list  # type: ignore[method-assign]
