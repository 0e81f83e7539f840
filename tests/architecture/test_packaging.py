"""What the package says about itself: what it imports is declared, and each fact stands in one place."""

from __future__ import annotations

import ast
import re
import shutil
import sys
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tests.support.scripts import script

import ai_finetuning

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
# The distribution of an import, where the two names differ by more than - and _.
DISTRIBUTION = {"yaml": "pyyaml", "pynvml": "nvidia-ml-py", "pydantic_core": "pydantic"}
# Dependencies that the libraries need for what the toolkit does, and do not require themselves.
NEEDED_BY_OTHERS = {"jinja2": "chat templates", "protobuf": "sentencepiece models read by transformers"}
# Imported only where the user has it, and asks for it by name; not ours to declare.
USERS_OWN = {"wandb", "tensorboard", "mlflow", "deepspeed"}
# What torch for CUDA brings along, imported there alone.
BROUGHT_BY_TORCH = {"triton"}
ADDRESS = "https://example.invalid/somebody/toolkit"


def third_party() -> dict[str, str]:
    """Distribution -> a file that imports it."""
    obtained: dict[str, str] = {}
    for path in sorted((ROOT / "src" / "ai_finetuning").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names = [node.module]
            for name in (name.split(".")[0] for name in names):
                if name not in sys.stdlib_module_names and name != "ai_finetuning":
                    obtained.setdefault(canonicalize_name(DISTRIBUTION.get(name, name)), str(path.relative_to(ROOT)))
    return obtained


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(item).name) for item in requirements}


def test_every_import_is_declared():
    extras = PROJECT["project"]["optional-dependencies"]
    declared = names(PROJECT["project"]["dependencies"]).union(
        *(names(extras[key]) for key in extras if key not in {"dev", "docs"})
    )
    missing = {
        name: path for name, path in third_party().items() if name not in declared | USERS_OWN | BROUGHT_BY_TORCH
    }
    assert not missing, missing


def test_every_dependency_is_imported_or_has_its_reason():
    idle = names(PROJECT["project"]["dependencies"]) - set(third_party()) - set(NEEDED_BY_OTHERS)
    assert not idle, idle


def test_every_dependency_of_make_setup_is_pinned():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {canonicalize_name(re.split(r"[=;]", line)[0]) for line in lines if line and not line.startswith("#")}
    extras = PROJECT["project"]["optional-dependencies"]
    expected = PROJECT["project"]["dependencies"] + extras["dev"] + extras["docs"]
    assert not names(expected) - pins, names(expected) - pins
    assert not [line for line in lines if line and not line.startswith("#") and "==" not in line]


def test_an_empty_extra_says_what_will_fill_it():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for extra, requirements in PROJECT["project"]["optional-dependencies"].items():
        if not requirements:
            assert re.search(rf"^# .*fills it.*\n(?:# .*\n)*{extra} = \[\]", text, re.MULTILINE), extra


def test_the_version_stands_once():
    assert "version" in PROJECT["project"]["dynamic"]
    assert "version" not in PROJECT["project"]
    assert "version" not in yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert metadata(ROOT).version == ai_finetuning.__version__


def metadata(root: Path):
    """The metadata that hatchling would build here."""
    from hatchling.metadata.core import ProjectMetadata
    from hatchling.plugin.manager import PluginManager

    return ProjectMetadata(str(root), PluginManager())


def test_no_public_address_is_invented():
    """URLs, links and the citation follow from the one address; while it is empty there are none."""
    address = PROJECT["tool"]["hatch"]["metadata"]["hooks"]["custom"]["repository"]
    assert bool(metadata(ROOT).core.urls) is bool(address)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation.get("repository-code", "") == address
    assert "url" not in citation
    if not address:
        assert metadata(ROOT).core.readme == (ROOT / "README.md").read_text(encoding="utf-8")


def test_one_address_fills_urls_and_links(tmp_path: Path):
    for name in ("README.md", "LICENSE", "hatch_build.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    package = tmp_path / "src" / "ai_finetuning"
    package.mkdir(parents=True)
    shutil.copy(ROOT / "src" / "ai_finetuning" / "__init__.py", package)
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    filled = re.sub(r'^repository = ".*"$', f'repository = "{ADDRESS}"', text, flags=re.MULTILINE)
    (tmp_path / "pyproject.toml").write_text(filled, encoding="utf-8")
    core = metadata(tmp_path).core
    assert core.urls["Repository"] == ADDRESS
    assert core.urls["Issues"] == f"{ADDRESS}/issues"
    relative = [link for link in re.findall(r"\]\(([^)\s]+)\)", core.readme) if not link.startswith(("https:", "#"))]
    assert relative == []
    assert f"[README.ja.md]({ADDRESS}/blob/main/README.ja.md)" in core.readme


def test_links_that_are_whole_stay_and_images_are_files():
    absolute = script("hatch_build.py").absolute
    text = "[a](https://x.invalid/y) [b](#part) ![c](images/c.png) [d](pages/d.md#e)"
    assert absolute(text, ADDRESS + "/") == (
        f"[a](https://x.invalid/y) [b](#part) ![c]({ADDRESS}/raw/main/images/c.png) [d]({ADDRESS}/blob/main/pages/d.md#e)"
    )
    assert absolute(text, "") == text
