"""A private name of openpyxl that reading needs: looked through at every upgrade."""

from __future__ import annotations

from typing import Any


def part_of(sheet: Any) -> str:
    """The name of a sheet's part in the archive that a workbook is; openpyxl 3.1 gives it to sheets that are read only."""
    return str(sheet._worksheet_path)
