"""Texts of the screen 学習の設定."""

from __future__ import annotations

WORDS = {
    "title": ("学習の設定", "Training"),
    "lead": ("モデルとデータから、学習を始めます。", "Start a training from a model and data."),
}
