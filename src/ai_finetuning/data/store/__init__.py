"""Tokenized data on the disk, mapped into memory: written some rows at a time, opened without reading it."""
