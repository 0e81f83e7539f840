"""One owner of the rules for generation values, for the command line and for Python."""

from __future__ import annotations

import pytest

from ai_finetuning.errors import ConfigError
from ai_finetuning.models.sampling import validate_further, validate_sampling


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 0),
        ("temperature", -1.0),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", "0.7"),
        ("top_p", 0),
        ("top_p", 1.01),
        ("top_k", -1),
        ("top_k", 2.5),
        ("max_new_tokens", 0),
        ("max_new_tokens", 1.5),
        ("max_new_tokens", None),
        ("max_new_tokens", True),
        ("batch_size", 0),
    ],
)
def test_a_value_that_cannot_be_is_named_with_its_rule(name: str, value: object):
    with pytest.raises(ConfigError, match=f"{name} is {value!r}"):
        validate_sampling(**{name: value})


def test_what_can_be_passes():
    validate_sampling(max_new_tokens=1, temperature=1e-6, top_p=1.0, top_k=0, batch_size=1)
    validate_sampling(temperature=0, do_sample=False)


def test_a_temperature_of_0_names_both_ways_out():
    with pytest.raises(ConfigError) as refused:
        validate_sampling(temperature=0.0)
    for text in (refused.value.ja, refused.value.en):
        assert "--greedy" in text
        assert "do_sample=False" in text


@pytest.mark.parametrize(
    ("name", "value", "way_out"),
    [
        ("num_return_sequences", 2, r"generate_batch\(\)"),
        ("return_dict_in_generate", True, r"load_model\(\)"),
        ("streamer", object(), r"stream_japanese\(\)"),
        ("stopping_criteria", [], "template"),
    ],
)
def test_arguments_under_which_there_is_no_single_text_are_refused(name: str, value: object, way_out: str):
    with pytest.raises(ConfigError, match=f"{name} is .*{way_out}"):
        validate_further({name: value})


def test_further_arguments_pass():
    validate_further({"repetition_penalty": 1.2, "num_beams": 2, "num_return_sequences": 1, "streamer": None})
