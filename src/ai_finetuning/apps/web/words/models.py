"""Texts of the screen モデル."""

from __future__ import annotations

WORDS = {
    "title": ("モデル", "Models"),
    "lead": ("この PC で学習できるモデルを選びます。", "Choose a model that this PC can train."),
}
