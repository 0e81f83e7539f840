"""A function takes at most eight parameters; more of them are an object that nobody has named yet."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "ai_finetuning"
MAX_PARAMETERS = 8
# Signatures that are documented, so that they cannot become shorter.
DOCUMENTED = {
    "models/japanese_model.py JapaneseModel.__init__",
    "trainers/full.py FullFinetuningTrainer.__init__",
    "trainers/lora.py LoRAFinetuningTrainer.__init__",
    "trainers/multi_gpu.py AdvancedMultiGPUTrainer.__init__",
}
# Still too long; a name leaves this table with its function's last parameter too many.
TEMPORARY: set[str] = set()


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How many a caller may name; the object itself, *args and **kwargs do not count."""
    names = [item.arg for item in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def is_verb(path: Path, node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether typer reads a function's parameters as a command's options; one that verbs share is a constant."""
    defaults = [ast.unparse(item) for item in (*node.args.defaults, *node.args.kw_defaults) if item is not None]
    inside = path.is_relative_to(PACKAGE / "apps" / "cli")
    return inside and any(item.startswith("typer.") or item.isupper() for item in defaults)


def too_long(path: Path, tree: ast.Module) -> set[str]:
    """`file Class.function` of every function of a file with too many parameters."""
    obtained = set()
    place = path.relative_to(PACKAGE).as_posix()

    def walk(node: ast.AST, names: tuple[str, ...]) -> None:
        for child in ast.iter_child_nodes(node):
            inside = (*names, child.name) if isinstance(child, ast.FunctionDef | ast.ClassDef) else names
            is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            if is_function and parameters(child) > MAX_PARAMETERS and not is_verb(path, child):
                obtained.add(f"{place} {'.'.join(inside)}")
            walk(child, inside)

    walk(tree, ())
    return obtained


def test_functions_have_at_most_eight_parameters():
    """Neither a new function with more, nor a row of the tables that no function needs any longer."""
    obtained: set[str] = set()
    for path in sorted(PACKAGE.rglob("*.py")):
        obtained |= too_long(path, ast.parse(path.read_text(encoding="utf-8")))
    assert obtained - DOCUMENTED - TEMPORARY == set(), "group them in a dataclass"
    assert (DOCUMENTED | TEMPORARY) - obtained == set(), "shorter by now: take them out of the table"


def test_the_count():
    """Keyword-only and positional-only parameters count, `self`, *args and **kwargs do not; verbs are left out."""
    eight, nine = ", ".join("abcdefgh"), ", ".join("abcdefghi")
    text = (
        f"class A:\n def f(self, a, /, {nine[3:]}, *x, **y): ...\n def g(self, {eight}, *x): ...\ndef h(*, {nine}): ..."
    )
    assert too_long(PACKAGE / "data" / "x.py", ast.parse(text)) == {"data/x.py A.f", "data/x.py h"}
    verb = f"def v({eight}, i=typer.Option(1)): ..."
    assert too_long(PACKAGE / "apps" / "cli" / "x.py", ast.parse(verb)) == set()
    assert too_long(PACKAGE / "data" / "x.py", ast.parse(verb)) == {"data/x.py v"}
