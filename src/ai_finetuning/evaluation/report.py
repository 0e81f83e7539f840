"""report.html: one file with everything in it, readable offline."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_STYLE = """body{font-family:system-ui,"Hiragino Sans","Yu Gothic UI","Noto Sans JP",sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:1rem 0}td,th{border:1px solid #ccc;padding:.3rem .7rem;text-align:left;vertical-align:top}
th{background:#f3f6fa}img{max-width:100%}code{background:#f3f6fa}"""


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        rows += _flat(value, f"{name}.") if isinstance(value, dict) else [(name, value)]
    return rows


def _table(rows: Sequence[tuple[str, Any]]) -> str:
    cells = "".join(
        f"<tr><th>{html.escape(str(name))}</th><td>{html.escape(str(value))}</td></tr>" for name, value in rows
    )
    return f"<table>{cells}</table>"


def write_report(
    path: Path,
    *,
    history: Sequence[dict[str, Any]],
    summary: dict[str, Any],
    config: dict[str, Any],
    picture: Path,
    name: str,
) -> None:
    """Curve, measured numbers, evaluations and settings of a run; every value is escaped."""
    image = base64.b64encode(picture.read_bytes()).decode("ascii")
    scored = [row for row in history if row.get("eval_loss") is not None]
    evaluations = "".join(
        f"<tr><td>{row['step']}</td><td>{row['eval_loss']:.4f}</td><td>"
        f"{row['eval_perplexity'] or float('inf'):.2f}</td>"
        f"<td>{row['eval_bits_per_character'] or float('nan'):.4f}</td></tr>"
        for row in scored
    )
    eval_data = (
        "<h2>評価 / evaluation</h2><table><tr><th>step</th><th>loss</th><th>perplexity</th><th>bits per character</th></tr>"
        f"{evaluations}</table>"
        if scored
        else ""
    )
    title = html.escape(name)
    path.write_text(
        f"<!doctype html><html lang=ja><meta charset=utf-8><title>{title}</title><style>{_STYLE}</style><h1>"
        f"{title}</h1>"
        f'<img alt="loss" src="data:image/png;base64,{image}">{eval_data}'
        f"<h2>測定値 / measured</h2>{_table(_flat({key: value for key, value in summary.items() if key != 'plan'}))}"
        f"<h2>設定 / settings</h2>{_table(_flat(config))}</html>\n",
        encoding="utf-8",
    )
