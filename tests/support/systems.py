"""Marks of tests that need what Windows does not have."""

from __future__ import annotations

import os

import pytest

needs_sigkill = pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
needs_terminal = pytest.mark.skipif(os.name == "nt", reason="Windows has no pseudo-terminals")
needs_limits = pytest.mark.skipif(os.name == "nt", reason="Windows bounds no process by ulimit or setrlimit")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
needs_broken_pipe = pytest.mark.skipif(os.name == "nt", reason="a pipe without a reader is another error on Windows")
needs_orphans = pytest.mark.skipif(os.name == "nt", reason="what outlives its starter has not been tried on Windows")
