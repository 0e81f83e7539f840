"""The documented trainers, and training from a configuration."""
