"""Texts of the screen 一括回答."""

from __future__ import annotations

WORDS = {
    "title": ("一括回答", "Batch answers"),
    "lead": ("ファイルの質問に、まとめて答えます。", "Answer a file of questions."),
}
