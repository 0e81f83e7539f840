"""From a RunConfig to a trained model: what `aift train` does."""

from __future__ import annotations

import torch

from ..config.run import RunConfig
from ..config.section import explicitly_set, with_values
from ..errors import ConfigError
from ..models import hub
from ..models.japanese_model import JapaneseModel
from ..models.loading import DTYPES, read_config
from ..models.scratch import ScratchModel
from ..notices import notice
from ..planner.plan import Plan
from .assemble import Result, plan_job, run_job
from .export.gguf import find_converter
from .export.gguf_tokenizer import judge
from .preparation import Job
from .sources import config_source


def with_processes(config: RunConfig, *, gpus: int, cpu_processes: int) -> RunConfig:
    """The configuration for so many processes of this machine.

    Raises:
        ConfigError: more GPUs than there are, or both kinds.
    """
    there = torch.cuda.device_count()
    if gpus and cpu_processes:
        raise ConfigError(
            "--gpus と --cpu-processes は同時に使えません。どちらか一方にしてください。",
            "--gpus and --cpu-processes cannot be used together; give one of them.",
        )
    if gpus > there:
        raise ConfigError(
            f"--gpus が {gpus} ですが、GPU は {there} 個です。GPU なしで試すには --cpu-processes {gpus} を使ってください。",
            f"--gpus is {gpus}, but there are {there} GPUs; to try without GPUs use --cpu-processes {gpus}.",
        )
    return with_values(config, parallel=with_values(config.parallel, processes=gpus or cpu_processes))


def job_of(config: RunConfig, device: str | None = None) -> Job:
    """The job that a configuration describes; nothing is loaded."""
    place = torch.device(device) if device is not None else None
    if "name" not in explicitly_set(config.model):
        notice(
            f"model の指定がないので、内蔵の {config.model.name} を使います（実用には model=ID かフォルダーを指定してください）。",
            f"no model is named: using the small {config.model.name} that ships (for real work name one with "
            "model=ID_OR_FOLDER).",
        )
    train, held_out = config_source(config.data.train), config_source(config.data.eval)
    if config.method == "pretrain":
        scratch = ScratchModel(
            config.model.name,
            config.model.architecture,
            torch_dtype=DTYPES.get(config.model.dtype),
            attention=config.model.attention,
            chat_template=config.model.chat_template,
            device=place,
            seed=config.training.runtime.seed,
        )
        return Job(scratch, config, train, held_out)
    model = JapaneseModel(
        config.model.name,
        device=place,
        torch_dtype=DTYPES.get(config.model.dtype),
        attention=config.model.attention,
        chat_template=config.model.chat_template,
        trust_remote_code=config.model.trust_remote_code,
    )
    return Job(model, config, train, held_out)


def run_training(config: RunConfig, device: str | None = None) -> Result:
    """Trains as the configuration says.

    Raises:
        ToolkitError: with the reason and the way out.
    """
    return run_job(job_of(config, device))


def plan_training(config: RunConfig, device: str | None = None) -> tuple[Plan, list[str]]:
    """The resolved plan and the lines about the data; writes nothing.

    Raises:
        ToolkitError: what run_training would refuse before it loads weights.
    """
    job = job_of(config, device)
    plan, lines = plan_job(job)
    return plan, [*lines, _gguf_outlook(job)]


def _gguf_outlook(job: Job) -> str:
    """Whether the trained model will be convertible to GGUF: told before training, when another model can still be
    chosen.
    """
    architecture = "LlamaForCausalLM"
    if not isinstance(job.model, ScratchModel):
        architecture = (read_config(hub.locate(job.model.model_name)).get("architectures") or ["?"])[0]
    return f"GGUF: {judge(job.model.ensure_tokenizer(), architecture, find_converter(lenient=True))}"
