"""Figures before the plan: near what the plan says, without torch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.models import CONFIGS, build_experts, build_model

from ai_finetuning.config.load import load_config
from ai_finetuning.models.local import need_bytes
from ai_finetuning.models.source import find_model
from ai_finetuning.planner.rough import Rows, rough, rough_shape
from ai_finetuning.planner.shape import shape_of
from ai_finetuning.trainers.from_config import plan_training


@pytest.mark.parametrize("kind", CONFIGS)
def test_sizes_by_config_json_are_those_of_the_model(kind: str):
    model = build_model(kind, vocab_size=1000, hidden_size=128, layers=3)
    config = json.loads(model.config.to_json_string())
    if kind == "gpt2":  # which reads another key, and has none of this name
        del config["intermediate_size"]
    obtained, expected = rough_shape(config), shape_of(model)
    assert obtained is not None
    assert obtained.parameters == pytest.approx(expected.parameters, rel=0.2)
    assert obtained.lora_parameters(16, None) == pytest.approx(expected.lora_parameters(16, None), rel=0.25)
    assert (obtained.layers, obtained.hidden, obtained.vocabulary) == (
        expected.layers,
        expected.hidden,
        expected.vocabulary,
    )


def test_experts_are_weights_without_linear_layers():
    model = build_experts()
    obtained, expected = rough_shape(json.loads(model.config.to_json_string())), shape_of(model)
    assert obtained is not None
    assert obtained.parameters == pytest.approx(expected.parameters, rel=0.1)
    assert rough_shape({"model_type": "unheard-of"}) is None


def test_figures_are_near_the_plan(tmp_path: Path):
    config = load_config(
        None,
        [
            "model=embedded:kotoha-tiny",
            "data.train=embedded:kotoha-qa",
            "data.eval=0.1",
            "data.max_samples=400",
            "num_epochs=2",
            f"training.output_dir={tmp_path / 'run'}",
        ],
    )
    plan = plan_training(config).summary
    found = rough(config, Rows(400, 400 * 31, 130), find_model(config.model.name).config)
    assert abs(found.total_steps - plan.total_steps) <= 2
    assert found.memory_bytes == pytest.approx(plan.needed_bytes, rel=0.3)
    assert found.disk_bytes == pytest.approx(plan.disk_bytes, rel=0.1)
    # Of a larger file max_samples takes as many rows, and the share of evaluation is one of those.
    larger = rough(config, Rows(9000, 9000 * 31, 130), find_model(config.model.name).config)
    assert (larger.rows, larger.eval_rows, larger.total_steps) == (found.rows, found.eval_rows, found.total_steps)
    # What changes them changes these too.
    full = rough(replace(config, method="full"), Rows(400, 400 * 31, 130), find_model(config.model.name).config)
    assert full.memory_bytes is not None
    assert found.memory_bytes is not None
    assert full.memory_bytes > found.memory_bytes
    elsewhere = rough(config, Rows(400, 400 * 31, 130), None)
    assert elsewhere.disk_bytes is None
    assert elsewhere.memory_bytes == need_bytes(config.model.name, "lora")  # by the catalog
