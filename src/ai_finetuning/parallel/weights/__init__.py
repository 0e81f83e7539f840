"""Which part of a weight a process holds, and how it comes there."""
