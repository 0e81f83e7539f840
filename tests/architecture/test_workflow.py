"""The workflow on GitHub, .ci/run and the Makefile say the same; it cannot run here, so its text is compared."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.scripts import script

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
TRIGGERS = WORKFLOW[True]  # YAML 1.1 reads `on` as a truth value
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]


def steps(job: str) -> list[str]:
    """The commands of a job, in order."""
    return [step["run"].strip() for step in WORKFLOW["jobs"][job]["steps"] if "run" in step]


def recipes() -> dict[str, list[str]]:
    """The commands of each target of the Makefile."""
    obtained: dict[str, list[str]] = {}
    target = ""
    for line in (ROOT / "Makefile").read_text(encoding="utf-8").splitlines():
        head = re.match(r"([\w./-]+):(?!=)", line)
        if head:
            target = head[1]
            obtained.setdefault(target, [])
        elif line.startswith("\t") and target:
            obtained[target].append(line.strip())
    return obtained


def test_the_job_test_does_what_ci_run_does():
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    own = [line.strip() for line in lines if line.strip() and not line.startswith(("#", "set ", "cd "))]
    assert own == ["if .ci/browser; then export AIFT_NEED_BROWSER=1; fi", "make check", "make docs", "make test"]
    browser = 'if .ci/browser; then echo AIFT_NEED_BROWSER=1 >> "$GITHUB_ENV"; fi'
    assert steps("test") == [browser, *own[1:]]
    assert os.access(ROOT / ".ci" / "browser", os.X_OK)
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_every_target_that_is_called_is_in_the_makefile():
    called = {word for job in WORKFLOW["jobs"] for run in steps(job) for word in re.findall(r"make ([\w-]+)", run)}
    assert called <= set(recipes()), called - set(recipes())


def test_make_check_asks_every_tool():
    text = "\n".join(recipes()["check"])
    tools = [
        "ruff format --check",
        "ruff check",
        "mypy",
        "codespell",
        "bandit",
        ".ci/audit.py",
        "vermin",
        "pytest -q tests/architecture",
        "wheel",
    ]
    assert [tool for tool in tools if tool not in text] == []
    assert ".ci/wheel.py" in "\n".join(recipes()["wheel"])


def test_plain_pytest_means_what_make_test_runs():
    assert '-m "not slow and not faults and not gpu"' in PROJECT["tool"]["pytest"]["ini_options"]["addopts"]
    assert recipes()["test"] == ["$(PYTEST)"]
    assert [line for line in recipes()["test-faults"] if '-m "faults"' in line]


def test_one_list_of_pythons():
    assert WORKFLOW["jobs"]["test"]["strategy"]["matrix"]["python"] == PYTHONS
    classifiers = PROJECT["project"]["classifiers"]
    obtained = re.findall(r"Python :: (3\.\d+)$", "\n".join(classifiers), re.MULTILINE)
    assert obtained == PYTHONS
    assert PROJECT["project"]["requires-python"] == f">={PYTHONS[0]}"
    assert PROJECT["tool"]["ruff"]["target-version"] == "py" + PYTHONS[0].replace(".", "")
    (vermin,) = [line for line in recipes()["check"] if "vermin" in line]
    assert f"-t={PYTHONS[0]}-" in vermin


def test_the_oldest_and_newest_libraries_are_those_that_pyproject_allows():
    assert WORKFLOW["jobs"]["libraries"]["strategy"]["matrix"]["versions"] == ["oldest", "newest"]
    libraries = script(".ci/libraries.py")
    declared = ["torch>=2", "transformers>=5.3,<6", "peft>=0.19,<1"]
    assert libraries.requirements("oldest", declared) == ["transformers==5.3", "peft==0.19"]
    assert sorted(libraries.requirements("newest", declared)) == ["peft<1,>=0.19", "transformers<6,>=5.3"]
    assert len(libraries.requirements("oldest", PROJECT["project"]["dependencies"])) == 2
    assert steps("libraries")[-1] == "make test"


def test_upstream_is_tried_every_week():
    assert len(TRIGGERS["schedule"]) == 1
    assert re.fullmatch(r"\d+ \d+ \* \* \d", TRIGGERS["schedule"][0]["cron"])
    assert "github.event_name == 'schedule'" in WORKFLOW["jobs"]["upstream"]["if"]
    assert ".venv/bin/python .ci/libraries.py main" in steps("upstream")
    expected = script(".ci/libraries.py").requirements("main", [])
    assert [item.split(" @ ")[0] for item in expected] == ["transformers", "peft"]


def test_the_wheel_is_installed_alone_and_run():
    text = "\n".join(steps("install"))
    assert "python -m build" in text
    assert "-m pip install dist/*.whl" in text
    assert 'aift" env' in text
    assert steps("docs") == ["make docs"]
    assert "docs: setup links" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_the_workflow_may_only_read():
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert all("timeout-minutes" in job for job in WORKFLOW["jobs"].values())


def test_hooks_are_local_and_their_scripts_exist(tmp_path: Path):
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert [repo["repo"] for repo in config["repos"]] == ["local"]
    hooks = {hook["id"]: hook["entry"] for hook in config["repos"][0]["hooks"]}
    assert list(hooks) == ["ruff-format", "ruff-check", "codespell", "file-size"]
    assert (ROOT / hooks["file-size"].split()[1]).is_file()
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(b"1" * 10)
    large.write_bytes(b"1" * 11)
    logged = script(".ci/file_size.py").too_large(10, [str(small), str(large)])
    assert logged == [f"{large}: 11 bytes, the limit is 10"]


@pytest.mark.parametrize("kind", ["bug", "feature"])
def test_templates_ask_the_same_in_both_languages(kind: str):
    def asked(language: str) -> list[Any]:
        text = (ROOT / ".github" / "ISSUE_TEMPLATE" / f"{kind}.{language}.yml").read_text(encoding="utf-8")
        return [(item["id"], item["type"], item.get("validations")) for item in yaml.safe_load(text)["body"]]

    assert asked("en") == asked("ja")
