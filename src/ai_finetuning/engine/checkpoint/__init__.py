"""Checkpoint format v1: written, read, verified, kept."""
