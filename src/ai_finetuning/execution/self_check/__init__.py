"""`aift gpu self-check`: whether this machine computes what the toolkit says, and how fast; tests/gpu calls the same checks."""
