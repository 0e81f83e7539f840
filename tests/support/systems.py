"""Marks of tests that need what Windows does not have."""

from __future__ import annotations

import os

import pytest

needs_sigkill = pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
needs_terminal = pytest.mark.skipif(os.name == "nt", reason="Windows has no pseudo-terminals")
needs_limits = pytest.mark.skipif(os.name == "nt", reason="Windows bounds no process by time and memory")
