"""A model that is cut goes from its file to the device part by part: no device, and no process, ever holds all of
it.
"""

from __future__ import annotations

import copy
import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.models import build_model
from tests.support.parity import CPU
from tests.support.ranks import run_ranks
from tests.support.virtual import virtual_devices

from ai_finetuning.engine.loss import make_loss
from ai_finetuning.models.adapters import add_lora
from ai_finetuning.models.documents import select_forward_path
from ai_finetuning.models.loading import load_causal_lm
from ai_finetuning.models.plans import tensor_plan
from ai_finetuning.parallel.build import build_strategy
from ai_finetuning.parallel.plan import resolve_parallel_plan
from ai_finetuning.parallel.weights.materialize import WeightPlacement

GPU = torch.device("cuda", 0)


@pytest.mark.parametrize("kind", ["llama", "qwen3_tied", "gpt_neox"])
def test_a_model_on_the_cpu_runs_on_a_device_that_holds_one_layer_of_it(kind: str):
    model = build_model(kind, layers=3)
    layers, ids = model.get_decoder().layers if kind != "gpt_neox" else model.gpt_neox.layers, torch.tensor([[5, 6, 7]])
    expected = model(ids).logits
    with virtual_devices() as places:

        def on_gpu() -> list[int]:
            return [index for index, layer in enumerate(layers) if places.of(next(layer.parameters())) == GPU]

        seen: list[list[int]] = []
        with WeightPlacement(GPU).layer_offload(model):
            for layer in layers:
                layer.register_forward_hook(lambda *_: seen.append(on_gpu()))
            got = model(ids.to(GPU)).logits.cpu()
        assert [len(obtained) for obtained in seen] == [0, 0, 0]  # each has left when its turn is over
        assert on_gpu() == []
        assert places.of(model.get_input_embeddings().weight) == GPU
        assert sum(move[1] == GPU for move in places.moves) >= len(layers)
    assert torch.equal(got, expected)


def test_the_document_path_opens_on_the_device_while_the_layers_are_elsewhere():
    model = build_model("llama", layers=3)
    with virtual_devices(), WeightPlacement(GPU).layer_offload(model):
        path, reason = select_forward_path(model, GPU, autocast=None, kernels="portable")
    assert path is not None, reason


def test_masters_are_fp32_for_a_visit_and_stay_what_the_file_says_until_the_cut():
    model = build_model("llama", layers=3).to(torch.bfloat16)
    fp32_master_weights, ids = copy.deepcopy(model).float(), torch.tensor([[5, 6, 7]])
    with WeightPlacement(CPU, fp32_master_weights=True).layer_offload(model):
        assert torch.equal(model(ids).logits, fp32_master_weights(ids).logits)
    layer = model.get_decoder().layers[0]
    assert {p.dtype for p in layer.parameters()} == {torch.bfloat16}
    WeightPlacement(CPU, fp32_master_weights=True).materialize(layer)
    assert {p.dtype for p in layer.parameters()} == {torch.float32}


def test_a_visit_that_fails_leaves_the_layers_where_they_were():
    model = build_model("llama", layers=3).to(torch.bfloat16)

    def fail(*_: Any) -> None:
        raise RuntimeError("in the midst of a layer")

    handle = model.get_decoder().layers[1].mlp.register_forward_hook(fail)
    with (
        pytest.raises(RuntimeError, match="midst"),
        WeightPlacement(CPU, fp32_master_weights=True).layer_offload(model),
    ):
        model(torch.tensor([[5, 6, 7]]))
    handle.remove()
    assert {p.dtype for p in model.get_decoder().layers.parameters()} == {torch.bfloat16}


def private_bytes() -> int:
    """Memory of this process that it shares with nobody and that no file backs."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024


def _loaded(rank: int, folder: str, name: str, full: bool) -> tuple[int, int]:
    """Private bytes that a rank's model takes, and bytes of the whole model in its file."""
    strategy = build_strategy(
        resolve_parallel_plan(name),
        device=CPU,
        autocast=None,
        scaler=False,
        use_accelerate=False,
        fp32_master_weights=full,
        plan=tensor_plan,
    )
    gc.collect()
    before = private_bytes()
    model: Any = load_causal_lm(folder, dtype=torch.bfloat16, announce=False, **strategy.placement(quantized=False))
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    if full:
        model.requires_grad_(True)
    else:
        model = add_lora(model, r=2, alpha=4)
    strategy.prepare(model, make_loss(logits_to_keep=True))
    gc.collect()
    return private_bytes() - before, size


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="counts memory as Linux does")
@pytest.mark.parametrize(
    ("name", "full", "most"),
    [
        ("pipeline", False, 0.5),  # bf16 weights stay views of the file
        ("fsdp", False, 0.75),
        ("tensor", False, 1.4),  # a whole weight at a time comes from the first rank, and the heap keeps holes of them
        # Half of the weights, twice as many bytes each; the whole in fp32 would be 2.
        ("pipeline", True, 1.75),
        ("fsdp", True, 1.75),
        ("tensor", True, 1.75),
    ],
)
def test_a_rank_takes_memory_for_its_part_only(name: str, full: bool, most: float, tmp_path: Path):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {
        "vocab_size": 512,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "num_hidden_layers": 8,
    }
    LlamaForCausalLM(LlamaConfig(**sizes)).to(torch.bfloat16).save_pretrained(tmp_path / "model")
    for taken, whole in run_ranks(2, _loaded, str(tmp_path / "model"), name, full, folder=tmp_path):
        assert whole > 120e6
        assert taken < most * whole, taken / whole


def test_what_is_not_cut_is_loaded_where_it_trains(tmp_path: Path):
    assert run_ranks(2, _placements, folder=tmp_path)[0] == {
        ("ddp", False): "cuda:0",
        ("fsdp", False): "cpu",
        ("fsdp", True): "cuda:0",
        ("tensor", False): "cpu",
        ("pipeline", False): "cpu",
    }


def _placements(rank: int) -> dict[tuple[str, bool], str]:
    obtained = {}
    for name, quantized in (("ddp", False), ("fsdp", False), ("fsdp", True), ("tensor", False), ("pipeline", False)):
        strategy: Any = build_strategy(
            resolve_parallel_plan(name), device=CPU, autocast=None, scaler=False, use_accelerate=False, plan=tensor_plan
        )
        strategy.device = GPU
        obtained[name, quantized] = str(strategy.placement(quantized=quantized)["device"])
    return obtained
