"""Runs seen through their files; needs no torch."""

# Where runs go by default, below the folder of whoever starts one.
OUTPUTS = "outputs"
