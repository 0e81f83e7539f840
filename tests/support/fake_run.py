"""A training at a pace that a test sets: it writes a run's folder as a run does, by the functions of runs/, and looks for
requests to stop after each step. `python -m tests.support.fake_run FOLDER --steps 40 --pace 0.1`
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import time
from pathlib import Path

from ai_finetuning.config.run_folder import METRICS, SAMPLES
from ai_finetuning.runs.folder import read_run
from ai_finetuning.runs.phase import change_run, phase, tell_phase
from ai_finetuning.runs.process import identity
from ai_finetuning.runs.stop import take_stop

QUESTION = "<img src=x onerror=alert(1)>"


def rows_to(steps: int, total: int) -> list[dict[str, float]]:
    """Rows of metrics.jsonl, as if one step took a tenth of a second."""
    return [row(step, total, step / 10) for step in range(1, steps + 1)]


def row(step: int, total: int, seconds: float, now: float | None = None) -> dict[str, float]:
    loss = 2.0 * math.exp(-step / 30) + 0.2 + 0.05 * math.sin(step)
    return {
        **{"step": step, "total_steps": total, "epoch": step / total, "loss": loss, "learning_rate": 1e-3},
        **{"seconds": seconds, "time": time.time() if now is None else now},
    }


def write(folder: Path, content: dict[str, object], name: str = METRICS) -> None:
    with (folder / name).open("a", encoding="utf-8") as file:
        file.write(json.dumps(content, ensure_ascii=False) + "\n")


def begin(folder: Path, total: int) -> None:
    """The folder of a run that is at work in this process."""
    folder.mkdir(parents=True, exist_ok=True)
    same = {"model": "embedded:kotoha-tiny", "method": "lora", "total_steps": total}
    started = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
    change_run(
        folder, status="running", **identity(), phase=phase("preparing"), started=started, fingerprint=same, reason=None
    )
    (folder / "config.yaml").write_text("model:\n  name: embedded:kotoha-tiny\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--pace", type=float, default=0.1)
    parser.add_argument("--from-step", type=int, default=0)
    parser.add_argument("--evaluate", type=int, default=10)
    parser.add_argument("--crash", type=int, default=0, help="the step at which it fails")
    parser.add_argument("--kill", type=int, default=0, help="the step at which it is killed")
    parser.add_argument(
        "--hold", type=int, default=0, help="the step after which it waits for a file `go` in its folder"
    )
    parser.add_argument("--step-seconds", type=float, help="what a row says of a step, whatever the pace is")
    given = parser.parse_args()
    begin(given.folder, given.steps)
    tell_phase(given.folder, "training")
    started = time.monotonic()
    for step in range(given.from_step + 1, given.steps + 1):
        time.sleep(given.pace)
        seconds, now = time.monotonic() - started, None
        if given.step_seconds is not None:
            seconds, now = step * given.step_seconds, time.time() - (given.steps - step) * given.step_seconds
        write(given.folder, row(step, given.steps, seconds, now))
        if step % given.evaluate == 0:
            write(given.folder, {"step": step, "total_steps": given.steps, "eval_loss": 2 / step + 0.3})
            answer = {"step": step, "question": QUESTION, "expected": "はい。", "answer": f"{QUESTION} {step}"}
            write(given.folder, answer, SAMPLES)
        while step == given.hold and not (given.folder / "go").exists():
            time.sleep(0.05)
        if step == given.kill:
            os.kill(os.getpid(), signal.SIGKILL)
        if step == given.crash:
            change_run(given.folder, status="failed", reason="OutOfMemoryError: メモリーが足りません")
            raise SystemExit(1)
        if take_stop(given.folder) is not None:
            change_run(given.folder, status="stopped", reason="PreemptedError: 中断しました")
            return
    values = read_run(given.folder)
    assert values["status"] == "running"
    change_run(given.folder, status="completed", phase=phase("saving"), result={"steps": given.steps})


if __name__ == "__main__":
    main()
