"""No file imports another that imports it: a newcomer can read the package from the bottom up."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "ai_finetuning"


def module_of(path: Path) -> str:
    """Its dotted name below the package; a room's own is that of its __init__.py."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path, modules: set[str]) -> set[str]:
    """Modules of the package that a file imports, inside functions and for types too."""
    here = path.relative_to(PACKAGE).with_suffix("").parts
    obtained: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*here[: len(here) - node.level], *((node.module or "").split(".") if node.module else [])]
            names = {".".join([*base, alias.name]) for alias in node.names}
            obtained |= {name if name in modules else ".".join(base) for name in names}
    return (obtained & modules) - {module_of(path)}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that reach each other (Tarjan, SIAM J. Comput. 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            cut = stack.index(node)
            groups.append(stack[cut:])
            del stack[cut:]

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return [sorted(group) for group in groups if len(group) > 1]


def test_there_are_no_circles_between_files():
    """Neither at import, nor inside functions, nor for type checkers only."""
    files = {module_of(path): path for path in PACKAGE.rglob("*.py")}
    graph = {name: imported(path, set(files)) for name, path in files.items()}
    assert sum(map(len, graph.values())) > 500
    assert circles(graph) == []


def test_a_circle_is_found():
    """Of two and of three files; a file that only stands at the end of a chain is in none."""
    graph = {"a": {"b"}, "b": {"a", "c"}, "c": set(), "x": {"y"}, "y": {"z"}, "z": {"x"}}
    assert circles(graph) == [["a", "b"], ["x", "y", "z"]]
