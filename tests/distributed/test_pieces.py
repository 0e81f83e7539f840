"""Checkpoints in parts: whatever wrote them, any cut of them reads back bit for bit; a part that is missing is an
error.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ai_finetuning.engine.checkpoint import store as checkpoint
from ai_finetuning.engine.checkpoint.read import read_tensors, write_shards
from ai_finetuning.engine.checkpoint.write import write_tensors
from ai_finetuning.parallel.weights.layout import Layout

WEIGHT = torch.randn(7, 6, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16).float()


def rows(parts: int, index: int) -> Layout:
    """One of the parts that torch.chunk makes of the rows; the last may be empty."""
    each = -(-7 // parts)
    start = min(index * each, 7)
    return Layout((7, 6), (start, 0), (min(each, 7 - start), 6), True)


def columns(parts: int, index: int) -> Layout:
    each = 6 // parts
    return Layout((7, 6), (0, index * each), (7, each), True)


def written(folder: Path, layouts: list[Layout]) -> dict:
    """A manifest over files that hold a weight and its moment in these parts."""
    folder.mkdir()
    entries: dict[str, list] = {}
    for number, layout in enumerate(layouts):
        part = WEIGHT[tuple(slice(a, b) for a, b in layout.ranges())]
        for group, name, whole in (("model", "w", part), ("optimizer", "w/exp_avg", 2 * part)):
            file = f"{group}-{number}.safetensors"
            _, _, obtained = write_tensors(folder / file, {name: whole}, None, {name: layout})
            entries.setdefault(f"{group}:{name}", []).append({"file": file, **obtained[name]})
    return {"tensors": entries}


@pytest.mark.parametrize("wrote", [[rows(1, 0)], [rows(3, i) for i in range(3)], [columns(2, i) for i in range(2)]])
@pytest.mark.parametrize("reads", [rows(1, 0), rows(2, 1), rows(4, 3), columns(3, 2)])
def test_any_part_reads_back_from_any_parts(wrote: list[Layout], reads: Layout, tmp_path: Path):
    folder = tmp_path / "parts"
    obtained = read_tensors(folder, written(folder, wrote), {"w": reads})
    expected = WEIGHT[tuple(slice(a, b) for a, b in reads.ranges())]
    assert torch.equal(obtained["model"]["w"], expected)
    assert torch.equal(obtained["optimizer"]["w/exp_avg"], 2 * expected)
    assert read_tensors(folder, written(tmp_path / "again", wrote), {}) == {}


def test_a_missing_part_is_an_error(tmp_path: Path):
    folder = tmp_path / "parts"
    with pytest.raises(ValueError, match="holds 18 of the 42 expected values of w"):
        read_tensors(folder, written(folder, [rows(3, 0)]), {"w": rows(1, 0)})


def test_shards_are_a_hugging_face_folder(tmp_path: Path, tiny_model_dir: Path):
    """Written from parts a tensor at a time, in shards, with the index that from_pretrained reads."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    store = checkpoint.CheckpointStore(tmp_path / "checkpoints")
    saved = store.save(1, tensors={"model": dict(model.named_parameters())}, state={})
    place = tmp_path / "model"
    place.mkdir()
    write_shards(place, saved, dtype=torch.float32, tied=set(), shard_bytes=50_000)
    model.config.save_pretrained(place)
    assert len(list(place.glob("model-*-of-*.safetensors"))) > 2
    again = AutoModelForCausalLM.from_pretrained(place).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())
