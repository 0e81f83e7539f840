"""Private names of the libraries stand in one file a room, `_upstream.py`, where an upgrade can look them through."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "ai_finetuning"
FILES = sorted(PACKAGE.rglob("*.py"))
SHIMS = "_upstream.py"
LIBRARIES = {
    "accelerate",
    "bitsandbytes",
    "datasets",
    "deepspeed",
    "peft",
    "tokenizers",
    "torch",
    "torchao",
    "transformers",
}
# Attributes of the libraries' objects, whatever the object is called and whoever else uses the name.
KNOWN = {
    "_attn_implementation",
    "_buffers",
    "_hf_hook",
    "_keys_to_ignore_on_load_missing",
    "_keys_to_ignore_on_save",
    "_modules",
    "_name_or_path",
    "_no_split_modules",
    "_parameters",
    "_pp_plan",
    "_tied_weights_keys",
    "_tp_plan",
    "_version",
    "_weight_conversions",
}
# Documented although they begin with an underscore, and the only way to run exit functions before os._exit.
STANDARD_LIBRARY = {"_asdict", "_exit", "_fields", "_make", "_replace", "_run_exitfuncs"}
PUBLIC = {"__version__", "__name__", "__doc__", "__file__"}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def own_names(trees: list[ast.AST]) -> set[str]:
    """Private names that the package gives to functions, classes and attributes of its own objects."""
    names: set[str] = set()
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {name.id for item in node.body for name in ast.walk(item) if isinstance(name, ast.Name)}
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name):
            names |= {node.attr} if node.value.id == "self" else set()
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "object.__setattr__":
            names |= {name.value for name in node.args[1:2] if isinstance(name, ast.Constant)}
    return names


def accesses(tree: ast.AST) -> Iterator[tuple[int, ast.expr, str]]:
    """(line, object, name) of `object.name` and of getattr, hasattr, setattr, delattr(object, "name")."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.lineno, node.value, node.attr
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith("attr"):
            match node.args:
                case [target, ast.Constant(value=str(name)), *_]:
                    yield node.lineno, target, name


def root(node: ast.expr) -> str | None:
    """`a` of a.b.c and of a.b(c).d, where it is a name."""
    while isinstance(node, ast.Attribute | ast.Call):
        node = node.value if isinstance(node, ast.Attribute) else node.func
    return node.id if isinstance(node, ast.Name) else None


def violations(tree: ast.AST, own: set[str]) -> list[str]:
    """What a file uses of the libraries' private names."""
    problems, imported = [], set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first, *rest = alias.name.split(".")
                if first in LIBRARIES:
                    imported.add(alias.asname or first)
                    problems += [f"line {node.lineno}: import {alias.name}"] if any(map(is_private, rest)) else []
        elif isinstance(node, ast.ImportFrom) and not node.level:
            parts = (node.module or "").split(".")
            if parts[0] in LIBRARIES:
                imported |= {alias.asname or alias.name for alias in node.names}
                private = [name for name in (*parts, *(alias.name for alias in node.names)) if is_private(name)]
                problems += [f"line {node.lineno}: from {node.module} import {name}" for name in private]
    for line, target, name in accesses(tree):
        rooted = root(target) in imported and name.startswith("_") and name not in PUBLIC
        foreign = is_private(name) and name not in own | STANDARD_LIBRARY
        if rooted or foreign or name in KNOWN:
            problems.append(f"line {line}: {ast.unparse(target)}.{name}")
    return problems


OWN = own_names([ast.parse(path.read_text(encoding="utf-8")) for path in FILES if path.name != SHIMS])


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_private_names_of_libraries_stand_in_one_file_a_room(path: Path):
    """A private name of a library outside `_upstream.py` fails; that file says for which version it is needed."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if path.name == SHIMS:
        undocumented = [
            node.name
            for node in ast.iter_child_nodes(tree)
            if isinstance(node, ast.FunctionDef | ast.ClassDef)
            and not is_private(node.name)
            and not any(digit.isdigit() for digit in ast.get_docstring(node) or "")
        ]
        assert not undocumented, f"{path}: name the version where it holds: {undocumented}"
        return
    problems = violations(tree, OWN)
    assert not problems, f"{path}: " + "; ".join(problems)


@pytest.mark.parametrize(
    "text",
    [
        "import torch._dynamo",
        "from torch._inductor import config",
        "from transformers.utils import _x",
        "import torch\ntorch._C._x()",
        "import torch.distributed as dist\ndist.distributed_c10d._get_default_store()",
        "from accelerate.state import AcceleratorState\nAcceleratorState._reset_state()",
        "import deepspeed\ndeepspeed.ops.__compatible_ops__ = {}",
        "def f(model): return model._no_split_modules",
        "def f(model): return getattr(model, '_tied_weights_keys', None)",
        "def f(model): model._something_new = 1",
        "class A:\n    def f(self): return self._modules",
    ],
)
def test_the_walk_finds(text: str):
    assert violations(ast.parse(text), set())


@pytest.mark.parametrize(
    "text",
    [
        "import torch\ntorch.__version__",
        "import os\nos._exit(1)",
        "class A:\n    def f(self): return self._own",
        "def f(a): return a._own",
    ],
)
def test_the_walk_leaves(text: str):
    assert not violations(ast.parse(text), {"_own"})
