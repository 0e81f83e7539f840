"""`aift plan --gpu`: plans for machines that are not here. 13B and 30B on two cards of 24 GB, as docs/strategies.md says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.support.commands import call
from tests.support.shapes import shape_folder

from ai_finetuning.config.load import load_config
from ai_finetuning.execution.request import request_of
from ai_finetuning.execution.resolve import RunPlan, resolve
from ai_finetuning.execution.validate import find_base
from ai_finetuning.planner.gpus import parse_gpus
from ai_finetuning.trainers.from_config import plan_training

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of Llama 13B and 30B, as they come before the weights."""
    parent = tmp_path_factory.mktemp("shapes")
    return {name: shape_folder(parent, name) for name in ("13b", "30b")}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Short rows, to be packed."""
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    row = {"instruction": "日本の首都はどこですか。", "output": "東京です。" * 20}
    file.write_text("\n".join([json.dumps(row, ensure_ascii=False)] * 64), encoding="utf-8")
    return file


@pytest.fixture
def plan(models: dict[str, Path], data: Path, tmp_path: Path) -> Callable[..., RunPlan]:
    def made(gpu: str, model: str, *settings: str, simulated: bool = False) -> RunPlan:
        given = [f"model={models[model]}", f"data.train={data}", f"training.output_dir={tmp_path / 'out'}"]
        config = load_config(None, [*given, "data.max_length=512", "data.packing=true", *settings])
        if simulated:
            return plan_training(config, None, find_base(config), elsewhere=parse_gpus(gpu))
        return resolve(replace(request_of(config, source=find_base(config)), elsewhere=parse_gpus(gpu)))

    return made


CHECKPOINTS = "training.gradient_checkpointing=true"
ROWS = ("training.batch_size=4", "training.gradient_accumulation_steps=4")
THE_CONTRACT = {
    "13b": ("13b", "method=lora", "lora.r=8"),
    "30b": ("30b", "method=qlora", "lora.r=8"),
}


@pytest.mark.parametrize("name", THE_CONTRACT)
def test_two_a5000_train_what_the_contract_says(name: str, plan: Callable[..., RunPlan]):
    """The numbers are those of both pages about strategies."""
    settings = (*THE_CONTRACT[name], "parallel.strategy=model_parallel", CHECKPOINTS, *ROWS)
    summary = plan("a5000x2", *settings, simulated=True).summary
    assert (summary.strategy, summary.processes, summary.device) == ("model_parallel", 1, "A5000 x 2")
    assert summary.fits
    assert summary.devices is not None
    each = re.findall(r"GPU \d: ([\d.]+) / 23\.6 GiB", summary.devices.en)
    each += re.findall(r"GPU \d: ([\d.]+)\d GiB / 23\.60 GiB", summary.simulated_devices or "")
    assert len(each) == 4
    assert float(each[2]) < float(each[0])
    assert float(each[3]) < float(each[1])
    for page in ("docs/strategies.md", "docs/strategies.ja.md"):
        text = (REPOSITORY / page).read_text(encoding="utf-8")
        assert f"| {name} | {' | '.join(each)} |" in text, f"{page} has other numbers than {each} for {name}"


def test_full_fine_tuning_of_13b_is_refused_with_its_numbers(plan: Callable[..., RunPlan]):
    from ai_finetuning.errors import ConfigError

    with pytest.raises(ConfigError, match=r"GPU 1: 1\d\d\.\d / 23\.6 GiB"):
        plan("a5000x2", "13b", "method=full", "parallel.strategy=model_parallel", simulated=True)


def test_auto_chooses_for_the_machine_that_is_named(plan: Callable[..., RunPlan]):
    """On two cards LoRA of 13B has to be divided, on a large one not; with 80 % of a card, as none was measured."""
    divided = plan("a5000x2", "13b", "method=lora", "parallel.strategy=auto").summary
    assert (divided.strategy, divided.processes) == ("fsdp", 2)
    assert divided.choice is not None
    assert "/ 18.9 GiB" in divided.choice.chosen.text()
    alone = plan("h200", "13b", "method=lora", "parallel.strategy=auto").summary
    assert (alone.strategy, alone.processes) == ("ddp", 1)
    several = plan("h100x4", "13b", "method=lora", "parallel.strategy=auto").summary
    assert (several.strategy, several.processes) == ("ddp", 4)


@pytest.mark.parametrize("strategy", ["fsdp", "tensor", "pipeline"])
def test_a_divided_run_neither_warns_nor_checkpoints_for_the_whole_model(strategy: str, plan: Callable[..., RunPlan]):
    small = ("13b", "method=lora", "data.max_length=128", "training.batch_size=1")
    whole = plan("a5000x2", *small, "training.gradient_accumulation_steps=4", CHECKPOINTS, simulated=True).summary
    assert not whole.fits, "all of it was given: obeyed, and warned of"
    part = plan("a5000x2", *small, f"parallel.strategy={strategy}").summary
    assert part.fits
    assert not part.gradient_checkpointing
    assert part.memory.total < 0.7 * whole.memory.total


def test_a_model_without_a_list_of_layers_is_planned_as_a_whole(plan: Callable[..., RunPlan], monkeypatch):
    """fsdp cuts such a model too, as one group that is gathered whole."""
    from ai_finetuning.execution import planned_model

    whole = plan("h200x2", "13b", "method=lora").summary
    monkeypatch.setattr(planned_model, "decoder_layers", lambda model: None)
    assert plan("h200x2", "13b", "method=lora", "parallel.strategy=fsdp").summary.memory == whole.memory


def test_more_processes_than_gpus_are_refused(plan: Callable[..., RunPlan]):
    from ai_finetuning.errors import ConfigError

    with pytest.raises(ConfigError, match=r"processes is 4, but --gpu names A5000 x 2"):
        plan("a5000x2", "13b", "method=lora", "parallel.processes=4")
    assert plan("h100x4", "13b", "method=lora", "parallel.processes=2").summary.processes == 2


def test_a_card_without_bf16_computes_in_fp16(plan: Callable[..., RunPlan]):
    assert plan("t4", "13b", "method=qlora").summary.precision == "fp16"
    assert plan("l4", "13b", "method=qlora").summary.precision == "bf16"


def test_the_command_prints_the_plan_and_where_its_time_is_from(
    models: dict[str, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    monkeypatch.chdir(tmp_path)
    command = [
        "plan",
        f"model={models['13b']}",
        "method=lora",
        f"data.train={data}",
        "parallel.strategy=model_parallel",
    ]
    assert call(*command, "--gpu", "A5000x2") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "A5000 x 2" in shown
    assert "not measured" in shown
    assert "80%" in shown
    assert "each device" in shown
    assert not Path("outputs").exists()


def test_json_has_the_choice_as_fields(models: dict[str, Path], data: Path, capsys):
    command = [
        "plan",
        f"model={models['13b']}",
        "method=lora",
        f"data.train={data}",
        "parallel.strategy=auto",
        "--json",
    ]
    assert call(*command, "--gpu", "h100x2") == 0
    plan = json.loads(capsys.readouterr().out)
    choice = plan["choice"]
    chosen = choice["chosen"]
    assert (chosen["strategy"], chosen["processes"]) == (plan["strategy"], plan["processes"]) == ("ddp", 2)
    assert chosen["batch_size"] * chosen["gradient_accumulation_steps"] == plan["rows_per_step"] == 16
    assert chosen["gradient_checkpointing"] is plan["gradient_checkpointing"]
    assert chosen["limit_bytes"] == plan["limit_bytes"] == int(0.8 * plan["free_memory_bytes"])
    assert len(choice["runners_up"]) == 3
    assert {"bytes", "fits", "seconds_per_step", "simulated"} <= choice["runners_up"][0].keys()
    assert set(choice["decided"]) > {"strategy", "batch_size", "gradient_checkpointing"}
    assert "not measured" in choice["time_source"]["en"]
    assert plan["calibration"] is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "--json"], "--dry-run"),
        (["plan", "--gpu", "a500x2"], "a5000"),
        (["plan", "--gpu", "a100x2"], "a100-40, a100-80"),
        (["plan", "--gpu", "4090x2", "--pilot"], "--pilot"),
        (["plan", "--gpu", "4090x2", "--gpus", "1"], "--gpus"),
        (["train", "--gpu", "4090x2"], "--dry-run"),
    ],
)
def test_what_cannot_be_planned_is_refused_at_once(arguments: list[str], said: str, capsys):
    assert call(*arguments) == 64
    assert said in capsys.readouterr().err
