"""The desk of a newcomer, with a model's folder on it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ai_finetuning import embedded
from tests.journeys.desk import furnish


@pytest.fixture
def desk(tmp_path: Path, kotoha: str) -> Path:
    """Tables of an office and my-model, nothing else."""
    folder = furnish(tmp_path / "机")
    shutil.copytree(embedded.model_folder(kotoha), folder / "my-model")
    return folder
