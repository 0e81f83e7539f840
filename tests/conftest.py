"""Shared fixtures: the folder of real data, small real models and tokenizers."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from tests.support import failed_verdicts
from tests.support.patience import patience

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("AIFT_LANG", "en")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _own_folder(prefix: str) -> str:
    """Removed when this process ends, not when one ends that it has forked."""
    folder, own = tempfile.mkdtemp(prefix=prefix), os.getpid()
    atexit.register(lambda: os.getpid() == own and shutil.rmtree(folder, ignore_errors=True))
    return folder


# Tests neither read nor fill the user's cache of tokens.
os.environ["AIFT_CACHE"] = _own_folder("aift-cache-")
# Nor do they stand in the queue of the user's runs.
os.environ["AIFT_STATE"] = _own_folder("aift-state-")

# Of one test with its fixtures, on a quiet machine; `--timeout` and a `timeout` marker stand.
LIMIT_SECONDS = 300

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item):
    """Sets the time limit of a test as it begins, by how busy the machine is then."""
    if item.config.getoption("timeout", None) is None and item.get_closest_marker("timeout") is None:
        item.add_marker(pytest.mark.timeout(patience(LIMIT_SECONDS)))
    return (yield)


def pytest_configure() -> None:
    failed_verdicts.listen()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item):
    """Fails a test in which, or in whose fixtures, a run survived its verdict; the marker verdict_fails allows that."""
    try:
        result = yield
        if failed_verdicts.FOUND and item.get_closest_marker("verdict_fails") is None:
            pytest.fail("a verdict failed: " + "; ".join(failed_verdicts.FOUND), pytrace=False)
        return result
    finally:
        failed_verdicts.FOUND.clear()


@pytest.fixture(scope="session", autouse=True)
def verbs() -> None:
    """All verbs of the command: a part of their texts keeps the language in which a verb was first used, which a test's own
    must not be.
    """
    from ai_finetuning.apps.cli.main import app_of

    app_of()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real Japanese data (AIFT_SHARED, default ../shared beside the clone)."""
    folder = Path(os.environ.get("AIFT_SHARED", REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"real data not found at {folder}; set AIFT_SHARED to the folder to run this test")
    return folder


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama with tokenizer and chat template; read-only."""
    from tests.support.models import save_tiny_model

    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def sentencepieces(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of six tiny random models that have a sentencepiece file for a tokenizer, by layout; read-only."""
    from tests.support.sentencepieces import SIX, prose, write_model

    parent = tmp_path_factory.mktemp("sentencepieces")
    return {layout: write_model(layout, parent / f"model-{i}", prose(shared)) for i, layout in enumerate(SIX)}


@pytest.fixture(scope="session")
def kotoha() -> str:
    """The name of the model that ships."""
    from ai_finetuning import embedded

    if not (Path(embedded.__file__).parent / "kotoha-tiny" / "model.safetensors").is_file():
        pytest.skip("the weights of embedded:kotoha-tiny are not in this checkout (recipes/kotoha-tiny makes them)")
    return embedded.MODEL


@pytest.fixture
def logged(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture):
    """A function: everything that was printed or logged so far."""
    caplog.set_level("INFO", logger="ai_finetuning")
    read: list[str] = []

    def text() -> str:
        captured = capsys.readouterr()
        read.append(captured.out + captured.err)
        return "".join(read) + caplog.text

    return text
