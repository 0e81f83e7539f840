"""aift train"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from ...errors import localized
from ...messages import argument, printable
from .japanese import Command

if TYPE_CHECKING:
    from ...config.run import RunConfig
    from ...models.source import ModelSource


class _WithSettings(Command):
    """`aift train --help` ends with every setting; they are read only then."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        from ...config.describe import table

        with formatter.section(
            localized("設定（YAML のキー、または key=value）", "Settings (keys of the YAML, or key=value)")
        ):
            formatter.write_dl([(f"{key} [{default}]", text) for key, default, text in table()])


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command(
        "train",
        cls=_WithSettings,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
        help=localized(
            "学習します。例: aift train run.yaml training.learning_rate=1e-4 ／ aift train model=PATH method=lora "
            "data.train=FILE",
            "Trains. Examples: aift train run.yaml training.learning_rate=1e-4, aift train model=PATH method=lora "
            "data.train=FILE",
        ),
    )(train)


def train(
    context: typer.Context,
    dry_run: bool = typer.Option(
        False,
        "--dry-run",
        help=localized("計画だけを表示し、何も書き込みません。", "Print the plan and write nothing."),
    ),
    gpus: int = typer.Option(
        0, "--gpus", min=0, help=localized("使う GPU の数（既定は全部）。", "GPUs to use (default: all of them).")
    ),
    cpu_processes: int = typer.Option(
        0,
        "--cpu-processes",
        min=0,
        help=localized(
            "GPU なしで試す CPU プロセスの数。", "number of CPU processes, for trying strategies without GPUs."
        ),
    ),
) -> None:
    """Trains as a YAML and overrides say."""
    from ...config.load import load_config

    arguments = list(context.args)
    path = arguments.pop(0) if arguments and not arguments[0].startswith("-") and "=" not in arguments[0] else None
    config = load_config(path, arguments)
    source = _check(config, path)
    if gpus or cpu_processes:
        from ...execution.request import with_processes

        config = with_processes(config, gpus=gpus, cpu_processes=cpu_processes)
    device = "cpu" if cpu_processes else None
    if dry_run:
        _show_plan(config, device, source)
        return
    from ...trainers.from_config import run_training

    result = run_training(config, device, source)
    print(localized("次のステップ:", "next steps:"))
    print(f"  aift chat {argument(result.folder)}")
    if not config.trains_all:
        print(f"  aift merge {argument(result.folder)} --out {argument(f'{result.folder}-merged')}")


def _check(config: RunConfig, path: str | None) -> ModelSource:
    """Refuses what the settings alone rule out, before anything heavy is imported; where the base is."""
    from ...errors import ConfigError
    from ...execution.sources import config_source
    from ...execution.validate import find_base, validate_config, validate_data
    from ...messages import notice

    if config.data.train is None:
        raise ConfigError(
            "data.train がありません。学習データのファイルを data.train=FILE で指定してください。",
            "data.train is missing; name the training data with data.train=FILE.",
        )
    validate_config(config)
    validate_data(config_source(config.data.train), config_source(config.data.eval))
    notice(
        f"{path or '設定'} を確認しました（method: {config.method}、model: {config.model.name}）。準備しています。",
        f"{path or 'the settings'}: method {config.method}, model {config.model.name}; getting ready.",
    )
    return find_base(config)


def _show_plan(config: RunConfig, device: str | None, source: ModelSource) -> None:
    from rich.console import Console
    from rich.table import Table

    from ...execution.reporting import samples_line
    from ...export.gguf import find_converter
    from ...export.gguf_tokenizer import assess
    from ...trainers.from_config import plan_training

    plan = plan_training(config, device, source)
    # Told before training, when another model can still be chosen.
    architecture = "LlamaForCausalLM" if config.method == "pretrain" else plan.source.architecture
    gguf = assess(plan.tokenizer, architecture, find_converter(lenient=True))
    for line in (*plan.data.lines, str(samples_line(plan)), f"GGUF: {gguf}"):
        print(printable(line))
    table = Table(show_header=False, title=localized("計画（何も書き込みません）", "Plan (nothing is written)"))
    for label, value in plan.summary.table():
        table.add_row(label, printable(str(value)))
    Console(width=None if Console().is_terminal else 160).print(table)
