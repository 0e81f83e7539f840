"""`aift`: one verb a file; nothing heavy is imported before a verb runs."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import Any

import typer

from ...errors import PreemptedError, ToolkitError, localized, prefers_japanese, refused_by_system, without_secrets
from ...messages import notice, printable, trace
from .japanese import App, usage_error

USAGE, NO_INPUT, INTERNAL, INTERRUPTED = 64, 66, 70, 130

VERBS = (
    *("start", "init", "plan", "train", "resume", "generate", "chat", "answer", "sample", "score"),
    *("merge", "serve", "quantize", "bench", "eval"),
    *("models", "bundle", "import", "env", "schema", "demo", "version", "web"),
)
# Verbs that have verbs of their own, with their help.
GROUPS = {
    "export": ("GGUF・Ollama・vLLM 用に書き出します。", "Exports for GGUF, Ollama, vLLM."),
    "gpu": ("この PC の GPU を確かめます。", "Checks this machine's GPUs."),
    "runs": ("実行の一覧、状態、停止、再開、比較です。", "Lists, follows, stops, resumes, compares runs."),
    "tokenizer": ("トークナイザーを作ります。", "Makes a tokenizer."),
    "data": ("データを確かめます。", "Inspects data."),
}
# The files of verbs whose names are other ones: a word of Python, and a function of it.
_FILES = {"eval": "evaluate", "import": "import_"}


def app_of(arguments: Sequence[str] = ()) -> App:
    """The command line: of arguments that begin with a verb that verb alone, since the others take a tenth of a second to
    set up; of others, as of help and of a name that is mistyped, all of it.
    """
    named = arguments[0] if arguments else None
    app = App(
        name="aift",
        help=localized("日本語 LLM をファインチューニングします。", "Fine-tunes Japanese language models."),
        add_completion=True,
        pretty_exceptions_enable=False,
        no_args_is_help=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(_alone)
    known = named in VERBS or named in GROUPS
    for verb in (*VERBS, *GROUPS):
        if known and verb != named:
            continue
        module: Any = importlib.import_module(f".{_FILES.get(verb, verb)}", __package__)
        if verb in GROUPS:
            app.add_typer(module.app, name=verb, help=localized(*GROUPS[verb]))
        else:
            module.register(app)
    return app


def _alone(
    context: typer.Context,
    show_version: bool = typer.Option(
        False, "--version", help=localized("バージョンを表示します。", "Show the versions.")
    ),
) -> None:
    """Without a verb: what is here, and what to do next."""
    if show_version:
        from . import version

        version.version()
        raise typer.Exit
    if context.invoked_subcommand is None:
        from . import home

        home.home()


def _stand_in_streams() -> None:
    """Started with a stream closed (`>&-`, some services), a command has one that goes nowhere: else its first words would
    end it, and a file that it writes would get the stream's number, and what libraries print.
    """
    while (nowhere := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(nowhere, True)
    os.close(nowhere)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8"))


def _safe_streams() -> None:
    """A console that cannot show a character (CP932) shows a substitute instead of stopping the program, and a pipe or a file
    has every line when it is said: how long something takes, before it takes it.
    """
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace", line_buffering=True)


def _folder_is_gone() -> bool:
    """Whether the folder that a command stands in has been deleted: all that asks where it is fails."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


def _refused(error: ToolkitError) -> int:
    """Says a refusal; its exit code."""
    print(printable(localized(f"エラー: {error.ja}", f"error: {error.en}")), file=sys.stderr)
    return error.exit_code


def _failed(error: Exception, arguments: Sequence[str]) -> int:
    """Says what the parser refused, or what nobody foresaw; its exit code."""
    # click's own refusals; recent versions of typer carry a click of their own, so their class is not named here.
    if hasattr(error, "show"):
        if prefers_japanese() and hasattr(error, "format_message"):
            print(printable(without_secrets(usage_error(error, arguments))), file=sys.stderr)
        else:
            shown = io.StringIO()
            error.show(shown)
            print(printable(without_secrets(shown.getvalue())), end="", file=sys.stderr)
        return USAGE
    if isinstance(error, FileNotFoundError) and _folder_is_gone():
        ja = "エラー: 現在のフォルダーがなくなっています（削除されたか、作り直されました）。cd でフォルダーに入り直してください。"
        en = "error: the current folder is gone (deleted, or made anew). Enter a folder again with cd."
        print(localized(ja, en), file=sys.stderr)
        return NO_INPUT
    refused = refused_by_system(error)
    if refused is not None:
        return _refused(refused)
    print(printable(trace(error, for_files=False)), end="", file=sys.stderr)
    ja = f"内部エラー: {type(error).__name__}。上の内容と `aift env` の出力を添えて報告してください。"
    en = f"internal error: {type(error).__name__}. Please report it with the lines above and what `aift env` prints."
    print(localized(ja, en), file=sys.stderr)
    return INTERNAL


def run(arguments: list[str]) -> int:
    """Runs one command; returns its exit code (sysexits)."""
    try:
        result: Any = typer.main.get_command(app_of(arguments)).main(
            args=arguments, prog_name="aift", standalone_mode=False
        )
        sys.stdout.flush()  # here a pipe that nobody reads any more is no failure of the interpreter
    except PreemptedError as error:  # as it was asked to: no error
        print(printable(str(error)), file=sys.stderr)
        return error.exit_code
    except ToolkitError as error:
        return _refused(error)
    except typer.Exit as stop:
        return stop.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except (BrokenPipeError, SystemExit) as error:
        # `aift ... | head`: nobody reads any more. click and rich make an exit with 1 of it.
        if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return _failed(error, arguments)
    return result if isinstance(result, int) else 0


# Verbs that import torch, which takes seconds, and those of a group that do not.
_SLOW = frozenset(
    ("train", "plan", "start", "generate", "chat", "answer", "merge", "serve", "quantize", "bench", "eval", "bundle")
    + ("sample", "env", "demo", "export", "tokenizer", "data", "gpu")
)
_QUICK = (["data", "formats"],)


def _says_first(arguments: list[str]) -> bool:
    """Whether a line has to tell, before anything is imported, that the command is at work."""
    if not arguments or arguments[0] not in _SLOW or {"-h", "--help"} & set(arguments):
        return False
    alone = len(arguments) > 1 or arguments[0] in ("env", "demo")
    return alone and arguments[:2] not in _QUICK and not any(name.startswith("_AIFT_COMPLETE") for name in os.environ)


def main() -> None:
    """The entry point of `aift`."""
    from ...system import collector
    from ...system.children import end_with_owner
    from ...system.cores import wait_passively

    _stand_in_streams()
    end_with_owner()
    collector.hold_back()
    _safe_streams()
    wait_passively()
    if _says_first(sys.argv[1:]):
        notice("準備しています…", "getting ready…")
    code = run(sys.argv[1:])
    if "torch" in sys.modules:
        from ...parallel.processes import launched
        from ...system.leaving import leave

        with contextlib.suppress(ToolkitError):  # numbers that cannot be: the command has said so
            if launched().size > 1:  # by torchrun, accelerate launch or SLURM; ours end likewise (execution/worker.py)
                leave(code)
    collector.leave()
    sys.exit(code)
