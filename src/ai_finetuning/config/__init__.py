"""WHAT to do: the sections of a run as strict dataclasses, their YAML and their texts."""

from . import run as run  # "did you mean data.max_length?" needs every section, whichever of them is imported
