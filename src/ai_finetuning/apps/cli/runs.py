"""aift runs"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from ...errors import InputNotFoundError, PreemptedError, UsageError, localized
from ...messages import argument, described, notice, on_one_line, printable
from .japanese import App
from .run_ids import ID, ROOTS, entry_of, places_of
from .run_results import register
from .train import (
    ALLOW_CHANGED,
    RESTART,
    TABLE,
    VerbWithSettings,
    check_settings,
    resume_folder,
    run_or_plan,
    with_flags,
)

if TYPE_CHECKING:
    from ...runs.compare import Comparison
    from ...runs.listing import RunEntry
    from ...runs.watch import Update

app = App()
# Seconds between two looks at a log that is followed, and characters of a value in a table.
_LOOK, _WIDE = 0.5, 40
AS_JSON = typer.Option(False, "--json", help=localized("JSON で出力します。", "print JSON"))
WAIT = typer.Option(
    False,
    "--wait",
    help=localized(
        "デバイスを使っている実行が終わるのを待ってから始めます。", "begin once no other run uses the device"
    ),
)
FORCE = typer.Option(
    False,
    "--force",
    help=localized(
        "別の PC で始めた実行も移します（そこで学習中でないと分かっている場合）。",
        "move a run that began on another PC too, where you know that it is not at work there",
    ),
)
_WITH_SETTINGS = {"ignore_unknown_options": True, "allow_extra_args": True}


@app.callback()
def _group() -> None:
    """What concerns runs that are there already."""


@app.command("list", help=localized("実行の一覧です。新しい順に表示します。", "Lists runs, the newest first."))
def list_(roots: list[Path] | None = ROOTS, as_json: bool = AS_JSON) -> None:
    """One line a run."""
    from ...runs.listing import list_runs

    entries = list_runs(*places_of(roots))
    if as_json:
        _print_json([_plain(entry) for entry in entries])
        return
    if not entries:
        print(
            localized(
                "まだありません（aift start か aift train で始めます）",
                "none yet (aift start and aift train begin one)",
            )
        )
    width = max((len(entry.id) for entry in entries), default=0)
    for entry in entries:
        print(on_one_line(f"{entry.id:<{width}}  {_line(entry)}"))


@app.command(
    help=localized(
        "1 つの実行の状態、残り時間、損失を表示します。", "Shows one run: its state, the time left, its losses."
    )
)
def show(id: str = ID, roots: list[Path] | None = ROOTS, as_json: bool = AS_JSON) -> None:
    """What its files say now."""
    from ...evaluation.returned import Best, best_of, returned_of
    from ...runs.adopted import result_step
    from ...runs.folder import read_run
    from ...runs.watch import watch

    entry = entry_of(id, roots)
    update = watch(entry.path)
    if as_json:
        run = read_run(entry.path)
        found, before = best_of(entry.path, run), returned_of(run)
        weights = {
            "result_step": result_step(run),
            "best": asdict(found) if isinstance(found, Best) else None,
            "returned": asdict(before) if before is not None else None,
        }
        _print_json(_plain(entry) | {"seconds_left": update.seconds_left} | weights)
        return
    for line in _details(entry, update):
        print(on_one_line(line))


@app.command(
    help=localized(
        "ターミナルなしで始めた実行の出力を表示します。-f で続きを待ちます。",
        "Prints what a run said that was started without a terminal; -f goes on as it speaks.",
    )
)
def logs(
    id: str = ID,
    follow: bool = typer.Option(False, "-f", "--follow", help=localized("終わるまで表示し続けます。", "until it ends")),
    roots: list[Path] | None = ROOTS,
) -> None:
    """Its console.log."""
    from ...config.run_folder import CONSOLE
    from ...runs.folder import read_run
    from ...runs.state import state_of
    from ...runs.watch import console
    from ...system.files import is_plain

    folder = entry_of(id, roots).path
    if not is_plain(folder / CONSOLE):
        raise InputNotFoundError(
            f"{folder} の出力は、始めたターミナルに表示されました。状態は aift runs show {argument(folder)} で見られます。",
            f"what {folder} said went to the terminal that started it; aift runs show {argument(folder)} tells its state.",
        )
    cursor = ""
    while True:
        at_work = state_of(read_run(folder)).at_work  # looked at first: what it says last is read after it ended
        text, following = console(folder, cursor)
        sys.stdout.write(printable(text))
        sys.stdout.flush()
        if following == cursor or not text:
            if not (follow and at_work):
                return
            time.sleep(_LOOK)
        cursor = following


@app.command(
    help=localized(
        "学習を止めます。ステップの終わりで保存し、後で再開できます。",
        "Stops a run: it saves at the end of the step and can be resumed.",
    )
)
def stop(
    id: str = ID,
    best: bool = typer.Option(
        False,
        "--best",
        help=localized(
            "評価して、最良の重みを結果として終わります。", "evaluate, and end with the best weights as the result"
        ),
    ),
    now: bool = typer.Option(
        False,
        "--now",
        help=localized(
            "保存せず、すぐに止めます（最後のチェックポイントは残ります）。",
            "at once, without saving; the last checkpoint stays",
        ),
    ),
    roots: list[Path] | None = ROOTS,
) -> None:
    """Asks it to stop."""
    from ...runs.stop import stop as ask

    if best and now:
        raise UsageError("--best と --now は同時に使えません。", "--best and --now cannot be used together.")
    folder = entry_of(id, roots).path
    said = ask(folder, "best" if best else "now" if now else "save")
    notice(f"{folder}: {said.ja}。", f"{folder}: {said.en}.")


@app.command(
    cls=type("_Resume", (VerbWithSettings,), {"PIECES": ("[key=value ...]",)}),
    context_settings=_WITH_SETTINGS,
    help=localized(
        "aift resume と同じです。--detach ではターミナルから離れて続けます。",
        "The same as aift resume; with --detach it goes on without this terminal.",
    ),
)
def resume(
    context: typer.Context,
    id: str = ID,
    detach: bool = typer.Option(
        False, "--detach", help=localized("ターミナルから離れて続けます。", "without this terminal")
    ),
    wait: bool = WAIT,
    dry_run: bool = typer.Option(False, "--dry-run", help=localized("計画だけを表示します。", "print the plan only")),
    restart: bool = RESTART,
    allow_changed: bool = ALLOW_CHANGED,
    roots: list[Path] | None = ROOTS,
) -> None:
    """Goes on with a run."""
    folder = entry_of(id, roots).path
    changes = [*context.args, *with_flags(restart=restart, allow_changed=allow_changed)]
    if not detach:
        if wait:
            raise UsageError("--wait は --detach と一緒に使います。", "--wait goes with --detach.")
        resume_folder(folder, changes, plan_as=TABLE if dry_run else None)
        return
    if dry_run or restart or allow_changed:
        raise UsageError(
            "--detach は --dry-run・--restart・--allow-changed と同時に使えません。計画を確かめてから、aift runs resume をそのまま実行してください。",
            "--detach cannot be used with --dry-run, --restart and --allow-changed; look at the plan and resume in this "
            "terminal.",
        )
    from ...runs.launch import resume as start

    _say_started(start(folder, context.args, wait=wait))


@app.command(
    cls=VerbWithSettings,
    context_settings=_WITH_SETTINGS,
    help=localized(
        "このターミナルから離れて学習を始めます。設定は aift train と同じです。",
        "Starts a training that does not need this terminal; settings are those of aift train.",
    ),
)
def launch(
    context: typer.Context,
    name: str | None = typer.Option(
        None, "--name", help=localized("実行のフォルダーの名前", "name of the run's folder")
    ),
    root: Path | None = typer.Option(
        None,
        "--in",
        metavar="FOLDER",
        help=localized("実行を置くフォルダー（既定は outputs）", "where the run goes (outputs)"),
    ),
    wait: bool = WAIT,
) -> None:
    """Begins a child that nobody owns."""
    from ...config.load import load_config
    from ...config.section import explicitly_set
    from ...runs import OUTPUTS
    from ...runs.launch import launch as start

    arguments = list(context.args)
    path = arguments.pop(0) if arguments and not arguments[0].startswith("-") and "=" not in arguments[0] else None
    config = load_config(path, arguments)
    check_settings(config, path)
    if "output_dir" in explicitly_set(config.training):
        named = Path(config.training.output_dir).absolute()
        root, name = root or named.parent, name or named.name
    _say_started(start(config, root or Path(OUTPUTS), name, wait=wait))


def _say_started(folder: Path) -> None:
    shown = argument(folder)
    notice(f"始めました: {folder}", f"started: {folder}")
    print(f"aift runs logs -f {shown}")
    print(f"aift runs stop {shown}")


@app.command(
    help=localized(
        "実行を比べます。違う設定と損失を並べて表示します。", "Compares runs: settings that differ, and losses."
    )
)
def compare(
    ids: list[str] = typer.Argument(..., metavar="ID ID ...", help=localized("比べる実行", "runs to compare")),
    roots: list[Path] | None = ROOTS,
    as_json: bool = typer.Option(
        False, "--json", help=localized("曲線も含めて JSON で出力します。", "print JSON, with the curves")
    ),
) -> None:
    """A table; with --json the curves too."""
    from ...runs.compare import compare as beside

    entries = [entry_of(id, roots) for id in ids]
    if len(entries) < 2:
        raise UsageError("比べる実行を 2 つ以上指定してください。", "name two runs or more.")
    found = beside([entry.path for entry in entries])
    if as_json:
        _print_json({"runs": [_plain(entry) for entry in entries]} | asdict(found))
        return
    for row in _table(entries, found):
        print(on_one_line(row))


register(app)


@app.command(help=localized("実行のフォルダーの名前を変えます。", "Gives a run's folder another name."))
def rename(
    id: str = ID,
    name: str = typer.Argument(..., help=localized("新しい名前", "the new name")),
    force: bool = FORCE,
    roots: list[Path] | None = ROOTS,
) -> None:
    """Renames it, unless it is at work."""
    from ...runs.listing import rename as move

    print(printable(str(move(entry_of(id, roots).path, name, force=force))))


@app.command(
    help=localized(
        "実行を隣の .trash へ移します。何も消しません。", "Moves a run into .trash beside it; nothing is deleted."
    )
)
def trash(id: str = ID, force: bool = FORCE, roots: list[Path] | None = ROOTS) -> None:
    """Moves it, unless it is at work."""
    from ...runs.listing import trash as move

    folder = move(entry_of(id, roots).path, force=force)
    notice(
        f"{folder} に移しました。戻すには aift runs restore、消すにはそのフォルダーを削除してください。",
        f"moved to {folder}. aift runs restore brings it back; delete the folder to be rid of it.",
    )


@app.command(
    help=localized(
        "ごみ箱の実行を元に戻します。名前を書かなければ一覧を表示します。",
        "Brings a run back from the trash; without a name it lists what is there.",
    )
)
def restore(
    name: str | None = typer.Argument(None, help=localized("実行の名前か ID", "the run's name or id")),
    roots: list[Path] | None = ROOTS,
) -> None:
    """The newest run in the trash that had this name."""
    from ...errors import InputNotFoundError
    from ...runs.listing import list_trash
    from ...runs.listing import restore as move

    found = list_trash(*places_of(roots))
    if name is None:
        for item in found:
            print(on_one_line(f"{item.name}  {item.id}  {item.path}"))
        return
    chosen = next((item for item in found if name in (item.id, item.name)), None)
    if chosen is None:
        raise InputNotFoundError(
            f"ごみ箱に {name} という実行はありません。aift runs restore で一覧を表示します。",
            f"there is no run {name} in the trash; aift runs restore lists what is there.",
        )
    print(printable(str(move(chosen.path))))


@app.command(
    hidden=True,
    context_settings=_WITH_SETTINGS,
    help=localized(
        "ターミナルなしで始めた実行のプロセスです。aift runs launch が使います。",
        "The process of a run without a terminal; aift runs launch starts it.",
    ),
)
def begin(
    context: typer.Context,
    folder: Path = typer.Argument(..., help=localized("実行のフォルダー", "folder of the run")),
    verb: str = typer.Argument(..., help=localized("train、resume、job のどれか", "train, resume or job")),
    wait: bool = WAIT,
) -> None:
    """The process of a run that was launched: waits for its device, then trains or resumes as the verbs do."""
    from ...config.load import load_config
    from ...config.run_folder import CONFIG
    from ...runs.launch import wait_until_named
    from ...runs.process import identity
    from ...runs.stop import end

    wait_until_named(folder)
    try:
        _take_devices(folder, wait=wait)
        if verb == "resume":
            resume_folder(Path(context.args[0]), context.args[1:])
        elif verb == "job":
            from ...runs.jobs import work

            work(folder)
        else:
            run_or_plan(load_config(folder / CONFIG), str(folder / CONFIG))
    except BaseException as error:
        end(folder, identity(), described(error, for_files=True)[:1000])
        raise


def _take_devices(folder: Path, *, wait: bool) -> None:
    """Enters the queue before anything takes time, so that a job launched next sees this one."""
    from ...runs.devices import Place, hold, visible_devices
    from ...runs.phase import tell_phase
    from ...runs.stop import take_stop

    def look() -> None:
        if take_stop(folder) is not None:
            _give_up()

    try:
        place = Place(visible_devices(), folder)
        if wait:
            place.wait(look)
        else:
            place.take()
    except (OSError, RuntimeError) as error:
        if isinstance(error, PreemptedError):
            raise
        notice(
            f"順番待ちの記録を書けないため（{error}）、待たずに始めます。",
            f"the queue cannot be written ({error}): it begins at once.",
        )
        return
    hold(place)
    if wait:
        tell_phase(folder, "preparing")


def _give_up() -> NoReturn:
    raise PreemptedError(
        "順番待ちをやめました。まだ何も学習していません。", "stopped waiting: nothing was trained yet."
    )


def _plain(entry: RunEntry) -> dict[str, Any]:
    """A run as JSON holds it."""
    plain = asdict(entry) | {"folder": str(entry.path.absolute())}
    del plain["path"]
    state = plain.pop("state")
    return plain | {"phase": state["phase"], "phase_since": state["since"], "reason": state["reason"]}


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=1))


def _status(entry: RunEntry) -> str:
    from ...runs.phase import PHASES
    from ...runs.state import STATUSES

    phase = entry.state.phase
    busy = entry.status == "running" and phase not in (None, "training")
    return str(STATUSES[entry.status]) + (f" ({PHASES[str(phase)]})" if busy else "")


def _line(entry: RunEntry) -> str:
    parts = [_status(entry), *([localized("採用中", "in use")] if entry.adopted is not None else [])]
    if entry.step is not None:
        done = f"{entry.step}/{entry.total_steps}" if entry.total_steps else str(entry.step)
        parts.append(localized(f"ステップ {done}", f"step {done}"))
    if entry.loss_after is not None:
        before = f"{entry.loss_before:.3f} → " if entry.loss_before is not None else ""
        parts.append(localized("評価損失", "evaluation loss") + f" {before}{entry.loss_after:.3f}")
    return "  ".join([*parts, f"{entry.method[:_WIDE]}: {entry.model[:100]}"])


def _details(entry: RunEntry, update: Update) -> list[str]:
    from ...evaluation.returned import told_of
    from ...planner.speed import duration
    from ...runs.adopted import adopted_before
    from ...runs.folder import read_run

    lines = [f"{entry.id}  {_line(entry)}", f"{localized('フォルダー', 'folder')}: {entry.path.absolute()}"]
    began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry.started))
    lines.append(f"{localized('開始', 'started')}: {began}")
    if update.seconds_left is not None:
        lines.append(f"{localized('残り 約', 'time left: about')} {duration(update.seconds_left)}")
    if entry.state.reason:
        lines.append(f"{localized('理由', 'reason')}: {entry.state.reason}")
    run = read_run(entry.path)
    marked = adopted_before(run)
    if marked is not None:
        lines.append(
            localized(f"採用していたのはステップ {marked:,} の重みです", f"the weights of step {marked:,} were in use")
        )
    lines += [str(told) for told in told_of(entry.path, run)]
    shown = argument(entry.path)
    commands = {"completed": f"aift chat {shown}", "stopped": f"aift runs resume {shown}"}
    commands |= dict.fromkeys(("running", "waiting"), f"aift runs stop {shown}")
    return [*lines, commands.get(entry.status, commands["stopped"])]


def _table(entries: list[RunEntry], found: Comparison) -> list[str]:
    """Aligned columns: what differs, and where the curves ended."""
    from rich.cells import cell_len

    rows = [
        ["", *(entry.id for entry in entries)],
        [localized("状態", "state"), *(_status(entry) for entry in entries)],
    ]
    for name, curves in (
        (localized("損失", "loss"), found.loss),
        (localized("評価損失", "evaluation loss"), found.eval_loss),
    ):
        rows.append([name, *(f"{curve[-1][1]:.4f} ({curve[-1][0]})" if curve else "-" for curve in curves)])
    rows += [[name, *(_short(value) for value in values)] for name, values in found.settings.items()]
    widths = [max(cell_len(row[at]) for row in rows) for at in range(len(rows[0]))]
    padded = ([cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)] for row in rows)
    return ["  ".join(cells).rstrip() for cells in padded]


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _WIDE else "…" + text[1 - _WIDE :]
