"""What is known of a run before it loads: sizes from the configuration alone, memory by formulas, checked against
real models.
"""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.support.models import build_experts, build_model, save_tiny_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from ai_finetuning.data.collate import collate
from ai_finetuning.data.example import Example
from ai_finetuning.engine.loss import make_document_loss
from ai_finetuning.models.adapters import add_lora, trainable_parameters
from ai_finetuning.models.documents import select_forward_path
from ai_finetuning.models.quantized import held_tensors
from ai_finetuning.planner import memory
from ai_finetuning.planner.shape import read_shape, shape_of

KINDS = ["llama", "qwen2", "stablelm", "gpt_neox"]


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_are_counted_without_weights(tmp_path: Path, kind: str):
    save_tiny_model(tmp_path / kind, kind)
    (tmp_path / kind / "model.safetensors").unlink()
    shape = read_shape(str(tmp_path / kind))
    model = build_model(kind)
    assert shape == shape_of(model)
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert shape.positions == 1024


@pytest.mark.parametrize("kind", KINDS)
def test_adapter_sizes_are_those_that_peft_makes(kind: str):
    model = build_model(kind)
    expected = shape_of(model).lora_parameters(4, None)
    assert trainable_parameters(add_lora(model, r=4, alpha=8))[0] == expected


def test_memory_follows_method_and_checkpointing():
    shape = shape_of(build_model())
    base = {"trainable": 1000, "frozen_bytes": 2, "tokens": 2048, "compute_bytes": 2, "optimizer_bytes": 8}

    def total(checkpointing: bool = False, **changes) -> int:
        return memory.estimate(
            shape, memory.Workload(**base | {"bits": None, "full": False} | changes), checkpointing=checkpointing
        ).total

    assert total(bits=4) < total(bits=8) < total() < total(full=True, trainable=shape.parameters)
    assert total(checkpointing=True) < total()
    assert total(tokens=4096) > total()


def test_the_estimate_is_near_what_autograd_keeps():
    """Saved activations of a real step, counted by hooks, against the formula: never more, and not less than half."""
    model = build_model(hidden_size=128, layers=4).train()
    ids = torch.randint(3, 400, (4, 128))
    sizes: dict[int, int] = {}
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in parameters:
            sizes[place] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    assert hidden.requires_grad
    work = memory.Workload(
        trainable=shape_of(model).parameters, bits=None, frozen_bytes=4, tokens=ids.numel(), compute_bytes=4, full=True
    )
    kept, _ = memory.layer_activations(shape_of(model), replace(work, longest=128, gpu=True), checkpointing=False)
    assert 1 <= 4 * kept / sum(sizes.values()) < 2


def live_storages() -> dict[int, torch.Tensor]:
    """A tensor of every storage that is alive."""
    gc.collect()
    # issubclass of the type, because isinstance asks some objects for attributes that warn.
    tensors = [item for item in gc.get_objects() if issubclass(type(item), torch.Tensor)]
    plain = [item for item in tensors if type(item) in (torch.Tensor, torch.nn.Parameter) and item.device.type == "cpu"]
    return {item.untyped_storage().data_ptr(): item for item in plain if not torch._is_functional_tensor(item)}


@pytest.mark.parametrize("method", ["full", "lora", "lora on fp32"])
def test_what_a_fused_run_holds_between_steps_is_what_was_planned(method: str):
    """Weights, 16-bit copies, gradients and moments of a real step, tensor by tensor."""
    known = set(live_storages())
    base = build_model(hidden_size=128, layers=2)
    shape = shape_of(base)
    if method == "lora":
        base = base.to(torch.bfloat16)
    model = base if method == "full" else add_lora(base, r=8, alpha=8)
    path, reason = select_forward_path(base, torch.device("cpu"), autocast=torch.bfloat16, kernels="fused")
    if path is None or path.name != "fused":
        pytest.skip(f"no fused path here: {reason}")
    optimizer = torch.optim.AdamW([item for item in model.parameters() if item.requires_grad], lr=1e-3, fused=True)
    path.watch(optimizer)
    rows = [[Example(ids, ids, 32)] for ids in np.random.default_rng(0).integers(3, 400, (4, 32)).astype(np.int32)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = make_document_loss(path)(model, collate(rows, pad_token_id=0, packed=False))
    loss.backward()
    optimizer.step()
    held: dict[torch.dtype, int] = {}
    for place, item in live_storages().items():
        if place not in known:
            held[item.dtype] = held.get(item.dtype, 0) + item.untyped_storage().nbytes()
    work = memory.Workload(
        trainable=trainable_parameters(model)[0],
        bits=None,
        frozen_bytes=2 if method == "lora" else 4,
        tokens=128,
        compute_bytes=2,
        full=method == "full",
    )
    planned = memory.estimate(shape, work, checkpointing=False)
    if method != "lora":  # there the frozen weights are bf16 themselves
        assert held[torch.bfloat16] == pytest.approx(planned.copies, rel=0.02)
    assert sum(held.values()) == pytest.approx(
        planned.weights + planned.copies + planned.gradients_and_optimizer, rel=0.02
    )
    path.close()


def test_weights_of_experts_keep_their_bytes_where_the_rest_is_quantized(tmp_path: Path):
    build_experts().save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(
        tmp_path,
        quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
        dtype=torch.float32,
        device_map={"": "cpu"},
    )
    held = sum(tensor.nbytes for tensor in held_tensors(loaded))
    work = memory.Workload(0, 4, frozen_bytes=4, tokens=1, compute_bytes=4)
    planned = memory.estimate(read_shape(str(tmp_path)), work, checkpointing=False).weights
    assert held <= planned * 1.05
    assert planned <= held * 1.05
