"""objective and the preference section: what goes together, what is refused, how it is written down and found again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ai_finetuning.config.commented import commented_yaml
from ai_finetuning.config.load import load_config
from ai_finetuning.config.preference import LOSSES, PreferenceConfig, loss_of
from ai_finetuning.config.run import RunConfig
from ai_finetuning.config.run_yaml import describe_run
from ai_finetuning.config.section import build
from ai_finetuning.errors import ConfigError

PAIRS: dict[str, Any] = {"objective": "preference"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"preference": {"beta": 0.1}}, "objective is sft, so preference.beta would have no effect"),
        ({"objective": "preference", "preference": {"loss": "kto"}}, "kto belongs to objective: kto"),
        ({"objective": "kto", "preference": {"loss": "ipo"}}, "ipo belongs to objective: preference"),
        (PAIRS | {"preference": {"margin": 1.0}}, "preference.loss sigmoid does not read it: choose simpo"),
        ({"objective": "kto", "preference": {"sft_weight": 1.0}}, "simpo (objective: preference), or remove it"),
        (PAIRS | {"preference": {"loss": "hinge", "label_smoothing": 0.1}}, "choose sigmoid, robust, or remove it"),
        (PAIRS | {"method": "pretrain"}, "Use method: full, lora or qlora"),
        (PAIRS | {"data": {"packing": True}}, "data.packing is True; not with objective preference"),
        (PAIRS | {"data": {"loss_on": "all"}}, "data.loss_on is 'all'"),
        (PAIRS | {"data": {"on_long": "split"}}, "Use truncate, drop or error"),
        (PAIRS | {"data": {"replay": {"path": "old.jsonl", "share": 0.1}}}, "preference.sft_weight: 1 keeps"),
        ({"method": "dpo"}, "Did you mean objective: preference?"),
        ({"method": "orpo"}, "Did you mean objective: preference, preference.loss: orpo?"),
        ({"objective": "SimPO"}, "preference.loss: simpo?"),
        (PAIRS | {"preference": {"loss": "dpo"}}, "Did you mean preference.loss: sigmoid?"),
        (PAIRS | {"preference": {"label_smoothing": 0.5}}, "below 0.5"),
    ],
)
def test_refusals_say_the_way_out(values: dict[str, Any], message: str):
    with pytest.raises(ConfigError) as caught:
        build(RunConfig, values)
    assert message in caught.value.en
    assert caught.value.ja
    assert caught.value.exit_code == 78


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_stands_with_what_it_reads_and_refuses_the_rest(name: str):
    numbers = {
        "label_smoothing": 0.1,
        "margin": 0.5,
        "sft_weight": 1.0,
        "ld_alpha": 0.5,
        "desirable_weight": 2.0,
        "undesirable_weight": 2.0,
    }
    facts = LOSSES[name]
    for setting, value in numbers.items():
        values = {"objective": facts.objective, "preference": {"loss": name, setting: value}}
        if setting in facts.settings:
            assert getattr(build(RunConfig, values).preference, setting) == value
        else:
            with pytest.raises(ConfigError, match=f"preference.{setting}"):
                build(RunConfig, values)


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_an_objective_stands_beside_every_method_with_its_own_loss(method: str):
    config = build(RunConfig, {"method": method, "objective": "preference"})
    assert (config.loss_settings.loss, config.loss_settings.beta) == ("sigmoid", 0.1)
    assert loss_of("kto", PreferenceConfig()) == "kto"
    simpo = build(RunConfig, PAIRS | {"preference": {"loss": "simpo"}})
    assert simpo.loss_settings.beta == 2.0


def test_settings_stand_flat_on_the_command_line_and_other_names_are_answered_with_ours():
    config = load_config(None, ["objective=preference", "beta=0.3", "sft_weight=1", "preference.loss=ipo"])
    assert (config.objective, config.preference.beta, config.preference.sft_weight) == ("preference", 0.3, 1.0)
    for theirs, ours in (
        ("dpo_beta", "preference.beta"),
        ("pref_beta", "preference.beta"),
        ("simpo_gamma", "preference.margin"),
        ("rpo_alpha", "preference.sft_weight"),
        ("loss_type", "preference.loss"),
        ("rl", "objective"),
    ):
        with pytest.raises(ConfigError, match=f"did you mean {ours}"):
            load_config(None, [f"{theirs}=x"])


def test_a_run_of_pairs_writes_its_settings_and_a_supervised_one_none(tmp_path: Path):
    config = load_config(None, ["objective=preference", "preference.loss=simpo", "margin=1.5", "lora.r=4"])
    path = tmp_path / "config.yaml"
    path.write_text(describe_run(config, {"preference.beta": 2.0}), encoding="utf-8")
    assert "# derived: preference.beta: 2.0" in path.read_text(encoding="utf-8")
    again = load_config(path)
    assert (again.objective, again.preference) == ("preference", config.preference)
    assert "preference" not in describe_run(load_config(None, ["lora.r=4"]), {})


def test_a_commented_file_of_pairs_shows_the_settings_of_its_loss(tmp_path: Path):
    path = tmp_path / "run.yaml"
    path.write_text(commented_yaml({"objective": "preference", "preference.beta": 0.2}), encoding="utf-8")
    text = path.read_text(encoding="utf-8")
    assert "sft_weight: 0.0" in text
    assert "desirable_weight" not in text
    assert load_config(path).preference.beta == 0.2
    assert "sft_weight" not in commented_yaml({"method": "lora"})
