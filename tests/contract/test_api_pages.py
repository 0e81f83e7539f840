"""docs/api.md and docs/api.ja.md say what the code says: parameters, defaults, methods, commands; the examples run."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from tests.support.commands import environment
from tests.support.models import save_tiny_model

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("docs/api.md", "docs/api.ja.md")
CLASSES = (
    "JapaneseModel",
    "BaseModel",
    "FullFinetuningTrainer",
    "LoRAFinetuningTrainer",
    "AdvancedMultiGPUTrainer",
    "PreferenceTrainer",
    "QuantizationOptimizer",
)
WITH_TABLE = (
    *CLASSES,
    "TextDataset",
    "TrainingConfig",
    "OptimizerConfig",
    "ScheduleConfig",
    "CheckpointConfig",
    "RuntimeConfig",
    "EvaluationConfig",
    "LoRAConfig",
    "PreferenceConfig",
    "MultiGPUTrainingConfig",
    "DataConfig",
    "optimize_model_for_gpu",
    "set_memory_fraction",
)
KEYWORD = re.compile(r"\(keyword\)|（キーワード）")


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def python_of(page: str) -> str:
    return "\n".join(re.findall(r"^```python\n(.*?)^```", text_of(page), flags=re.M | re.S))


def parameter_tables(page: str) -> dict[str, list[list[str]]]:
    """Rows (cells) of the first table with a default column under each heading that names an object."""
    tables: dict[str, list[list[str]]] = {}
    heading, in_table = "", False
    for line in text_of(page).splitlines():
        if line.startswith("#"):
            heading, in_table = line.lstrip("# "), False
        elif line.startswith(("| parameter |", "| 引数 |")):
            in_table = True
        elif in_table and line.startswith("| "):
            tables.setdefault(heading, []).append([cell.strip() for cell in line.strip("|").split(" | ")])
        elif not line.startswith("|"):
            in_table = False
    return tables


def named(name: str) -> Any:
    target: Any = importlib.import_module("ai_finetuning")
    for part in name.split("."):
        target = getattr(target, part)
    return target


def written(parameter: inspect.Parameter) -> tuple[str, str, bool]:
    """A parameter as the pages write it: name, default, keyword-only."""
    if parameter.kind is parameter.VAR_KEYWORD:
        return f"**{parameter.name}", "", False
    if parameter.default is parameter.empty:
        default = "required"
    else:
        default = repr(parameter.default)
        if default == "<factory>":  # dataclasses: a section that is made anew
            default = f"{getattr(parameter.annotation, '__name__', parameter.annotation)}()"
    return parameter.name, default, parameter.kind is parameter.KEYWORD_ONLY


@pytest.mark.parametrize("page", PAGES)
def test_tables_hold_the_parameters_and_defaults_of_the_code(page: str):
    tables = parameter_tables(page)
    assert set(WITH_TABLE) <= set(tables)
    for name, rows in tables.items():
        parameters = inspect.signature(named(name)).parameters.values()
        expected = [written(item) for item in parameters if item.name != "self"]
        obtained = [
            (
                cells[0].split("`")[1],
                cells[1].strip("`").replace("必須", "required"),
                KEYWORD.search(cells[0]) is not None,
            )
            for cells in rows
        ]
        assert obtained == expected, f"{page}, {name}"
        assert all(len(cells) > 2 and cells[2] for cells in rows), f"{page}, {name}: a parameter without a meaning"


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("name", CLASSES)
def test_every_public_method_is_on_the_page(page: str, name: str):
    text = text_of(page)
    for method, _ in inspect.getmembers(named(name), callable):
        if not method.startswith("_"):
            assert f"{name}.{method}" in text or f"`{method}(" in text, f"{page} does not mention {name}.{method}"


def test_every_public_name_is_on_both_pages():
    public = importlib.import_module("ai_finetuning").__all__
    for page in PAGES:
        missing = [name for name in public if name not in text_of(page) and name not in ("__version__", "ModelConfig")]
        assert set(missing) <= {"RunConfig"}, missing


def commands(group: Any, path: str = "aift") -> Iterator[str]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{path} {name}")
        elif not command.hidden:  # what `aift runs launch` starts, which nobody types
            yield f"{path} {name}"


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_on_the_page(page: str):
    from ai_finetuning.apps.cli.main import app_of

    listed = re.findall(r"^\| `(aift [^`]*)` \|", text_of(page), flags=re.M)
    obtained = {next((line for line in listed if f"{line} ".startswith(f"{name} ")), None) for name in every(app_of())}
    assert None not in obtained
    assert obtained == set(listed)


def every(app: typer.Typer) -> list[str]:
    return list(commands(typer.main.get_command(app)))


def test_both_pages_have_the_same_parts_and_examples():
    english, japanese = (text_of(page) for page in PAGES)
    levels = [
        re.findall(r"^(#+) ", re.sub(r"```.*?```", "", text, flags=re.S), flags=re.M) for text in (english, japanese)
    ]
    assert levels[0] == levels[1]
    assert python_of(PAGES[0]) == python_of(PAGES[1])


def test_the_examples_run(tmp_path: Path):
    save_tiny_model(tmp_path / "my-model")
    rows = "".join(f"{number}の次は？,{number + 1}です。\r\n" for number in range(8))
    (tmp_path / "faq.csv").write_bytes(("質問,回答\r\n" + rows).encode("cp932"))
    (tmp_path / "script.py").write_text(python_of(PAGES[0]), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, encoding="utf-8", env=environment()
    )
    assert done.returncode == 0, done.stderr
    assert "torch.Size([2, 64]) torch.Size([2, 64])" in done.stdout
