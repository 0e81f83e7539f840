"""SECURITY.md promises what a test holds: every test that it names exists, and the table leaves no class open."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "SECURITY.md").read_text(encoding="utf-8")


def named_in(path: Path) -> set[str]:
    return {
        node.name
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def all_tests() -> set[str]:
    return set().union(*(named_in(path) for path in (ROOT / "tests").rglob("test_*.py")))


def named(text: str) -> list[tuple[str, str]]:
    """(file, test) of every mention; a test without a file is `("", name)`."""
    files = re.findall(r"(tests/[\w/]+\.py)(?:::(test_\w+))?", text)
    alone = re.findall(r"(?<![\w/])(?:::)?(test_\w+)(?!\w|\.py)", re.sub(r"tests/[\w/]+\.py(?:::test_\w+)?", "", text))
    return [*files, *(("", name) for name in alone)]


def test_every_test_that_the_page_names_exists():
    everything = all_tests()
    for file, name in named(PAGE):
        assert not file or (ROOT / file).is_file(), file
        assert not name or name in (named_in(ROOT / file) if file else everything), (file, name)


def rows() -> list[list[str]]:
    """The table of the classes, as cells."""
    table = PAGE[PAGE.index("## Every class of attack") :]
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_no_class_is_open():
    """The list that the design began with has 28 classes; each row names the test that holds it shut."""
    assert len(rows()) == 28
    for kind, held, proof in rows():
        assert kind
        assert held
        assert named(proof), kind
