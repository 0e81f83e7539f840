"""What plans choose for GPUs: by the formulas, for models of real sizes and machines that are not here."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.support.commands import call, write_run
from tests.support.runs import losses, weights_digest
from tests.support.shapes import SIZES, long_rows, shape_folder

from ai_finetuning.config.load import load_config
from ai_finetuning.config.run_folder import CONFIG
from ai_finetuning.execution import artifacts, place, processes
from ai_finetuning.execution.place import Place
from ai_finetuning.execution.request import ResolvedStrategy, TrainRequest, request_of
from ai_finetuning.execution.resolve import RunPlan, resolve
from ai_finetuning.execution.resume import ResumePoint
from ai_finetuning.execution.self_check import record
from ai_finetuning.execution.validate import find_base
from ai_finetuning.planner.cuts import Candidate, Choice, Cut
from ai_finetuning.planner.gpus import parse_gpus
from ai_finetuning.planner.phases import Timeline
from ai_finetuning.runs.folder import read_run

GIB = 2**30
Planned = Callable[..., RunPlan]


@pytest.fixture(scope="module")
def requested(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TrainRequest]:
    parent = tmp_path_factory.mktemp("sizes")
    folders, rows = {name: shape_folder(parent, name) for name in SIZES}, long_rows(parent / "rows.jsonl")
    given = [f"data.train={rows}", f"training.output_dir={parent / 'out'}", "data.cache=false"]

    def made(gpu: str, model: str, *settings: str) -> TrainRequest:
        own = ["data.max_length=2048", "data.packing=true", *settings]
        config = load_config(None, [f"model={folders[model]}", *given, *own])
        return replace(request_of(config, source=find_base(config)), elsewhere=parse_gpus(gpu))

    return made


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without records of other tests."""
    (tmp_path / "cache").mkdir(mode=0o700)
    monkeypatch.setenv("AIFT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def planned(requested: Callable[..., TrainRequest]) -> Planned:
    return lambda *asked, **more: resolve(replace(requested(*asked), **more))


def choice_of(plan: RunPlan) -> Choice:
    assert plan.summary.choice is not None
    return plan.summary.choice


def cut_of(plan: RunPlan) -> tuple[int, int, bool]:
    derived = plan.derived
    assert choice_of(plan).chosen.cut == Cut(
        derived.batch_size, derived.gradient_accumulation_steps, derived.gradient_checkpointing, plan.offload
    )
    return derived.batch_size, derived.gradient_accumulation_steps, derived.gradient_checkpointing


@pytest.mark.parametrize(
    ("gpu", "method", "cut"),
    [
        ("h200", "lora", (4, 4, False)),  # as it is
        ("h100", "lora", (4, 4, True)),
        ("3090", "lora", (2, 8, True)),
        ("3090", "qlora", (4, 4, True)),
        ("t4", "qlora", (2, 8, True)),
    ],
)
def test_the_first_cut_that_fits_a_device_is_taken(planned: Planned, gpu: str, method: str, cut: tuple[int, int, bool]):
    plan = planned(gpu, "8b", f"method={method}")
    assert cut_of(plan) == cut
    chosen = choice_of(plan).chosen
    assert chosen.fits
    assert chosen.needed == plan.summary.memory.total
    assert chosen.limit == plan.summary.limit_bytes
    assert plan.summary.rows_per_step == 16
    assert (plan.fingerprint["batch_size"], plan.fingerprint["gradient_accumulation_steps"]) == cut[:2]
    every = [chosen, *choice_of(plan).others]
    assert {item.cut.rows for item in every} == {16}
    cheaper = [item for item in every if item.cut.checkpointing < cut[2] or item.cut.batch_size > cut[0]]
    assert all(not item.fits for item in cheaper if item.seconds is not None and item.seconds < 0.99 * chosen.seconds)


def test_what_fits_in_no_way_keeps_its_numbers(planned: Planned):
    """The formula alone refuses nothing: execution/settle.py does, after a simulation."""
    plan = planned("t4", "8b", "method=lora")
    assert not choice_of(plan).chosen.fits
    assert cut_of(plan) == (1, 16, True)


def test_a_larger_micro_batch_is_taken_where_it_is_faster(planned: Planned, tmp_path: Path):
    """Short rows wait for the host: larger micro-batches start fewer kernels."""
    short = long_rows(tmp_path / "short.jsonl", sentences=3)
    plan = planned("h100", "1.8b", "method=lora", f"data.train={short}", "data.packing=false")
    assert plan.derived.batch_size > 4
    assert plan.derived.batch_size * plan.derived.gradient_accumulation_steps == 16
    others = [item for item in choice_of(plan).others if item.cut == Cut(4, 4, False)]
    assert others[0].seconds > choice_of(plan).chosen.seconds


@pytest.mark.parametrize(
    ("settings", "cut"),
    [
        (["training.batch_size=4"], (4, 4, True)),
        (["training.gradient_accumulation_steps=2"], (4, 2, True)),
        (["training.gradient_checkpointing=false"], (1, 16, False)),
        (["training.batch_size=8", "training.gradient_checkpointing=false"], (8, 4, False)),
        (["training.batch_size=3", "training.gradient_accumulation_steps=5"], (3, 5, True)),
    ],
)
def test_what_the_user_gave_is_obeyed(planned: Planned, settings: list[str], cut: tuple[int, int, bool]):
    plan = planned("3090", "8b", "method=lora", *settings)
    assert cut_of(plan) == cut
    given = {item.split("=")[0].split(".")[1] for item in settings}
    assert not given & set(choice_of(plan).decided)
    if {"batch_size", "gradient_checkpointing"} <= given:
        assert choice_of(plan).decided == ()


def test_activations_wait_on_the_host_only_where_auto_may(planned: Planned):
    """Full fine-tuning of 1.8B on a card of 24 GB fits in no other way; offload: none leaves it out."""
    asked = ("a6000", "1.8b", "method=full", "data.max_length=4096")
    alone = planned(*asked)
    assert {item.cut.offload for item in (choice_of(alone).chosen, *choice_of(alone).others)} == {"none"}
    waits = planned("3090", "1.8b", "method=full", "training.runtime.offload=auto")
    assert waits.offload == choice_of(waits).chosen.cut.offload == "optimizer"
    assert [item.cut.offload for item in choice_of(waits).others[-2:]] == ["none", "activations"]
    assert choice_of(waits).chosen.needed == waits.summary.memory.total


@pytest.mark.parametrize(
    ("gpu", "model", "method", "strategy", "cut"),
    [
        ("h100x4", "8b", "lora", "ddp", (4, 4, True)),
        ("4090x2", "1.8b", "full", "fsdp", (2, 8, True)),
        ("a5000x2", "13b", "lora", "fsdp", (1, 16, True)),
        ("h100x8", "1.8b", "lora", "ddp", (2, 8, False)),  # two rows for each of eight
    ],
)
def test_the_cheapest_strategy_that_fits_wins(
    planned: Planned, gpu: str, model: str, method: str, strategy: str, cut: tuple[int, int, bool]
):
    plan = planned(gpu, model, f"method={method}", "parallel.strategy=auto")
    choice = choice_of(plan)
    assert (plan.parallel.strategy, plan.summary.strategy, choice.chosen.strategy) == (strategy,) * 3
    assert cut_of(plan) == cut
    assert plan.processes_to_start == plan.summary.processes == parse_gpus(gpu).count
    rivals = [item for item in choice.others if item.fits]
    assert all(item.seconds >= choice.chosen.seconds for item in rivals)
    shown = choice.runners_up()
    assert len(shown) == 3
    assert {item.strategy for item in shown} | {strategy} == {"ddp", "fsdp", "model_parallel"}
    lines = [item.text() for item in shown]
    assert all(re.search(r"[\d.]+ / [\d.]+ GiB", line) and " s a step" in line for line in lines), lines
    assert {item.cut.rows for item in (choice.chosen, *choice.others)} == {16}


def test_what_fsdp_cannot_cut_goes_over_layers(planned: Planned):
    optimizer = "training.optimizer.name=muon"
    plan = planned("4090x2", "1.8b", "method=full", "parallel.strategy=auto", optimizer)
    assert {item.strategy for item in choice_of(plan).others} == {"ddp", "model_parallel"}
    assert (plan.parallel.strategy, plan.summary.processes) == ("model_parallel", 1)
    assert plan.device_map


def test_a_plan_can_take_any_of_its_candidates(planned: Planned):
    plan = planned("4090x2", "8b", "method=lora", "parallel.strategy=auto")
    assert plan.take is not None
    for option in choice_of(plan).runners_up():
        other = plan.take(option)
        assert other.data is plan.data
        assert choice_of(other).chosen == option
        assert len(choice_of(other).others) == len(choice_of(plan).others)
        assert (other.parallel.strategy, other.summary.processes) == (option.strategy, option.processes)
        assert other.summary.gradient_checkpointing is option.cut.checkpointing
        assert abs(other.summary.memory.total - option.needed) < 2


def test_a_calibrated_kind_of_gpu_is_filled_further(planned: Planned, monkeypatch: pytest.MonkeyPatch):
    """92 % instead of 80 %, and then micro-batches of four fit on a 3090."""
    assert planned("3090", "8b", "method=lora").summary.limit_bytes == int(0.8 * int(23.6 * GIB))
    key = {"device": "NVIDIA GeForce RTX 3090", "driver": "1", "torch": torch.__version__}
    monkeypatch.setattr(record, "key_of", lambda device: key)
    checked = record.make(torch.device("cuda", 0), "one", {}, [])
    record.store(checked | {"calibration": {"context_bytes": 1, "workspace_bytes": 1}})
    plan = planned("3090", "8b", "method=lora")
    assert plan.summary.limit_bytes == choice_of(plan).chosen.limit == int(0.92 * int(23.6 * GIB))
    assert cut_of(plan) == (4, 4, True)
    shown = dict(plan.summary.table())
    assert "self-check of NVIDIA GeForce RTX 3090" in shown["calibration"]
    assert planned("4090", "8b", "method=lora").summary.calibration is None


def test_a_gpu_that_is_here_is_compared_by_its_stated_figures(monkeypatch: pytest.MonkeyPatch):
    """A name in the driver's words is enough: nothing asks torch, which would take memory on the GPU."""
    for module in (record, place):
        monkeypatch.setattr(
            module, "key_of", lambda device: {"device": "NVIDIA GeForce RTX 4090", "driver": "", "torch": ""}
        )
    gpu = Place(torch.device("cuda"))
    assert gpu.rates() is None, "no time of a run is told by them"
    expected = gpu.expected_rates()
    assert expected is not None
    assert "not measured" in expected.source.en
    assert expected.link == pytest.approx(0.8 * 32)
    assert Place(torch.device("cpu")).expected_rates() is None
    assert (gpu.share(), Place(torch.device("cpu")).share()) == (0.8, 1.0)


def test_config_yaml_says_what_was_chosen_instead_of_the_settings(planned: Planned):
    chosen, given = planned("3090", "8b", "method=lora"), planned("3090", "8b", "method=lora", "training.batch_size=4")
    text = artifacts.descriptions(chosen, chosen.derived)[CONFIG]
    assert "# derived: training.batch_size: 2\n" in text
    assert "# derived: training.gradient_accumulation_steps: 8\n" in text
    assert "derived: training.batch_size" not in artifacts.descriptions(given, given.derived)[CONFIG]


def test_a_launcher_decides_for_its_processes(planned: Planned, requested: Callable[..., TrainRequest]):
    plan = planned("4090x2", "8b", "method=lora", "parallel.strategy=auto")
    settled = processes.settled_of(plan)
    assert settled == ResolvedStrategy("ddp", 2, Cut(2, 8, True))
    whole = replace(settled, second_step=Timeline({"load": 1, "forward": 3}, 4, (2, 4), ("aten::nonzero",)))
    for sent in (settled, whole, ResolvedStrategy("fsdp", 2)):
        assert processes.resolved(json.loads(json.dumps(processes.as_plain(sent)))) == sent
    told = resolve(
        replace(requested("h200x2", "8b", "method=lora", "parallel.strategy=auto"), resolved_strategy=settled)
    )
    assert cut_of(told) == (2, 8, True)
    assert (choice_of(told).others, choice_of(told).decided) == ((), ())


def test_a_resumed_run_takes_what_it_began_with(planned: Planned, requested: Callable[..., TrainRequest]):
    """On other GPUs too; where its settings were changed on purpose it is another run."""
    began = planned("a5000x2", "13b", "method=lora", "parallel.strategy=auto")
    point = ResumePoint(derived=vars(began.derived))
    asked = ("h200x2", "13b", "method=lora", "parallel.strategy=auto")
    again = resolve(requested(*asked), point)
    assert cut_of(again) == cut_of(began) == (1, 16, True)
    assert again.parallel == began.parallel
    assert again.fingerprint["batch_size"] == began.fingerprint["batch_size"]
    assert resolve(requested("h200x4", *asked[1:]), point).parallel.strategy == "ddp"  # other devices: chosen anew
    changed = resolve(requested(*asked, "training.batch_size=8"), point)
    assert changed.derived.batch_size == 8
    older = ResumePoint(derived={"gradient_checkpointing": True, "precision": "bf16", "warmup_steps": 1})
    assert cut_of(resolve(requested("3090", "8b", "method=lora"), older)) == (4, 4, True)


def test_the_bits_of_a_resumed_run_are_those_of_one_that_never_stopped(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The cut 2 x 8 that the run began with comes from its checkpoint, although the settings say 4 x 4."""
    shared = ["training.schedule.max_steps=4", "training.save_steps=1", "data.eval=null"]
    began = ["training.batch_size=2", "training.gradient_accumulation_steps=8"]
    whole, stopped = write_run(tmp_path / "a", tiny_model_dir), write_run(tmp_path / "b", tiny_model_dir)
    assert call("train", str(whole), *shared, *began) == 0
    with monkeypatch.context() as patch:
        patch.setenv("AIFT_FAULT", "step:term@2")
        assert call("train", str(stopped), *shared, *began) == 75
    derived = read_run(tmp_path / "b" / "out")["derived"]
    assert (derived["batch_size"], derived["gradient_accumulation_steps"]) == (2, 8)
    text = stopped.read_text(encoding="utf-8")
    stopped.write_text(re.sub(r"\n  (batch_size|gradient_accumulation_steps): .*", "", text), encoding="utf-8")
    assert call("train", str(stopped), *shared, "resume=auto") == 0
    assert losses(tmp_path / "b" / "out") == losses(tmp_path / "a" / "out")
    assert weights_digest(tmp_path / "b" / "out") == weights_digest(tmp_path / "a" / "out")


def test_nothing_is_chosen_on_a_cpu(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = write_run(tmp_path, tiny_model_dir)
    text = run.read_text(encoding="utf-8")
    run.write_text(re.sub(r"\n  (batch_size|gradient_\w+): .*", "", text), encoding="utf-8")
    plan = resolve(request_of(load_config(run), device="cpu"))
    monkeypatch.setattr(Place, "free_bytes", lambda self, model=None: 1)
    short = resolve(request_of(load_config(run), device="cpu"))
    for made in (plan, short):
        assert (made.summary.choice, made.take, made.summary.calibration) == (None, None, None)
        assert (made.derived.batch_size, made.derived.gradient_accumulation_steps) == (4, 4)
        assert not any(label in dict(made.summary.table()) for label in ("chosen cut", "runners-up", "calibration"))
    assert short.derived.gradient_checkpointing  # as before: where memory is short
    assert not plan.derived.gradient_checkpointing


def test_a_candidate_knows_whether_it_fits():
    assert Candidate("ddp", 1, Cut(1, 1, False), 10, 10).fits
    assert not Candidate("ddp", 1, Cut(1, 1, False), 11, 10).fits
