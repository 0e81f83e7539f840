"""Asks PyPI's advisories about every version in constraints.txt (pip-audit); where none can be had, one line says so.

A known weakness fails the check, until constraints.txt has a version without it or ALLOWED says why it does not matter.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

CONSTRAINTS = Path(__file__).resolve().parents[1] / "constraints.txt"
# Advisories that do not touch this toolkit: id, and the reason.
ALLOWED: dict[str, str] = {}
_LIMIT_SECONDS = 180


def ask(constraints: Path = CONSTRAINTS) -> dict[str, Any] | None:
    """pip-audit's report; None where it could get none. Nothing is resolved and nothing installed."""
    command = [sys.executable, "-m", "pip_audit", "-r", str(constraints), "--no-deps", "--disable-pip"]
    options = ["--progress-spinner", "off", "--timeout", "10", "--format", "json"]
    try:
        done = subprocess.run([*command, *options], capture_output=True, text=True, check=False, timeout=_LIMIT_SECONDS)
        report: dict[str, Any] = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, ValueError):
        return None
    return report


def judge(report: dict[str, Any] | None, allowed: dict[str, str] = ALLOWED) -> tuple[bool, list[str]]:
    """(whether it may go on, what to say) of a report.

    A mirror without advisories answers "not found" to every name; a service that knows some of them is one.
    """
    packages = report["dependencies"] if report is not None else []
    asked = [package for package in packages if "vulns" in package]
    if not asked:
        return True, ["audit: no advisory service answers from here; known weaknesses were not looked for"]
    lines, found = [], set()
    for package in asked:
        for weakness in package["vulns"]:
            names = {weakness["id"], *weakness.get("aliases", ())}
            found |= names
            if not names & allowed.keys():
                fixed = ", ".join(weakness.get("fix_versions", ())) or "no version yet"
                lines.append(f"audit: {package['name']} {package['version']}: {weakness['id']} (fixed in {fixed})")
    lines += [f"audit: {name} is in ALLOWED and no longer reported; remove it" for name in allowed.keys() - found]
    if lines:
        return False, lines
    unknown = len(packages) - len(asked)
    return True, [f"audit: {len(asked)} packages without a known weakness, {unknown} that the service does not know"]


def main() -> int:
    """The exit code."""
    if importlib.util.find_spec("pip_audit") is None:
        print("audit: pip-audit is not installed; `make setup` installs it")
        return 1
    good, lines = judge(ask())
    print("\n".join(lines))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
