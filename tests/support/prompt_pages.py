"""The tables of docs/templates.md: `python -m tests.support.prompt_pages` writes them anew.

They hold what models/catalog.yaml, japanese/templates.py and tests/fixtures/golden_prompts.yaml say of a prompt.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import yaml

from ai_finetuning.japanese.templates import TEMPLATES
from ai_finetuning.models import catalog

COMMAND = "python -m tests.support.prompt_pages"
TESTS = Path(__file__).resolve().parents[1]
PAGE = TESTS.parent / "docs" / "templates.md"
GOLDEN = TESTS / "fixtures" / "golden_prompts.yaml"


def link(source: str) -> str:
    """A source as a link that is short to read."""
    address = source.split(" (")[0]
    parts = urlsplit(address)
    own = re.match(r"/([\w.-]+/[\w.-]+)", parts.path) if parts.netloc in ("huggingface.co", "github.com") else None
    return f"[{own[1] if own else parts.netloc}]({address})"


def _table(headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [headings, ("---",) * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def templates() -> str:
    """A row for each template: who uses it, what was compared and with what."""
    entries = yaml.safe_load(GOLDEN.read_text(encoding="utf-8"))["golden"]
    rows = []
    for key, template in TEMPLATES.items():
        own = [entry for entry in entries if entry["template"] == key]
        makers = Counter(row.id.split("/")[0] for row in catalog.rows().values() if row.template == key)
        kinds = dict.fromkeys(kind for entry in own for kind in entry["prompts"])
        sources = dict.fromkeys(link(entry["source"]) for entry in own)
        users = ", ".join(f"{maker} ({count})" for maker, count in makers.most_common()) or "-"
        rows.append((f"`{key}`", users, template.status, ", ".join(kinds) or "-", ", ".join(sources) or "-"))
    return _table(("key", "models in the catalog", "status", "compared", "with"), rows)


def models() -> str:
    """A row for each model that answers questions."""
    rows = []
    for row in catalog.rows().values():
        if row.prompt is not None:
            source = link(row.prompt_source) if row.prompt_source is not None else "-"
            rows.append((row.id, f"`{row.template}`" if row.template else "-", row.prompt, source))
    return _table(("model", "template", "status", "source"), sorted(rows, key=lambda row: row[0].lower()))


def page(text: str) -> str:
    """The page with its tables as they are now."""
    for name, table in (("templates", templates()), ("models", models())):
        begin, end = f"<!-- prompts: {name} -->", f"<!-- end prompts: {name} -->"
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n{table}\n{end}{rest.partition(end)[2]}"
    return text


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
