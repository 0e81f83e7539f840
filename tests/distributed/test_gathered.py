"""fsdp as GPUs do it: what is sent to gather a weight, what stays gathered, and that the step is that of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.support.loops import run_of
from tests.support.parity import CPU, Case, differences, loader, loss_of, model_of, take_step
from tests.support.ranks import run_ranks
from torch.utils._python_dispatch import TorchDispatchMode

from ai_finetuning.config.run_folder import METRICS
from ai_finetuning.engine.loop import fit
from ai_finetuning.engine.metrics import read_metrics
from ai_finetuning.engine.optimizer import build_optimizer
from ai_finetuning.models.activation_checkpointing import enable_activation_checkpointing
from ai_finetuning.models.parts import layer_list
from ai_finetuning.models.plans import tensor_plan
from ai_finetuning.parallel.collectives.mesh import Sizes, build_mesh
from ai_finetuning.parallel.strategies import tensor
from ai_finetuning.parallel.strategies.distributed import DataParallel
from ai_finetuning.parallel.strategies.shard import Sharding, sharding_for
from ai_finetuning.parallel.strategies.single import SingleDevice

APART, SIXTEEN_BIT = Sharding(ends_apart=True), Sharding(torch.bfloat16, ends_apart=True)
CASES = [
    Case("llama", "full", "documents"),
    Case("llama", "lora", "documents"),
    Case("stablelm", "full", "padded"),
    Case("gpt_neox", "full", "packed"),
    Case("llama", "full", "documents", rows=1),
    Case("qwen3_tied", "full", "documents"),
    Case("llama", "qlora", "documents"),
]
FULL = [case for case in CASES if case.method == "full"]
# Autocast of CUDA runs layer_norm in fp32 whatever its weights are; that of a CPU refuses them beside fp32 states.
IN_16_BIT = [case for case in FULL if case.kind not in ("stablelm", "gpt_neox")]


def fsdp(sharding: Sharding, autocast: torch.dtype | None = None) -> Any:
    strategy = DataParallel(CPU, build_mesh(Sizes(dp=2), "cpu"), sharded=True, autocast=autocast)
    strategy.sharding = sharding
    return strategy


def test_only_fp32_masters_on_a_gpu_are_sent_in_16_bit():
    gpu, half = torch.device("cuda", 1), torch.bfloat16
    assert sharding_for(gpu, half, fp32_master_weights=True) == SIXTEEN_BIT
    assert sharding_for(gpu, None, fp32_master_weights=True) == APART
    assert sharding_for(gpu, half, fp32_master_weights=False) == APART  # packed 4-bit weights may lie in any dtype
    assert sharding_for(CPU, half, fp32_master_weights=True) == Sharding()


def test_ends_of_their_own_do_the_step_of_one_process(tmp_path: Path):
    for case, worst in differences(2, CASES, lambda _: fsdp(APART), tmp_path).items():
        assert max(worst["loss"], worst["norm"], worst["gradient"]) < 1e-6, (case, worst)
        assert worst["weight"] < 5e-6, (case, worst)
        assert worst["covered"] == 1.0, (case, worst)


def steps(rank: int, cases: list[Case], sharding: Sharding, autocast: torch.dtype | None) -> list[Any]:
    return [take_step(case, fsdp(sharding, autocast)) for case in cases]


def test_ends_of_their_own_change_no_bit(tmp_path: Path):
    """A checkpoint of one is read by the other: the same parts under the same names."""
    together, apart = (run_ranks(2, steps, FULL, sharding, None, folder=tmp_path) for sharding in (Sharding(), APART))
    for before, after in zip([*together[0], *together[1]], [*apart[0], *apart[1]], strict=True):
        assert (before.loss, before.norm) == (after.loss, after.norm)
        for name, (gradient, weight, part) in before.parts.items():
            assert np.array_equal(gradient, after.parts[name][0]), name
            assert np.array_equal(weight, after.parts[name][1]), name
            assert part == after.parts[name][2]


def test_16_bit_gathers_train_as_autocast_does(tmp_path: Path):
    """Masters, gradients and their sum stay fp32; what differs from one process is the rounding of 16 bit."""
    for rank in run_ranks(2, steps, IN_16_BIT, SIXTEEN_BIT, torch.bfloat16, folder=tmp_path):
        for case, outcome in zip(IN_16_BIT, rank, strict=True):
            exact, autocast = (take_step(case, SingleDevice(CPU, autocast=kind)) for kind in (None, torch.bfloat16))
            assert abs(outcome.loss - exact.loss) < 2 * abs(autocast.loss - exact.loss) + 2e-3, case
            assert abs(outcome.norm - exact.norm) < 0.02 * exact.norm, case
            for name, (gradient, weight, part) in outcome.parts.items():
                whole = exact.parts[name][0]
                assert gradient.dtype == weight.dtype == np.float32
                apart = np.linalg.norm(gradient - whole[part]) / max(np.linalg.norm(whole), 1e-12)
                usual = np.linalg.norm(autocast.parts[name][0] - whole) / max(np.linalg.norm(whole), 1e-12)
                assert apart < 2 * usual + 0.01, (case, name, apart, usual)


class Gathers(TorchDispatchMode):
    """Bytes of what is gathered."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: list[int] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(function).startswith("c10d._allgather_base_"):
            self.counted.append(args[0].nbytes)
        return function(*args, **(kwargs or {}))


def gathered(rank: int, case: Case, sharding: Sharding) -> list[int]:
    """Bytes of every gather of a micro-batch, in order."""
    model = model_of(case)
    strategy = fsdp(sharding, sharding.gathered)
    strategy.prepare(model, loss_of(case, model))
    group = loader(case, strategy.data_rank, strategy.data_size).micro_batches(0, 0, case.rows)
    with Gathers() as seen:
        strategy.forward_backward(group, 100.0)
    return seen.counted


@pytest.mark.parametrize("data", ["padded", "documents"])
def test_a_weight_is_sent_in_2_bytes_and_only_the_norm_stays_gathered(data: str, tmp_path: Path):
    case = Case("llama", "full", data)
    model = model_of(case)
    layers = list(layer_list(model) or ())
    layer = 2 * sum(p.numel() for p in layers[0].parameters())
    head, norm = 2 * model.lm_head.weight.numel(), 2 * model.model.norm.weight.numel()
    forward = [norm, head, layer, layer, head]
    obtained = run_ranks(2, gathered, case, SIXTEEN_BIT, folder=tmp_path)
    # Backward: the layers from the last on, then the embedding; the head is there still.
    assert obtained == [[*forward, layer, layer, head]] * 2
    assert run_ranks(2, gathered, case, Sharding(), folder=tmp_path)[0][0] == 2 * (2 * head + norm)


def losses_of_a_run(rank: int, folder: Path, sharding: Sharding) -> list[float]:
    """Six steps, layers recomputed in the backward pass, an evaluation behind every second one."""
    strategy = fsdp(sharding)
    run = run_of(Case("llama", "full", "documents", rows=24), strategy, folder, steps=6, eval_steps=2)
    enable_activation_checkpointing(run.model)
    fit(run)
    rows = strategy.gather(read_metrics(folder / METRICS) if rank == 0 else None)[0]
    strategy.close()
    return [row[key] for row in rows for key in ("loss", "eval_loss") if key in row]


def test_a_run_with_evaluations_keeps_its_bits(tmp_path: Path):
    """What an evaluation leaves gathered is not taken for the weights of a later step."""
    together, apart = (
        run_ranks(2, losses_of_a_run, tmp_path / name, sharding, folder=tmp_path)
        for name, sharding in (("together", Sharding()), ("apart", APART))
    )
    assert len(together[0]) == 6 + 4
    assert together == apart


def test_layers_shared_by_a_tensor_group_are_gathered_along_the_data_ranks_alone(tmp_path: Path):
    def build(case: Case) -> Any:
        strategy = DataParallel(CPU, build_mesh(Sizes(dp=2, tp=2), "cpu"), sharded=True, parallelize_layers=cut_layers)
        strategy.sharding = APART
        return strategy

    cases = [Case("llama", "full", "documents"), Case("llama", "lora", "padded")]
    for case, worst in differences(4, cases, build, tmp_path).items():
        assert max(worst["loss"], worst["norm"], worst["gradient"]) < 5e-6, (case, worst)


def cut_layers(model: Any, mesh: Any, weight_placement: Any) -> None:
    tensor.parallelize_layers(model, mesh, plan=tensor_plan(model), weight_placement=weight_placement)


def scores(rank: int, sharding: Sharding) -> list[float]:
    """Of the weights, of others that are loaded then, and of those where nothing was scored before."""
    obtained = []
    for kinds in ((1.0, 1.5), (1.5,)):
        case = Case("llama", "full", "documents")
        model = model_of(case)
        strategy = fsdp(sharding)
        strategy.prepare(model, loss_of(case, model))
        optimizer = strategy.attach(build_optimizer(strategy.named_parameters(model), learning_rate=1e-3))
        first = {name: tensor.clone() for name, tensor in strategy.tensors(model, optimizer)["model"].items()}
        for kind in kinds:
            strategy.load_tensors(model, optimizer, {"model": {name: kind * first[name] for name in first}})
            obtained.append(strategy.evaluate(loader(case).micro_batches(0, 0, 4))[0])
    return obtained


@pytest.mark.parametrize("sharding", [Sharding(), APART], ids=["together", "apart"])
def test_weights_that_are_loaded_behind_an_evaluation_are_those_of_the_next(sharding: Sharding, tmp_path: Path):
    for before, after, fresh in run_ranks(2, scores, sharding, folder=tmp_path):
        assert after == fresh != before
