"""Which files are a folder's weights, and what another set of them leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.support.kept_runs import contents, loaded, tensors, write_weights

from ai_finetuning.runs.weights import (
    INDEX,
    MODEL,
    drop_last,
    drop_other_weights,
    keep_last,
    last_of,
    problems_of,
    put,
    weight_bytes,
    weight_names,
)


def test_a_folders_weights_are_those_that_a_loader_takes(tmp_path: Path):
    for kind, names in (
        ("adapter", ["adapter_model.safetensors"]),
        ("single", [MODEL]),
        ("shards", ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", INDEX]),
    ):
        write_weights(tmp_path / kind, kind, 1)
        assert weight_names(tmp_path / kind) == names
        assert weight_bytes(tmp_path / kind) == sum((tmp_path / kind / name).stat().st_size for name in names)
    (tmp_path / "shards" / "model-00002-of-00002.safetensors").unlink()
    assert weight_names(tmp_path / "shards") == []  # not all of them
    (tmp_path / "shards" / MODEL).write_bytes(tensors(3))
    assert weight_names(tmp_path / "shards") == [MODEL]  # which hides the index
    for text in ("", "[", "[]", "{}", '{"weight_map": 1}', '{"weight_map": {"a": "../b.safetensors"}}'):
        (tmp_path / "odd").mkdir(exist_ok=True)
        (tmp_path / "odd" / INDEX).write_text(text, encoding="utf-8")
        assert weight_names(tmp_path / "odd") == []
    assert weight_names(tmp_path / "none") == []


def test_shards_get_names_that_no_others_have(tmp_path: Path):
    write_weights(tmp_path / "run", "shards", 10)
    write_weights(tmp_path / "new", "shards", 20)
    put(tmp_path / "new", tmp_path / "run", mark="step4")
    assert sorted(path.name for path in (tmp_path / "run").glob("*.safetensors")) == [
        "model-step4-00001-of-00002.safetensors",
        "model-step4-00002-of-00002.safetensors",
    ]
    assert loaded(tmp_path / "run") == {"w0": 20, "w1": 21}
    assert json.loads((tmp_path / "run" / INDEX).read_text(encoding="utf-8"))["metadata"] == {"total_size": 32}
    assert loaded(tmp_path / "new") == {"w0": 20, "w1": 21}


def test_what_is_kept_is_whole_and_vouched_for(tmp_path: Path):
    run = tmp_path / "run"
    write_weights(run, "single", 10)
    (run / "of-the-user.txt").write_text("x", encoding="utf-8")
    before = contents(run)
    keep_last(run, 8, {"run": {"a": 1}})
    kept = last_of(run)
    assert problems_of(kept, "last.json", 8) == []
    assert {path.name for path in kept.iterdir()} == {MODEL, "config.json", "last.json"}
    assert "step 8" in str(problems_of(kept, "last.json", 9)[0].en)
    (run / MODEL).unlink()
    (run / MODEL).write_bytes(tensors(11))  # other weights in the folder change nothing of them
    assert problems_of(kept, "last.json", 8) == []
    drop_last(run)
    assert not kept.exists()
    (run / MODEL).write_bytes(before[MODEL])
    assert contents(run) == before
    for note in ("{", "[]", "{}", '{"step": 8}', '{"step": 8, "sha256": 3}'):
        (run / "last.json").write_text(note, encoding="utf-8")
        assert problems_of(run, "last.json", 8)


@pytest.mark.parametrize("kind", ["single", "shards"])
def test_weights_of_a_former_result_go(tmp_path: Path, kind: str):
    write_weights(tmp_path, "shards", 10)
    write_weights(tmp_path, kind, 20)
    (tmp_path / "model-step4-00001-of-00001.safetensors").write_bytes(tensors(1))
    (tmp_path / "adapter_model.safetensors").write_bytes(tensors(1))
    shards = {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", INDEX}
    kept = {MODEL} if kind == "single" else shards
    drop_other_weights(tmp_path, kept)
    assert {path.name for path in tmp_path.iterdir()} == kept | {"adapter_model.safetensors", "config.json"}
