"""Texts of the screen 会話."""

from __future__ import annotations

WORDS = {
    "title": ("会話", "Chat"),
    "lead": ("元のモデルと学習後のモデルに、同じ質問をします。", "Ask the base model and the trained one."),
}
