"""Texts of the screen データ."""

from __future__ import annotations

WORDS = {
    "title": ("データ", "Data"),
    "lead": ("データを入れて、学習に使える形かを確かめます。", "Bring data, and see whether it can be trained on."),
}
