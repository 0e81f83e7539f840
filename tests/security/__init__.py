"""Attacks on the product: each finding of a review, as the attacker brings it, and what must happen instead."""
