"""Three lengths, and what follows from model and data."""

from __future__ import annotations

import pytest

from ai_finetuning.planner.presets import PRESETS, compared_notes, few_steps, presets_for, rate_for, suggested


def test_longer_presets_train_longer_and_few_rows_more_often():
    for per_epoch in (1, 7, 50, 1000):
        epochs = [PRESETS[name].epochs_for(per_epoch) for name in ("quick", "standard", "careful")]
        assert epochs == sorted(epochs)
        assert epochs[1] * per_epoch >= 60
    assert PRESETS["standard"].epochs_for(1000) == 3


def test_a_preset_asks_for_evaluations_only_where_there_is_evaluation_data():
    assert PRESETS["careful"].settings(10, evaluates=False) == {"training.num_epochs": 15}
    assert PRESETS["careful"].settings(10, evaluates=True)["training.checkpoint.load_best"] is True


def test_what_is_suggested_follows_from_the_rows():
    assert suggested("embedded:kotoha-tiny", 10)["data.eval"] is None
    assert suggested("embedded:kotoha-tiny", 100)["training.gradient_accumulation_steps"] == 1
    assert "training.batch_size" not in suggested("embedded:kotoha-tiny", 1000)
    assert (
        suggested("org/model", 100)["training.learning_rate"]
        < suggested("embedded:kotoha-tiny", 100)["training.learning_rate"]
    )


def test_a_short_run_is_told_what_to_change():
    told = few_steps(12, 4, 16, by_steps=False)
    assert told is not None
    assert "12 ステップ" in told.ja
    assert "13 以上" in told.ja
    by_steps = few_steps(12, 4, 16, by_steps=True)
    assert by_steps is not None
    assert "max_steps" in by_steps.en
    assert few_steps(50, 4, 16, by_steps=False) is None


@pytest.mark.parametrize("objective", ["preference", "kto"])
def test_comparisons_take_lower_rates_and_no_more_epochs_for_being_few(objective: str):
    for model in ("embedded:kotoha-tiny", "org/model"):
        assert rate_for(model, objective) < rate_for(model, "sft") / 5
        assert suggested(model, 100, objective)["training.learning_rate"] == rate_for(model, objective)
        assert not compared_notes(objective, 100, epochs=2, rate=rate_for(model, objective))
    assert [preset.epochs_for(1) for preset in presets_for(objective).values()] == [1, 2, 3]


def test_few_comparisons_many_times_and_high_rates_are_told():
    few, high = compared_notes("preference", 1, epochs=60, rate=3e-3)
    assert "60 回" in few.ja
    assert "0.003" in high.en
    assert len(compared_notes("kto", 500, epochs=10, rate=1e-4)) == 1
    assert not compared_notes("sft", 1, epochs=60, rate=3e-3)
    told = few_steps(12, 4, 16, by_steps=False, compared=True)
    assert told is not None
    assert "epochs" not in told.en
