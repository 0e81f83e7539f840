"""`aift gpu self-check` without a GPU: it runs what can run, says what could not, fails where a number is wrong, and is
remembered.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.support.commands import call, write_run

from ai_finetuning.errors import Reason
from ai_finetuning.execution.place import Place
from ai_finetuning.execution.self_check import (
    facts,
    first_use,
    one_step,
    parity,
    predicted,
    record,
    short_memory,
    speed,
    steps,
)
from ai_finetuning.execution.self_check.results import Check, Measured, NotHere, run
from ai_finetuning.kernels import attention
from ai_finetuning.parallel.collectives.mesh import Sizes
from ai_finetuning.parallel.plan import ParallelPlan
from ai_finetuning.planner.gpus import parse_gpus
from ai_finetuning.planner.phases import Timeline
from ai_finetuning.system import folders

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("AIFT_CACHE", str(tmp_path / "cache"))
    folders.temporary_cache.cache_clear()
    return tmp_path / "cache"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows of documents in place of all of them."""
    two = [parity.Documents("documents", (1, 7, 30), 64), parity.Documents("softcap", (1, 7, 30), 64, cap=30.0)]
    monkeypatch.setattr(parity, "rows", lambda device, *, quick: two)


def test_the_command_checks_what_can_be_checked_and_is_remembered(tmp_path: Path, capsys):
    """The whole short part, as a newcomer without a GPU runs it."""
    file = tmp_path / "check.json"
    assert call("env") == 0
    assert "not done (aift gpu self-check)" in capsys.readouterr().out
    assert call("gpu", "self-check", "--quick", "--json", str(file)) == 0
    out = capsys.readouterr().out
    assert "there is no usable GPU" in out
    assert "not run attention/aift_documents_flex: no choice on cpu" in out
    made = json.loads(file.read_text(encoding="utf-8"))
    assert made["count"]["failed"] == 0
    assert made["count"]["passed"] >= 15
    assert made["facts"]["type"] == "cpu"
    groups = {item["name"].split("/")[0] for item in made["results"] if item["status"] == "passed"}
    assert groups >= {"attention", "loss", "norm"}
    for item in made["results"]:
        assert item["status"] != "passed" or item["value"] <= item["limit"]
        assert item["status"] != "not run" or item["note"]
    assert record.stored(CPU) == made
    assert call("env") == 0
    assert f"(quick): {made['count']['passed']} passed, 0 failed" in capsys.readouterr().out
    assert call("env", "--json") == 0
    assert json.loads(capsys.readouterr().out)["self_check"]["count"] == made["count"]


@pytest.mark.usefixtures("small")
def test_a_wrong_kernel_fails_the_check_and_the_command(monkeypatch: pytest.MonkeyPatch, capsys):
    """One whose gradients are a tenth too large, and one that lets a document see its neighbour."""
    right = attention.document_attention

    def louder(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
        mixed, _ = right(module, query, key, value, mask, **options)
        return mixed + 0.1 * (mixed - mixed.detach()), None

    def blind(module: Any, query: Any, key: Any, value: Any, mask: Any, *, seq_lens: Any, **options: Any) -> Any:
        return right(module, query, key, value, mask, seq_lens=(sum(seq_lens),), **options)

    for wrong, names in ((louder, "documents/64"), (blind, "leak")):
        monkeypatch.setitem(parity.IMPLEMENTATIONS, attention.NAME, wrong)
        failed = [result.name for result in map(run, parity.attention_checks(CPU)) if result.status == "failed"]
        assert any(names in name for name in failed)
    assert call("gpu", "self-check", "--device", "cpu", "--quick") == 1
    assert "failed attention/aift_documents/float32/documents/64" in capsys.readouterr().out


def test_what_is_refused_on_the_command_line(capsys):
    assert call("gpu", "self-check", "--quick", "--all") == 64
    assert call("gpu", "self-check", "--quick", "--json", "no/such/folder/file.json") == 64
    assert call("gpu", "self-check", "--device", "cuda:7") == 78
    assert "cuda:7" in capsys.readouterr().err


def test_an_error_in_a_check_is_its_result():
    def broken() -> Measured:
        raise RuntimeError("shared memory of 147968 bytes")

    def absent() -> Measured:
        raise NotHere("ここにはない", "not here")

    assert run(Check("a/b", broken)).status == "failed"
    assert run(Check("a/b", broken, may_refuse=True)).status == "not run"
    assert "147968" in run(Check("a/b", broken)).note.en
    assert run(Check("a/b", absent)).note == Reason("ここにはない", "not here")
    assert run(Check("a/b", lambda: Measured(float("nan"), 1.0))).status == "failed"
    assert run(Check("a/b", lambda: Measured(1.0, 1.0))).status == "passed"


@pytest.mark.usefixtures("small")
def test_the_first_training_on_a_gpu_checks_it_once(monkeypatch: pytest.MonkeyPatch, logged):
    """The GPU is pretended by its name; what is checked is the CPU."""
    key = {"device": "NVIDIA Test", "driver": "1.0", "torch": torch.__version__}
    for module in (record, facts):
        monkeypatch.setattr(module, "key_of", lambda device: dict(key))
    device = SimpleNamespace(type="cuda", index=0)
    ran: list[Any] = []
    quickly = first_use.check_quickly
    monkeypatch.setattr(first_use, "check_quickly", lambda device: ran.append(device) or quickly(CPU))
    first_use.check_unknown_gpu(CPU)
    assert not ran
    first_use.check_unknown_gpu(device)
    assert ran == [device]
    assert "first training on this GPU" in logged()
    first_use.check_unknown_gpu(device)
    assert ran == [device]
    key["driver"] = "2.0"
    first_use.check_unknown_gpu(device)
    assert len(ran) == 2


@pytest.mark.usefixtures("small")
def test_a_failure_at_the_first_training_is_said(monkeypatch: pytest.MonkeyPatch, logged):
    monkeypatch.setitem(parity.TOLERANCE, torch.float32, 0.0)
    made = first_use.check_quickly(CPU)
    assert made["count"]["failed"] > 0
    assert "otherwise than fp32" in logged()


def test_a_run_on_a_cpu_checks_nothing(tiny_model_dir: Path, tmp_path: Path, cache: Path):
    assert call("train", str(write_run(tmp_path, tiny_model_dir, num_epochs=1))) == 0
    assert not (cache / "self-check").exists()


def test_a_plan_fills_more_of_a_gpu_that_was_measured(monkeypatch: pytest.MonkeyPatch):
    key = {"device": "NVIDIA Test", "driver": "1.0", "torch": torch.__version__}
    monkeypatch.setattr(record, "key_of", lambda device: key)
    gpu = Place(torch.device("cuda", 0))
    assert gpu.usable(1000) == 800
    made = record.make(torch.device("cuda", 0), "one", {}, [])
    record.store(made)
    assert gpu.usable(1000) == 800  # checked, but what its libraries take is not known
    record.store(made | {"calibration": {"context_bytes": 1, "workspace_bytes": 1}})
    assert gpu.usable(1000) == 920
    record.store(made)  # a short check later
    assert gpu.usable(1000) == 920
    assert Place(torch.device("cuda"), parse_gpus("4090")).usable(1000) == 800  # another machine's
    assert Place(CPU).usable(1000) == 1000


def test_a_plan_computes_its_time_from_what_such_a_gpu_reached(monkeypatch: pytest.MonkeyPatch):
    """Of the newest check that measured speeds; of another card the stated figures stay."""
    elsewhere = Place(torch.device("cuda"), parse_gpus("4090x2"))
    assert "not measured" in elsewhere.rates().source.en
    for date, reached in (("2026-01-01", 100.0), ("2026-02-01", 120.0), ("2026-03-01", None)):
        key = {"device": "NVIDIA GeForce RTX 4090", "driver": date, "torch": "2"}
        monkeypatch.setattr(record, "key_of", lambda device, key=key: key)
        made = record.make(CPU, "one", {}, []) | {"date": date}
        measured = {"tflops": {"bfloat16": reached, "float32": 50.0}, "gb_per_second": {"memory": 900.0}}
        record.store(made if reached is None else made | {"speed": measured})
    rates = elsewhere.rates()
    assert (rates.tflops, rates.bandwidth) == ({"bf16": 120.0, "fp32": 50.0}, 900.0)
    assert "self-check of NVIDIA GeForce RTX 4090" in rates.source.en
    assert "not measured" in Place(torch.device("cuda"), parse_gpus("a100-80")).rates().source.en
    assert Place(CPU).rates() is None


def test_a_damaged_or_foreign_record_is_none(cache: Path):
    made = record.make(CPU, "quick", {}, [])
    record.store(made)
    (file,) = (cache / "self-check").iterdir()
    for text in ("{", "[]", json.dumps(made | {"version": 99}), json.dumps(made | {"key": {"device": "x"}})):
        file.write_text(text, encoding="utf-8")
        assert record.stored(CPU) is None
    file.write_text(json.dumps(made), encoding="utf-8")
    assert record.stored(CPU) == made
    file.chmod(0o666)
    assert record.stored(CPU) is None


def test_a_step_is_measured_against_what_the_device_can(monkeypatch: pytest.MonkeyPatch):
    measured = speed.products(CPU)
    assert set(measured) >= {"float32"}
    step = speed.training(CPU, measured)
    assert step["tokens_per_second"] == pytest.approx(step["tokens"] / step["seconds"])
    assert 0 < step["mfu_of_measured"] < 2
    assert step["mfu_of_table"] is None
    made = one_step.make_step(one_step.TINY, CPU, full=True)
    assert speed.useful_operations(made.shape, made) > 4 * made.tokens * sum(
        a * b for _, a, b in made.shape.linear_features
    )


def test_a_simulated_step_is_compared_with_a_real_one_phase_by_phase():
    """On a CPU by the bytes of tensors; what only GPUs tell is named."""
    check = predicted.checks(CPU)[1]
    result = run(check)
    assert (result.status, result.limit) == ("passed", 0.02)
    assert result.note is not None
    assert all(f"{phase} " in result.note.en for phase in ("forward", "loss", "backward", "optimizer"))
    assert predicted.calibrate(CPU) == {}
    with pytest.raises(NotHere, match="not two GPUs"):
        predicted.calibrate_communicator(CPU)


def test_a_phase_or_a_reservation_that_is_off_fails():
    told = Timeline({"load": 1, "forward": 100, "backward": 200}, reserved=300)
    real = {"load": 9, "forward": 99, "backward": 199}
    for reserved, limit, passed in ((None, 0.02, True), (290, 0.05, True), (280, 0.05, False)):
        measured = predicted.judged(told, real, reserved, limit)
        assert (measured.value <= measured.limit) is passed
    assert predicted.judged(told, real | {"backward": 150}, None, 0.05).value > 0.3


def test_a_plan_adds_what_libraries_were_measured_to_take(monkeypatch: pytest.MonkeyPatch):
    """Context, workspace and compiled kernels once, NCCL for each communicator; kept by a check of one GPU."""
    key = {"device": "NVIDIA GeForce RTX 4090", "driver": "1.0", "torch": torch.__version__}
    monkeypatch.setattr(record, "key_of", lambda device: key)
    here, elsewhere = Place(torch.device("cuda", 0)), Place(torch.device("cuda"), parse_gpus("4090x2"))
    assert here.libraries(3) == elsewhere.libraries(3) == 0
    made = record.make(torch.device("cuda", 0), "all", {}, [])
    taken = {"context_bytes": 1000, "workspace_bytes": 200, "compiled_bytes": 30, "communicator_bytes": 4}
    record.store(made | {"calibration": taken})
    record.store(made | {"calibration": {"context_bytes": 1000, "workspace_bytes": 200, "compiled_bytes": 30}})
    assert here.libraries(0) == elsewhere.libraries(0) == 1230
    assert here.libraries(3) == elsewhere.libraries(3) == 1242
    assert Place(torch.device("cuda"), parse_gpus("a100-80")).libraries(1) == 0
    assert Place(CPU).libraries(3) == 0
    assert ParallelPlan().communicators == 0
    assert ParallelPlan("ddp", Sizes(dp=2)).communicators == 2
    record.store(made | {"calibration": {"context_bytes": "a", "communicator_bytes": -1}})
    assert here.libraries(3) == 230


def test_a_run_of_a_family_follows_the_reference_and_a_wrong_one_does_not(tmp_path: Path):
    bench = steps.Bench(tmp_path, CPU)
    checks = {check.name: check for check in steps.checks(bench)}
    assert {f"steps/{family}/{method}/fp32" for family in steps.FAMILIES for method in steps.METHODS} <= set(checks)
    assert run(checks["steps/gemma2/lora/fp32"]).status == "passed"
    bench._losses["gemma2", "lora"][2] += 0.01
    assert run(checks["steps/gemma2/lora/fp32"]).status == "failed"


def test_memory_runs_out_in_each_part_of_a_step(tmp_path: Path):
    """Two parts are done again; the update stops the run."""
    obtained = [run(check) for check in short_memory.checks(steps.Bench(tmp_path, CPU))]
    assert {result.name: result.status for result in obtained} == {
        "out_of_memory/forward": "passed",
        "out_of_memory/backward": "passed",
        "out_of_memory/update": "passed",
    }


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_everything_that_a_cpu_can_run_passes(capsys):
    assert call("gpu", "self-check", "--device", "cpu", "--all") == 0
    made = record.stored(CPU)
    assert made is not None
    assert made["part"] == "all"
    assert made["count"]["failed"] == 0
    passed = {item["name"].split("/")[0] for item in made["results"] if item["status"] == "passed"}
    assert passed >= {"attention", "loss", "norm", "four_bit", "steps", "resume", "out_of_memory", "several"}
    assert facts.device_to_check("cpu") == CPU
    assert "tokens/s" in capsys.readouterr().out
