"""The labels that are no tokens; everything that makes or reads labels takes them from here."""

from __future__ import annotations

# PyTorch's and transformers' value too: on padding, prompts and the first token of every document.
IGNORED = -100
# On old rows that teach what the base predicts, not their own tokens (data.replay.distill). Never in evaluation data.
FROM_BASE = -200
