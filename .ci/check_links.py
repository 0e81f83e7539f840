"""Links and page names that lead nowhere, in every text file of the repository.

    python .ci/check_links.py            # what `make links` runs
    python .ci/check_links.py --index    # writes docs/decisions/index.md anew

- A relative link leads to a file, its anchor to a heading of that file; an external link has the form of one (nothing is
  fetched).
- A page that code, tests or pages name (`docs/NAME.md`, `docs/decisions/NNNN`, a page in capital letters) exists.
- Nothing names an issue by its number: issues are not in the repository.
- docs/decisions/index.md lists every decision.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[1]
TEXT = {".md", ".py", ".cpp", ".yaml", ".yml", ".toml", ".sbatch", ".txt", ".cfg", ".sh", ""}
LINK = re.compile(
    r"!?\[(?:[^\[\]]|\[[^\[\]]*\])*\]\(\s*<?([^()\s<>]*(?:\([^()]*\)[^()\s<>]*)*)>?(?:\s+\"[^\"]*\")?\s*\)"
)
PAGE = re.compile(r"(?<![\w/.-])docs/[\w./-]+\.(?:md|ya?ml|png)\b")
DECISION = re.compile(r"docs/decisions/(\d{4})(?![\w-])")
CAPITALS = re.compile(r"(?<![\w/.-])[A-Z][A-Z_-]{2,}\.md\b")
ISSUE = re.compile(r"\b[Ii]ssue \d+")
INDEX_HEAD = """# Decisions

One page for each decision that a reader would wonder about. Numbers are given once and not reused.
"""


def files(root: Path) -> list[Path]:
    """Text files that git knows or would add."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout.split("\0")
    paths = (root / name for name in names if name and not name.startswith("tests/fixtures/"))
    return sorted({path for path in paths if path.suffix in TEXT and path.is_file()})


def without_code(text: str) -> str:
    """Markdown without its code, line for line."""
    text = re.sub(r"^( *)(```|~~~).*?^\1\2[^\n]*$", lambda m: "\n" * m[0].count("\n"), text, flags=re.M | re.S)
    return re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "", text)


def slug(heading: str) -> str:
    """A heading's anchor, as GitHub and the site make it."""
    heading = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading.strip()).replace("`", "")
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@cache
def anchors(path: Path) -> frozenset[str]:
    """Anchors of a page; a repeated heading gets -1, -2 ..."""
    text = re.sub(r"^( *)(```|~~~).*?^\1\2[^\n]*$", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    obtained: set[str] = set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", text))
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", text, flags=re.M):
        name, number = slug(heading), 0
        while (unique := f"{name}-{number}" if number else name) in obtained:
            number += 1
        obtained.add(unique)
    return frozenset(obtained)


def broken(path: Path, target: str) -> str | None:
    """Why a link leads nowhere, or None."""
    parts = urlsplit(target)
    if parts.scheme in ("http", "https"):
        return None if re.fullmatch(r"[\w.-]+(:\d+)?", parts.netloc) else "not an address"
    if parts.scheme == "mailto":
        return None if "@" in parts.path else "not an address"
    if parts.scheme or parts.netloc:
        return "unknown kind of link"
    if parts.path.startswith("/"):
        return "absolute path"
    goal = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if not goal.exists():
        return "no such file"
    if parts.fragment and (goal.suffix != ".md" or unquote(parts.fragment) not in anchors(goal)):
        return "no such heading"
    return None


def link_problems(path: Path, text: str) -> Iterator[tuple[int, str]]:
    """Line and text of each broken link of a page."""
    for number, line in enumerate(without_code(text).splitlines(), 1):
        for target in LINK.findall(line):
            reason = broken(path, target)
            if reason is not None:
                yield number, f"{target}: {reason}"


def name_problems(root: Path, text: str) -> Iterator[tuple[int, str]]:
    """Line and text of each page that is named and is not there."""
    for number, line in enumerate(text.splitlines(), 1):
        for name in PAGE.findall(line):
            if not (root / name).is_file():
                yield number, f"{name}: no such page"
        for name in DECISION.findall(line):
            if not list((root / "docs" / "decisions").glob(f"{name}-*.md")):
                yield number, f"decision {name}: no such page"
        for name in CAPITALS.findall(line):
            if not (root / name).is_file():
                yield number, f"{name}: no such page"
        for name in ISSUE.findall(line):
            yield number, f"{name}: issues are not in the repository; say what is meant"


def index_of(root: Path) -> str:
    """The text of docs/decisions/index.md."""
    lines = []
    for path in sorted((root / "docs" / "decisions").glob("[0-9]*.md")):
        title = path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ").strip()
        lines.append(f"- [{title}]({path.name})\n")
    return INDEX_HEAD + "\n" + "".join(lines)


def problems(root: Path) -> list[str]:
    """Every finding as `file:line: what`."""
    obtained = []
    for path in files(root):
        if path == Path(__file__).resolve():
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        # Markdown elsewhere may speak of a project's README and the like in code; names are looked at in any file.
        findings = [*link_problems(path, text)] if path.suffix == ".md" else []
        obtained += [
            f"{path.relative_to(root)}:{line}: {what}" for line, what in [*findings, *name_problems(root, text)]
        ]
    index = root / "docs" / "decisions" / "index.md"
    if not index.is_file() or index.read_text(encoding="utf-8") != index_of(root):
        obtained.append(f"{index.relative_to(root)}: not up to date; run python .ci/check_links.py --index")
    return obtained


def main() -> None:
    """Prints the findings and exits 1 where there are any."""
    if "--index" in sys.argv[1:]:
        (ROOT / "docs" / "decisions" / "index.md").write_text(index_of(ROOT), encoding="utf-8")
    obtained = problems(ROOT)
    sys.stdout.write(("\n".join(obtained) or f"links: {len(files(ROOT))} files, nothing broken") + "\n")
    sys.exit(1 if obtained else 0)


if __name__ == "__main__":
    main()
