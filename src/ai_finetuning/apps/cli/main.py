"""`aift`: one verb a file; nothing heavy is imported before a verb runs."""

from __future__ import annotations

import io
import os
import sys
import traceback
from typing import Any

import typer

from ...errors import ToolkitError, localized, prefers_japanese
from ...messages import printable
from . import (
    answer,
    bench,
    bundle,
    chat,
    data,
    demo,
    env,
    export,
    generate,
    import_,
    merge,
    models,
    quantize,
    schema,
    serve,
    tokenizer,
    train,
)
from .japanese import App, usage_error

USAGE, INTERNAL, INTERRUPTED = 64, 70, 130

app = App(
    name="aift",
    help=localized("日本語 LLM をファインチューニングします。", "Fine-tunes Japanese language models."),
    add_completion=False,
    pretty_exceptions_enable=False,
)
for verb in (train, generate, chat, answer, merge, serve, quantize, bench, models, bundle, import_, env, schema, demo):
    verb.register(app)
app.add_typer(
    export.app,
    name="export",
    help=localized("GGUF・Ollama・vLLM 用に書き出します。", "Exports for GGUF, Ollama, vLLM."),
)
app.add_typer(tokenizer.app, name="tokenizer", help=localized("トークナイザーを作ります。", "Makes a tokenizer."))
app.add_typer(data.app, name="data", help=localized("データを確かめます。", "Inspects data."))


def _safe_streams() -> None:
    """A console that cannot show a character (CP932) shows a substitute instead of stopping the program."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")


def run(arguments: list[str]) -> int:
    """Runs one command; returns its exit code (sysexits)."""
    try:
        result: Any = typer.main.get_command(app).main(args=arguments, prog_name="aift", standalone_mode=False)
    except ToolkitError as error:
        print(printable(localized(f"エラー: {error.ja}", f"error: {error.en}")), file=sys.stderr)
        return error.exit_code
    except typer.Exit as stop:
        return stop.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        # click's own refusals; recent versions of typer carry a click of their own, so their class is not named here.
        if hasattr(error, "show"):
            if prefers_japanese() and hasattr(error, "format_message"):
                print(printable(usage_error(error)), file=sys.stderr)
            else:
                shown = io.StringIO()
                error.show(shown)
                print(printable(shown.getvalue()), end="", file=sys.stderr)
            return USAGE
        print(printable(traceback.format_exc()), end="", file=sys.stderr)
        ja = f"内部エラー: {type(error).__name__}。上の内容と `aift env` の出力を添えて報告してください。"
        en = (
            f"internal error: {type(error).__name__}. Please report it with the lines above and what `aift env` prints."
        )
        print(localized(ja, en), file=sys.stderr)
        return INTERNAL
    return result if isinstance(result, int) else 0


def main() -> None:
    """The entry point of `aift`."""
    _safe_streams()
    sys.exit(run(sys.argv[1:]))
