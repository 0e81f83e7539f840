"""The table of methods, and what is counted of quantized weights."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
import torch
from tests.support.commands import environment

from ai_finetuning.errors import ConfigError
from ai_finetuning.models.quantized import METHODS, Quantization, find_method, weight_bytes


def test_the_first_method_of_a_backend_is_taken_where_no_type_is_named():
    assert find_method(4).quant_type == "nf4"
    assert find_method(8).name == "bitsandbytes int8"
    assert find_method(8, "torchao", "int8-dynamic").name == "torchao int8-dynamic"
    assert len({(row.backend, row.bits, row.quant_type) for row in METHODS}) == len(METHODS)
    with pytest.raises(ConfigError) as refusal:
        find_method(4, "torchao", "nf4")
    for row in METHODS:
        assert f"backend={row.backend} bits={row.bits} quant_type={row.quant_type}" in refusal.value.en


def test_a_setting_of_another_method_is_refused():
    Quantization(find_method(8), {"llm_int8_threshold": 1.0})
    with pytest.raises(ConfigError, match="llm_int8_threshold does not apply to torchao int8"):
        Quantization(find_method(8, "torchao"), {"llm_int8_threshold": 1.0})


def test_bytes_are_those_of_storage():
    module = torch.nn.Linear(8, 4, bias=False)
    tied = torch.nn.Linear(8, 4, bias=False)
    tied.weight = module.weight
    whole = torch.nn.ParameterList([torch.zeros(100)[:10]])  # a view holds all of its storage
    assert weight_bytes(torch.nn.Sequential(module, tied)) == {"float32": 128}
    assert weight_bytes(whole) == {"float32": 400}


def test_loading_says_nothing_that_a_user_can_do_nothing_about():
    code = "import logging; from ai_finetuning.models.loading import load_causal_lm; import bitsandbytes"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert done.stderr == ""
    logger = logging.getLogger("bitsandbytes.autograd._functions")
    import ai_finetuning.models  # noqa: F401

    record = logger.makeRecord(
        logger.name,
        logging.WARNING,
        "",
        0,
        "MatMul8bitLt: inputs will be cast from %s to float16",
        (torch.bfloat16,),
        None,
    )
    assert not logger.filter(record)
