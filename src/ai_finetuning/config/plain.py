"""From a configuration back to plain values, as YAML holds them."""

from __future__ import annotations

import dataclasses
from typing import Any

from .run import RunConfig
from .section import explicitly_set


def to_plain(config: Any, *, given_only: bool = False) -> dict[str, Any]:
    """A section as plain values, in the order of its fields; what load_config reads back.

    Args:
        given_only: leave out what the user did not give, so that its defaults stay open.
    """
    plain: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            value = to_plain(value, given_only=given_only)
            # `architecture: {}` says something; a section that is always there does not.
            if given_only and not value and field.default is not None:
                continue
        elif given_only and field.name not in explicitly_set(config):
            continue
        elif isinstance(value, tuple):
            value = list(value)
        plain[field.name] = value
    return plain


def plain_run(config: RunConfig, *, given_only: bool = False) -> dict[str, Any]:
    """The plain values of a run, in which method and lora.use_qlora say what it trains."""
    plain = to_plain(config, given_only=given_only) | {"method": config.effective_method}
    if config.uses_qlora and not given_only:
        plain["lora"]["use_qlora"] = True
    return {field.name: plain[field.name] for field in dataclasses.fields(config) if field.name in plain}
