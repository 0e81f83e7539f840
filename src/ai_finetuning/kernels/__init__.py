"""Kernels of a transformer block: hand-written where torch has none, with plain torch beside each as its reference."""
