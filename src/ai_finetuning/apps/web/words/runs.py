"""Texts of the screen 実行中."""

from __future__ import annotations

WORDS = {
    "title": ("学習の様子", "Run"),
    "lead": ("", ""),
}
