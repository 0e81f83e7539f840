"""aift train"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import typer

from ...errors import UsageError, localized
from ...messages import argument, printable
from .json_out import WritesJson, json_option, write_text

if TYPE_CHECKING:
    from ...config.run import RunConfig
    from ...execution.resolve import RunPlan
    from ...models.source import ModelSource
    from ...planner.gpus import Gpus

TABLE = "table"  # as what a plan is printed; else where its JSON goes
GPUS = typer.Option(
    0, "--gpus", min=0, help=localized("使う GPU の数です（既定は全部）。", "GPUs to use (default: all of them).")
)
CPU_PROCESSES = typer.Option(
    0,
    "--cpu-processes",
    min=0,
    help=localized(
        "GPU なしで試すときの CPU プロセスの数です。", "Number of CPU processes, for trying strategies without GPUs."
    ),
)
PILOT = typer.Option(
    False,
    "--pilot",
    help=localized(
        "計画のために 3 ステップだけ実際に計算し、時間とメモリーを測ります（何も保存しません）。",
        "For a plan: compute three real steps and measure time and memory (nothing is kept).",
    ),
)
GPU = typer.Option(
    None,
    "--gpu",
    metavar="NAMExN",
    help=localized(
        "この PC にない GPU での計画を、公称値の表から計算します（4090x2、a100-80x8 など）。",
        "A plan for GPUs that are not here, computed from a table of their stated figures (4090x2, a100-80x8).",
    ),
)
PLAN_HELP = localized(
    "exact: 学習前に 1 ステップのメモリーをシミュレーションし、2 ステップ目の実際と比べます（auto: メモリーが足りるか怪しいときだけ）。",
    "exact: simulate the memory of a step before training and compare it with the second step (auto: only where memory may "
    "be short).",
)
AS_JSON = json_option("計画", "the plan")
START = typer.Option(
    None,
    "--from",
    metavar="FOLDER",
    help=localized(
        "学習済みのアダプターか実行のフォルダーです。その重みから、新しいデータで学習を続けます。",
        "An adapter's or a run's folder: goes on from its weights with new data.",
    ),
)
REPLAY = typer.Option(
    None,
    "--replay",
    metavar="SHARE FILE",
    help=localized(
        "学習対象トークンのうち SHARE（0.1 など）を以前の学習データ FILE から混ぜます。data.replay={path: FILE, share: SHARE} と同じです。",
        "Takes SHARE (0.1) of the label tokens from FILE, the data of an earlier training; short for "
        "data.replay={path: FILE, share: SHARE}.",
    ),
)
RESTART = typer.Option(
    False,
    "--restart",
    help=localized(
        "再開できるチェックポイントがすべて壊れているとき、最初から学習します。",
        "Start from the beginning where every checkpoint to resume from is damaged.",
    ),
)
ALLOW_CHANGED = typer.Option(
    False,
    "--allow-changed",
    help=localized(
        "データや設定が再開する実行と違っていても続けます（違いは表示します）。",
        "Go on although data or settings differ from the run to resume (the differences are shown).",
    ),
)


class VerbWithSettings(WritesJson):
    """A verb whose `--help` ends with every setting; they are read only then."""

    PIECES: ClassVar[tuple[str, ...]] = ("[run.yaml]", "[key=value ...]")

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """What the usage line lists."""
        return [*super().collect_usage_pieces(ctx), *self.PIECES]

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """The settings."""
        from ...config.describe import table

        with formatter.section(
            localized("設定（YAML のキー、または key=value）", "Settings (keys of the YAML, or key=value)")
        ):
            formatter.write_dl([(f"{key} [{default}]", text) for key, default, text in table()])


class _Train(VerbWithSettings):
    MORE_OPTIONS: ClassVar[tuple[str, ...]] = ("--resume",)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """The options, and one that the parser cannot describe: its value may be left out."""
        super().format_options(ctx, formatter)
        with formatter.section(localized("再開", "Resuming")):
            formatter.write_dl(
                [
                    (
                        localized("--resume [フォルダー]", "--resume [FOLDER]"),
                        localized(
                            "中断した実行を、最新のチェックポイントから続けます。フォルダーだけを書けば、設定もそこから読みます（aift resume と同じ）。",
                            "Go on with an interrupted run from its newest checkpoint. With nothing but a folder the "
                            "settings are read from there too (as aift resume does).",
                        ),
                    )
                ]
            )


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command(
        "train",
        cls=_Train,
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
    gpus: int = GPUS,
    cpu_processes: int = CPU_PROCESSES,
    pilot: bool = PILOT,
    gpu: str | None = GPU,
    planner: str = typer.Option("auto", "--plan", metavar="auto|exact", help=PLAN_HELP),
    json_file: str | None = AS_JSON,
    start: str | None = START,
    replay: tuple[float, str] | None = REPLAY,
    restart: bool = RESTART,
    allow_changed: bool = ALLOW_CHANGED,
) -> None:
    """Trains as a YAML and overrides say."""
    from ...config.load import load_config

    arguments = list(context.args)
    path = arguments.pop(0) if arguments and not arguments[0].startswith("-") and "=" not in arguments[0] else None
    if replay is not None:
        share, file = replay
        arguments += [f"data.replay.share={share}", f"data.replay.path={file}"]
    arguments += with_flags(restart=restart, allow_changed=allow_changed)
    folder, arguments = _resumed_folder(path, arguments)
    options: dict[str, Any] = {"gpus": gpus, "cpu_processes": cpu_processes, "pilot": pilot}
    options["plan_as"] = _plan_as(dry_run=dry_run, json_file=json_file)
    options["elsewhere"] = _elsewhere(gpu, options)
    options["exact"] = is_exact(planner)
    if folder is not None and start is None:
        resume_folder(folder, arguments, **options)
    else:
        run_or_plan(_started(load_config(path, arguments), start), path, **options)


def _plan_as(*, dry_run: bool, json_file: str | None) -> str | None:
    """How the plan is shown; None for a training."""
    if json_file is not None and not dry_run:
        raise UsageError(
            "--json は計画だけに使います。aift plan か aift train --dry-run で指定してください。",
            "--json is for plans only; use it with aift plan or aift train --dry-run.",
        )
    return (json_file or TABLE) if dry_run else None


def _elsewhere(gpu: str | None, options: dict[str, Any]) -> Gpus | None:
    """The GPUs of `--gpu`, for which nothing but a plan can be made."""
    if gpu is None:
        return None
    from ...planner.gpus import parse_gpus

    gpus = parse_gpus(gpu)
    refused = [f"--{name.replace('_', '-')}" for name in ("gpus", "cpu_processes", "pilot") if options[name]]
    if refused:
        raise UsageError(
            f"--gpu はこの PC にない GPU の計画です。{'、'.join(refused)} とは同時に使えません。",
            f"--gpu plans for GPUs that are not here; it cannot be used with {', '.join(refused)}.",
        )
    if options["plan_as"] is None:
        raise UsageError(
            f"--gpu {gpu} はこの PC にない GPU の計画だけに使います。aift plan か aift train --dry-run で指定してください。",
            f"--gpu {gpu} is for plans only; use it with aift plan or aift train --dry-run.",
        )
    return gpus


def is_exact(planner: str) -> bool:
    """Whether `--plan` asks for a simulation.

    Raises:
        UsageError: another word than auto or exact.
    """
    if planner not in ("auto", "exact"):
        raise UsageError(
            f"--plan は {planner} ですが、auto か exact にしてください。",
            f"--plan is {planner}; it must be auto or exact.",
        )
    return planner == "exact"


def with_flags(*, restart: bool, allow_changed: bool) -> list[str]:
    """The flags as load_config takes them."""
    return [name for name, on in (("--restart", restart), ("--allow-changed", allow_changed)) if on]


def _resumed_folder(path: str | None, arguments: list[str]) -> tuple[Path | None, list[str]]:
    """The folder of the run that a command means to go on with, and the other arguments; no folder where it trains as
    its settings say.
    """
    from ...config.load import parse_overrides
    from ...config.run_folder import CONFIG
    from ...runs.recorded import is_run

    overrides = parse_overrides(arguments)
    named = [text for key, text in overrides if key == "resume"]
    rest = [f"{key}={text}" for key, text in overrides if key != "resume"]
    keys = {key.rpartition(".")[2] for key, _ in overrides}
    newest = named[-1:] in (["true"], ["auto"])
    if path is not None and Path(path).is_dir():
        if newest:
            return Path(path), rest
        if not named and is_run(Path(path)):
            shown = argument(path)
            raise UsageError(
                f"{path} は実行のフォルダーです。続きから再開するなら aift resume {shown}、同じ設定で学習し直すなら aift train {argument(Path(path) / CONFIG)} です。",
                f"{path} is the folder of a run. To go on with it: aift resume {shown}; to train anew with its "
                f"settings: aift train {argument(Path(path) / CONFIG)}.",
            )
    elif path is not None:
        own = Path(path).name == CONFIG and is_run(Path(path).parent) and "output_dir" not in keys
        return (Path(path).parent, rest) if newest and own else (None, arguments)
    elif named and "train" not in keys:
        if newest and not rest:
            raise no_folder()
        return (None, arguments) if newest else (Path(named[-1]), rest)
    return None, arguments


def no_folder() -> UsageError:
    """The refusal of a command that names no run, with those that could be meant."""
    from ...runs.recorded import interrupted_runs, listing

    ja, en = listing(interrupted_runs(Path()))
    return UsageError(
        f"再開する実行のフォルダーを指定してください。{ja}", f"name the folder of the run to go on with.{en}"
    )


def resume_folder(path: Path, overrides: Sequence[str], **options: Any) -> None:
    """Goes on with the run of a folder, as its config.yaml and the overrides say."""
    from ...runs.recorded import find_run, recorded_config

    config = recorded_config(find_run(path), overrides)
    _say_what_is_used(path, config)
    run_or_plan(config, str(path), **options)


def _say_what_is_used(path: Path, config: RunConfig) -> None:
    """One line with what the recorded settings name outside the run's folder: somebody else may have written them."""
    from ...config.mixture import paths_of
    from ...messages import notice, on_one_line

    data, model = config.data, config.model
    rows = [*paths_of(data.train), *_several(data.eval), *_several(data.replay.path)]
    named = [model.name, *rows, *_several(model.chat_template), *_several(config.lora.adapter)]
    listed = ", ".join(on_one_line(item) for item in named)
    sent = ", ".join(config.training.runtime.report_to)
    notice(
        f"{path} の設定が使うもの: {listed}" + (f"。記録の送り先: {sent}" if sent else ""),
        f"the settings of {path} use: {listed}" + (f"; metrics go to {sent}" if sent else ""),
    )


def _several(value: str | list[str] | float | None) -> list[str]:
    return list(value) if isinstance(value, list) else [value] if isinstance(value, str) else []


def run_or_plan(
    config: RunConfig,
    said: str | None,
    *,
    plan_as: str | None = None,
    gpus: int = 0,
    cpu_processes: int = 0,
    pilot: bool = False,
    elsewhere: Gpus | None = None,
    exact: bool = False,
) -> None:
    """Trains, or prints the plan.

    Args:
        said: where the settings come from, for messages.
        plan_as: TABLE, or where its JSON goes; None: train.
        elsewhere: GPUs of `--gpu`.
        exact: simulate the memory of a step in any case.
    """
    source = check_settings(config, said)
    if gpus or cpu_processes:
        from ...execution.request import with_processes

        config = with_processes(config, gpus=gpus, cpu_processes=cpu_processes)
    device = "cpu" if cpu_processes else None
    if plan_as is not None:
        from ...trainers.from_config import plan_training

        plan = plan_training(config, device, source, pilot=pilot, exact=exact, elsewhere=elsewhere)
        if plan_as == TABLE:
            _show_plan(plan)
        else:
            write_text(plan_as, _json_of(plan))
        return
    from ...runs.folder import beside
    from ...trainers.from_config import run_training

    try:
        result = run_training(config, device, source, exact=exact)
    except KeyboardInterrupt:
        _say_what_is_saved(Path(config.training.output_dir))
        raise
    print(localized("次のステップ:", "next steps:"))
    print(f"  aift chat {argument(result.folder)}")
    if not config.trains_all:
        print(f"  aift merge {argument(result.folder)} --out {argument(beside(result.folder, '-merged'))}")


def _say_what_is_saved(folder: Path) -> None:
    """After a stop at once: what the run has left."""
    from ...messages import notice
    from ...runs.folder import read_run
    from ...runs.recorded import saved_step

    step = saved_step(folder)
    if step is None or not str(read_run(folder).get("reason", "")).startswith(KeyboardInterrupt.__name__):
        notice(
            "すぐに止めました。この実行はまだ何も保存していません。", "stopped at once; this run has saved nothing yet."
        )
        return
    command = f"aift resume {argument(folder)}"
    notice(
        f"すぐに止めました。ステップ {step} まで保存済みです。再開: {command}",
        f"stopped at once: saved up to step {step}. To go on: {command}",
    )


def _started(config: RunConfig, start: str | None) -> RunConfig:
    """The configuration of a run that goes on from an earlier one, where `--from` or an adapter in `model` says so."""
    from ...execution.adapter_start import going_on_from
    from ...models.adapter_folder import is_adapter

    if start is None and config.method != "pretrain" and is_adapter(config.model.name):
        start = config.model.name
    return config if start is None else going_on_from(config, start)


def check_settings(config: RunConfig, path: str | None) -> ModelSource:
    """Refuses what the settings alone rule out, before anything heavy is imported; where the base is."""
    from ...errors import ConfigError
    from ...execution.sources import config_source
    from ...execution.validate import find_base, validate_config, validate_data, validate_evaluation
    from ...messages import notice

    if config.data.train is None:
        raise ConfigError(
            "data.train がありません。学習データのファイルを data.train=FILE で指定してください。",
            "data.train is missing; name the training data with data.train=FILE.",
        )
    validate_config(config)
    eval_data = config_source(config.data.eval)
    validate_data(config_source(config.data.train), eval_data, config.data.replay)
    validate_evaluation(config, eval_data)
    notice(
        f"{f'{path} ' if path else '設定'}を確認しました（method: {config.method}、model: {config.model.name}）。",
        f"{path or 'the settings'}: method {config.method}, model {config.model.name}.",
    )
    return find_base(config)


def _json_of(plan: RunPlan) -> str:
    import json

    from ...trainers.from_config import where_it_goes_on

    start = where_it_goes_on(plan)
    goes_on = None if start is None else {"ja": start.ja, "en": start.en}
    return json.dumps(plan.summary.fields() | {"goes_on": goes_on}, ensure_ascii=False, indent=1, default=str) + "\n"


def _show_plan(plan: RunPlan) -> None:
    from rich.console import Console
    from rich.table import Table

    from ...execution.final_verdict import verdict_line
    from ...execution.reporting import samples_line
    from ...export.gguf import find_converter
    from ...export.gguf_tokenizer import assess
    from ...trainers.from_config import where_it_goes_on

    start = where_it_goes_on(plan)
    # Told before training, when another model can still be chosen.
    pretrains = plan.request.config.method == "pretrain"
    architecture = "LlamaForCausalLM" if pretrains else plan.source.architecture
    gguf = assess(plan.tokenizer, architecture, find_converter(lenient=True))
    first = [str(start)] if start is not None else []
    export = localized(f"GGUF 書き出し: {gguf}", f"GGUF: {gguf}")
    verdict = verdict_line(plan)
    told = [str(samples_line(plan)), *([] if verdict is None else [str(verdict)])]
    for line in (*first, *plan.data.lines, *told, export):
        print(printable(line))
    table = Table(show_header=False, title=localized("計画（何も書き込みません）", "Plan (nothing is written)"))
    for label, value in plan.summary.table():
        table.add_row(label, printable(str(value)))
    Console(width=None if Console().is_terminal else 160).print(table)
