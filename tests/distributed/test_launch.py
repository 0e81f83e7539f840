"""Processes that `aift train` or train() starts: the launcher, its messages, and what happens when one dies, hangs
or is told to stop.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.commands import environment, spawn, start, write_run
from tests.support.models import SENTENCES
from tests.support.patience import patience, until
from tests.support.ports import free_port
from tests.support.runs import losses, weights_digest

from ai_finetuning.config.run_folder import LOCK, METRICS
from ai_finetuning.engine.metrics import read_metrics
from ai_finetuning.errors import RunLockedError

TWO = ("--cpu-processes", "2")


def test_aift_train_starts_the_processes(tmp_path: Path, tiny_model_dir: Path):
    config = str(write_run(tmp_path, tiny_model_dir, num_epochs=1, runtime={"progress": True}, logging_steps=2))
    code, output = spawn("train", config, *TWO, "lora.lora_dropout=0.0", timeout=280)
    assert code == 0, output
    assert "training in 2 processes" in output
    assert output.count("6/6") == 1, output  # the first process talks, the other keeps still
    together = losses(tmp_path / "out")
    alone, output = spawn("train", config, "lora.lora_dropout=0.0", f"training.output_dir={tmp_path / 'alone'}")
    assert alone == 0, output
    difference = [
        abs(float.fromhex(a) - float.fromhex(b)) for a, b in zip(together, losses(tmp_path / "alone"), strict=True)
    ]
    assert max(difference) < 2e-6


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["preference", "kto"])
def test_the_processes_compare_answers_as_one_does(objective: str, tmp_path: Path, tiny_model_dir: Path):
    """Both count the references of all rows together, keep them once, and go on from them when the run was stopped."""
    rows = [
        {"prompt": f"{number}の次は？", "chosen": f"{number + 1}です。", "rejected": "知りません。" * (1 + number % 3)}
        for number in range(22)
    ]
    if objective == "kto":
        rows = [
            {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
            for row in rows[:11]
            for side in ("chosen", "rejected")
        ]
    config = str(write_run(tmp_path, tiny_model_dir, num_epochs=1))
    for name, part in (("rows", rows), ("held_out", rows[:5])):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part)
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    asked, cache = ["train", config, f"objective={objective}"], str(tmp_path / "cache")
    code, output = spawn(*asked, *TWO, fault="step:term@5", timeout=280, AIFT_CACHE=cache)
    assert code == 75, output
    assert output.count("27 rows, computed before step 1") == 1, output
    code, output = spawn(*asked, *TWO, "--resume", timeout=280, AIFT_CACHE=cache)
    assert code == 0, output
    assert "computed before step 1" not in output
    code, output = spawn(*asked, f"output_dir={tmp_path / 'alone'}", AIFT_CACHE=str(tmp_path / "own"))
    assert code == 0, output
    two, one = (read_metrics(tmp_path / name / METRICS) for name in ("out", "alone"))
    assert abs(two[0]["eval_rewards/margins"]) < 1e-4
    for together, alone in zip(two, one, strict=True):
        names = [name for name in alone if name == "loss" or "rewards" in name or "logps" in name or "kl" in name]
        assert [together[name] for name in names] == pytest.approx([alone[name] for name in names], rel=1e-3, abs=1e-4)


@pytest.mark.slow
def test_the_first_of_several_processes_compares_its_second_step_with_the_plan(tmp_path: Path, tiny_model_dir: Path):
    """What the launcher simulated for the strategy that `auto` took."""
    config = str(write_run(tmp_path, tiny_model_dir, schedule={"max_steps": 3}))
    code, output = spawn("train", config, *TWO, "parallel.strategy=auto", "--plan", "exact", timeout=280)
    assert code == 0, output
    (line,) = re.findall(r"memory, planned and real \(step 2\): .*", output)
    assert len(re.findall(r"\(([+-][\d.]+)%\)", line)) == 4
    assert all(abs(float(off)) < 2 for off in re.findall(r"\(([+-][\d.]+)%\)", line)), line


def test_a_refusal_of_the_processes_is_the_commands_own(tmp_path: Path, tiny_model_dir: Path):
    """What only the processes can find out comes back as the error it is."""
    config = str(write_run(tmp_path, tiny_model_dir))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("mine", encoding="utf-8")
    code, output = spawn("train", config, *TWO, timeout=280)
    assert code == 78, output
    assert "holds config.json, which no run of this toolkit wrote" in output
    assert "Traceback" not in output
    assert (tmp_path / "out" / "config.json").read_text(encoding="utf-8") == "mine"


def test_a_folder_in_use_is_refused_before_its_run_loses_a_file(tmp_path: Path, tiny_model_dir: Path):
    from filelock import FileLock

    config = str(write_run(tmp_path, tiny_model_dir))
    mine = tmp_path / "out" / ".launch" / "job.json"
    mine.parent.mkdir(parents=True)
    mine.write_text("of the run at work", encoding="utf-8")
    with FileLock(tmp_path / "out" / LOCK):
        code, output = spawn("train", config, *TWO, timeout=280)
    assert code == RunLockedError.exit_code, output
    assert "in use by another run" in output
    assert mine.read_text(encoding="utf-8") == "of the run at work"


def test_more_gpus_than_there_are_is_refused(tmp_path: Path, tiny_model_dir: Path):
    import torch

    asked = torch.cuda.device_count() + 1
    code, output = spawn("train", str(write_run(tmp_path, tiny_model_dir)), "--gpus", str(asked))
    assert code == 78
    assert f"--cpu-processes {asked}" in output


SCRIPT = """
import sys
import torch
from ai_finetuning import AdvancedMultiGPUTrainer, DataConfig, JapaneseModel, MultiGPUTrainingConfig, RuntimeConfig

model = JapaneseModel({model!r}, device=torch.device("cpu"))
with torch.no_grad():
    model.load_model().get_input_embeddings().weight.mul_(1.5)  # what is in memory trains, not what is on disk
config = MultiGPUTrainingConfig(
    strategy="ddp", output_dir={out!r}, num_epochs=1, batch_size=2, gradient_accumulation_steps=2, learning_rate=1e-3,
    fp16=False, gradient_checkpointing=False, runtime=RuntimeConfig(progress=False),
)
config.parallel.processes = int(sys.argv[1]) if int(sys.argv[1]) > 1 else None
trainer = AdvancedMultiGPUTrainer(model, config, data=DataConfig(max_length=64))
trained = trainer.train({texts!r})
ids = torch.tensor([[5, 6, 7, 8]])
print("LOGITS", *trained(input_ids=ids).logits[0, -1, :50].tolist())
"""


def test_train_starts_processes_from_a_script_without_a_main_guard(tmp_path: Path, tiny_model_dir: Path):
    def logits(processes: int) -> list[float]:
        script = tmp_path / f"script{processes}.py"
        out = str(tmp_path / f"out{processes}")
        script.write_text(SCRIPT.format(model=str(tiny_model_dir), out=out, texts=SENTENCES), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, str(script), str(processes)],
            env=environment(PYTHONPATH=path()),
            capture_output=True,
            text=True,
            timeout=patience(280),
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("LOGITS") == 1
        return [float(number) for number in done.stdout.split("LOGITS")[1].split()]

    assert logits(2) == pytest.approx(logits(1), abs=5e-3)  # saved and loaded in bf16


def steps_in(metrics: Path) -> int:
    """Steps that a run has logged so far."""
    return metrics.read_text(encoding="utf-8").count('"loss"') if metrics.exists() else 0


def path() -> str:
    import ai_finetuning

    return str(Path(ai_finetuning.__file__).parents[1])


@pytest.fixture(scope="module")
def uninterrupted(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes that nothing disturbs, LoRA with dropout."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    code, output = spawn("train", str(write_run(folder, tiny_model_dir)), *TWO, timeout=280)
    assert code == 0, output
    return folder / "out"


@pytest.mark.faults
def test_a_killed_rank_is_started_anew_and_ends_with_the_same_bits(
    tmp_path: Path, tiny_model_dir: Path, uninterrupted: Path
):
    """Case 22: rank 1 is killed -9 mid-epoch; both start again, from the last checkpoint."""
    config = str(write_run(tmp_path, tiny_model_dir))
    code, output = spawn("train", config, *TWO, "parallel.max_restarts=1", fault="step:kill@11%1", timeout=280)
    assert code == 0, output
    assert weights_digest(tmp_path / "out") == weights_digest(uninterrupted)
    assert losses(tmp_path / "out") == losses(uninterrupted)


@pytest.mark.faults
def test_a_killed_rank_ends_the_others_and_the_run_can_go_on(tmp_path: Path, tiny_model_dir: Path, uninterrupted: Path):
    config = str(write_run(tmp_path, tiny_model_dir))
    process = start("train", config, *TWO, fault="step:kill@11%1")
    output, _ = process.communicate(timeout=patience(280))
    assert process.returncode == 70, output
    assert "a process of the run failed" in output
    assert f"aift resume {tmp_path / 'out'}" in output
    code, output = spawn("train", config, *TWO, "training.resume_from_checkpoint=auto", timeout=280)
    assert code == 0, output
    assert weights_digest(tmp_path / "out") == weights_digest(uninterrupted)


@pytest.mark.faults
def test_the_error_of_one_rank_is_what_the_user_reads(tmp_path: Path, tiny_model_dir: Path):
    """Rank 1 fails right after a checkpoint that is still being written, while rank 0 waits for it."""
    config = str(write_run(tmp_path, tiny_model_dir))
    code, output = spawn("train", config, *TWO, fault="step:oom@5%1", timeout=280)
    assert code == 70, output
    assert "on rank 1 a micro-batch of 2 rows does not fit in memory (injected at step of step 5)" in output
    assert "lower training.batch_size" in output
    code, output = spawn(
        "train", config, *TWO, "training.resume_from_checkpoint=auto", fault="step:full@7%1", timeout=280
    )
    assert code == 70, output
    assert "resuming from step 4" in output
    assert (
        "the process of rank 1 ended with an error (OSError: [Errno 28] No space left on device (injected))" in output
    )
    assert not list((tmp_path / "out").glob("stacks-rank-*.txt"))  # nobody had to be timed out


@pytest.mark.faults
def test_sigterm_saves_in_all_processes_and_the_run_goes_on(tmp_path: Path, tiny_model_dir: Path, uninterrupted: Path):
    config = str(write_run(tmp_path, tiny_model_dir))
    process = start("train", config, *TWO, fault="step:slow@5,step:slow@6,step:slow@7,step:slow@8")
    metrics = tmp_path / "out" / "metrics.jsonl"
    until(lambda: steps_in(metrics) > 4, 200, "step 5")
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=patience(200))
    assert process.returncode == 75, output
    assert json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))["status"] == "stopped"
    code, output = spawn("train", config, *TWO, "training.resume_from_checkpoint=auto", timeout=280)
    assert code == 0, output
    assert weights_digest(tmp_path / "out") == weights_digest(uninterrupted)


@pytest.mark.faults
def test_a_hung_rank_is_named_and_every_stack_is_kept(tmp_path: Path, tiny_model_dir: Path):
    """Case 21: rank 1 stands still before step 7; the watchdog says so and ends the run."""
    config = str(write_run(tmp_path, tiny_model_dir))
    code, output = spawn(
        "train", config, *TWO, f"parallel.timeout_seconds={patience(12):.0f}", fault="step:hang@7%1", timeout=280
    )
    assert code == 70, output
    assert re.search(r"Rank 1 is behind", output), output
    stacks = [(tmp_path / "out" / f"stacks-rank-{rank}.txt").read_text(encoding="utf-8") for rank in (0, 1)]
    assert "faults.py" in stacks[1]
    assert "distributed.py" in stacks[0]


def torchrun_of_a_node(port: int) -> list[str]:
    """The command that examples/slurm/train.sbatch runs on each of two nodes, one process a node."""
    template = (Path(__file__).parents[2] / "examples" / "slurm" / "train.sbatch").read_text(encoding="utf-8")
    line = re.search(r"srun \S+ torchrun (.*?)\s*&", template.replace("\\\n", " "), re.DOTALL)
    assert line is not None
    values = {
        "$SLURM_NNODES": "2",
        "$SLURM_GPUS_PER_NODE": "1",
        "$SLURM_JOB_ID": "77",
        "$head_node:$port": f"127.0.0.1:{port}",
    }
    words = shlex.split(line[1].replace('"$@"', "ARGUMENTS"))
    for name, value in values.items():
        words = [word.replace(name, value) for word in words]
    assert not [word for word in words if "$" in word]
    return words


@pytest.mark.faults
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds torchrun's child as Linux lists it")
def test_two_nodes_start_anew_when_a_process_of_one_is_killed(
    tmp_path: Path, tiny_model_dir: Path, uninterrupted: Path
):
    """Two torchrun agents meet over c10d, as two nodes do; a kill -9 on one starts both again, to the same bits."""
    words, config = torchrun_of_a_node(free_port()), str(write_run(tmp_path, tiny_model_dir))
    at = words.index("ARGUMENTS")
    command = [*words[:at], config, *words[at + 1 :]]
    assert command[command.index("-m") + 1 :] == ["ai_finetuning", "train", config, "--resume"]
    nodes = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--local-addr=127.0.0.1", *command],
            env=environment(
                PYTHONPATH=path(),
                TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1",
                AIFT_FAULT="step:slow@10,step:slow@11,step:slow@12",
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    try:
        metrics = tmp_path / "out" / "metrics.jsonl"
        until(lambda: steps_in(metrics) > 9, 200, "step 10")
        (worker,) = Path(f"/proc/{nodes[1].pid}/task/{nodes[1].pid}/children").read_text(encoding="ascii").split()
        os.kill(int(worker), signal.SIGKILL)
        outputs = [node.communicate(timeout=patience(280))[0] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert [node.returncode for node in nodes] == [0, 0], outputs
    assert any("exitcode: -9" in output for output in outputs), outputs
    assert weights_digest(tmp_path / "out") == weights_digest(uninterrupted)
    assert losses(tmp_path / "out") == losses(uninterrupted)


# An interpreter that is taken apart with this in it aborts, as it may beside torch's native threads.
ABORTS = """import os, sys
class Abort:
    def __del__(self, abort=os.abort):
        abort()
if os.environ.pop("ABORT_AT_END", None):
    sys.abort_at_end = Abort()
"""


def test_machines_that_differ_compute_a_step_in_one_way(tmp_path: Path, tiny_model_dir: Path):
    """Rank 0 has a compiler and two threads, rank 1 no compiler and one thread: both take the portable path and one thread,
    and the run's folder and its checkpoint say so. Nothing that happens as their interpreters end makes a failure of it.
    """
    config = str(write_run(tmp_path, tiny_model_dir, num_epochs=1))
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(ABORTS, encoding="utf-8")
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    common |= {"MASTER_PORT": str(free_port()), "PYTHONPATH": os.pathsep.join((str(tmp_path / "site"), path()))}
    common |= {"ABORT_AT_END": "1"}
    nowhere = {"PATH": str(tmp_path / "no programs"), "AIFT_CACHE": str(tmp_path / "cache")}
    nodes = [
        start("train", config, **common, RANK=rank, **machine)
        for rank, machine in (("0", {"OMP_NUM_THREADS": "2"}), ("1", {"OMP_NUM_THREADS": "1", **nowhere}))
    ]
    try:
        outputs = [node.communicate(timeout=patience(280))[0] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert [node.returncode for node in nodes] == [0, 0], outputs
    assert "training step: portable" in outputs[0]
    folder = tmp_path / "out"
    states = sorted((folder / "checkpoints").glob("checkpoint-*/state.json"))
    assert states
    for written in (folder / "run.json", *states):
        derived = json.loads(written.read_text(encoding="utf-8"))["derived"]
        assert {name: derived[name] for name in ("kernels", "products", "threads")} == {
            "kernels": "portable",
            "products": "torch",
            "threads": 1,
        }
