"""Refuses files above a limit, in bytes: `file_size.py LIMIT FILE ...` (a pre-commit hook)."""

from __future__ import annotations

import sys
from pathlib import Path


def too_large(limit: int, names: list[str]) -> list[str]:
    """A line for each file above the limit; a link counts as what is stored for it."""
    sizes = {name: Path(name).lstat().st_size for name in names if Path(name).is_file()}
    return [f"{name}: {size} bytes, the limit is {limit}" for name, size in sizes.items() if size > limit]


if __name__ == "__main__":
    problems = too_large(int(sys.argv[1]), sys.argv[2:])
    sys.exit("\n".join(problems) or 0)
