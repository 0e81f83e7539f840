"""Texts of the screen 書き出し."""

from __future__ import annotations

WORDS = {
    "title": ("書き出し", "Export"),
    "lead": (
        "学習したモデルを、ほかのプログラムで使える形にします。",
        "Make a trained model usable by other programs.",
    ),
}
