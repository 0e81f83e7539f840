"""`training_step.py --device cuda` as far as a machine without a GPU can hold it: what is measured and what is left out,
the arithmetic, the refusal, and the whole command with a CPU in the GPU's place.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmarks import gpu_cells, gpu_run
from benchmarks.gpu_cells import ORDER, Interpreter, choose, mfu, needed_bytes, plan, refusal, row_tokens
from benchmarks.inputs import save_random_shards
from benchmarks.shapes import SHAPES
from benchmarks.variants import FACTORY, ON_GPU, OWN, PEERS, VARIANTS
from tests.support.patience import patience

ROOT = Path(__file__).resolve().parents[3]
GIB = 2**30
TRL = {"trl": "1.16.0", "peft": "0.21.2", "accelerate": "1.15.0", "datasets": "5.2.0"}
ALL = {"torch": "2.10.0+cu128", "bitsandbytes": "0.50.2", "liger-kernel": "0.8.5", "llamafactory": "0.9.5", **TRL}
ALL["unsloth"] = "2026.1"


def there(packages: dict[str, str]) -> dict[str, list[Interpreter]]:
    """One Python for everything, with these packages."""
    return dict.fromkeys((OWN, PEERS, FACTORY), [Interpreter("python", packages)])


def planned(packages: dict[str, str], gib: float = 139, disk: int = 10**12) -> gpu_cells.Plan:
    return plan(ORDER, there(packages), free_bytes=int(gib * GIB), disk_bytes=disk)


def reasons(obtained: gpu_cells.Plan) -> dict[str, str]:
    return {item.what: item.reason for item in obtained.left_out}


def without(*names: str) -> dict[str, str]:
    return {name: version for name, version in ALL.items() if name not in names}


def test_a_large_gpu_with_every_peer_measures_everything_but_8b_full():
    obtained = planned(ALL)
    assert [cell.name for cell in obtained.cells] == ["1b lora", "8b qlora", "8b lora", "1b full", "1b qlora"]
    assert all(cell.variants == ("ours", "trl-liger", "lf-packing", "unsloth") for cell in obtained.cells)
    assert all(group[0] == "ours" for cell in obtained.cells for group in cell.groups)
    assert list(reasons(obtained)) == ["8b full"]
    # 4 + 2 + 12 bytes for each of 8.03e9 weights are 135 GiB already.
    assert re.search(r"would need 14\d\.\d\d GiB, 139\.00 GiB are free", reasons(obtained)["8b full"])


def test_a_peer_that_is_not_installed_is_named_and_plain_trl_stands_in_for_liger():
    obtained = planned(without("liger-kernel", "unsloth"))
    assert {cell.variants for cell in obtained.cells} == {("ours", "trl-packing", "lf-packing")}
    assert reasons(obtained)["1b lora: trl-liger"] == "liger-kernel not installed in python"
    assert reasons(obtained)["8b lora: unsloth"] == "unsloth not installed in python"


def test_qlora_needs_bitsandbytes():
    obtained = planned(without("bitsandbytes"))
    assert [cell.method for cell in obtained.cells] == ["lora", "lora", "full"]
    assert reasons(obtained)["8b qlora: ours"] == "bitsandbytes not installed in python"


def test_without_any_peer_ours_is_measured_alone():
    obtained = planned({"torch": "2.13.0+cu130"})
    assert [cell.groups for cell in obtained.cells] == [[["ours"]]] * 3
    assert {f"1b lora: {name}" for name in ON_GPU if name != "ours"} <= set(reasons(obtained))


@pytest.mark.parametrize("gib", [12, 16, 24, 40, 48, 80, 139, 178])
def test_what_is_taken_fits_by_the_formula_and_everything_else_has_a_reason(gib: int):
    """Processes that are in memory together fit into 80 % of what is free; no pair of model and method, and no peer of
    one, disappears silently.
    """
    obtained = planned(ALL, gib)
    left = reasons(obtained)
    taken = {cell.name: cell for cell in obtained.cells}
    assert {f"{model} {method}" for model, method in ORDER} == set(taken) | {name for name in left if ":" not in name}
    for cell in obtained.cells:
        needed, most = cell.needed_bytes, max(map(len, cell.groups))
        assert sum(needed["ours" if name == "ours" else "peer"] for name in cell.groups[0]) <= 0.8 * gib * GIB
        assert most <= cell.together
        assert {name for group in cell.groups for name in group} == set(cell.variants)
        for name in ("trl-liger", "lf-packing", "unsloth"):
            assert name in cell.variants or "by the formula" in left[f"{cell.name}: {name}"]


def test_full_fine_tuning_is_left_out_with_its_numbers_where_memory_is_short():
    least = needed_bytes(SHAPES["1b"], "full", rows=1, checkpointing=True, peer=False)
    reason = reasons(planned(ALL, 24))["1b full"]
    assert reason == f"needs {least / GIB:.2f} GiB by the formula, 19.20 GiB may be filled (80% of what is free)"


def test_a_small_disk_leaves_the_8b_model_out():
    obtained = planned(ALL, disk=10 * GIB)
    assert {cell.model for cell in obtained.cells} == {"1b"}
    assert reasons(obtained)["8b lora"] == "its weights need 14.96 GiB of disk, 10.00 GiB are free"


@pytest.mark.parametrize(
    ("torch", "said"),
    [("2.9.1+cu128", "older than 2.10"), ("2.13.0+cpu", "for CPUs only"), (None, "no torch")],
)
def test_an_interpreter_with_the_wrong_torch_is_passed_over(torch: str | None, said: str):
    """The next one is taken; without a next one the reason is said."""
    packages = TRL | ({"torch": torch} if torch else {})
    bad, good = Interpreter("bad", packages), Interpreter("good", ALL)
    assert choose(VARIANTS["trl-packing"], [bad, good], "lora") is good
    reason = choose(VARIANTS["trl-packing"], [bad], "lora")
    assert isinstance(reason, str)
    assert said in reason


def test_installed_packages_are_read_from_an_interpreter_and_a_broken_one_has_none():
    import torch

    assert gpu_cells.packages_of(sys.executable)["torch"] == torch.__version__
    assert gpu_cells.packages_of("/nowhere/python") == {}


@pytest.mark.parametrize(("name", "parameters"), [("tiny", None), ("1b", 1_235_814_400), ("8b", 8_030_261_248)])
def test_the_formula_is_given_the_models_own_sizes(name: str, parameters: int | None):
    """Llama 3.2 1B and Llama 3.1 8B have so many weights; and the planner reads the same of the built model."""
    from transformers import AutoModelForCausalLM

    from ai_finetuning.planner.shape import shape_of

    if name == "tiny":
        import torch

        with torch.device("meta"):
            built = shape_of(AutoModelForCausalLM.from_config(SHAPES[name].config()))
        ours = gpu_cells.model_shape(SHAPES[name])
        assert (ours.parameters, ours.embedding_parameters) == (built.parameters, built.embedding_parameters)
        assert sorted(item[1:] for item in ours.linear_features) == sorted(item[1:] for item in built.linear_features)
        assert (ours.heads, ours.head_dim, ours.norms) == (built.heads, built.head_dim, built.norms)
    else:
        assert gpu_cells.model_shape(SHAPES[name]).parameters == parameters


def test_a_row_is_inside_the_models_positions():
    assert 1024 < row_tokens() <= 2048
    assert row_tokens() % 8 == 0


def test_mfu_is_useful_operations_over_the_peak():
    """10,000 tokens/s of 5 GFLOP are 50 TFLOP/s: a tenth of 500; unknown GPUs have no peak."""
    assert mfu(10_000, 5e9, 500) == pytest.approx(0.1)
    assert mfu(10_000, 5e9, None) is None


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"error": "No module named 'torch'"}, "does not start here: No module named 'torch'"),
        ({"torch": "2.9.0", "cuda": True}, "needs torch 2.10 or newer"),
        ({"torch": "2.13.0+cpu", "cuda": False}, "finds none here"),
        ({"torch": "2.10.0", "cuda": True, "sixteen_bit": "float16", "device": "Tesla T4"}, "Tesla T4 has not"),
        ({"torch": "2.10.0", "cuda": True, "sixteen_bit": "bfloat16", "device": "NVIDIA H200"}, None),
    ],
)
def test_refusals_say_what_is_missing(found: dict[str, Any], said: str | None):
    obtained = refusal(found)
    assert obtained is None if said is None else said in str(obtained)


def test_without_a_gpu_the_command_ends_with_69_and_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = subprocess.run(
        [sys.executable, "benchmarks/training_step.py", "--device", "cuda", "--work", str(tmp_path / "work")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=patience(120),
    )
    assert done.returncode == 69
    assert re.fullmatch(r"--device cuda needs an NVIDIA GPU, and torch \S+ finds none here; .*\n", done.stderr)
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--device", "cuda", "--model", "small"], "measures 1b and 8b"),
        (["--device", "cuda", "--quick"], "for --device cpu"),
        (["--device", "cuda", "--precision", "fp32"], "for --device cpu"),
        (["--device", "cuda", "--former", "."], "for --device cpu"),
        (["--device", "cuda", "--variants", "ours", "naive"], "naive is for --device cpu"),
        (["--device", "cuda", "--variants", "unsloth"], "needs `ours`"),
        (["--variants", "ours", "unsloth"], "needs --device cuda"),
    ],
)
def test_options_of_the_other_device_are_refused(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from benchmarks import training_step

    monkeypatch.setattr(sys, "argv", ["training_step.py", *arguments])
    with pytest.raises(SystemExit):
        training_step.arguments()
    assert said in capsys.readouterr().err


def test_the_cpu_benchmark_is_what_it_was(monkeypatch: pytest.MonkeyPatch):
    from benchmarks import training_step

    monkeypatch.setattr(sys, "argv", ["training_step.py"])
    given = training_step.arguments()
    assert (given.device, given.model, given.method) == ("cpu", "small", "lora")
    names = ["ours", "ours-portable", "naive", "hf", "hf-best", "trl", "trl-packing", "lf", "lf-packing"]
    assert given.variants == names


def test_neither_the_command_nor_the_tests_of_gpus_read_the_shared_folder():
    """Everything that it imports or starts, and tests/gpu: no AIFT_SHARED, no path to it, no fixture that gives it."""
    own = [
        "training_step",
        "corpus",
        "gate",
        "gpu_cells",
        "gpu_run",
        "inputs",
        "own",
        "pairs",
        "plot",
        "ratios",
        "rounds",
    ]
    files = [ROOT / "benchmarks" / f"{name}.py" for name in (*own, "shapes", "variants")]
    files += [*(ROOT / "benchmarks" / "workers").glob("*.py"), *(ROOT / "tests" / "gpu").glob("*.py")]
    assert len(files) > 20
    reading = re.compile(r"AIFT_SHARED|\.\./shared|[\"']shared[\"']|\(.*\bshared: Path")
    assert [path.name for path in files if reading.search(path.read_text(encoding="utf-8"))] == []
    imported = {
        name
        for path in files
        for name in re.findall(r"(?:from|import) benchmarks[. ](?:import )?(\w+)", path.read_text(encoding="utf-8"))
    }
    assert imported <= {*own, "shapes", "variants", "workers"}


def test_random_shards_are_a_model_that_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In several files, every weight there, the head tied, bf16; a second call makes nothing."""
    import torch
    from benchmarks import inputs
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(inputs, "_SHARD_BYTES", 2**22)
    save_random_shards(tmp_path, SHAPES["tiny"], device="cpu")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    model, facts = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(facts[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.dtype == torch.bfloat16
    weights = dict(model.named_parameters())
    assert float(weights["model.layers.0.mlp.up_proj.weight"].detach().float().std()) == pytest.approx(0.02, rel=0.05)
    assert bool((weights["model.norm.weight"] == 1).all())
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    save_random_shards(tmp_path, SHAPES["tiny"], device="cpu")
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}


def _step(turn: int, tokens: int, wall: float, *, warmup: bool = False) -> dict[str, Any]:
    sizes = {"device_peak_bytes": 3 * GIB, "device_reserved_bytes": 4 * GIB, "peak_bytes": 1}
    return {"round": turn, "warmup": warmup, "tokens": tokens, "slots": tokens, "wall": wall, **sizes}


def test_the_summary_pairs_rounds_and_says_where_it_could_not():
    """A round that only one of both has had is in no ratio; a variant without counted steps has no row."""
    ours = [_step(0, 100, 9, warmup=True), _step(1, 100, 1), _step(2, 100, 2), _step(3, 100, 1)]
    peer = [_step(0, 100, 9, warmup=True), _step(1, 100, 2), _step(2, 100, 4)]
    cell: dict[str, Any] = {
        "variants": ["ours", "trl-liger", "unsloth"],
        "flops_per_token": 1e9,
        "groups": [{"ours": ours, "trl-liger": peer}, {"unsloth": [_step(0, 100, 9, warmup=True)]}],
    }
    rows = gpu_run.summarise(cell, table=1.0, measured=0.5)
    assert set(rows) == {"ours", "trl-liger"}
    assert rows["ours"]["tokens_per_second"]["median"] == 100
    assert (rows["ours"]["mfu_of_table"], rows["ours"]["mfu_of_measured"]) == (pytest.approx(0.1), pytest.approx(0.2))
    assert (rows["ours"]["allocated_bytes"], rows["ours"]["reserved_bytes"]) == (3 * GIB, 4 * GIB)
    assert rows["trl-liger"]["ours_is_faster"] == {"median": 2, "min": 2, "max": 2, "paired": True}
    cell["groups"] = [{"ours": ours}, {"trl-liger": peer}]
    alone = gpu_run.summarise(cell, table=None, measured=None)
    assert alone["trl-liger"]["ours_is_faster"] == {"median": pytest.approx(100 / 37.5), "paired": False}
    assert alone["ours"]["mfu_of_table"] is None


@pytest.mark.slow
def test_the_whole_command_with_a_cpu_in_the_gpus_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Gate, our own process, rounds, JSON and table are real; a peer that is said to be there and is not ends with its
    reason and does not stop the others.
    """
    monkeypatch.setattr(gpu_run, "DEVICE", "cpu")
    monkeypatch.setattr(gpu_run, "BUDGET", patience(540.0))
    monkeypatch.setattr(gpu_cells, "packages_of", lambda python: without("llamafactory", "bitsandbytes"))
    facts = {"torch": "2.10.0", "cuda": True, "device": "NVIDIA H200", "driver": "1", "sixteen_bit": "bfloat16"}
    facts |= {"free_bytes": 139 * GIB, "tflops": {"bfloat16": 0.1}}
    monkeypatch.setattr(gpu_run, "find", lambda threads: facts)
    monkeypatch.setitem(SHAPES, "1b", SHAPES["tiny"])
    save_random_shards(tmp_path / "work" / "models" / "1b", SHAPES["tiny"], device="cpu")
    given = argparse.Namespace(
        models=["1b"],
        methods=["lora", "qlora"],
        variants=["ours", "unsloth"],
        threads=1,
        warmup=1,
        steps=2,
        work=tmp_path / "work",
        out=tmp_path,
        json=tmp_path / "result.json",
        peers=str(tmp_path / "peers"),
        peers_lf=str(tmp_path / "peers-lf"),
    )
    assert gpu_run.benchmark(given, lambda line: None) == 0
    result = json.loads(given.json.read_text(encoding="utf-8"))
    (cell,) = result["cells"]
    assert list(cell["summary"]) == ["ours"]
    assert cell["summary"]["ours"]["steps"] == 2
    assert cell["summary"]["ours"]["mfu_of_measured"] > cell["summary"]["ours"]["mfu_of_table"] > 0
    assert result["gate"]["lora"]["findings"]
    assert cell["versions"]["ours"]["torch"]
    left = {item["what"]: item["reason"] for item in result["left_out"]}
    assert "No module named 'unsloth'" in left["1b lora: unsloth"]
    assert left["1b qlora: ours"].startswith("bitsandbytes not installed")
    printed = capsys.readouterr().out
    assert "| this toolkit, packing |" in printed
    assert "- 1b lora: unsloth: " in printed
