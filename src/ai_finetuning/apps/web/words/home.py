"""Texts of the screen ホーム."""

from __future__ import annotations

WORDS = {
    "title": ("ホーム", "Home"),
    "lead": ("日本語のモデルを、この PC で学習します。", "Train Japanese models on this PC."),
}
