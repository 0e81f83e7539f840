"""The label that takes no loss; everything that makes or reads labels takes it from here."""

from __future__ import annotations

# PyTorch's and transformers' value too: on padding, prompts and the first token of every document.
IGNORED = -100
