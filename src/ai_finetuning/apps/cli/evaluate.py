"""aift eval"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ...errors import ConfigError, localized
from ...messages import argument, notice, printable, warn
from .answers import BASE, BITS
from .file_work import only_one
from .progress import progress_bar

if TYPE_CHECKING:
    from ...evaluation.before_after import Loaded, Plan

_FORMS = ("stability", "llm-jp", "chat")
_SPREADINGS = ("auto", "balanced", "none")

_TASKS = typer.Option(
    "auto",
    "--tasks",
    help=localized(
        "auto、またはコンマ区切り: data, prose, instructions, jcommonsenseqa, jnli, jmmlu, niilc, jsquad",
        "auto, or some of: data, prose, instructions, jcommonsenseqa, jnli, jmmlu, niilc, jsquad",
    ),
)
_DEVICE_MAP = typer.Option(
    "auto",
    "--device-map",
    help=localized(
        "auto: 1 枚の GPU に収まらないモデルを見える GPU に分けます。balanced: いつも分けます。none: 分けません",
        "auto: a model that one GPU does not hold is spread over the visible ones; balanced: always; none: never",
    ),
)
_EXPORT = typer.Option(
    None,
    "--export-lm-eval",
    help=localized(
        "課題を lm-evaluation-harness の形で書き出して終わります",
        "writes the tasks for lm-evaluation-harness, and ends",
    ),
)


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command(
        "eval",
        help=localized(
            "学習の前と後を同じ問題で比べ、採用・保留・不採用を判定します。",
            "Compares a model before and after training on the same questions: adopt, hold or reject.",
        ),
    )(evaluate)


def evaluate(
    model: str = typer.Argument(
        ...,
        help=localized(
            "学習したモデル・アダプター・学習結果のフォルダー、またはモデル名",
            "what was trained: folder of a model, an adapter or a run, or a model id",
        ),
    ),
    before: str | None = typer.Option(
        None,
        "--before",
        help=localized(
            "比べる相手: base（学習前）かモデル（省略時は分かれば base）",
            "what to compare with: base, or a model (default: base where it is known)",
        ),
    ),
    data: str | None = typer.Option(
        None, "--data", help=localized("あなたの質問と答えのファイル", "file of your own questions and answers")
    ),
    tasks: str = _TASKS,
    tasks_from: Path | None = typer.Option(
        None, "--tasks-from", help=localized("公開問題集のフォルダー", "folder with the public question sets")
    ),
    prompts: str = typer.Option(
        "stability",
        "--prompts",
        help=localized("選択問題の聞き方: stability, llm-jp, chat", "how choices are asked: stability, llm-jp, chat"),
    ),
    out: Path = typer.Option(
        Path("eval"), "--out", help=localized("結果のフォルダー", "folder for the results (default: eval)")
    ),
    limit: int | None = typer.Option(
        None, "--limit", min=1, help=localized("課題ごとの最大件数", "most items of each task")
    ),
    margin: float = typer.Option(
        3.0, "--margin", min=0.0, max=100.0, help=localized("許容する低下（点）", "points that may be lost")
    ),
    base: str | None = BASE,
    bits: int | None = BITS,
    device_map: str = _DEVICE_MAP,
    gate: bool = typer.Option(
        False, "--gate", help=localized("不採用なら終了コード 10、保留なら 11", "exit code 10 for reject, 11 for hold")
    ),
    dry_run: bool = typer.Option(
        False, "--dry-run", help=localized("費用と見える差だけを表示します", "only says what it costs and will show")
    ),
    restart: bool = typer.Option(
        False, "--restart", help=localized("途中の結果を捨てて最初から始めます", "forgets the results so far")
    ),
    export_lm_eval: Path | None = _EXPORT,
) -> int:
    """Measures both models, prints what changed, and writes eval.jsonl, report.md and report.json."""
    _validate_word("--prompts", prompts, _FORMS)
    _validate_word("--device-map", device_map, _SPREADINGS)
    from ...models.hub import validate_name

    validate_name(model, base)
    if before not in (None, "base"):
        validate_name(str(before))
    from ...evaluation.before_after import Loaded, plan, sides_of
    from ...evaluation.device_maps import SPREADINGS, Placing
    from ...evaluation.tasks import FORMS, Asked, find_tasks

    place = Placing(next(item for item in SPREADINGS if item == device_map))
    place.validate()
    names = [name.strip() for name in tasks.split(",") if name.strip()] or ["auto"]
    form = next(item for item in FORMS if item == prompts)
    found, missing = find_tasks(Asked(data, names, tasks_from, form, limit))
    for reason in missing.values():
        notice(f"測っていません: {reason.ja}", f"not measured: {reason.en}")
    planned = plan(sides_of(model, before, base=base, bits=bits), found)
    if data is not None and any(task.name == "data" for task in found):
        _say_what_it_knows(model, data)
    if export_lm_eval is not None:
        from ...evaluation.lm_eval_export import export

        for path in export(planned.tasks, planned.readers[-1].tokenizer, export_lm_eval):
            print(printable(str(path)))
        return 0
    if dry_run:
        _say_plan(planned, Loaded(place=place))
        return 0
    with only_one(out, out / "eval.lock"):
        return _measure(planned, Loaded(place=place), (out, margin / 100), gate=gate, restart=restart)


def _say_what_it_knows(model: str, data: str) -> None:
    """Warns where the run that made a model has trained on the questions, as far as its folder tells."""
    from ...errors import ToolkitError
    from ...execution.leakage import warn_of_trained
    from ...models.named import find_named
    from ...runs.recorded import find_run, recorded_config

    run = find_named(model).run
    if run is None:
        return
    try:
        config = recorded_config(find_run(run))
    except ToolkitError:  # its data is not here any more
        return
    warn_of_trained(config, data)


def _validate_word(option: str, given: str, known: tuple[str, ...]) -> None:
    """Refuses what an option does not know.

    Raises:
        ConfigError: with what it knows.
    """
    if given not in known:
        raise ConfigError(
            f"{option} が {given} です。{', '.join(known)} のどれかにしてください。",
            f"{option} is {given}; it must be one of {', '.join(known)}.",
        )


def _say_plan(planned: Plan, loaded: Loaded) -> None:
    from ...evaluation.before_after import estimate
    from ...evaluation.before_after_report import plan_lines
    from ...evaluation.results import Results

    for line in plan_lines(planned, Results(None, {}), estimate(loaded, planned)):
        print(printable(line))


def _measure(planned: Plan, loaded: Loaded, asked: tuple[Path, float], *, gate: bool, restart: bool) -> int:
    """Measures what is not there yet, and says what it means.

    Args:
        asked: the folder, and the margin as a share.
    """
    from ...evaluation.adoption import EXIT_CODES, Margins, decide, language_findings, task_findings
    from ...evaluation.before_after import estimate, measure
    from ...evaluation.before_after_report import Outcome, plan_lines, result_lines, write_report
    from ...evaluation.results import FILE, Results

    out, share = asked
    results = Results.open(out / FILE, planned.made_by(), restart=restart)
    complete = all(
        len(results.complete(side.key, task)) >= len(task.items) for side in planned.sides for task in planned.tasks
    )
    seconds = None if complete else estimate(loaded, planned)
    for line in plan_lines(planned, results, seconds):
        print(printable(line))
    try:
        with progress_bar("測定済み", "measured") as progress:
            measure(planned, results, loaded, progress)
    except KeyboardInterrupt:
        warn(
            f"中断しました。ここまでの結果は {argument(out / FILE)} にあり、同じコマンドで続きから測ります。",
            f"stopped: the results so far are in {argument(out / FILE)}, and the same command goes on from there.",
        )
        raise
    margins = Margins(share=share)
    findings = task_findings(results, planned.tasks, margins)
    language = language_findings(results, planned.tasks)
    adoption = decide(findings, language)
    outcome = Outcome(planned, tuple(findings), tuple(language), adoption, margins)
    for line in result_lines(outcome, results):
        print(printable(line))
    report = write_report(outcome, results, out)
    print(printable(localized(f"レポート: {report}", f"report: {report}")))
    if adoption is None:
        notice(
            "比べる相手がないため、判定はありません（--before で指定できます）。",
            "nothing to compare with, so there is no verdict (--before names something).",
        )
    return EXIT_CODES[adoption.decision] if gate and adoption is not None else 0
