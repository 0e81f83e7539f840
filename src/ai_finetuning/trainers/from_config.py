"""From a configuration to a trained model, or to its plan: what `aift train` does."""

from __future__ import annotations

from dataclasses import replace

from ..config.run import RunConfig
from ..config.section import with_values
from ..errors import Reason
from ..execution.execute import execute
from ..execution.pilot import try_steps
from ..execution.request import request_of
from ..execution.resolve import RunPlan, resolve
from ..execution.result import Result
from ..execution.resume import describe, is_done
from ..execution.settle import settled
from ..models.source import ModelSource
from ..planner.gpus import Gpus


def run_training(
    config: RunConfig, device: str | None = None, source: ModelSource | None = None, *, exact: bool = False
) -> Result:
    """Trains as the configuration says.

    Args:
        exact: simulate the memory of a step before the run, and compare it with the second step.

    Raises:
        ToolkitError: with the reason and the way out.
    """
    return execute(replace(request_of(config, device, source), exact_plan=exact))


def plan_training(
    config: RunConfig,
    device: str | None = None,
    source: ModelSource | None = None,
    *,
    pilot: bool = False,
    elsewhere: Gpus | None = None,
    exact: bool = False,
) -> RunPlan:
    """The plan of the run that the configuration describes; nothing is written.

    Args:
        pilot: take a few real steps and put their speed and memory into the plan.
        elsewhere: GPUs to plan for that are not here; then the model's weights need not be here either.
        exact: simulate the memory of a step also where the formula leaves more than half of the free memory.

    Raises:
        ToolkitError: what run_training would refuse before it loads weights, or with a pilot in its first steps.
    """
    request = request_of(config, device, source)
    without_cache = with_values(config, data=with_values(config.data, cache=False))
    plan = resolve(replace(request, config=without_cache, elsewhere=elsewhere, exact_plan=exact))
    if exact or plan.summary.is_tight:
        plan = settled(plan)
    return try_steps(plan) if pilot else plan


def where_it_goes_on(plan: RunPlan) -> Reason | None:
    """From which step the run of a plan goes on; None for a new run.

    Raises:
        ConfigError: it differs from the run to resume.
    """
    if plan.resume is None:
        return None
    allowed = plan.request.config.training.checkpoint.allow_changed
    done = is_done(plan.resume, plan.fingerprint, allowed=allowed)
    return describe(plan.resume, done=done, total_steps=plan.summary.total_steps)
