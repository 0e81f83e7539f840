"""PreferenceTrainer: the objective that its loss makes, what it asks for, what it refuses, and that it learns."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tests.support.runs import training
from transformers import TrainerCallback

from ai_finetuning import (
    DataConfig,
    FullFinetuningTrainer,
    JapaneseModel,
    LoRAConfig,
    PreferenceConfig,
    PreferenceTrainer,
    ScheduleConfig,
)
from ai_finetuning.config.run_folder import METRICS
from ai_finetuning.embedded import questions
from ai_finetuning.engine.metrics import read_metrics
from ai_finetuning.errors import ConfigError, DataError

BASE = "embedded:kotoha-tiny"


PAIRS = [
    {
        "prompt": f"{number}の次の数は何ですか？",
        "chosen": f"{number + 1}です。",
        "rejected": f"{number + 5}でしょうか。",
    }
    for number in range(22)
]
MARKED = [
    {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
    for row in PAIRS[:11]
    for side in ("chosen", "rejected")
]


class Counts(TrainerCallback):
    steps = 0

    def on_step_end(self, *_: Any, **__: Any) -> None:
        Counts.steps += 1


def evaluations(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The first and the last evaluation of a run."""
    rows = [row for row in read_metrics(folder / METRICS) if "eval_loss" in row]
    return rows[0], rows[-1]


def mixed_up(part: str, count: int, seed: int) -> list[dict[str, str]]:
    """Questions of kotoha-qa, drawn by a seed, each with its answer and the answer to another one."""
    draw = random.Random(seed)
    rows = draw.sample(list(questions(part)), count)
    answers = sorted({answer for _, answer in rows})
    return [
        {"prompt": asked, "chosen": right, "rejected": draw.choice([other for other in answers if other != right])}
        for asked, right in rows
    ]


def test_the_loss_makes_the_objective_and_the_adapter_the_method(tmp_path: Path):
    model = JapaneseModel(BASE)
    for loss, objective in ((None, "preference"), ("orpo", "preference"), ("kto", "kto"), ("apo_zero_unpaired", "kto")):
        trainer = PreferenceTrainer(model, training(tmp_path), preference=PreferenceConfig(loss=loss))
        assert trainer.objective == objective
        assert trainer._request([], None).config.objective == objective
    full = PreferenceTrainer(model, training(tmp_path))._request([], None).config
    assert full.method == "full"
    lora = PreferenceTrainer(model, training(tmp_path), LoRAConfig(r=4), callbacks=[Counts])
    request = lora._request([], None)
    assert (request.config.method, request.config.lora.r) == ("lora", 4)
    assert isinstance(request.hooks.callbacks[0], Counts)


def test_wrong_arguments_are_named(tmp_path: Path):
    model = JapaneseModel(BASE)
    swapped: list[Any] = [LoRAConfig(), training(tmp_path)]
    with pytest.raises(ConfigError, match="training_config"):
        PreferenceTrainer(model, *swapped)
    named: Any = "dpo"
    with pytest.raises(ConfigError, match="preference"):
        PreferenceTrainer(model, training(tmp_path), preference=named)
    with pytest.raises(ConfigError, match=r"evaluate\(\) scores texts"):
        PreferenceTrainer(model, training(tmp_path)).evaluate([{"prompt": "a", "chosen": "b", "rejected": "c"}])


def test_the_paths_of_a_clone_give_the_same_objects():
    from src.training import PreferenceConfig as config_of_clone
    from src.training import PreferenceTrainer as trainer_of_clone

    assert trainer_of_clone is PreferenceTrainer
    assert config_of_clone is PreferenceConfig
    assert issubclass(PreferenceTrainer, FullFinetuningTrainer.__mro__[1])


@pytest.mark.parametrize(
    ("loss", "rows", "adapter"),
    [("sigmoid", PAIRS, True), ("sigmoid", PAIRS, False), ("kto", MARKED, True), ("kto", MARKED, False)],
    ids=["pairs-lora", "pairs-full", "kto-lora", "kto-full"],
)
def test_train_takes_lists_of_rows_and_moves_their_margin(
    loss: Any, rows: list[dict[str, Any]], adapter: bool, tiny_model_dir: Path, tmp_path: Path
):
    """From rows to a saved model, with rows to evaluate: rewards are 0 before step 1, and the better answers lead after."""
    Counts.steps = 0
    trainer = PreferenceTrainer(
        JapaneseModel(str(tiny_model_dir)),
        training(tmp_path, learning_rate=5e-3 if adapter else 1e-3, eval_steps=6),
        LoRAConfig(r=4, lora_alpha=8, lora_dropout=0) if adapter else None,
        PreferenceConfig(loss),
        rows,
        rows[:4],
        data=DataConfig(max_length=64),
        callbacks=[Counts],
    )
    model = trainer.train()
    assert trainer.result is not None
    assert trainer.result.state.step == Counts.steps == 12
    first, last = evaluations(tmp_path)
    assert first["step"] == 0
    assert first["eval_rewards/margins"] == pytest.approx(0, abs=1e-6)
    assert last["step"] == 12
    assert last["eval_rewards/margins"] > 0.05
    assert last["eval_loss"] < first["eval_loss"]
    assert not model.training
    assert load_file(tmp_path / ("adapter_model.safetensors" if adapter else "model.safetensors"))


def test_rows_of_another_kind_are_refused_by_train(tiny_model_dir: Path, tmp_path: Path):
    model = JapaneseModel(str(tiny_model_dir))
    lora = LoRAConfig(r=4)
    for loss, rows, named in ((None, MARKED, "kto"), ("kto", PAIRS, "preference")):
        with pytest.raises(DataError, match=named):
            PreferenceTrainer(model, training(tmp_path / named), lora, PreferenceConfig(loss), rows).train()


def steps_of_sixteen(folder: Path, rate: float, steps: int) -> Any:
    """Settings of so many steps of 16 rows, evaluated before the first and after the last."""
    return training(
        folder,
        learning_rate=rate,
        batch_size=16,
        gradient_accumulation_steps=1,
        eval_steps=100,
        save_steps=100,
        schedule=ScheduleConfig(max_steps=steps, name="cosine"),
        runtime={"seed": 0},
    )


def test_dpo_tells_held_out_answers_apart(tmp_path: Path):
    """The right answer against another row's, in 15 steps from the model that ships; judged on phrasings that are no
    training rows.
    """
    rows, held_out = mixed_up("train", 240, 0), mixed_up("held_out_phrasings", 48, 1)
    lora = LoRAConfig(r=16, lora_alpha=16, lora_dropout=0)
    data = DataConfig(max_length=128)
    settings = steps_of_sixteen(tmp_path, 1e-3, 15)
    PreferenceTrainer(JapaneseModel(BASE), settings, lora, None, rows, held_out, data=data).train()
    first, last = evaluations(tmp_path)
    assert first["eval_rewards/margins"] == pytest.approx(0, abs=1e-4)
    assert last["eval_rewards/margins"] > 0.15
    assert last["eval_rewards/accuracies"] >= 0.75
    assert last["eval_logps/rejected"] < first["eval_logps/rejected"]
