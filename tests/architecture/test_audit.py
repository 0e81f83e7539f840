"""`make check` asks for known weaknesses of the pinned versions; without a service it says so and goes on."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / ".ci" / "audit.py"


def audit() -> Any:
    spec = importlib.util.spec_from_file_location("ci_audit", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def report(*packages: dict[str, Any]) -> dict[str, Any]:
    return {"dependencies": list(packages), "fixes": []}


GOOD = {"name": "jinja2", "version": "3.1.6", "vulns": []}
UNKNOWN = {"name": "torch", "skip_reason": "Dependency not found on PyPI and could not be audited: torch (2.13.0)"}
BAD = {
    "name": "jinja2",
    "version": "2.4.1",
    "vulns": [{"id": "PYSEC-2014-8", "aliases": ["CVE-2014-1402"], "fix_versions": ["2.7.2"], "description": ""}],
}


@pytest.mark.skipif(importlib.util.find_spec("pip_audit") is None, reason="pip-audit is not installed (make setup)")
def test_without_a_service_one_line_says_so_and_the_check_goes_on():
    """The discard port of this machine in place of a proxy."""
    nowhere = dict.fromkeys(("HTTPS_PROXY", "https_proxy", "ALL_PROXY"), "http://127.0.0.1:9")
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], env=os.environ | nowhere, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "audit: no advisory service answers from here; known weaknesses were not looked for\n"
    assert done.stderr == ""


@pytest.mark.parametrize("nothing", [None, report(), report(UNKNOWN, UNKNOWN)])
def test_no_report_and_one_that_knows_no_package_are_no_service(nothing: dict[str, Any] | None):
    good, lines = audit().judge(nothing, {})
    assert good
    assert len(lines) == 1
    assert "no advisory service answers" in lines[0]


def test_a_weakness_fails_unless_it_is_allowed_with_a_reason():
    judge = audit().judge
    assert judge(report(GOOD, UNKNOWN), {}) == (
        True,
        ["audit: 1 packages without a known weakness, 1 that the service does not know"],
    )
    good, lines = judge(report(GOOD, BAD), {})
    assert not good
    assert lines == ["audit: jinja2 2.4.1: PYSEC-2014-8 (fixed in 2.7.2)"]
    for name in ("PYSEC-2014-8", "CVE-2014-1402"):
        assert judge(report(GOOD, BAD), {name: "no such template"})[0]
    good, lines = judge(report(GOOD), {"PYSEC-2014-8": "no such template"})
    assert not good
    assert "no longer reported" in lines[0]


def test_every_allowed_weakness_has_a_reason_and_make_check_asks():
    assert all(reason.strip() for reason in audit().ALLOWED.values())
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").split("\ncheck:")[1].split("\n\n")[0]
    assert ".ci/audit.py" in recipe
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert "pip_audit==" in pinned
