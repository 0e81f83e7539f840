"""Grouped keyword arguments are as strict as written ones."""

import pytest
from tests.support.models import build_model

from ai_finetuning.models.adapters import add_lora
from ai_finetuning.models.generation import Sampling
from ai_finetuning.models.loading import load_causal_lm


def test_an_unknown_option_is_refused():
    with pytest.raises(TypeError, match=r"load_causal_lm\(\).*'load_in_3bit'"):
        load_causal_lm("nowhere", load_in_3bit=True)
    with pytest.raises(TypeError, match=r"add_lora\(\).*'lora_bias'"):
        add_lora(build_model(), r=4, alpha=8, lora_bias=True)


def test_sampling_is_taken_out_of_the_options():
    sampling, rest = Sampling.taken_from({"top_k": 3, "do_sample": False, "repetition_penalty": 1.2})
    assert sampling == Sampling(top_k=3, do_sample=False)
    assert rest == {"repetition_penalty": 1.2}
