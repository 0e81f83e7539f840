"""Non-finite losses, full memory, full and read-only disks: what the user is told, and what stays intact."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.support.commands import call, spawn, write_run
from tests.support.disks import mounted
from tests.support.runs import losses, train_full, weights_digest
from tests.support.systems import needs_limits

from ai_finetuning.engine.checkpoint.store import verify
from ai_finetuning.engine.metrics import read_metrics


def finite(folder: Path) -> bool:
    return all(
        bool(torch.isfinite(tensor).all())
        for file in folder.rglob("*.safetensors")
        for tensor in load_file(file).values()
        if tensor.is_floating_point()
    )


def test_a_step_with_nan_is_skipped_and_counted(tmp_path: Path, tiny_model_dir: Path, faulty, logged):
    faulty("step:nan@5")
    assert call("train", str(write_run(tmp_path, tiny_model_dir))) == 0
    rows = [row for row in read_metrics(tmp_path / "out" / "metrics.jsonl") if "loss" in row]
    assert rows[4]["loss"] is None or math.isnan(rows[4]["loss"])
    assert [row["skipped"] for row in rows[3:6]] == [0, 1, 1]
    assert len(rows) == 24
    assert "step 5 has a loss or gradient that is not finite" in logged()
    assert finite(tmp_path / "out")


def test_a_skipped_step_changes_no_weight(tmp_path: Path, tiny_model_dir: Path, faulty):
    """The checkpoint after a skipped step holds the weights and moments of the one before."""
    faulty("step:nan@5,step:usr1@4,step:usr1@5,step:term@6")
    assert call("train", str(write_run(tmp_path, tiny_model_dir))) == 75
    place = tmp_path / "out" / "checkpoints"
    for name in ("model", "optimizer"):
        before, after = (
            load_file(place / f"checkpoint-{step}" / f"{name}-00001-of-00001.safetensors") for step in (4, 5)
        )
        assert all(torch.equal(before[key], after[key]) for key in before)


def test_three_in_a_row_stop_the_run_and_name_the_last_good_checkpoint(
    tmp_path: Path, tiny_model_dir: Path, faulty, logged
):
    faulty("step:nan@10x3")
    assert call("train", str(write_run(tmp_path, tiny_model_dir))) == 70
    assert "Last good checkpoint: " in logged()
    assert "checkpoint-8" in logged()
    assert finite(tmp_path / "out")
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()
    assert json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))["status"] == "stopped"


def test_a_spike_is_said(tmp_path: Path, tiny_model_dir: Path, faulty, logged):
    faulty("step:spike@22")
    assert call("train", str(write_run(tmp_path, tiny_model_dir))) == 0
    assert "the loss of step 22" in logged()


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_step(tmp_path: Path, tiny_model_dir: Path, faulty, logged):
    """Same rows per step, same loss to 1e-6 (dropout 0), and the size in force is in the checkpoint."""
    settings = {"batch_size": 4, "gradient_accumulation_steps": 1, "num_epochs": 1}
    train_full(tiny_model_dir, tmp_path / "plain", **settings)
    faulty("step:oom@3x2")
    train_full(tiny_model_dir, tmp_path / "small", **settings)
    text = logged()
    rows = [row for row in read_metrics(tmp_path / "small" / "metrics.jsonl") if "loss" in row]
    assert [row["micro_batch_size"] for row in rows] == [4, 4, 1, 1, 1, 1]
    plain, small = ([float.fromhex(item) for item in losses(tmp_path / name)] for name in ("plain", "small"))
    assert small == pytest.approx(plain, abs=1e-6)
    assert len({row["label_tokens"] for row in rows}) > 0
    state = json.loads((tmp_path / "small" / "checkpoints" / "checkpoint-3" / "state.json").read_text(encoding="utf-8"))
    assert state["train"]["micro_batch_size"] == 1
    assert "2" in text
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "small"))
    assert all(torch.allclose(one[key], other[key], atol=1e-5) for key in one)


def test_one_row_that_does_not_fit_stops_with_the_estimate(tmp_path: Path, tiny_model_dir: Path, faulty, logged):
    faulty("step:oom@3x2")
    assert call("train", str(write_run(tmp_path, tiny_model_dir))) == 70
    assert "QLoRA" in logged()
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()


def test_out_of_memory_in_the_evaluation_leaves_training_alone(tmp_path: Path, tiny_model_dir: Path, faulty, logged):
    assert call("train", str(write_run(tmp_path / "plain", tiny_model_dir))) == 0
    faulty("eval:oom@10")
    assert call("train", str(write_run(tmp_path / "small", tiny_model_dir))) == 0
    assert "batches of 1 rows" in logged()
    plain, small = tmp_path / "plain" / "out", tmp_path / "small" / "out"
    assert weights_digest(plain) == weights_digest(small)
    assert losses(plain) == losses(small)


def test_a_full_disk_at_a_checkpoint_warns_and_training_goes_on(tmp_path: Path, tiny_model_dir: Path, faulty, logged):
    faulty("save:full@8#2")
    assert call("train", str(write_run(tmp_path, tiny_model_dir))) == 0
    assert "checkpoint of step 8 could not be written" in logged()
    names = {path.name for path in (tmp_path / "out" / "checkpoints").iterdir()}
    assert "checkpoint-8" not in names
    assert not any(name.startswith(".") for name in names)


def test_a_full_disk_at_the_end_exits_74_and_a_resume_finishes(tmp_path: Path, tiny_model_dir: Path, faulty, logged):
    config = str(write_run(tmp_path, tiny_model_dir))
    faulty("final:full@0")
    assert call("train", config) == 74
    assert "Earlier checkpoints are intact" in logged()
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()
    assert not (tmp_path / "out" / ".staging-model").exists()
    assert verify(tmp_path / "out" / "checkpoints" / "checkpoint-24") == []
    faulty("")
    assert call("train", config, "training.checkpoint.resume_from_checkpoint=auto") == 0
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_a_best_checkpoint_that_could_not_be_written_does_not_cost_the_model(
    tmp_path: Path, tiny_model_dir: Path, faulty, logged
):
    # A rate this high that never falls gets worse again, on any machine.
    settings = {
        "checkpoint": {"load_best": True},
        "learning_rate": 0.3,
        "eval_steps": 1,
        "schedule": {"name": "constant"},
    }
    assert call("train", str(write_run(tmp_path / "plain", tiny_model_dir, **settings))) == 0
    rows = read_metrics(tmp_path / "plain" / "out" / "metrics.jsonl")
    best = min((row for row in rows if "eval_loss" in row), key=lambda row: row["eval_loss"])["step"]
    assert best < 24
    faulty(f"best:full@{best}")
    assert call("train", str(write_run(tmp_path, tiny_model_dir, **settings))) == 0
    text = logged()
    assert f"best weights, of step {best}, could not be written" in text
    assert f"best weights, of step {best}, cannot be used" in text
    assert "returning the last weights" in text
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_too_little_disk_is_refused_before_step_1(tmp_path: Path, tiny_model_dir: Path, monkeypatch, logged):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    assert call("train", str(write_run(tmp_path, tiny_model_dir))) == 74
    assert "GB free and the run needs" in logged()
    assert not (tmp_path / "out").exists()


def test_a_really_full_disk(tmp_path: Path, tiny_model_dir: Path, logged):
    """A small tmpfs that something else fills while the run goes on."""
    with mounted(tmp_path / "disk", "16m") as disk:
        config = str(write_run(tmp_path, tiny_model_dir, output_dir=str(disk / "out")))
        from ai_finetuning.engine import loop

        original = loop.save

        def filling(run, **options) -> None:
            original(run, **options)
            if run.state.step == 8:
                run.writer.wait()
                with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
                    while True:
                        file.write(b"0" * 4096)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "save", filling)
            code = call("train", config)
        text = logged()
        assert code == 74, text
        assert "No space left" in text
        left = list((disk / "out" / "checkpoints").glob("checkpoint-*"))
        assert [verify(path) for path in left] == [[] for _ in left]
        assert (disk / "out" / "checkpoints" / "checkpoint-8") in left
        assert not list((disk / "out" / "checkpoints").glob(".*"))
        assert not (disk / "out" / "adapter_model.safetensors").exists()
        (disk / "filler").unlink()
        assert call("train", config, "training.checkpoint.resume_from_checkpoint=auto") == 0


def test_a_read_only_disk_exits_74_before_anything_loads(tmp_path: Path, tiny_model_dir: Path, logged):
    with mounted(tmp_path / "disk", "8m") as disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert call("train", str(write_run(tmp_path, tiny_model_dir, output_dir=str(disk / "out")))) == 74
        text = logged()
        assert "cannot be written" in text
        assert "Attention" not in text  # no model was loaded


@pytest.mark.faults
@needs_limits
def test_few_file_descriptors_and_a_read_only_cache(tmp_path: Path, tiny_model_dir: Path):
    """`ulimit -n 64`, no usable token cache, no usable /tmp: the run ends well or says what is wrong."""
    config = str(write_run(tmp_path, tiny_model_dir))
    blocked = tmp_path / "file"
    blocked.write_text("", encoding="utf-8")
    code, output = spawn("train", config, AIFT_CACHE=str(blocked / "below"), HF_HOME=str(blocked / "hf"))
    assert code == 0, output
    import sys

    from tests.support.commands import environment

    done = subprocess.run(
        ["bash", "-c", 'ulimit -n 64; exec "$@"', "bash", sys.executable, "-m", "ai_finetuning", "train", config],
        env=environment(),
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.faults
def test_a_clock_that_jumps_back_changes_nothing(tmp_path: Path, tiny_model_dir: Path, monkeypatch):
    import time

    assert call("train", str(write_run(tmp_path / "a", tiny_model_dir))) == 0
    real = time.time()
    count = iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: real - 86400 * next(count))
    assert call("train", str(write_run(tmp_path / "b", tiny_model_dir))) == 0
    assert weights_digest(tmp_path / "a" / "out") == weights_digest(tmp_path / "b" / "out")


def test_four_bit_on_a_cpu_survives_evaluation_and_saving_after_a_forward(tiny_model_dir: Path, tmp_path: Path):
    """bitsandbytes re-packs weights in its eval forward on AVX512-BF16; gradients and saved files must not notice."""
    from tests.support.models import build_tokenizer

    from ai_finetuning.models.adapters import add_lora
    from ai_finetuning.models.loading import load_causal_lm

    ids = torch.tensor([build_tokenizer().encode("日本の首都は東京です。")])
    model = load_causal_lm(str(tiny_model_dir), load_in_4bit=True, dtype=torch.bfloat16)
    lora = add_lora(model, r=4, alpha=8)
    for name, parameter in lora.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(0))

    def gradients() -> list[torch.Tensor]:
        lora.train()
        lora.zero_grad()
        lora(input_ids=ids, labels=ids).loss.backward()
        return [parameter.grad.clone() for parameter in lora.parameters() if parameter.grad is not None]

    before = gradients()
    with torch.no_grad():
        expected = lora.eval()(input_ids=ids).logits
    after = gradients()
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    base = lora.unload()
    with torch.no_grad():
        plain = base.eval()(input_ids=ids).logits
    base.save_pretrained(tmp_path / "saved")
    again = load_causal_lm(str(tmp_path / "saved"), dtype=torch.bfloat16)
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, plain)
    assert not torch.equal(expected, plain)
