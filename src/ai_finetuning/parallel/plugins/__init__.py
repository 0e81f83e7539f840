"""Strategies through other libraries; all of it can be skipped by a reader."""
