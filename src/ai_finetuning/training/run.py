"""From a RunConfig to a trained model: what `aift train` does."""

from __future__ import annotations

from ..config.run import RunConfig
from ..config.section import typed
from ..models.japanese_model import JapaneseModel
from ..models.loading import DTYPES
from ..models.scratch import ScratchModel
from ..notices import notice
from ..planner.plan import Plan
from .assemble import Job, Result, plan_job, run_job
from .sources import config_source


def job_of(config: RunConfig) -> Job:
    """The job that a configuration describes; nothing is loaded."""
    if "name" not in typed(config.model):
        notice(
            f"model の指定がないので、内蔵の {config.model.name} を使います（実用には model=ID かフォルダーを指定してください）。",
            f"no model is named: using the small {config.model.name} that ships (for real work name one with model=ID_OR_FOLDER).",
        )
    train, held_out = config_source(config.data.train), config_source(config.data.eval)
    if config.method == "pretrain":
        scratch = ScratchModel(
            config.model.name, config.model.architecture, torch_dtype=DTYPES.get(config.model.dtype),
            attention=config.model.attention, chat_template=config.model.chat_template, seed=config.training.runtime.seed,
        )  # fmt: skip
        return Job(scratch, config, train, held_out)
    model = JapaneseModel(
        config.model.name,
        torch_dtype=DTYPES.get(config.model.dtype),
        attention=config.model.attention,
        chat_template=config.model.chat_template,
        trust_remote_code=config.model.trust_remote_code,
    )
    return Job(model, config, train, held_out)


def run_training(config: RunConfig) -> Result:
    """Trains as the configuration says.

    Raises:
        ToolkitError: with the reason and the way out.
    """
    return run_job(job_of(config))


def plan_training(config: RunConfig) -> tuple[Plan, list[str]]:
    """The resolved plan and the lines about the data; writes nothing.

    Raises:
        ToolkitError: what run_training would refuse before it loads weights.
    """
    return plan_job(job_of(config))
