"""docs/templates.md says of each prompt what the catalog says."""

from __future__ import annotations

import pytest
from tests.support import prompt_pages

from ai_finetuning.japanese.templates import TEMPLATES
from ai_finetuning.models import catalog

TEXT = prompt_pages.PAGE.read_text(encoding="utf-8")


def test_the_page_is_that_of_the_catalog():
    assert prompt_pages.page(TEXT) == TEXT, f"docs/templates.md is stale; `{prompt_pages.COMMAND}` writes it anew"


def test_the_page_has_every_model_and_every_template():
    for row in catalog.rows().values():
        if row.prompt is not None:
            line = next(line for line in TEXT.splitlines() if line.startswith(f"| {row.id} |"))
            assert f"| `{row.template}` | {row.prompt} |".replace("`None`", "-") in line
            assert row.prompt_source is None or f"({row.prompt_source})" in line
    for key, template in TEMPLATES.items():
        line = next(line for line in TEXT.splitlines() if line.startswith(f"| `{key}` |"))
        assert f"| {template.status} |" in line


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("https://github.com/a/b/blob/HEAD/c.py (without x)", "[a/b](https://github.com/a/b/blob/HEAD/c.py)"),
        ("https://huggingface.co/a/b-1.5/tree/main", "[a/b-1.5](https://huggingface.co/a/b-1.5/tree/main)"),
        ("https://docs.mistral.ai/cookbook", "[docs.mistral.ai](https://docs.mistral.ai/cookbook)"),
    ],
)
def test_a_source_is_a_short_link(source: str, expected: str):
    assert prompt_pages.link(source) == expected
