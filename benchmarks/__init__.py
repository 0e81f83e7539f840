"""Measures the toolkit against other ways to train; not part of the package. See docs/performance.md."""
