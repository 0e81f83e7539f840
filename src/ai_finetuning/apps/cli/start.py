"""aift start"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from ...errors import ToolkitError, localized
from ...messages import argument, excerpt, notice, printable
from .asking import Questions
from .init import write_run_file

if TYPE_CHECKING:
    from ...config.run import RunConfig
    from ...execution.resolve import RunPlan
    from ...planner.plan import Plan
    from ...planner.presets import Preset

_GIB = 2**30
# Rows that are shown, and characters of a cell.
_FIRST_ROWS, _CELL = 3, 120


@dataclass
class Answers:
    """What is known of the run so far, and what was wrong with what was given.

    Attributes:
        values: settings by dotted name.
        problems: refusals, told together.
    """

    values: dict[str, Any] = field(default_factory=dict)
    problems: list[ToolkitError] = field(default_factory=list)

    def attempt(self, work: Callable[[], Any]) -> Any:
        """What a piece of work gives; None where it refuses."""
        try:
            return work()
        except ToolkitError as error:
            self.problems.append(error)
            return None

    def refuse(self) -> None:
        """Ends where something was wrong: everything in one list.

        Raises:
            ToolkitError: of the first problem's kind.
        """
        if len(self.problems) == 1:
            raise self.problems[0]
        if self.problems:
            _raise_all(self.problems)


def _raise_all(problems: Sequence[ToolkitError]) -> NoReturn:
    ja = "".join(f"\n  {error.ja}" for error in problems)
    en = "".join(f"\n  {error.en}" for error in problems)
    raise type(problems[0])(f"{len(problems)} 個の問題があります:{ja}", f"{len(problems)} problems:{en}")


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command(
        "start",
        help=localized(
            "手元の Excel や CSV から学習を始めます。シート、列、モデル、長さを順に質問します。",
            "Trains on a table of yours: asks for sheet, columns, model and length.",
        ),
    )(start)


def start(
    file: str = typer.Argument(
        ...,
        help=localized(
            "学習データのファイルです（xlsx、csv、jsonl など）。", "the training data: xlsx, csv, jsonl, ..."
        ),
    ),
    sheet: str | None = typer.Option(
        None, "--sheet", help=localized("Excel のシート名です。", "sheet of the workbook")
    ),
    question: str | None = typer.Option(
        None, "--question", help=localized("質問の列の見出しです。", "heading of the questions' column")
    ),
    answer: str | None = typer.Option(
        None, "--answer", help=localized("回答の列の見出しです。", "heading of the answers' column")
    ),
    model: str | None = typer.Option(
        None, "--model", help=localized("モデル名かフォルダーです。", "model id or folder")
    ),
    preset: str | None = typer.Option(
        None,
        "--preset",
        help=localized(
            "長さ: quick（速い）| standard（標準）| careful（ていねい）", "length: quick | standard | careful"
        ),
    ),
    config: Path = typer.Option(
        Path("run.yaml"), "--config", help=localized("書き込む設定ファイルです。", "the run file to write")
    ),
    out: str | None = typer.Option(None, "--out", help=localized("学習の出力先フォルダーです。", "folder of the run")),
    yes: bool = typer.Option(
        False,
        "--yes",
        "-y",
        help=localized("質問せずに推奨の選択で進めます。", "take what is recommended, ask nothing"),
    ),
) -> None:
    """From a table to a run."""
    from ...errors import UsageError
    from ...planner.presets import PRESETS

    answers = Answers()
    asks = Questions.of(yes)
    if preset is not None and preset not in PRESETS:
        answers.problems.append(
            UsageError(
                f"--preset が {preset} です。{', '.join(PRESETS)} のいずれかにしてください。",
                f"--preset is {preset}; it must be one of {', '.join(PRESETS)}.",
            )
        )
    if model is not None:
        answers.attempt(lambda: _validate_model(model))
    rows = _read(file, asks, answers, sheet, (question, answer))
    answers.refuse()
    answers.values["model.name"] = model or _ask_model(asks)
    _settings(answers.values, rows, out or _free_folder(Path(file).stem))
    plan = _tried(answers.values)
    _ask_preset(answers.values, plan, asks, preset)
    target = _ask_file(config, asks)
    write_run_file(target, answers.values, overwrite=True)
    print(localized(f"設定を {target} に書きました。", f"The settings are in {target}."))
    if not asks.agree(localized("この設定で学習を始めますか", "Train with these settings")):
        print(localized("次のステップ:", "next steps:"))
        print(f"  aift train {argument(target)}")
        return
    _train(target)


def _validate_model(name: str) -> None:
    """Refuses a mistyped model before anything heavy is imported."""
    from ...models.named import find_named

    find_named(name)


def _read(file: str, asks: Questions, answers: Answers, sheet: str | None, named: tuple[str | None, str | None]) -> int:
    """Reads the table, asks for sheet and columns, shows the first rows; the number of rows that can be used."""
    from ...data.files import read_rows

    path = answers.attempt(lambda: _file_here(file))
    if path is None:
        return 0
    answers.values["data.train"] = file
    if path.suffix in (".xlsx", ".xlsm"):
        sheet = answers.attempt(lambda: _ask_sheet(path, asks, sheet))
    if sheet is not None:
        answers.values["data.sheet"] = sheet
    columns = {role: name for role, name in zip(("instruction", "output"), named, strict=True) if name is not None}
    read = answers.attempt(lambda: read_rows(file, skip_bad_rows=True, columns=columns or None, sheet=sheet))
    if read is None:
        return 0
    rows, report = read
    for line in report.lines():
        print(printable(line))
    values = [row.values for row in rows]
    chosen = answers.attempt(lambda: _ask_columns(values, asks, columns))
    if chosen is None:
        return 0
    if chosen:
        answers.values["data.columns"] = chosen
    usable = answers.attempt(lambda: _usable(file, answers.values, asks))
    return usable or 0


def _file_here(name: str) -> Path:
    """The file or folder that a name means.

    Raises:
        UsageError: it is a data set of the hub.
    """
    from ...data.files import find_data
    from ...errors import UsageError

    path = find_data(name)
    if path is None:
        raise UsageError(
            f"{name} はハブのデータセットの名前です。aift start にはこの PC のファイルを指定してください（ハブのデータは aift train data.train={argument(name)}）。",
            f"{name} names a data set of the hub; aift start takes a file of this PC (for the hub: aift train "
            f"data.train={argument(name)}).",
        )
    return path


def _ask_sheet(path: Path, asks: Questions, given: str | None) -> str | None:
    """The sheet of a workbook; None where there is only one."""
    from ...data.columns import listed
    from ...data.spreadsheet import sheets_of
    from ...errors import DataError

    sheets = sheets_of(path)
    names = [name for name, _, _ in sheets]
    if given is not None and given not in names:
        raise DataError(
            f"{path} にシート {given} がありません。シート: {listed(names)}",
            f"{path} has no sheet {given}; sheets: {listed(names)}.",
        )
    if given is not None or len(names) < 2:
        return given
    lines = [localized(f"{name}（{rows} 行）", f"{name} ({rows} rows)") for name, rows, _ in sheets]
    likely = next((index for index, (_, _, fits) in enumerate(sheets) if fits), 0)
    chosen = asks.choose(localized("シート", "sheet"), lines, likely)
    return names[int(chosen)]


def _ask_columns(rows: Sequence[dict[str, Any]], asks: Questions, given: dict[str, str]) -> dict[str, str]:
    """The columns of question and answer, as data.columns takes them; empty where the headings say it, or where rows are
    no pairs of columns (conversations, texts).
    """
    from ...data.columns import check_columns, map_columns
    from ...data.formats import find_format

    names = list(dict.fromkeys(str(key) for row in rows for key in row))
    check_columns(given, names)
    roles = _roles(names, given)
    if not {"instruction", "output"} <= roles.keys():
        try:
            known, _ = find_format(rows[0], given or None)
        except ToolkitError:
            known = None
        if known is not None:  # conversations, plain texts: nothing to choose, or refused with its own words
            _show_rows(rows, {name: name for name in names})
            return given
    if asks.decides and not {"instruction", "output"} <= roles.keys():
        from ...data.formats import no_format
        from ...errors import DataError

        ja, en = no_format(list(rows[:100]))
        hint = ("--question と --answer で列を指定してください。", "name them with --question and --answer.")
        raise DataError(f"{ja}。{hint[0]}", f"{en}; {hint[1]}")
    titles = {
        "instruction": localized("質問の列", "column of the questions"),
        "output": localized("回答の列", "column of the answers"),
    }
    chosen = dict(given)
    for role, title in titles.items():
        if role in given:
            continue
        left = [name for name in names if name not in chosen.values()]
        likely = left.index(roles[role]) if roles.get(role) in left else 0
        chosen[role] = left[int(asks.choose(title, [_column_line(name, rows) for name in left], likely))]
    _show_rows(rows, chosen)
    by_heading = {} if given else dict(map_columns(names)) if _unambiguous(names) else {}
    return {} if all(by_heading.get(role) == name for role, name in chosen.items()) else chosen


def _roles(names: list[str], given: dict[str, str]) -> dict[str, str]:
    """Roles by heading; what the user gave wins. Empty where two headings have one role."""
    from ...data.columns import map_columns

    return dict(map_columns(names, given)) if _unambiguous(names, given) else dict(given)


def _unambiguous(names: list[str], given: dict[str, str] | None = None) -> bool:
    from ...data.columns import map_columns
    from ...errors import DataError

    try:
        map_columns(names, given)
    except DataError:
        return False
    return True


def _column_line(name: str, rows: Sequence[dict[str, Any]]) -> str:
    sample = next((str(row[name]) for row in rows if row.get(name) not in (None, "")), "")
    shown = _cell(name, 60)
    return localized(f"{shown}（例: {_cell(sample, 30)}）", f"{shown} (such as: {_cell(sample, 30)})")


def _show_rows(rows: Sequence[dict[str, Any]], columns: dict[str, str]) -> None:
    print(localized(f"先頭の {min(_FIRST_ROWS, len(rows))} 行:", f"The first {min(_FIRST_ROWS, len(rows))} rows:"))
    marks = {"instruction": localized("質問", "question"), "output": localized("回答", "answer")}
    for number, row in enumerate(rows[:_FIRST_ROWS], start=1):
        for role, name in columns.items():
            print(f"  {number} {marks.get(role) or excerpt(role)}: {_cell(_as_text(row.get(name, '')), _CELL)}")


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _cell(text: str, limit: int) -> str:
    """A cell on one line; what is left out of a long one is counted."""
    shown = printable(" ".join(text.split()))
    if len(shown) <= limit:
        return shown
    return shown[:limit] + localized(f"…（全 {len(shown)} 文字）", f"... ({len(shown)} characters)")


def _usable(file: str, values: dict[str, Any], asks: Questions) -> int:
    """How many rows can be trained on; those that cannot are named, and left out where the user agrees.

    Raises:
        DataError: none can, or the user wants to mend them first.
    """
    from ...data.bad_rows import BadRows
    from ...data.sources import load_samples

    bad = BadRows(True)
    path = Path(file) if not file.startswith("embedded:") else file
    samples, _ = load_samples(path, columns=values.get("data.columns"), sheet=values.get("data.sheet"), bad=bad)
    if len(bad):
        for line in bad.lines():
            print(printable(line))
        if not asks.agree(localized("これらの行を除いて続けますか", "Go on without these rows")):
            bad.skip = False
            bad.refuse()
        values["data.skip_bad_rows"] = True
    print(localized(f"学習に使える行: {len(samples)}", f"rows to train on: {len(samples)}"))
    return len(samples)


@dataclass(frozen=True)
class _Candidate:
    name: str
    line: str
    here: bool


def _ask_model(asks: Questions) -> str:
    """One of three: what is here and fits, what the catalog recommends, and the practice model."""
    from ...embedded import MODEL
    from ...system.network import offline

    candidates = [*_fitting()[:2]]
    practice = localized(
        f"{MODEL}  同梱の小さなモデル（練習用）", f"{MODEL}  small, ships with the toolkit (for practice)"
    )
    candidates.append(_Candidate(MODEL, practice, True))
    real = [index for index, item in enumerate(candidates[:-1]) if item.here or not (offline() or asks.decides)]
    recommended = real[0] if real else len(candidates) - 1
    chosen = asks.choose(
        localized("モデル", "model"),
        [item.line for item in candidates],
        recommended,
        free=localized("モデル名", "a model's name"),
    )
    if not isinstance(chosen, str):
        return candidates[chosen].name
    try:
        _validate_model(chosen)
    except ToolkitError as error:
        print(printable(str(error)))
        return _ask_model(asks)
    return chosen


def _fitting() -> list[_Candidate]:
    """Models that LoRA can train on this PC: those that are here first, then the recommended ones of the catalog."""
    from ...models import catalog
    from ...models.local import local_models, need_bytes
    from ...planner.presets import method_that_fits
    from ...system.machine import machine

    pc = machine()
    local = {model.name: model for model in local_models(Path())}
    names = [*sorted(local, key=lambda name: -local[name].size_bytes), *catalog.RECOMMENDED]
    if not pc.gpus:  # a CPU trains small models in reasonable time
        names = [*sorted(local, key=lambda name: local[name].size_bytes), *reversed(catalog.RECOMMENDED)]
    obtained = []
    for name in dict.fromkeys(names):
        need = need_bytes(name, method_that_fits(name)) or _computed_need(name)
        if need is None or need > pc.room:
            continue
        where = str(local[name].place) if name in local else localized("ダウンロードが必要", "needs a download")
        memory = localized(f"メモリー 約 {need / _GIB:.1f} GiB", f"about {need / _GIB:.1f} GiB of memory")
        obtained.append(_Candidate(name, f"{name}  {memory}  {where}", name in local))
    first_of_each = {item.here: item for item in reversed(obtained)}
    return sorted(first_of_each.values(), key=lambda item: not item.here) + [
        item for item in obtained if item not in first_of_each.values()
    ]


def _computed_need(name: str) -> int | None:
    """Memory for LoRA of a model that the catalog does not list, by the planner's formula for 2,048 tokens; None where
    its configuration cannot be read.
    """
    from ...planner.memory import Workload, estimate
    from ...planner.shape import read_shape

    try:
        shape = read_shape(name)
    except ToolkitError:
        return None
    work = Workload(shape.lora_parameters(16, None), None, 2, 2048, 2)
    return estimate(shape, work, checkpointing=True).total


def _settings(values: dict[str, Any], rows: int, out: str) -> None:
    """What follows from model and data."""
    from ...planner.presets import suggested

    values |= suggested(values["model.name"], rows) | {"training.output_dir": out}


def _free_folder(name: str) -> str:
    """outputs/NAME, with a number where that exists."""
    folder, number = Path("outputs") / name, 1
    while os.path.lexists(folder):
        number += 1
        folder = Path("outputs") / f"{name}-{number}"
    return folder.as_posix()


def _tried(values: dict[str, Any]) -> RunPlan:
    """The plan, with the speed of three real steps."""
    from ...execution.sources import config_source
    from ...execution.validate import find_base, validate_config, validate_data

    config = _config_of(values)
    validate_config(config)
    validate_data(config_source(config.data.train), config_source(config.data.eval))
    source = find_base(config)
    notice("モデルを準備しています…", "preparing the model…")
    from ...trainers.from_config import plan_training

    return plan_training(config, None, source, pilot=True)


def _config_of(values: dict[str, Any]) -> RunConfig:
    """The run's configuration, read as its file will be."""
    import tempfile

    from ...config.commented import commented_yaml
    from ...config.load import load_config

    with tempfile.TemporaryDirectory(prefix="aift-start-") as folder:
        path = Path(folder) / "run.yaml"
        path.write_text(commented_yaml(values), encoding="utf-8")
        return load_config(path)


def _ask_preset(values: dict[str, Any], plan: RunPlan, asks: Questions, given: str | None) -> None:
    """How long to train, each with time, memory and steps; puts it into the values."""
    from ...planner.presets import PRESETS

    summary = plan.summary
    names = list(PRESETS)
    if not summary.fits:
        print(localized("メモリーが足りない見込みです。", "Memory is probably insufficient."))
    if given is None:
        lines = [_preset_line(PRESETS[name], summary) for name in names]
        given = names[int(asks.choose(localized("学習の長さ", "length"), lines, names.index("standard")))]
    else:
        print(_preset_line(PRESETS[given], summary))
    values |= PRESETS[given].settings(summary.steps_per_epoch, evaluates=values["data.eval"] is not None)


def _preset_line(preset: Preset, summary: Plan) -> str:
    epochs = preset.epochs_for(summary.steps_per_epoch)
    planned = summary.under(preset)
    steps, seconds = planned.total_steps, planned.seconds
    from ...planner.speed import duration

    time = localized("時間不明", "time unknown") if seconds is None else localized("約 ", "about ") + duration(seconds)
    memory = (summary.measured_memory or 0) + summary.memory.base
    gib = max(memory, summary.memory.total) / _GIB
    best = localized("、最良の重みを残します", ", keeps the best weights") if preset.keeps_best else ""
    return localized(
        f"{preset.ja}: {time}、メモリー {gib:.1f} GiB、{steps} ステップ（{epochs} エポック{best}）",
        f"{preset.en}: {time}, {gib:.1f} GiB of memory, {steps} steps ({epochs} epochs{best})",
    )


def _ask_file(path: Path, asks: Questions) -> Path:
    """Where the settings go: nothing is overwritten without a yes."""
    if not os.path.lexists(path):  # a link counts, wherever it points
        return path
    if not asks.decides and asks.agree(
        localized(f"{path} は既にあります。上書きしますか", f"{path} exists. Write over it"), default=False
    ):
        return path
    number = 2
    while os.path.lexists(other := path.with_name(f"{path.stem}-{number}{path.suffix}")):
        number += 1
    print(localized(f"{path} は残し、{other} に書きます。", f"{path} stays; writing {other}."))
    return other


def _train(path: Path) -> None:
    from ...config.load import load_config
    from ...trainers.from_config import run_training

    result = run_training(load_config(path))
    print(localized("次のステップ:", "next steps:"))
    print(f"  aift chat {argument(result.folder)} --compare")
