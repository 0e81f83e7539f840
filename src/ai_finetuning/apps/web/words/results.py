"""Texts of the screen 結果."""

from __future__ import annotations

WORDS = {
    "title": ("結果", "Result"),
    "lead": ("学習の前と後を比べて、使うかどうかを決めます。", "Compare before and after, and decide."),
}
