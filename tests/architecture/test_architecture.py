"""The house rules of ARCHITECTURE.md, read off the source: layers, sizes, names."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src"
PACKAGE = SOURCE / "ai_finetuning"
FILES = sorted(PACKAGE.rglob("*.py"))

# Row of each package; a module may import from lower rows and from its own package.
ROWS = {
    "errors": 0,
    "messages": 1,
    "labels": 1,
    "config": 2,
    "japanese": 2,
    "embedded": 2,
    "system": 2,
    "runs": 3,
    "kernels": 3,
    "data": 10,
    "models": 10,
    "parallel": 20,
    "engine": 21,
    "planner": 30,
    "inference": 30,
    "evaluation": 31,
    "execution": 40,
    "convert": 41,
    "export": 42,
    "trainers": 43,
    "apps": 60,
    "__main__": 61,
    "__init__": 0,
}
# What a row may not import although it is lower (ARCHITECTURE.md §2).
FORBIDDEN = {
    "engine": {"models", "transformers", "peft"},
    "parallel": {"engine", "data", "transformers", "peft"},
    "runs": {"torch", "transformers", "models", "kernels", "japanese", "embedded"},
    "config": {"torch", "transformers"},
    "japanese": {"torch", "transformers"},
    "apps/web": {"apps.cli"},
    **{f"apps/web/{room}": {"apps.cli"} for room in ("screens", "words")},
}
BANNED_NAMES = {"utils", "common", "misc", "helpers"}
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_FIELDS, MAX_FIELDS_DOCUMENTED = 600, 100, 20, 24
DOCUMENTED = {"TrainingConfig", "MultiGPUTrainingConfig", "LoRAConfig"}


def owner(path: Path) -> str:
    """The package below ai_finetuning that a file belongs to."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(path: Path) -> list[tuple[int, str]]:
    """(line, absolute module) of every import in a file, inside functions too."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    obtained = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            obtained += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(parts[: len(parts) - node.level]) + "." if node.level else ""
            module = base + (node.module or "")
            names = [f"{module.rstrip('.')}.{alias.name}" for alias in node.names] if not node.module else [module]
            obtained += [(node.lineno, name) for name in names]
    return obtained


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downward(path: Path):
    """No module imports a higher row, a sibling package or a library that its row must not know."""
    mine, problems = owner(path), []
    below = str(path.relative_to(PACKAGE).parent)
    banned = FORBIDDEN.get(mine, set()) | FORBIDDEN.get(below, set())
    if below == "apps/cli" and path.name != "web.py":  # the verb that starts the page
        banned = banned | {"apps.web"}
    for line, module in imports(path):
        parts = module.split(".")
        target = parts[1] if parts[0] == "ai_finetuning" and len(parts) > 1 else parts[0]
        if target in banned or ".".join(parts[1:3]) in banned:
            problems.append(f"{path.name}:{line} {mine} must not import {module}")
        inside = parts[0] == "ai_finetuning" and len(parts) > 1 and target in ROWS and target != mine
        if inside and ROWS[target] >= ROWS[mine] and mine != "__init__":
            problems.append(f"{path.name}:{line} {mine} (row {ROWS[mine]}) imports {module} (row {ROWS[target]})")
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_sizes_and_names(path: Path):
    """Files, functions and config classes stay within their budgets; no `global` (ruff's T20 keeps `print` in apps)."""
    text = path.read_text(encoding="utf-8")
    problems = []
    if len(text.splitlines()) > MAX_FILE_LINES:
        problems.append(f"{len(text.splitlines())} lines")
    if path.stem in BANNED_NAMES or set(path.relative_to(PACKAGE).parts[:-1]) & BANNED_NAMES:
        problems.append("a banned module name")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                problems.append(f"{node.name} has {length} lines")
        elif isinstance(node, ast.Global):
            problems.append(f"`global` at line {node.lineno}")
        elif isinstance(node, ast.ClassDef) and owner(path) == "config":
            fields = [
                item for item in node.body if isinstance(item, ast.AnnAssign) and "ClassVar" not in ast.dump(item)
            ]
            limit = MAX_FIELDS_DOCUMENTED if node.name in DOCUMENTED else MAX_FIELDS
            if len(fields) > limit:
                problems.append(f"{node.name} has {len(fields)} fields")
    assert not problems, f"{path}: " + "; ".join(problems)


def test_loop_and_step_stay_short():
    """`fit` is at most 80 lines and `train_step` at most 40 (ARCHITECTURE.md §5)."""
    lengths = {}
    for path in (PACKAGE / "engine").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                lengths[node.name] = (node.end_lineno or 0) - node.lineno + 1
    assert lengths["fit"] <= 80
    assert lengths["train_step"] <= 40


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_pickle_no_shell_no_network_listener(path: Path):
    text = path.read_text(encoding="utf-8")
    for word in (
        "torch.save(",
        "torch.load(",
        "import pickle",
        "shell=True",
        "trust_remote_code=True,",
        "trust_remote_code=True)",
        " eval(",
        " exec(",
        "os.system(",
        "0.0.0.0",
        "yaml.load(text)",
    ):
        assert word not in text, word
