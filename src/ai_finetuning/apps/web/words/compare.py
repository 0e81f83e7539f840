"""Texts of the screen 比較."""

from __future__ import annotations

WORDS = {
    "title": ("比較", "Compare"),
    "lead": ("学習を並べて比べます。", "Runs side by side."),
}
