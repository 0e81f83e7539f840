"""Names of the files in a run's folder."""

from __future__ import annotations

CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
METRICS = "metrics.jsonl"
CURVE = "loss.png"
REPORT = "report.html"
CHECKPOINTS = "checkpoints"
BEST = "best"  # in CHECKPOINTS: the weights of the best evaluation, as a model's or an adapter's folder
BEST_NOTE = "best.json"
MANIFEST = "manifest.json"
LOCK = ".lock"
LAUNCH = ".launch"
RUN = "run.json"
