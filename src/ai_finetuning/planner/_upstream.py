"""Private names of torch, and transformers' view of fake tensors, that the planner needs: looked through at every upgrade."""

from __future__ import annotations

import contextlib
import importlib
import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

# What an operation on fake tensors raises where its result, or its shape, depends on data.
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

if TYPE_CHECKING:

    class DispatchMode:
        """What sees every operation inside a block; torch's class has no types."""

        def __enter__(self) -> Any:
            """The block begins."""

        def __exit__(self, *error: Any) -> Any:
            """The block ends."""
else:
    # torch 2.10 to 2.13: torch's notes on extending it import the class from here; there is no public path.
    from torch.utils import _python_dispatch

    DispatchMode = _python_dispatch.TorchDispatchMode

NEEDS_DATA: tuple[type[Exception], ...] = (DataDependentOutputException, DynamicOutputShapeException)


@contextlib.contextmanager
def tensors_without_data() -> Iterator[None]:
    """A mode in which every tensor has a shape, a dtype and a device, and no bytes.

    torch 2.10 to 2.13: `torch._subclasses.fake_tensor.FakeTensorMode`, which torch.compile and torch.export work with;
    torch's notes on fake tensors import it from there, and no public name is announced. Its log tells of every operation
    that fails without data; whoever simulates says so itself.
    """
    log = logging.getLogger(FakeTensorMode.__module__)
    was, log.disabled = log.disabled, True
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield
    finally:
        log.disabled = was


@contextlib.contextmanager
def resizes_reported(report: Callable[[torch.UntypedStorage], None]) -> Iterator[None]:
    """Calls `report` with every storage that is resized inside the block.

    torch 2.10 to 2.13: FSDP2 frees and takes its buffers by `UntypedStorage.resize_`, which no dispatch mode sees;
    torch's own memory tracker puts its function in the same place.
    """
    original = torch.UntypedStorage.resize_

    def resize(storage: torch.UntypedStorage, size: int) -> Any:
        done = original(storage, size)
        report(storage)
        return done

    torch.UntypedStorage.resize_ = resize  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        torch.UntypedStorage.resize_ = original  # type: ignore[method-assign]


@contextlib.contextmanager
def masks_as_with_data() -> Iterator[None]:
    """Lets transformers leave a mask out for tensors without data as it does for others, where nothing is masked.

    transformers 5.3 to 5.23: `masking_utils.is_tracing`, by which it makes every mask for fake tensors, as it must not
    read them. There is no setting.
    """
    from transformers import masking_utils as module

    masking_utils: Any = module
    original = getattr(masking_utils, "is_tracing", None)
    if original is None:
        yield
        return
    masking_utils.is_tracing = lambda tensor=None: False
    try:
        yield
    finally:
        masking_utils.is_tracing = original


# What torch keeps of the groups of a process, by name of an attribute of its `_world`.
_GROUPS = ("pg_map", "pg_names", "pg_group_ranks", "pg_backend_config", "tags_to_pg", "pg_to_tag", "pg_coalesce_state")


@contextlib.contextmanager
def _groups_aside() -> Iterator[None]:
    """Inside, the process has no groups; those that it had are there again, untouched, behind the block.

    torch 2.10 to 2.13: `torch.distributed.distributed_c10d._world`, in whose place torch's tests put another one for
    groups of threads, and the table of names of its C++ side, by which functional collectives find a group. Nothing public
    lets a process have two default groups.
    """
    if not dist.is_initialized():
        yield
        return
    c10d: Any = importlib.import_module("torch.distributed.distributed_c10d")
    world = c10d._world
    kept = {name: dict(getattr(world, name)) for name in _GROUPS}
    default, count = world.default_pg, world.group_count
    _forget_groups(c10d)
    try:
        yield
    finally:
        _forget_groups(c10d)
        for name, held in kept.items():
            getattr(world, name).update(held)
        c10d._update_default_pg(default)
        world.group_count = count
        for group, name in kept["pg_names"].items():
            c10d._register_process_group(name, group)


def _forget_groups(c10d: Any) -> None:
    c10d._unregister_all_process_groups()
    for name in _GROUPS:
        getattr(c10d._world, name).clear()
    c10d._update_default_pg(None)
    c10d._world.group_count = 0


@contextlib.contextmanager
def pretended_group(rank: int, size: int) -> Iterator[None]:
    """A process group of `size` processes in this one, as the process of a rank sees it; what it receives is what is there.

    torch 2.10 to 2.13: the backend "fake", which lies among torch's testing tools, and their meta implementations of
    collectives in `torch.distributed._tools`, with which torch's own notes estimate memory. One process needs none.
    Groups that the process has meanwhile wait (_groups_aside).
    """
    with _groups_aside():
        if size == 1:
            yield
            return
        with _pretended(rank, size):
            yield


@contextlib.contextmanager
def _pretended(rank: int, size: int) -> Iterator[None]:
    importlib.import_module("torch.distributed._tools.fake_collectives")
    store: Any = importlib.import_module("torch.testing._internal.distributed.fake_pg").FakeStore()
    dist.init_process_group("fake", store=store, rank=rank, world_size=size)
    try:
        yield
    finally:
        dist.destroy_process_group()
