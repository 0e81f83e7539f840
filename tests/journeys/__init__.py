"""What a newcomer types, in a real terminal: each step has to work at the first try."""
