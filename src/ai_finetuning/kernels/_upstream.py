"""Private names of torch that the kernels need: looked through at every upgrade."""

from __future__ import annotations

import torch


def graph_is_kept() -> bool:
    """Whether the backward pass that is running keeps its graph, because another one over the same graph follows.

    torch 2.10 to 2.13: `torch._C._autograd._get_current_graph_task_keep_graph`, which torch's own compiled
    functions ask as well. No version announces a public name; outside of a backward pass there is no answer.
    """
    return bool(torch._C._autograd._get_current_graph_task_keep_graph())
