"""Runs seen through their files; needs no torch."""
