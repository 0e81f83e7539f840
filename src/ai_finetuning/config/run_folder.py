"""Names of the files in a run's folder."""

from __future__ import annotations

CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
METRICS = "metrics.jsonl"
CURVE = "loss.png"
REPORT = "report.html"
CHECKPOINTS = "checkpoints"
# Beside the checkpoints: all of their model but its weights, so that any of them becomes a model or an adapter.
WITHOUT_WEIGHTS = "without-weights"
# In an adapter's folder: what it was trained on, in words of ours.
BASE = "base.json"
MANIFEST = "manifest.json"
LOCK = ".lock"
LAUNCH = ".launch"
RUN = "run.json"
