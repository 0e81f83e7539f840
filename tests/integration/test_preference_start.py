"""Before step 1 no answer has a margin: for every base, adapter and precision, and with dropout in all settings."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.integration.test_preference_runs import KEPT, request_of
from tests.support.models import save_tiny_model
from tests.support.runs import losses, train_lora, weights_digest
from tests.unit.engine.test_preference_loss import pairs

from ai_finetuning import JapaneseModel, LoRAConfig, PreferenceConfig, ScheduleConfig
from ai_finetuning.config.run_folder import METRICS
from ai_finetuning.data.text_dataset import TextDataset
from ai_finetuning.engine.metrics import read_metrics
from ai_finetuning.errors import CheckpointError
from ai_finetuning.execution.execute import execute
from ai_finetuning.execution.request import TrainRequest
from ai_finetuning.labels import IGNORED

# So small that every step has the weights of the first.
STANDING = {"learning_rate": 1e-30, "batch_size": 2, "gradient_accumulation_steps": 1, "num_epochs": 1}
ONE_STEP = {"schedule": ScheduleConfig(max_steps=1), "warmup_steps": 0}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIFT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def dropping(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with biases in its attention, and with dropout there by its own configuration; wide enough for 4 bit. Its values
    are the same in bf16.
    """
    folder = save_tiny_model(tmp_path_factory.mktemp("models") / "dropping", "qwen2", hidden_size=128)
    weights = {name: value.bfloat16().float() for name, value in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.05}), encoding="utf-8")
    return folder


def asked(
    base: Path, folder: Path, lora: dict[str, Any], *, precision: str = "fp32", resume: Any = None, **changes: Any
) -> TrainRequest:
    request = request_of(base, folder, pairs(10), pairs(4, seed=9), resume=resume, **changes)
    config = request.config
    runtime = replace(config.training.runtime, precision=precision)
    given = LoRAConfig(**{"r": 4, "lora_alpha": 8, "lora_dropout": 0.05} | lora)
    config = replace(config, lora=given, training=replace(config.training, runtime=runtime))
    return replace(request, config=config)


def another_row() -> TextDataset:
    """The training rows with one other token in an answer."""
    *rows, last = pairs(10)
    ids = last.input_ids.copy()
    ids[-1] = ids[-1] % 300 + 3
    labels = np.where(last.labels == IGNORED, IGNORED, ids).astype(np.int32)
    return TextDataset.of([*rows, replace(last, input_ids=ids, labels=labels)], max_length=64, pad_token_id=0)


def margins(folder: Path) -> list[float]:
    """Nats between the answers of a step's two pairs, and of the evaluation's, by the mean (beta is 0.1)."""
    rows = read_metrics(folder / METRICS)
    return [row[name] / 0.1 for row in rows for name in ("rewards/margins", "eval_rewards/margins") if name in row]


@pytest.mark.parametrize(
    ("lora", "precision", "most"),
    [
        ({}, "fp32", 1e-3),
        ({}, "bf16", 0.1),
        ({"use_qlora": True}, "fp32", 1e-3),
        pytest.param({"use_qlora": True}, "bf16", 0.1, marks=pytest.mark.slow),
        # Rounds activations to 8 bit, so that a last bit of fp32, which other rows in the batch may change, becomes 1 in 127.
        ({"use_qlora": True, "qlora_4bit": False}, "fp32", 2e-2),
        ({"bias": "all"}, "fp32", 1e-3),
        pytest.param({"use_dora": True}, "fp32", 1e-3, marks=pytest.mark.slow),
    ],
    ids=["lora", "bf16", "4 bit", "4 bit bf16", "8 bit", "biases", "dora"],
)
def test_no_pair_has_a_margin(
    lora: dict[str, Any], precision: str, most: float, dropping: Path, tmp_path: Path, logged: Callable[[], str]
):
    """And the answers of a pair share what they begin with."""
    execute(asked(dropping, tmp_path, lora, precision=precision, **STANDING))
    said = logged()
    assert "training step: " in said
    assert "do not share what they begin with" not in said
    found = margins(tmp_path)
    assert len(found) >= 5
    assert found[0] == 0.0  # the evaluation before step 1: the same rows in the same batches
    assert max(map(abs, found)) < most, found
    kept = load_file(tmp_path / KEPT)
    assert (kept["train"].sum(dim=-1) < -1).all()


def test_a_continued_adapter_is_its_own_reference(dropping: Path, tmp_path: Path):
    """And not the base, which is what the adapter switched off would be."""
    train_lora(dropping, tmp_path / "first", lora={"bias": "all", "lora_dropout": 0.05}, num_epochs=3)
    execute(asked(dropping, tmp_path / "base", {}, **STANDING))
    execute(asked(dropping, tmp_path / "more", {"adapter": str(tmp_path / "first")}, **STANDING))
    assert max(map(abs, margins(tmp_path / "more"))) < 1e-3
    of_base, of_adapter = (load_file(tmp_path / name / KEPT)["train"] for name in ("base", "more"))
    assert (of_base - of_adapter).abs().max() > 0.1


def test_trained_biases_of_the_base_stay_out_of_the_reference(dropping: Path, tmp_path: Path):
    """They are changed in place, so that no switch gives the base back: a resumed run reads what was kept. It needs the
    evaluation data that it began with, or none.
    """
    lora = {"bias": "all"}
    execute(asked(dropping, tmp_path / "whole", lora))
    checkpoint = tmp_path / "whole" / "checkpoints" / "checkpoint-4"
    execute(asked(dropping, tmp_path / "rest", lora, resume=checkpoint))
    kept, again = (load_file(tmp_path / name / KEPT) for name in ("whole", "rest"))
    assert torch.equal(kept["train"], again["train"])
    assert losses(tmp_path / "rest") == losses(tmp_path / "whole")[4:]
    assert weights_digest(tmp_path / "rest") == weights_digest(tmp_path / "whole")
    without = replace(asked(dropping, tmp_path / "without", lora, resume=checkpoint), eval_data=None)
    execute(without)
    assert losses(tmp_path / "without") == losses(tmp_path / "rest")
    more = TextDataset.of(pairs(5, seed=9), max_length=64, pad_token_id=0)
    with pytest.raises(CheckpointError, match=r"data\.eval"):
        execute(replace(asked(dropping, tmp_path / "more", lora, resume=checkpoint), eval_data=more))
    # The one without has kept what it does not read.
    latest = tmp_path / "without" / "checkpoints" / "checkpoint-6"
    execute(asked(dropping, tmp_path / "evaluated", lora, resume=latest))
    first, last = margins(tmp_path / "whole")[0], margins(tmp_path / "whole")[-1]
    assert abs(first) < 1e-3 < last


def test_references_of_other_rows_bases_bits_or_precisions_are_not_taken(dropping: Path, tmp_path: Path):
    """A run takes those of an earlier one only where they are its own; another loss changes nothing in them. One value of a
    base is another base.
    """
    other = shutil.copytree(dropping, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights["model.embed_tokens.weight"][7, 5] += 0.5
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    first = asked(dropping, tmp_path / "first", {}, **STANDING)
    changed = replace(first, train=another_row())
    ipo = replace(first.config, preference=PreferenceConfig("ipo"))
    asked_for = [
        (first, 1),
        (replace(first, config=ipo), 0),
        (changed, 1),
        (replace(first, eval_data=None), 1),
        (asked(other, tmp_path / "first", {}, **STANDING), 1),
        (mixed := asked(dropping, tmp_path / "first", {}, precision="bf16", **STANDING), 1),
        (replace(mixed, model=JapaneseModel(str(dropping), torch_dtype=torch.bfloat16)), 1),
        (asked(dropping, tmp_path / "first", {"use_qlora": True}, **STANDING), 1),
        (asked(dropping, tmp_path / "first", {"use_qlora": True, "qlora_4bit": False}, **STANDING), 1),
    ]
    kept = 0
    for number, (request, new) in enumerate(asked_for):
        steps = replace(request.config.training, output_dir=str(tmp_path / str(number)), **ONE_STEP)
        execute(replace(request, config=replace(request.config, training=steps)))
        kept += new
        assert len(list((tmp_path / "cache").rglob("references/*.safetensors"))) == kept, number
