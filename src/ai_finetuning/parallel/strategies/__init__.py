"""One strategy a file: who holds which weights and sees which data."""
