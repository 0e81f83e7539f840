"""What people do with a run after it stopped, moved or ended; the names hold the numbers of what was found broken."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.commands import call, environment, spawn, write_run
from tests.support.models import save_tiny_model
from tests.support.patience import until
from tests.support.runs import losses, train_lora, weights_digest
from tests.support.systems import needs_terminal

from ai_finetuning.config.fields import fields_of, section_class
from ai_finetuning.config.plain import to_plain
from ai_finetuning.config.run import RunConfig
from ai_finetuning.engine.metrics import read_metrics
from ai_finetuning.execution.fingerprint import COMES_TO, HARMLESS, other_settings


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch):
    """Sets AIFT_FAULT for the runs that begin in this process from now on."""
    return lambda text: monkeypatch.setenv("AIFT_FAULT", text)


@pytest.fixture(scope="module")
def work(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a model, data and outputs/stop, stopped at step 7 of 12; to be copied."""
    folder = tmp_path_factory.mktemp("work")
    shutil.copytree(tiny_model_dir, folder / "model")
    config = write_run(folder, folder / "model", num_epochs=2, output_dir=str(folder / "outputs" / "stop"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIFT_FAULT", "step:term@7")
        assert call("train", str(config)) == 75
        patch.setenv("AIFT_FAULT", "")
        assert call("train", str(config), f"training.output_dir={folder / 'whole'}") == 0
    return folder


@pytest.fixture
def copied(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, moved to another place; the user stands in it."""
    shutil.copytree(work, tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved")
    return tmp_path / "moved"


@pytest.fixture(scope="module")
def finished(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a LoRA run of 12 steps that was completed, without checkpoints; to be copied."""
    folder = tmp_path_factory.mktemp("finished")
    assert call("train", str(write_run(folder, tiny_model_dir, num_epochs=2, save_steps=500))) == 0
    return folder


def full_run(folder: Path, model: Path, **training: Any) -> Path:
    """The same for all weights."""
    path = write_run(folder, model, **training)
    values = yaml.safe_load(path.read_text(encoding="utf-8")) | {"method": "full"}
    del values["lora"]
    path.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    return path


def run_json(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "run.json").read_text(encoding="utf-8")))


def steps(folder: Path) -> list[int]:
    return [row["step"] for row in read_metrics(folder / "metrics.jsonl") if "loss" in row]


# --- A11, A12: from the folder alone, wherever it is


def test_a11_the_folder_is_enough_to_go_on_to_the_same_bits(copied: Path, work: Path, logged):
    assert call("resume", "outputs/stop") == 0, logged()
    assert weights_digest(copied / "outputs" / "stop") == weights_digest(work / "whole")
    assert losses(copied / "outputs" / "stop") == losses(work / "whole")
    assert "resuming from step 7" in logged()


@pytest.mark.parametrize(
    "command",
    [
        ["resume", "outputs/stop/checkpoints/checkpoint-7"],
        ["resume", "outputs/stop/checkpoints"],
        ["resume", "outputs/stop/config.yaml"],
        ["train", "outputs/stop", "--resume"],
        ["train", "--resume", "outputs/stop"],
        ["train", "outputs/stop/config.yaml", "--resume"],
    ],
    ids=" ".join,
)
def test_a11_other_ways_of_typing_it_mean_the_same(copied: Path, logged, command: list[str]):
    assert call(*command, "--dry-run") == 0, logged()
    text = logged()
    assert "resuming from step 7 of 12 (" in text
    assert "outputs/stop/checkpoints/checkpoint-7)" in text


def test_a11_dry_run_says_from_which_step_and_writes_nothing(copied: Path, logged):
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    assert call("resume", "outputs/stop", "--dry-run") == 0
    assert "resuming from step 7 of 12 (outputs/stop/checkpoints/checkpoint-7)" in logged()
    assert call("resume", "outputs/stop", "--dry-run", "training.runtime.seed=1") == 78
    assert "seed: 42 -> 1" in logged()
    assert {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("command", [["resume"], ["train", "--resume"]], ids=" ".join)
def test_a11_without_a_folder_the_interrupted_runs_are_named(copied: Path, logged, command: list[str]):
    assert call(*command) == 64
    text = logged()
    assert "aift resume outputs/stop   # saved up to step 7/12" in text
    assert "whole" not in text  # which is complete


def test_a11_a_folder_that_is_no_run(copied: Path, logged):
    assert call("resume", "model") == 66
    text = logged()
    assert "model is not a run's folder" in text
    assert "aift resume outputs/stop" in text
    assert call("train", "outputs/stop") == 64
    assert "To go on with it: aift resume outputs/stop" in logged()


@pytest.mark.parametrize("verb", ["train", "resume"])
def test_a11_help_explains_the_flags(capsys, verb: str):
    assert call(verb, "--help") == 0
    text = capsys.readouterr().out
    assert all(flag in text for flag in ("--resume" if verb == "train" else "FOLDER", "--restart", "--allow-changed"))
    assert "[key=value ...]" in text


def test_a12_a_run_that_was_moved_with_its_files_goes_on(copied: Path, work: Path, tmp_path: Path, logged):
    """The old place is gone, the new one has another name, and the user stands somewhere else."""
    place = tmp_path / "gone"
    shutil.move(work, place)  # what config.yaml names is not there
    try:
        os.chdir(tmp_path)
        assert call("resume", "moved/outputs/stop") == 0
    finally:
        shutil.move(place, work)
    text = logged()
    assert f"data.train: {work}/rows.jsonl was found at {copied}/rows.jsonl" in text
    assert f"model.name: {work}/model was found at {copied}/model" in text
    assert "differ" not in text
    assert weights_digest(copied / "outputs" / "stop") == weights_digest(work / "whole")


def test_a12_a_file_that_cannot_be_found_is_asked_for(copied: Path, work: Path, tmp_path: Path, logged):
    rows = copied / "elsewhere.jsonl"
    (copied / "rows.jsonl").rename(rows)
    place = tmp_path / "gone"
    shutil.move(work, place)
    try:
        assert call("resume", "outputs/stop") == 66
        assert "aift resume outputs/stop data.train=PATH" in logged()
        assert call("resume", "outputs/stop", f"data.train={rows}") == 0
    finally:
        shutil.move(place, work)


def test_a12_weights_are_compared_and_not_the_models_name(copied: Path, logged):
    (copied / "model").rename(copied / "renamed")
    other = save_tiny_model(copied / "other", seed=1)
    assert call("resume", "outputs/stop", f"model={other}") == 78
    assert "weights: " in logged()
    assert call("resume", "outputs/stop", "model=renamed") == 0
    assert "model: " not in logged().split("weights: ")[-1].split("resuming from step")[-1]


def test_a12_what_is_allowed_is_said_once(copied: Path, logged):
    assert call("resume", "outputs/stop", "max_grad_norm=0.5", "--allow-changed") == 0
    assert logged().count("max_grad_norm: 1.0 -> 0.5 (allowed") == 1


# --- 32: a finished run goes on


def longer(folder: Path, *arguments: str) -> int:
    return call("resume", str(folder / "out"), "num_epochs=4", *arguments)


def test_32_a_finished_run_goes_on_from_its_last_checkpoint(work: Path, tmp_path: Path, logged):
    """Checkpoint 12 of a run that saves every 4 steps: the optimizer goes on, the schedule is that of 24 steps."""
    shutil.copytree(work / "whole", tmp_path / "out")
    before = losses(tmp_path / "out")
    assert longer(tmp_path, "--dry-run") == 0
    assert "from step 12 to 24" in logged()
    assert longer(tmp_path) == 0
    assert "its model stays until the new one is saved" in logged()
    assert losses(tmp_path / "out")[:12] == before
    assert steps(tmp_path / "out") == list(range(1, 25))
    rates = [row["learning_rate"] for row in read_metrics(tmp_path / "out" / "metrics.jsonl") if "loss" in row]
    # Linear from the end of the warm-up (2 steps) to step 24.
    assert rates[12:14] == pytest.approx([5e-3 * (24 - step) / 22 for step in (12, 13)])
    assert run_json(tmp_path / "out")["result"]["steps"] == 24
    assert longer(tmp_path) == 0  # and is finished now
    assert "is complete; returning its model" in logged()


def test_32_epochs_stand_above_recorded_steps_and_train_goes_on_too(finished: Path, tmp_path: Path, logged):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    config = tmp_path / "out" / "config.yaml"
    values = yaml.safe_load(config.read_text(encoding="utf-8"))
    values["training"]["schedule"] = {"max_steps": 12}
    config.write_text(yaml.safe_dump(values), encoding="utf-8")
    assert longer(tmp_path, "--dry-run") == 0
    assert "from step 12 to 24" in logged()
    out = f"training.output_dir={tmp_path / 'out'}"
    assert call("train", str(tmp_path / "run.yaml"), out, "num_epochs=3", "--resume", "--dry-run") == 0
    assert "from step 12 to 18" in logged()


@pytest.mark.parametrize("method", ["lora", "full"])
def test_32_without_a_checkpoint_it_goes_on_from_the_saved_weights(
    finished: Path, tiny_model_dir: Path, tmp_path: Path, faulty, logged, method: str
):
    if method == "lora":
        shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    else:
        config = full_run(tmp_path, tiny_model_dir, num_epochs=2, save_steps=500, learning_rate=1e-3)
        assert call("train", str(config)) == 0
    folder, saved = tmp_path / "out", weights_digest(tmp_path / "out")
    faulty("step:term@15")
    assert longer(tmp_path) == 75
    text = logged()
    assert "a new optimizer, since no checkpoint to resume from is left" in text
    assert weights_digest(folder) == saved  # the finished model is still what is there
    faulty("")
    assert call("resume", str(folder)) == 0  # four epochs are part of the run by now
    assert steps(folder) == list(range(1, 25))
    assert weights_digest(folder) != saved
    first, late = (float.fromhex(losses(folder)[step]) for step in (0, 12))
    assert late < first  # it went on, and did not begin anew


@pytest.mark.slow
def test_32_a_longer_run_that_is_killed_before_it_saved_keeps_the_finished_model(
    finished: Path, tmp_path: Path, logged
):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    saved = weights_digest(tmp_path / "out")
    code, output = spawn("resume", str(tmp_path / "out"), "num_epochs=4", fault="step:kill@14")
    assert code == -signal.SIGKILL, output
    assert weights_digest(tmp_path / "out") == saved
    assert call("resume", str(tmp_path / "out"), "--dry-run") == 0
    assert "from step 12 to 24" in logged()
    assert call("resume", str(tmp_path / "out")) == 0
    assert steps(tmp_path / "out") == list(range(1, 25))


def test_32_new_rows_and_fewer_steps_are_refused_with_what_to_do(finished: Path, tmp_path: Path, logged):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    out, saved = tmp_path / "out", weights_digest(tmp_path / "out")
    rows = (tmp_path / "rows.jsonl").read_text(encoding="utf-8")
    more = tmp_path / "more.jsonl"
    more.write_text(rows + rows.replace("次", "前"), encoding="utf-8")
    assert call("resume", str(out), f"data.train={more}") == 78
    text = logged()
    assert f"aift train --from {out} data.train=FILE" in text
    assert "rows: 22 -> 44" in text
    assert call("resume", str(out), "num_epochs=1", "--allow-changed") == 78
    assert "is complete after 12 steps and has none left" in logged()
    assert weights_digest(out) == saved
    assert run_json(out)["status"] == "completed"


# --- 33: what a fingerprint holds


def other_value(value: Any, hint: Any) -> Any:
    """Another value that a setting may have, or the marker itself where its name has to tell."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return ["other"] if value is None or isinstance(value, list | tuple) else f"{value}x"


def test_33_every_setting_is_in_the_fingerprint_or_is_known_to_be_harmless():
    """A field that somebody adds is in it without a word, since the list is one of exceptions."""
    every = {".".join(path): hint for path, hint in fields_of(RunConfig).items()}
    listed = HARMLESS | COMES_TO.keys()
    assert listed <= every.keys()  # a name that is gone covers nothing
    assert not HARMLESS & COMES_TO.keys()
    covered = set(other_settings())
    plain = to_plain(RunConfig())
    from ai_finetuning.execution import fingerprint

    class Changed:
        """A configuration in which one setting has another value; no rule between settings is in the way."""

        trains_all = False

    for name, hint in every.items():
        if section_class(hint) is not None:
            continue
        parts = name.split(".")
        if any(".".join(parts[:length]) in listed for length in range(1, len(parts) + 1)):
            assert name not in covered
            continue
        assert name in covered, name
        changed = json.loads(json.dumps(plain))
        place = changed
        for part in parts[:-1]:
            place[part] = place[part] or {}
            place = place[part]
        place[parts[-1]] = other_value(place.get(parts[-1]), hint)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fingerprint, "to_plain", lambda config, changed=changed: changed)
            now = fingerprint.settings_of(Changed())
        before = fingerprint.settings_of(RunConfig())
        assert fingerprint.differences({"settings": before}, {"settings": now})[0][0] == name


def test_33_a_schedule_or_an_optimizer_that_changed_is_refused_with_the_whole_list(copied: Path, logged):
    assert (
        call("resume", "outputs/stop", "min_lr_ratio=0.5", "eps=1e-4", "weight_decay=0.1", "schedule.name=cosine") == 78
    )
    text = logged()
    for line in (
        "training.schedule.min_lr_ratio: 0.0 -> 0.5",
        "training.optimizer.eps: 1e-08 -> 0.0001",
        "weight_decay: 0.0 -> 0.1",
        "schedule: linear -> cosine",
    ):
        assert line in text
    assert call("resume", "outputs/stop", "logging_steps=1", "save_steps=5", "attention=eager") == 0


# --- A24: Ctrl-C


def test_a24_ctrl_c_is_answered_at_once_and_called_an_interruption(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch, faulty, capfd
):
    monkeypatch.setenv("AIFT_LANG", "ja")
    config = str(write_run(tmp_path, tiny_model_dir, output_dir=str(tmp_path / "my outputs")))
    faulty("step:int@3")
    assert call("train", config) == 75
    text = "".join(capfd.readouterr())
    answer = "中断を受け付けました。このステップの後で保存して止まります（もう一度押すとすぐ止まります）"
    assert text.count(answer) == 1
    end = f"\n中断しました。ステップ 3 まで保存済みです。再開: aift resume '{tmp_path}/my outputs'\n"
    assert end in text
    assert text.index(answer) < text.index(end)
    assert "エラー" not in text
    assert "SIGINT" not in text
    assert run_json(tmp_path / "my outputs")["status"] == "stopped"


@needs_terminal
@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a24_ctrl_c_typed_into_a_terminal(tmp_path: Path, tiny_model_dir: Path, processes: int):
    """Into a real terminal, where the signal goes to the whole group: answered once, also with several processes."""
    import pty

    config = write_run(tmp_path, tiny_model_dir, num_epochs=5000, runtime={"progress": True})
    options = ["--cpu-processes", str(processes)] if processes > 1 else []
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(environment())
        os.execv(sys.executable, [sys.executable, "-m", "ai_finetuning", "train", str(config), *options])
    text = b""
    os.set_blocking(terminal, False)

    def read() -> bytes:
        nonlocal text
        with contextlib.suppress(BlockingIOError, OSError):  # OSError: the other end is closed
            text += os.read(terminal, 1 << 16)
        return text

    try:
        metrics = tmp_path / "out" / "metrics.jsonl"
        until(
            lambda: bool(read()) and metrics.exists() and metrics.read_text("utf-8").count('"loss"') > 2, 200, "steps"
        )
        os.write(terminal, b"\x03")
        code: list[int] = []

        def ended() -> bool:
            read()
            done, status = os.waitpid(pid, os.WNOHANG)
            code.extend([os.waitstatus_to_exitcode(status)] if done else [])
            return bool(code)

        until(ended, 100, "the end")
    finally:
        if not code:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        read()
        os.close(terminal)
    said = text.decode("utf-8", errors="replace")
    assert code == [75], said
    assert said.count("interrupting: saving after this step and stopping (press again to stop at once)") == 1, said
    assert f"To go on: aift resume {tmp_path / 'out'}" in said
    assert "error" not in said
    assert run_json(tmp_path / "out")["status"] == "stopped"


def test_a24_sigterm_is_answered_too(tmp_path: Path, tiny_model_dir: Path, faulty, capfd):
    faulty("step:term@3")
    assert call("train", str(write_run(tmp_path, tiny_model_dir))) == 75
    text = "".join(capfd.readouterr())
    assert "SIGTERM received: saving after this step and stopping" in text
    assert "press again" not in text
    assert f"interrupted: saved up to step 3. To go on: aift resume {tmp_path / 'out'}" in text


def test_a24_a_second_ctrl_c_says_what_is_saved(tmp_path: Path, tiny_model_dir: Path, faulty, logged):
    faulty("step:int@7,save:int@7#2,save:slow@7#2")
    assert call("train", str(write_run(tmp_path, tiny_model_dir))) == 130
    assert f"stopped at once: saved up to step 4. To go on: aift resume {tmp_path / 'out'}" in logged()


@pytest.mark.slow
def test_a24_the_demo_can_be_interrupted_and_goes_on(tmp_path: Path, kotoha: str):
    out = tmp_path / "my demo"
    code, output = spawn("demo", "--out", str(out), "--steps", "6", fault="step:int@3", timeout=600)
    assert code == 75, output
    command = f"aift demo --resume --out '{out}' --steps 6"
    assert f"interrupted: saved up to step 3. To go on: {command}" in output
    code, output = spawn(*shlex.split(command)[1:], timeout=600)
    assert code == 0, output
    assert "resuming from step 3" in output
    assert steps(out / "adapter") == list(range(1, 7))


# --- 20, A17: saving


@pytest.mark.parametrize("method", ["lora", "full"])
def test_20_a_generation_config_that_transformers_refuses_costs_no_model(
    tmp_path: Path, tiny_model_dir: Path, logged, method: str
):
    base = tmp_path / "base"
    shutil.copytree(tiny_model_dir, base)
    refused = {"eos_token_id": 2, "temperature": 0.9, "top_p": 0.6}
    (base / "generation_config.json").write_text(json.dumps(refused), encoding="utf-8")
    write_run(tmp_path, base)
    assert (
        call(
            "train",
            f"model={base}",
            f"method={method}",
            f"data.train={tmp_path / 'rows.jsonl'}",
            f"training.output_dir={tmp_path / 'out'}",
            "max_steps=2",
            "progress=false",
        )
        == 0
    )
    text = logged()
    assert "temperature, top_p of the base's generation_config" in text
    saved = json.loads((tmp_path / "out" / "generation_config.json").read_text(encoding="utf-8"))
    assert "temperature" not in saved
    assert run_json(tmp_path / "out")["status"] == "completed"


@pytest.mark.parametrize("method", ["lora", "full"])
def test_20_a_model_that_cannot_be_saved_leaves_a_checkpoint_and_says_where(
    tmp_path: Path, tiny_model_dir: Path, faulty, logged, method: str
):
    write = write_run if method == "lora" else full_run
    config = write(tmp_path, tiny_model_dir, save_steps=500, num_epochs=1)
    faulty("final:error@0")
    assert call("train", str(config)) == 74
    text = logged()
    assert "training is done, but the model could not be saved (ValueError: injected at final)" in text
    assert f"{tmp_path / 'out' / 'checkpoints' / 'checkpoint-6'}" in text
    assert f"aift resume {tmp_path / 'out'}" in text
    assert "Traceback" not in text
    run = run_json(tmp_path / "out")
    assert run["status"] == "stopped"
    assert "could not be saved" in run["reason"]
    assert not (tmp_path / "out" / ".staging-model").exists()
    faulty("")
    assert call("resume", str(tmp_path / "out")) == 0
    assert run_json(tmp_path / "out")["status"] == "completed"
    assert len(losses(tmp_path / "out")) == 6


@pytest.mark.slow
def test_20_with_two_processes_a_model_that_cannot_be_saved_is_in_a_checkpoint_too(
    tmp_path: Path, tiny_model_dir: Path
):
    config = str(write_run(tmp_path, tiny_model_dir, save_steps=500, num_epochs=1))
    code, output = spawn("train", config, "--cpu-processes", "2", fault="final:error@0", timeout=280)
    assert code == 74, output
    assert f"The trained weights are in the checkpoint {tmp_path / 'out' / 'checkpoints' / 'checkpoint-6'}" in output
    assert run_json(tmp_path / "out")["status"] == "stopped"
    code, output = spawn("resume", str(tmp_path / "out"), timeout=280)
    assert code == 0, output
    assert "training in 2 processes" in output  # as the run began
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_20_a_failure_between_steps_leaves_a_checkpoint(tmp_path: Path, tiny_model_dir: Path, logged):
    """A script's callback that fails behind step 3, long before the first checkpoint is due."""
    import torch
    from tests.support.runs import training
    from transformers import TrainerCallback

    from ai_finetuning import DataConfig, JapaneseModel, LoRAConfig, LoRAFinetuningTrainer

    class Failing(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                raise RuntimeError("mine")

    whole = train_lora(tiny_model_dir, tmp_path / "whole", save_steps=500)
    assert whole.result is not None
    trainer = LoRAFinetuningTrainer(
        JapaneseModel(str(tiny_model_dir), torch_dtype=torch.float32),
        LoRAConfig(r=4, lora_alpha=8, lora_dropout=0.1),
        training(tmp_path / "out", save_steps=500),
        data=DataConfig(max_length=64),
    )
    from tests.support.runs import ROWS

    trainer.add_callback(Failing())
    with pytest.raises(RuntimeError, match="mine"):
        trainer.train(ROWS)
    text = logged()
    assert f"Checkpoint: {tmp_path / 'out' / 'checkpoints' / 'checkpoint-3'}" in text
    run = run_json(tmp_path / "out")
    assert (run["status"], run["reason"]) == ("stopped", "RuntimeError: mine")
    trainer.pop_callback(Failing)
    trainer.train(ROWS, resume_from_checkpoint="auto")
    assert weights_digest(tmp_path / "out") == weights_digest(tmp_path / "whole")


def test_20_a_folder_in_the_way_of_a_file_is_refused_before_the_first_step(copied: Path, logged):
    (copied / "outputs" / "stop" / "README.md").mkdir()
    assert call("resume", "outputs/stop") == 78
    assert "outputs/stop/README.md is a folder, and the run will save a file of that name" in logged()
    assert len(losses(copied / "outputs" / "stop")) == 7
    assert run_json(copied / "outputs" / "stop")["status"] == "stopped"


def test_20_what_is_not_a_weight_cannot_stop_the_weights(tmp_path: Path, tiny_model_dir: Path, logged, monkeypatch):
    from ai_finetuning.execution import artifacts

    def broken(*arguments: Any) -> str:
        raise KeyError("card")

    monkeypatch.setattr(artifacts, "model_card", broken)
    assert call("train", str(write_run(tmp_path, tiny_model_dir, num_epochs=1))) == 0
    assert "README.md could not be saved (KeyError: 'card')" in logged()
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_a17_a_run_in_the_current_folder_twice(tmp_path: Path, tiny_model_dir: Path, monkeypatch, capsys):
    config = str(write_run(tmp_path / "files", tiny_model_dir, num_epochs=1, output_dir="."))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert call("train", config) == 0
    assert f"aift merge . --out {tmp_path}/here-merged" in capsys.readouterr().out
    assert call("train", config) == 0
    (moved,) = tmp_path.glob("here.*")
    assert (moved / "adapter_model.safetensors").is_file()
    assert (tmp_path / "here" / "adapter_model.safetensors").is_file()
