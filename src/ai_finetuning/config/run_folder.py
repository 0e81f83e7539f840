"""Names of the files in a run's folder."""

from __future__ import annotations

CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
METRICS = "metrics.jsonl"
CURVE = "loss.png"
REPORT = "report.html"
EVAL = "eval.jsonl"  # every item of the verdict
SAMPLES = "samples.jsonl"  # the fixed questions with the answers at each evaluation
CHECKPOINTS = "checkpoints"
# In CHECKPOINTS, without which no checkpoint can go on: log-probabilities of the answers before step 1.
REFERENCES = "references.safetensors"
BEST = "best"  # in CHECKPOINTS: the weights of the best evaluation, as a model's or an adapter's folder
BEST_NOTE = "best.json"
# In CHECKPOINTS, where the best weights have become the result: those of the last step, in the same form.
LAST, LAST_NOTE = "last", "last.json"
# Beside the checkpoints: all of their model but its weights, so that any of them becomes a model or an adapter.
WITHOUT_WEIGHTS = "without-weights"
# In an adapter's folder: what it was trained on, in words of ours.
BASE = "base.json"
MANIFEST = "manifest.json"
LOCK = ".lock"
LAUNCH = ".launch"
RUN = "run.json"
CONSOLE = "console.log"  # what a run says that was started without a terminal
STOP = "stop.request"  # what somebody asks of a run at work
