"""Names of the files in a run's folder."""

from __future__ import annotations

CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
METRICS = "metrics.jsonl"
CURVE = "loss.png"
REPORT = "report.html"
CHECKPOINTS = "checkpoints"
MANIFEST = "manifest.json"
LOCK = ".lock"
LAUNCH = ".launch"
RUN = "run.json"
