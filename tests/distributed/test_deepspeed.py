"""ZeRO-2 and ZeRO-3 by DeepSpeed, set up by Accelerate, on two processes: the step, the runs and the checkpoints of
one process.
"""

from __future__ import annotations

import copy
import importlib.util
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.distributed.test_runs import assert_like, train, weights
from tests.support.commands import spawn, write_run
from tests.support.parity import CPU, Case, loader, loss_of, model_of
from tests.support.ranks import run_ranks
from tests.support.runs import ROWS, train_full, train_lora

from ai_finetuning.config.parallel import ParallelConfig
from ai_finetuning.engine.loss import make_document_loss
from ai_finetuning.engine.metrics import read_metrics
from ai_finetuning.engine.optimizer import build_optimizer, set_learning_rate
from ai_finetuning.errors import ProcessesError
from ai_finetuning.models.activation_checkpointing import enable_activation_checkpointing
from ai_finetuning.models.documents import select_forward_path
from ai_finetuning.parallel.collectives.mesh import Sizes, build_mesh
from ai_finetuning.parallel.plugins.zero import Zero
from ai_finetuning.parallel.strategies.distributed import DataParallel
from ai_finetuning.parallel.strategies.single import SingleDevice

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed (the extra `deepspeed`)"
)
pytestmark = [needs_deepspeed, pytest.mark.slow]
FACTORS = (1.0, 0.3, 0.6)  # of the learning rate, by step


def zero(stage: int, max_grad_norm: float = 0.05, autocast: torch.dtype | None = None) -> Zero:
    mesh = build_mesh(Sizes(dp=dist.get_world_size()), "cpu")
    return Zero(CPU, mesh, stage=stage, max_grad_norm=max_grad_norm, autocast=autocast)


def steps(case: Case, strategy: Any, max_grad_norm: float = 0.05, checkpointing: bool = False) -> dict[str, Any]:
    """Losses and norms of steps over all documents in two or more micro-batches, an evaluation loss, and this rank's
    tensors.
    """
    model = model_of(case)
    if checkpointing:
        enable_activation_checkpointing(model)
    model.train()
    strategy.prepare(model, loss_of(case, model))
    optimizer = build_optimizer(strategy.named_parameters(model), learning_rate=1e-4, weight_decay=0.1)
    strategy.attach(optimizer)
    data = loader(case, strategy.data_rank, strategy.data_size)
    obtained: dict[str, Any] = {"loss": [], "norm": []}
    for factor in FACTORS:
        set_learning_rate(optimizer, factor)
        group = data.micro_batches(0, 0, 2)
        assert len(group) >= 2
        (num_valid,), _ = strategy.agree([sum(batch.num_label_tokens for batch in group)])
        update = strategy.update(strategy.forward_backward(group, num_valid), max_grad_norm)
        obtained["loss"].append(update.loss)
        obtained["norm"].append(update.grad_norm)
        assert update.applied
        optimizer.zero_grad(set_to_none=True)
    obtained["held out"] = strategy.evaluate(loader(case).micro_batches(0, 0, 2))
    tensors = strategy.tensors(model, optimizer)
    obtained["tensors"] = {
        f"{group}:{name}": tensor.detach().numpy().copy()
        for group, named in tensors.items()
        for name, tensor in named.items()
    }
    return obtained


def _rank(rank: int, cases: list[tuple[Case, dict]], stage: int) -> list[dict[str, Any]]:
    obtained = []
    for case, how in cases:
        strategy = zero(stage)
        obtained.append(steps(case, strategy, **how))
        strategy.close()
    return obtained


CASES: list[tuple[Case, dict]] = [
    (Case("llama", "full", "documents"), {}),
    (Case("llama", "lora", "padded"), {}),
    (Case("qwen3_tied", "full", "packed"), {}),
    (Case("llama", "lora", "documents"), {"checkpointing": True}),
]


@pytest.mark.parametrize("stage", [2, 3])
def test_two_ranks_do_the_steps_of_one(stage: int, tmp_path: Path):
    """Losses, norms (above the limit: clipped), weights, moments and counts after steps of changing rates, with and
    without decay.
    """
    cases = [*CASES, (Case("llama", "qlora", "documents"), {})] if stage == 2 else CASES
    answers = run_ranks(2, _rank, cases, stage, folder=tmp_path, limit=240)
    for index, (case, how) in enumerate(cases):
        expected, got = steps(case, SingleDevice(CPU), **how), [rank[index] for rank in answers]
        for rank in got:
            for key in ("loss", "norm"):
                assert rank[key] == pytest.approx(expected[key], rel=1e-6), (str(case), key)
            assert rank["held out"] == (pytest.approx(expected["held out"][0], rel=1e-6), expected["held out"][1])
        assert min(expected["norm"]) > 0.05
        tensors = got[0]["tensors"] | got[1]["tensors"]
        assert not got[0]["tensors"].keys() & got[1]["tensors"].keys()
        assert tensors.keys() == expected["tensors"].keys()
        for name, tensor in expected["tensors"].items():
            assert tensors[name].shape == tensor.shape
            assert abs(tensors[name] - tensor).max() < 5e-6, (str(case), name)


@pytest.fixture(scope="module")
def alone(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same runs in one process, by method."""
    folder = tmp_path_factory.mktemp("alone")
    for method in ("full", "lora"):
        train(0, method, tiny_model_dir, folder / method, {}, "", None)
    return {method: folder / method for method in ("full", "lora")}


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("stage", [2, 3])
def test_a_run_is_that_of_one_process(
    stage: int, method: str, alone: dict[str, Path], tiny_model_dir: Path, tmp_path: Path
):
    folder, parallel = tmp_path / "out", {"deepspeed_stage": stage}
    assert run_ranks(2, train, method, tiny_model_dir, folder, parallel, "", None, folder=tmp_path) == ["done"] * 2
    assert_like(folder, alone[method])


@pytest.mark.parametrize(
    ("first", "second"), [(2, None), (3, None), (None, 2), (None, 3), (2, 3), (3, "fsdp"), ("ddp", 2), ("pipeline", 3)]
)
def test_a_run_goes_on_under_another_strategy(
    first: int | str | None, second: int | str | None, alone: dict[str, Path], tiny_model_dir: Path, tmp_path: Path
):
    folder = tmp_path / "out"

    def go(how: int | str | None, fault: str, resume: str | None) -> list[str]:
        parallel = {"deepspeed_stage": how} if isinstance(how, int) else {"strategy": how or "ddp"}
        ranks = 1 if how is None else 2
        return run_ranks(ranks, train, "full", tiny_model_dir, folder, parallel, fault, resume, folder=tmp_path)

    assert set(go(first, "step:term@5%1" if first else "step:term@5", None)) == {"stopped"}
    assert (folder / "checkpoints" / "checkpoint-5").is_dir()
    assert set(go(second, "", "auto")) == {"done"}
    assert_like(folder, alone["full"])


def best_run(rank: int, model: Path, folder: Path, stage: int | None, method: str) -> None:
    """Held-out data, the best weights at the end, and no step at which a checkpoint is due: step 0 and the best step
    alone have one.
    """
    run = train_full if method == "full" else train_lora
    extra: dict[str, Any] = {"learning_rate": 0.01} if method == "full" else {"lora": {"lora_dropout": 0.0}}
    run(
        model,
        folder,
        rows=ROWS[:16],
        evaluate=["Hello, how are you?"],
        eval_steps=2,
        save_steps=1000,
        num_epochs=4,
        checkpoint={"load_best": method == "full"},
        parallel=ParallelConfig(deepspeed_stage=stage),
        **extra,
    )


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("stage", [2, 3])
def test_the_best_or_the_last_weights_are_saved(stage: int, method: str, tiny_model_dir: Path, tmp_path: Path):
    run_ranks(1, best_run, tiny_model_dir, tmp_path / "alone", None, method, folder=tmp_path)
    run_ranks(2, best_run, tiny_model_dir, tmp_path / "out", stage, method, folder=tmp_path)
    alone, out = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("alone", "out"))
    scores = [[row["eval_loss"] for row in rows if "eval_loss" in row] for rows in (alone, out)]
    assert len(scores[0]) > 3
    assert scores[1] == pytest.approx(scores[0], abs=1e-4 if method == "full" else 2e-6)
    if method == "full":
        assert scores[0].index(min(scores[0])) < len(scores[0]) - 1  # the best is not the last
    saved, plain = weights(tmp_path / "out"), weights(tmp_path / "alone")
    assert saved.keys() == plain.keys()
    assert max(float((saved[name] - plain[name]).abs().max()) for name in plain) < (1e-4 if method == "full" else 5e-5)


def prepared(case: Case, strategy: Any, loss: Any = None) -> tuple[Any, torch.optim.Optimizer]:
    """A model and its optimizer under a strategy."""
    model = model_of(case).train()
    strategy.prepare(model, loss or loss_of(case, model))
    optimizer = build_optimizer(strategy.named_parameters(model), learning_rate=1e-3, weight_decay=0.1)
    return model, strategy.attach(optimizer)


def one_step(
    case: Case, strategy: Any, optimizer: torch.optim.Optimizer, max_grad_norm: float
) -> tuple[float, float, bool]:
    group = loader(case, strategy.data_rank, strategy.data_size).micro_batches(0, 0, 2)
    (num_valid,), _ = strategy.agree([sum(batch.num_label_tokens for batch in group)])
    update = strategy.update(strategy.forward_backward(group, num_valid), max_grad_norm)
    optimizer.zero_grad(set_to_none=True)
    return update.loss, update.grad_norm, update.applied


def given_back(rank: int, stage: int, case: Case, tensors: dict) -> tuple[dict, tuple, tuple]:
    """What a strategy gives back of tensors that it was just given, an evaluation loss with them, and its next step."""
    strategy = zero(stage)
    model, optimizer = prepared(case, strategy)
    assert not strategy.tensors(model, optimizer)["optimizer"]  # no step yet
    strategy.load_tensors(model, optimizer, tensors)
    again = strategy.tensors(model, optimizer)
    eval_data = strategy.evaluate(loader(case).micro_batches(0, 0, 2))
    step = one_step(case, strategy, optimizer, 0.05)
    strategy.close()
    return {g: {n: t.numpy() for n, t in named.items()} for g, named in again.items()}, eval_data, step


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_state_of_one_process_is_taken_over_in_bits(stage: int, method: str, tmp_path: Path):
    """By three ranks, which divide no weight evenly, and where there are two groups of parameters."""
    case, alone = Case("llama", method, "documents"), SingleDevice(CPU)
    model, optimizer = prepared(case, alone)
    for _ in range(2):
        one_step(case, alone, optimizer, 0.05)
    state = {
        group: {name: tensor.detach().clone() for name, tensor in named.items()}
        for group, named in alone.tensors(model, optimizer).items()
    }
    answers = run_ranks(3, given_back, stage, case, state, folder=tmp_path)
    for group, named in state.items():
        obtained = answers[0][0][group] | answers[1][0][group] | answers[2][0][group]
        assert obtained.keys() == named.keys()
        assert all(torch.equal(torch.from_numpy(obtained[name]), tensor) for name, tensor in named.items())
    eval_data = alone.evaluate(loader(case).micro_batches(0, 0, 2))
    step = one_step(case, alone, optimizer, 0.05)
    for _, scored, stepped in answers:
        assert scored == (pytest.approx(eval_data[0], rel=1e-6), eval_data[1])
        assert stepped == (pytest.approx(step[0], rel=1e-6), pytest.approx(step[1], rel=1e-6), True)


def spoiled(rank: int, stage: int, what: str) -> tuple[list[tuple[float, float, bool]], list[bool]]:
    """Steps of which the second is not finite on the last rank; whether each changed the weights."""
    case, spoil = Case("llama", "full", "documents"), [False]
    strategy = zero(stage, max_grad_norm=0.0)
    plain: list[Any] = []

    def loss(model: Any, batch: Any) -> Any:
        value = plain[0](model, batch)
        if not (spoil[0] and rank == 1):
            return value
        # A loss that is infinite while its gradients are not, or gradients that are nan.
        return value + math.inf if what == "loss" else value * math.nan

    model = model_of(case).train()
    plain.append(loss_of(case, model))
    strategy.prepare(model, loss)
    optimizer = strategy.attach(build_optimizer(strategy.named_parameters(model), learning_rate=1e-3))
    outcomes, changed, before = [], [], copy.deepcopy(strategy.tensors(model, optimizer)["model"])
    for bad in (False, True, False):
        spoil[0] = bad
        outcomes.append(one_step(case, strategy, optimizer, 0.0))
        after = copy.deepcopy(strategy.tensors(model, optimizer)["model"])
        changed.append(any(not torch.equal(after[name], before[name]) for name in after))
        before = after
    strategy.close()
    return outcomes, changed


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("stage", [2, 3])
def test_a_step_that_is_not_finite_does_not_reach_the_weights(stage: int, what: str, tmp_path: Path):
    """And the next one is as if it had not been; without clipping the norm is still told."""
    for outcomes, changed in run_ranks(2, spoiled, stage, what, folder=tmp_path):
        assert changed == [True, False, True]
        assert [updated for _, _, updated in outcomes] == [True, False, True]
        assert not math.isfinite(outcomes[1][0])
        assert not math.isfinite(outcomes[1][1])
        assert outcomes[0][1] > 0
        assert outcomes[2][0] < outcomes[0][0]


def mixed(rank: int, stage: int | None) -> list[tuple[float, float, bool]]:
    """Steps in bf16 over a base in bf16."""
    case = Case("llama", "lora", "documents")
    if stage is None:
        strategy: Any = DataParallel(CPU, build_mesh(Sizes(dp=2), "cpu"), autocast=torch.bfloat16)
    else:
        strategy = zero(stage, max_grad_norm=1.0, autocast=torch.bfloat16)
    model = model_of(case).train()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad and "norm" not in name:
            parameter.data = parameter.data.bfloat16()
    seen: list[torch.dtype] = []
    inner = model.get_decoder().layers[0].mlp
    inner.register_forward_hook(lambda *args: seen.append(args[-1].dtype))
    path, reason = select_forward_path(model.get_base_model(), CPU, autocast=torch.bfloat16, kernels="portable")
    assert path is not None, reason
    strategy.prepare(model, make_document_loss(path))
    optimizer = strategy.attach(build_optimizer(strategy.named_parameters(model), learning_rate=1e-2))
    outcomes = [one_step(case, strategy, optimizer, 1.0) for _ in range(4)]
    strategy.evaluate(loader(case).micro_batches(0, 0, 2))
    assert set(seen) == {torch.bfloat16}  # DeepSpeed switches off an autocast that is open around its engine
    strategy.close()
    return outcomes


def test_bf16_is_that_of_replicas(tmp_path: Path):
    """Steps that follow each other: a copy of weights in 16 bit that is one step too old would show."""
    expected = run_ranks(2, mixed, None, folder=tmp_path)[0]
    assert expected[-1][0] < expected[0][0] - 0.05
    for stage in (2, 3):
        for obtained in run_ranks(2, mixed, stage, folder=tmp_path):
            for (loss, norm, _), (other, other_norm, _) in zip(obtained, expected, strict=True):
                assert loss == pytest.approx(other, abs=2e-3)
                assert norm == pytest.approx(other_norm, rel=0.03)


def divided(rank: int, stage: int, model_dir: Path) -> dict[str, Any]:
    """Whether DeepSpeed really divides, and what is left of it in the process after close()."""
    import transformers
    from accelerate import Accelerator
    from transformers.integrations import is_deepspeed_zero3_enabled

    linear = torch.nn.functional.linear
    case, strategy = Case("llama"), zero(stage)
    model, optimizer = prepared(case, strategy)
    whole = sum(layout.size[0] * math.prod(layout.size[1:]) for layout in strategy.layouts.values())
    one_step(case, strategy, optimizer, 0.05)
    moments = sum(state["exp_avg"].numel() for state in optimizer.state.values())
    weights_here = sum(p.numel() for p in model.parameters() if p.numel() > 0)
    flag_inside = is_deepspeed_zero3_enabled()
    strategy.close()
    loaded = transformers.AutoModelForCausalLM.from_pretrained(model_dir)
    return {
        "moments": moments / whole,
        "weights": weights_here / whole,
        "left": [
            name
            for name, there in {
                "transformers divides what it loads": flag_inside or is_deepspeed_zero3_enabled(),
                "torch's linear": linear is not torch.nn.functional.linear,
                "environment": "ACCELERATE_USE_DEEPSPEED" in os.environ,
                "weights loaded later": any(p.numel() == 0 for p in loaded.parameters()),
            }.items()
            if there
        ],
        "accelerate": str(Accelerator(cpu=True).distributed_type),
    }


@pytest.mark.parametrize("stage", [2, 3])
def test_weights_and_moments_are_divided_and_nothing_is_left_behind(stage: int, tiny_model_dir: Path, tmp_path: Path):
    """Accelerate on CPUs drops its plugin without a word when told that they are CPUs: each rank would hold
    everything.
    """
    for obtained in run_ranks(2, divided, stage, tiny_model_dir, folder=tmp_path):
        assert obtained["moments"] == pytest.approx(0.5, abs=0.01)
        assert (obtained["weights"] < 0.5) == (stage == 3)  # small weights stay whole
        assert obtained["left"] == []
        assert "DEEPSPEED" not in obtained["accelerate"]


def used_before(rank: int) -> str:
    from accelerate import Accelerator

    Accelerator(cpu=True)
    strategy = zero(2)
    with pytest.raises(ProcessesError) as error:
        prepared(Case("llama"), strategy)
    return error.value.en


def test_an_accelerate_without_deepspeed_is_refused(tmp_path: Path):
    """It would train plain replicas."""
    assert "without DeepSpeed" in run_ranks(2, used_before, folder=tmp_path)[0]


def test_aift_train_runs_it_without_a_compiler(tiny_model_dir: Path, tmp_path: Path):
    """Processes of their own; DeepSpeed compiles nothing, and the resolved configuration runs again as it is."""
    config = str(write_run(tmp_path, tiny_model_dir, num_epochs=1))
    compiled = tmp_path / "compiled"
    code, output = spawn(
        "train",
        config,
        "--cpu-processes",
        "2",
        "parallel.deepspeed_stage=3",
        "lora.lora_dropout=0.0",
        timeout=280,
        TORCH_EXTENSIONS_DIR=str(compiled),
        CXX=str(tmp_path / "no compiler"),
    )
    assert code == 0, output
    assert not compiled.exists()
    assert "deprecated" not in output
    assert "deepspeed_stage: 3" in (tmp_path / "out" / "config.yaml").read_text(encoding="utf-8")
    code, output = spawn("train", config, "lora.lora_dropout=0.0", f"training.output_dir={tmp_path / 'alone'}")
    assert code == 0, output
    assert_like(tmp_path / "out", tmp_path / "alone")
