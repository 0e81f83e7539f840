"""What no file of the toolkit may do: open pickles, run texts as code, start shells, allow foreign code.

bandit and ruff look for most of it, and leave out what a comment tells them to; nothing of this can be switched off so.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src"
FILES = sorted(SOURCE.rglob("*.py"))
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}
CALLS = {
    *("torch.load", "torch.jit.load", "torch.hub.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all"),
    *("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "pandas.read_pickle"),
    # Tables that are opened by a spreadsheet program, where a row's text would be a formula.
    *("csv.writer", "csv.DictWriter", "openpyxl.Workbook"),
}
BUILTINS = {"eval", "exec", "compile", "__import__"}
KEYWORDS = {"shell", "trust_remote_code", "allow_pickle"}
# Methods: exchanges of torch and Accelerate that pickle (ours are in parallel/wire.py), and tables as above.
METHODS = {
    *("to_csv", "to_excel", "to_pickle"),
    *("all_gather_object", "gather_object", "broadcast_object_list", "scatter_object_list"),
    *("send_object_list", "recv_object_list"),
}
# yaml.load with a subclass of the safe loader, which keeps the order and lines of a file.
ALLOWED = {
    ("models/catalog.py", "yaml.load"),
    # Answers to a file of questions; tests/unit/inference/test_answer_files.py holds that none becomes a formula.
    ("inference/answer_files.py", "csv.writer"),
    ("inference/answer_files.py", "openpyxl.Workbook"),
}


def dotted(node: ast.expr) -> str:
    """`a.b.c` of an expression; empty where it is no name."""
    if isinstance(node, ast.Attribute):
        before = dotted(node.value)
        return f"{before}.{node.attr}" if before else node.attr
    return node.id if isinstance(node, ast.Name) else ""


def dangers(text: str) -> list[str]:
    """What a file does of it, by name."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in PICKLES]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [name for name in names if name.split(".")[0] in PICKLES or name in CALLS | {"yaml.load"}]
            found += [alias.name for alias in node.names if alias.name in METHODS]
        elif isinstance(node, ast.Call):
            name = dotted(node.func)
            last = name.rpartition(".")[2]
            plain = isinstance(node.func, ast.Name) and name in BUILTINS
            if plain or name in CALLS | {"yaml.load"} or last in METHODS:
                found.append(name)
            found += [
                f"{keyword.arg}=True"
                for keyword in node.keywords
                if keyword.arg in KEYWORDS
                and isinstance(keyword.value, ast.Constant)
                and keyword.value.value not in (False, None)
            ]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_file_does_any_of_it(path: Path):
    mine = path.relative_to(SOURCE / "ai_finetuning").as_posix() if "ai_finetuning" in path.parts else path.name
    found = [name for name in dangers(path.read_text(encoding="utf-8")) if (mine, name) not in ALLOWED]
    assert not found, f"{path}: {found}"


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("import pickle", "pickle"),
        ("import dill as d", "dill"),
        ("from joblib import load", "joblib.load"),
        ("from torch import load", "torch.load"),
        ("torch.load('x')", "torch.load"),
        ("torch.load('x', weights_only=True)", "torch.load"),
        ("eval('x')", "eval"),
        ("exec(text)", "exec"),
        ("compile(text, 'x', 'exec')", "compile"),
        ("yaml.load(text, Loader)", "yaml.load"),
        ("yaml.unsafe_load(text)", "yaml.unsafe_load"),
        ("os.system('x')", "os.system"),
        ("subprocess.run('x', shell=True)", "shell=True"),
        ("AutoModel.from_pretrained(x, trust_remote_code=True)", "trust_remote_code=True"),
        ("np.load(x, allow_pickle=True)", "allow_pickle=True"),
        ("csv.writer(file)", "csv.writer"),
        ("frame.to_excel('x')", "frame.to_excel"),
        ("dist.all_gather_object(a, b)", "dist.all_gather_object"),
        ("from torch.distributed import send_object_list", "send_object_list"),
    ],
)
def test_each_would_be_found(line: str, name: str):
    assert dangers(line) == [name]


def test_what_only_looks_like_it_is_left_alone():
    text = "model.eval()\nre.compile('x')\ntorch.compile(f)\nf(trust_remote_code=given, shell=False)\nnp.load(x, allow_pickle=False)"
    assert dangers(text) == []


def test_the_one_loader_of_yaml_that_is_allowed_is_a_safe_one():
    from ai_finetuning.models import catalog

    text = Path(catalog.__file__).read_text(encoding="utf-8")
    assert text.count("yaml.load(") == 1
    assert 'getattr(yaml, "CSafeLoader", yaml.SafeLoader)' in text
