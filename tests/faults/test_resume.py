"""A run that is killed, stopped or damaged and resumed ends with the same bits as one that never stopped."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from tests.support.commands import call, spawn, start, write_run
from tests.support.patience import patience, until
from tests.support.runs import losses, weights_digest

AUTO = "training.resume_from_checkpoint=auto"  # as the documentation types it


def evaluations(folder: Path) -> list[tuple[int, float]]:
    from ai_finetuning.engine.metrics import read_metrics

    return [(row["step"], row["eval_loss"]) for row in read_metrics(folder / "metrics.jsonl") if "eval_loss" in row]


@pytest.fixture(scope="module")
def reference(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run's output folder."""
    folder = tmp_path_factory.mktemp("reference")
    assert call("train", str(write_run(folder, tiny_model_dir))) == 0
    return folder / "out"


def assert_same(folder: Path, reference: Path) -> None:
    """Weights, the best ones too, every step's loss, every evaluation; nothing half-written is left."""
    assert weights_digest(folder) == weights_digest(reference)
    best = [
        json.loads((run / "checkpoints" / "best" / "best.json").read_text(encoding="utf-8"))
        for run in (folder, reference)
    ]
    assert best[0] == best[1]
    assert losses(folder) == losses(reference)
    assert evaluations(folder) == evaluations(reference)
    assert not list((folder / "checkpoints").glob(".*"))
    assert not (folder / ".staging-model").exists()
    assert json.loads((folder / "run.json").read_text(encoding="utf-8"))["status"] == "completed"


def kill_and_resume(tmp_path: Path, tiny_model_dir: Path, fault: str) -> Path:
    config = str(write_run(tmp_path, tiny_model_dir))
    code, output = spawn("train", config, fault=fault)
    assert code == -signal.SIGKILL, output
    assert call("train", config, AUTO) == 0
    return tmp_path / "out"


def test_a_run_in_another_process_has_the_same_bits(tmp_path: Path, tiny_model_dir: Path, reference: Path):
    config = str(write_run(tmp_path, tiny_model_dir))
    code, output = spawn("train", config)
    assert code == 0, output
    assert_same(tmp_path / "out", reference)


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param("step:kill@11", id="mid-epoch, between checkpoints"),
        pytest.param("save:kill@8#2", id="between two files of a checkpoint"),
        pytest.param("step:kill@2", id="before the first checkpoint", marks=pytest.mark.faults),
        pytest.param("step:kill@24", id="at the last step", marks=pytest.mark.faults),
        pytest.param("save:kill@8#1", id="before a checkpoint's first file", marks=pytest.mark.faults),
        pytest.param("save:kill@8#3", id="before its state", marks=pytest.mark.faults),
        pytest.param("save:kill@8#4", id="before its manifest", marks=pytest.mark.faults),
        pytest.param("rename:kill@8", id="before its rename", marks=pytest.mark.faults),
        pytest.param("rotate:kill@16", id="between rename and rotation", marks=pytest.mark.faults),
        pytest.param("eval:kill@10", id="in an evaluation", marks=pytest.mark.faults),
        pytest.param("final:kill@0", id="before the final model", marks=pytest.mark.faults),
        pytest.param("best:kill@10#2", id="between two files of the best weights", marks=pytest.mark.faults),
    ],
)
def test_kill_minus_9(tmp_path: Path, tiny_model_dir: Path, reference: Path, fault: str):
    assert_same(kill_and_resume(tmp_path, tiny_model_dir, fault), reference)


def test_kill_minus_9_with_the_model_that_ships(tmp_path: Path, kotoha: str):
    """By its name, as real weights: the resumed run ends with the same bits."""
    assert call("train", str(write_run(tmp_path / "whole", kotoha))) == 0
    config = str(write_run(tmp_path / "killed", kotoha))
    code, output = spawn("train", config, fault="step:kill@11")
    assert code == -signal.SIGKILL, output
    assert call("train", config, AUTO) == 0
    assert_same(tmp_path / "killed" / "out", tmp_path / "whole" / "out")


@pytest.mark.faults
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_kill_minus_9_again_and_again_at_random_steps(tmp_path: Path, tiny_model_dir: Path, reference: Path, seed: int):
    config = str(write_run(tmp_path, tiny_model_dir))
    for step in sorted(random.Random(seed).sample(range(1, 25), 3)):
        code, output = spawn("train", config, AUTO, fault=f"step:kill@{step}")
        assert code == -signal.SIGKILL, output
    assert call("train", config, AUTO) == 0
    assert_same(tmp_path / "out", reference)


@pytest.mark.faults
def test_kill_minus_9_from_outside_at_random_moments(tmp_path: Path, tiny_model_dir: Path):
    """Nobody's hook: a parent kills the process whenever it likes, until the run gets through."""
    slow = {"num_epochs": 100, "save_steps": 7, "eval_steps": 100}
    assert call("train", str(write_run(tmp_path / "whole", tiny_model_dir, **slow))) == 0
    config = str(write_run(tmp_path / "killed", tiny_model_dir, **slow))
    dice, kills = random.Random(0), 0
    for _ in range(8):
        process = start("train", config, AUTO)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=patience(dice.uniform(2.5, 5.0)))
            break
        process.kill()
        process.communicate()
        kills += 1
    else:
        assert call("train", config, AUTO) == 0
    assert kills > 0
    assert_same(tmp_path / "killed" / "out", tmp_path / "whole" / "out")


@pytest.mark.parametrize("name", ["term", "int"])
def test_sigterm_saves_and_exits_75_and_resumes_to_the_same_bits(
    tmp_path: Path, tiny_model_dir: Path, reference: Path, faulty, name: str, logged
):
    config = str(write_run(tmp_path, tiny_model_dir))
    faulty(f"step:{name}@7")
    assert call("train", config) == 75
    assert f"SIG{name.upper()} received: saved at step 7" in logged()
    assert (tmp_path / "out" / "checkpoints" / "checkpoint-7").is_dir()
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()
    faulty("")
    assert call("train", config, AUTO) == 0
    assert_same(tmp_path / "out", reference)


def test_sigusr1_saves_and_training_goes_on(tmp_path: Path, tiny_model_dir: Path, reference: Path, faulty):
    faulty("step:usr1@22")
    assert call("train", str(write_run(tmp_path, tiny_model_dir))) == 0
    assert (tmp_path / "out" / "checkpoints" / "checkpoint-22").is_dir()
    assert_same(tmp_path / "out", reference)


def test_a_second_sigterm_does_not_break_the_checkpoint_that_is_being_written(
    tmp_path: Path, tiny_model_dir: Path, reference: Path, faulty
):
    config = str(write_run(tmp_path, tiny_model_dir))
    faulty("step:term@7,save:term@7")
    assert call("train", config) == 75
    faulty("")
    assert call("train", config, AUTO) == 0
    assert_same(tmp_path / "out", reference)


def test_a_second_sigint_stops_at_once_and_leaves_the_earlier_checkpoint_whole(
    tmp_path: Path, tiny_model_dir: Path, reference: Path, faulty
):
    config = str(write_run(tmp_path, tiny_model_dir))
    faulty("step:int@7,save:int@7#2,save:slow@7#2")
    assert call("train", config) == 130
    names = {path.name for path in (tmp_path / "out" / "checkpoints").glob("checkpoint-*")}
    assert names == {"checkpoint-4"}
    faulty("")
    assert call("train", config, AUTO) == 0
    assert_same(tmp_path / "out", reference)


def test_kill_minus_9_while_a_checkpoint_is_written_beside_later_steps(
    tmp_path: Path, tiny_model_dir: Path, reference: Path
):
    """The disk is slow at step 8, the process dies in step 10: 8 has no name yet, the run goes on from 4 to the same
    bits.
    """
    config = str(write_run(tmp_path, tiny_model_dir))
    code, output = spawn("train", config, fault="save:slow@8#2,step:kill@10")
    assert code == -signal.SIGKILL, output
    names = {path.name for path in (tmp_path / "out" / "checkpoints").iterdir()}
    assert names - {"best", "without-weights"} == {"checkpoint-4", ".staging-8"}
    assert len(losses(tmp_path / "out")) == 9
    assert call("train", config, AUTO) == 0
    assert_same(tmp_path / "out", reference)


def test_a_checkpoint_holds_its_own_step_however_slow_the_disk_is(tmp_path: Path, tiny_model_dir: Path):
    """Two runs save at 6 and 7 and stop: the slow one writes 6 while step 7 changes weights and moments, with the
    same bytes.
    """
    files = {}
    for name, slow in (("fast", ""), ("slow", "save:slow@6,")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AIFT_FAULT", f"{slow}step:usr1@6,step:term@7")
            assert call("train", str(write_run(tmp_path / name, tiny_model_dir))) == 75
        place = tmp_path / name / "out" / "checkpoints"
        files[name] = {
            (folder.name, path.name): path.read_bytes()
            for folder in place.iterdir()
            for path in folder.glob("*.safetensors")
        }
    assert files["slow"] == files["fast"]
    assert {folder for folder, _ in files["slow"]} == {"best", "checkpoint-4", "checkpoint-6", "checkpoint-7"}


def test_the_end_of_a_run_waits_for_its_last_checkpoint(tmp_path: Path, tiny_model_dir: Path, reference: Path, faulty):
    from ai_finetuning.engine.checkpoint.store import verify

    faulty("save:slow@24")
    assert call("train", str(write_run(tmp_path, tiny_model_dir))) == 0
    assert verify(tmp_path / "out" / "checkpoints" / "checkpoint-24") == []
    assert_same(tmp_path / "out", reference)


@pytest.fixture(scope="module")
def stopped(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after step 11, with checkpoints 4, 8 and 11; to be copied."""
    folder = tmp_path_factory.mktemp("stopped")
    config = write_run(folder, tiny_model_dir)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIFT_FAULT", "step:term@11")
        assert call("train", str(config)) == 75
    return folder


def resume_copy(stopped: Path, tmp_path: Path, *overrides: str, damage=None, code: int = 0) -> Path:
    """Copies the stopped run, damages it, resumes it."""
    shutil.copytree(stopped / "out", tmp_path / "out")
    if damage is not None:
        damage(tmp_path / "out" / "checkpoints")
    obtained = call("train", str(stopped / "run.yaml"), f"training.output_dir={tmp_path / 'out'}", AUTO, *overrides)
    assert obtained == code
    return tmp_path / "out"


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) * 3 // 4] ^= 1
    path.write_bytes(content)


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


FILES = ["model-00001-of-00001.safetensors", "optimizer-00001-of-00001.safetensors", "state.json", "manifest.json"]


@pytest.mark.parametrize("harm", [flip, halve, Path.unlink], ids=["one bit", "truncated", "missing"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_named_and_skipped(
    stopped: Path, tmp_path: Path, reference: Path, logged, name: str, harm
):
    folder = resume_copy(stopped, tmp_path, damage=lambda place: harm(place / "checkpoint-11" / name))
    text = logged()
    assert "checkpoint-11" in text
    assert "damaged" in text
    assert "checkpoint-8" in text
    assert_same(folder, reference)


def test_every_checkpoint_damaged_means_stop_and_restart_means_restart(
    stopped: Path, tmp_path: Path, reference: Path, logged
):
    def damage(place: Path) -> None:
        for checkpoint in place.glob("checkpoint-*"):
            flip(checkpoint / FILES[0])

    folder = resume_copy(stopped, tmp_path, damage=damage, code=65)
    text = logged()
    assert all(f"checkpoint-{step}" in text for step in (4, 8, 11))
    assert "--restart" in text
    assert len(list((folder / "checkpoints").glob("checkpoint-*"))) == 3  # nothing was thrown away
    arguments = ["train", str(stopped / "run.yaml"), f"training.output_dir={folder}", AUTO, "--restart"]
    assert call(*arguments) == 0
    assert_same(folder, reference)


def test_auto_without_any_checkpoint_starts_anew_and_says_so(
    tmp_path: Path, tiny_model_dir: Path, reference: Path, logged
):
    assert call("train", str(write_run(tmp_path, tiny_model_dir)), AUTO) == 0
    assert "starting from the beginning" in logged()
    assert_same(tmp_path / "out", reference)


def test_the_documented_argument_resumes_too(stopped: Path, tmp_path: Path, reference: Path, tiny_model_dir: Path):
    """train(..., resume_from_checkpoint=...) of the documented trainers, with a checkpoint's own path."""
    from ai_finetuning import DataConfig, JapaneseModel, LoRAConfig, LoRAFinetuningTrainer
    from ai_finetuning.config.load import load_config

    config = load_config(stopped / "run.yaml", [f"training.output_dir={tmp_path / 'new'}"])
    import torch

    trainer = LoRAFinetuningTrainer(
        JapaneseModel(str(tiny_model_dir), torch_dtype=torch.float32),
        LoRAConfig(r=4, lora_alpha=8, lora_dropout=0.1),
        config.training,
        data=DataConfig(max_length=64),
    )
    trainer.train(
        str(stopped / "rows.jsonl"),
        str(stopped / "held_out.jsonl"),
        resume_from_checkpoint=str(stopped / "out" / "checkpoints" / "checkpoint-8"),
    )
    assert weights_digest(tmp_path / "new") == weights_digest(reference)
    assert losses(tmp_path / "new") == losses(reference)[8:]


@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("training.batch_size=4", "batch_size: 2 -> 4"),
        ("training.runtime.seed=7", "seed: 42 -> 7"),
        ("training.learning_rate=1e-3", "learning_rate: 0.005 -> 0.001"),
        ("data.max_length=48", "max_length: 64 -> 48"),
        ("lora.r=8", "lora.r: 4 -> 8"),
    ],
)
def test_a_changed_run_is_refused_with_the_differences(stopped: Path, tmp_path: Path, logged, override: str, word: str):
    before = sorted(path.name for path in (stopped / "out").rglob("*"))
    folder = resume_copy(stopped, tmp_path, override, code=78)
    text = logged()
    assert word in text
    assert "--allow-changed" in text
    assert sorted(path.name for path in folder.rglob("*")) == before


def test_changed_data_and_model_are_refused(stopped: Path, tmp_path: Path, tiny_model_dir: Path, logged):
    from tests.support.models import save_tiny_model

    rows = (stopped / "rows.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    other = tmp_path / "other.jsonl"
    other.write_text("".join(rows[:-1]) + rows[-1].replace("です", "でした"), encoding="utf-8")
    resume_copy(stopped, tmp_path / "a", f"data.train={other}", code=78)
    assert "data: " in logged()
    # Another model under the same path: only its weights tell.
    moved = tmp_path / "moved"
    save_tiny_model(moved, seed=1)
    resume_copy(stopped, tmp_path / "b", f"model.name={moved}", code=78)
    assert "model: " in logged()


def test_other_weights_under_the_same_name_are_refused(tmp_path: Path, faulty, logged):
    from tests.support.models import save_tiny_model

    base = save_tiny_model(tmp_path / "base")
    config = str(write_run(tmp_path, base))
    faulty("step:term@5")
    assert call("train", config) == 75
    faulty("")
    save_tiny_model(base, seed=1)
    assert call("train", config, AUTO) == 78
    assert "weights: " in logged()


def test_an_allowed_change_goes_on_at_the_same_rows(stopped: Path, tmp_path: Path, logged):
    folder = resume_copy(
        stopped, tmp_path, "training.batch_size=4", "training.gradient_accumulation_steps=1", "--allow-changed"
    )
    text = logged()
    assert "batch_size: 2 -> 4" in text
    assert json.loads((folder / "run.json").read_text(encoding="utf-8"))["status"] == "completed"
    # Rows per step stay four, so the same 24 steps are done, 13 of them after the change.
    assert len(losses(folder)) == 24


def test_a_completed_run_returns_its_model(reference: Path, tmp_path: Path, logged):
    shutil.copytree(reference.parent, tmp_path / "copy")
    folder = tmp_path / "copy" / "out"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    config = str(reference.parent / "run.yaml")
    assert call("train", config, f"training.output_dir={folder}", AUTO) == 0
    assert "is complete; returning its model" in logged()
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")} == before


def test_without_resume_an_earlier_run_is_moved_and_other_files_stay(
    stopped: Path, tmp_path: Path, reference: Path, logged
):
    shutil.copytree(stopped / "out", tmp_path / "out")
    note = tmp_path / "out" / "メモ.txt"
    note.write_text("大事", encoding="utf-8")
    assert call("train", str(stopped / "run.yaml"), f"training.output_dir={tmp_path / 'out'}") == 0
    assert "was moved to" in logged()
    (moved,) = tmp_path.glob("out.*")
    assert (moved / "checkpoints" / "checkpoint-11").is_dir()
    assert note.read_text(encoding="utf-8") == "大事"
    assert not (moved / "メモ.txt").exists()
    assert_same(tmp_path / "out", reference)


def test_a_folder_with_a_model_of_others_is_not_overwritten(tmp_path: Path, tiny_model_dir: Path, logged):
    config = str(write_run(tmp_path, tiny_model_dir))
    shutil.copytree(tiny_model_dir, tmp_path / "out")
    before = weights_digest(tmp_path / "out")
    assert call("train", config) == 78
    assert "model.safetensors" in logged()
    assert weights_digest(tmp_path / "out") == before
    assert not (tmp_path / "out" / "run.json").exists()


def test_two_runs_in_one_folder(tmp_path: Path, tiny_model_dir: Path, logged):
    """The second names the first and exits 75; the lock of a killed one is free."""
    config = str(write_run(tmp_path, tiny_model_dir, num_epochs=5000, save_steps=4))
    first = start("train", config)
    try:
        checkpoints = tmp_path / "out" / "checkpoints"
        until(lambda: bool(list(checkpoints.glob("checkpoint-*"))), 60, "a checkpoint of the first")
        assert call("train", config) == 75
        text = logged()
        assert f"pid {first.pid}" in text
        import socket

        assert socket.gethostname() in text
        assert first.poll() is None
    finally:
        first.kill()
        first.communicate()
    assert call("train", config, AUTO, "training.schedule.max_steps=8", "--allow-changed") == 0


def test_a_checkpoint_of_another_trainer_gives_weights_and_step(tmp_path: Path, tiny_model_dir: Path, logged):
    """A real transformers Trainer's folder; its optimizer.pt, a pickle, is not opened."""
    import transformers
    from tests.support.models import build_tokenizer

    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    ids = build_tokenizer()("日本の首都は東京です。")["input_ids"]
    rows = [{"input_ids": ids, "labels": ids}] * 8
    options = transformers.TrainingArguments(
        output_dir=str(tmp_path / "hf"),
        max_steps=3,
        save_steps=3,
        per_device_train_batch_size=1,
        learning_rate=1e-3,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    transformers.Trainer(model, options, train_dataset=rows).train()
    foreign = tmp_path / "hf" / "checkpoint-3"
    (foreign / "optimizer.pt").write_bytes(b"not even a pickle")
    config = write_run(tmp_path, tiny_model_dir)
    arguments = [
        "train",
        f"model={tiny_model_dir}",
        "method=full",
        f"data.train={tmp_path / 'rows.jsonl'}",
        f"training.output_dir={tmp_path / 'out'}",
        "training.schedule.max_steps=5",
        "training.runtime.progress=false",
        f"training.checkpoint.resume_from_checkpoint={foreign}",
        "training.fp16=false",
    ]
    assert config.is_file()
    assert call(*arguments) == 0
    text = logged()
    assert "written by another trainer" in text
    assert "cannot be verified" in text
    assert len(losses(tmp_path / "out")) == 2


def test_at_least_two_verified_checkpoints_are_kept(tmp_path: Path, tiny_model_dir: Path):
    config = str(write_run(tmp_path, tiny_model_dir, save_steps=2, checkpoint={"save_total_limit": 2}))
    assert call("train", config) == 0
    from ai_finetuning.engine.checkpoint.store import verify

    left = sorted((tmp_path / "out" / "checkpoints").glob("checkpoint-*"))
    assert [path.name for path in left] == ["checkpoint-22", "checkpoint-24"]
    assert [verify(path) for path in left] == [[], []]


VARIANTS = {
    "full with accelerate": ["method=full"],
    "8-bit Adam": ["method=full", "training.optimizer.name=adamw_8bit"],
    "QLoRA in 4 bit": ["method=qlora", "lora.r=4"],
    "QLoRA in 8 bit": ["method=qlora", "lora.qlora_4bit=false", "lora.r=4"],
    "bf16": ["training.runtime.precision=bf16", "lora.lora_dropout=0.1"],
    "packing": ["data.packing=true", "data.max_length=96", "training.warmup_steps=0", "lora.lora_dropout=0.1"],
    "DoRA, LoRA+, cosine": ["lora.use_dora=true", "lora_plus_ratio=8", "schedule.name=cosine"],
    "gradient checkpointing": ["gradient_checkpointing=true", "lora.lora_dropout=0.1"],
    "best checkpoint": ["checkpoint.load_best=true", "training.learning_rate=0.1", "eval_steps=1"],
    "full heads": ["lora.modules_to_save=lm_head", "lora.bias=all"],
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_method_resumes_to_the_same_bits(tmp_path: Path, tiny_model_dir: Path, faulty, name: str):
    def run(folder: str, *extra: str) -> int:
        return call(
            "train",
            f"model.name={tiny_model_dir}",
            "model.dtype=float32",
            f"data.train={tmp_path / 'rows.jsonl'}",
            "data.max_length=64",
            f"data.eval={tmp_path / 'held_out.jsonl'}",
            f"training.output_dir={tmp_path / folder}",
            "training.warmup_steps=2",
            "learning_rate=5e-3",
            "batch_size=2",
            "gradient_accumulation_steps=2",
            "num_epochs=3",
            "eval_steps=4",
            "save_steps=3",
            "progress=false",
            "fp16=false",
            *VARIANTS[name],
            *extra,
        )

    write_run(tmp_path, tiny_model_dir)
    assert run("whole") == 0
    faulty("step:term@4")
    assert run("stopped") == 75
    faulty("")
    assert run("stopped", AUTO) == 0
    assert_same(tmp_path / "stopped", tmp_path / "whole")
