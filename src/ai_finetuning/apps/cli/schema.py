"""aift schema"""

from __future__ import annotations

from pathlib import Path

import typer

from ...errors import localized


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command(
        "schema",
        help=localized(
            "YAML の JSON Schema を出力します（エディター用）。", "Prints the YAML's JSON Schema, for editors."
        ),
    )(schema)


def schema(
    out: Path | None = typer.Option(None, "--out", help=localized("ファイルに書き込みます", "write to a file")),
) -> None:
    """The schema of a run's configuration."""
    import json

    from ...config.describe import json_schema

    text = json.dumps(json_schema(), ensure_ascii=False, indent=1)
    if out is None:
        print(text)
    else:
        out.write_text(text + "\n", encoding="utf-8")
