"""The sweep's rows as the tables of docs/models.md and docs/models.ja.md, and back."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ai_finetuning.errors import Reason

from .check import Row

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = {"en": DOCS / "models.md", "ja": DOCS / "models.ja.md"}
_BEGIN, _END = "<!-- python -m tests.sweep -->\n", "<!-- end -->\n"

# What is wrong upstream, by family, so that a row may have problems.
KNOWN: dict[str, Reason] = {
    "emu3": Reason(
        "保存した設定を transformers が読み直せない", "transformers does not load the configuration that it saves"
    ),
    "mllama": Reason(
        "保存した設定を transformers が読み直せない", "transformers does not load the configuration that it saves"
    ),
    "reformer": Reason("transformers の逆伝播が eval モードで動かない", "its backward pass needs training mode"),
    "youtu": Reason(
        "読み込みで transformers がパディングの行を 0 にする", "transformers zeroes the padding's row on loading"
    ),
}
_HEADS = {
    "en": "| family | training step | LoRA by default | why |\n|---|---|---|---|\n",
    "ja": "| model_type | 学習ステップ | LoRA の既定の対象 | 理由 |\n|---|---|---|---|\n",
}


def line(row: Row, language: str) -> str:
    """A family's line. Measured numbers are left out: they differ by version and say nothing to a reader."""
    reason = KNOWN.get(row.family, row.reason) or Reason("", "")
    text = getattr(reason, language)
    text = re.sub(r" ?[（(][\d.]+%[）)]| by [\d.e+-]+%| [\d.e+-]+%", "", text).replace("|", "/")
    text = re.split(r"[;。](?=.)", text)[0][:110]
    refused = {"en": "refused", "ja": "断る"}[language]
    targets = ", ".join(row.targets) if row.path else ""
    experts = {"en": " (not experts)", "ja": "（エキスパート以外）"}[language] if row.experts and row.path else ""
    return f"| {row.family} | {row.path or refused} | {targets}{experts} | {text} |"


def write(rows: Sequence[Row], unbuilt: Sequence[str]) -> None:
    """Puts the tables between the marks of both pages."""
    left = {
        "en": "\nNot in the table, as no tiny model of them could be built from rules that hold for all: ",
        "ja": "\n共通の規則では小さなモデルを作れず、表にないもの: ",
    }
    for language, page in PAGES.items():
        text = page.read_text(encoding="utf-8")
        before, after = text.split(_BEGIN)[0], text.split(_END)[1]
        table = _HEADS[language] + "".join(f"{line(row, language)}\n" for row in rows)
        table += left[language] + ", ".join(unbuilt) + ".\n" * (language == "en") + "。\n" * (language == "ja")
        page.write_text(before + _BEGIN + table + _END + after, encoding="utf-8")


def read(language: str = "en") -> dict[str, str]:
    """The line of each family in a page."""
    text = PAGES[language].read_text(encoding="utf-8").split(_BEGIN)[1].split(_END)[0].partition("|---|\n")[2]
    return {item.split("|")[1].strip(): item for item in text.splitlines() if item.startswith("| ")}
