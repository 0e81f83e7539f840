"""Starts the processes of a run on this machine, from a folder that says what to do."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from .. import errors
from ..config.load import load_config
from ..config.mixture import Sources
from ..config.run_folder import LAUNCH
from ..config.run_yaml import describe_run
from ..data.example import Example
from ..data.text_dataset import TextDataset
from ..errors import ConfigError, PreemptedError, ProcessesError, ToolkitError
from ..messages import argument, notice
from ..models import catalog
from ..models.base_model import BaseModel
from ..models.japanese_model import JapaneseModel
from ..models.loading import DTYPES
from ..models.random_init import ScratchModel
from ..models.source import ModelSource
from ..planner.cuts import Cut
from ..planner.phases import Timeline
from ..runs.recorded import saved_step
from ..system.children import isolated_python
from ..system.cores import physical_cores, threads_are_chosen
from ..system.gpu import get_available_device
from .derived import threads_of
from .launcher import Ended, launch, private_file
from .output_folder import OutputFolder
from .request import ResolvedStrategy, TrainRequest
from .resolve import RunPlan
from .sources import config_source

JOB, RUN, STARTED, ERROR, LOGS = "job.json", "run.yaml", "started", "error.json", "logs"
ROWS = TRAIN, HELD_OUT = "train.jsonl", "held_out.jsonl"  # data of the user's: they go when the run ends


def run_processes(plan: RunPlan, second_step: Timeline | None = None) -> None:
    """Writes the request, starts the processes, shows what the first one says; returns when all have ended well.

    Args:
        second_step: simulated, for the first process to compare with.

    Raises:
        ToolkitError: what a process raised. ProcessesError: one died. RunLockedError: another run is at work there.
    """
    processes, restarts = plan.processes_to_start, plan.request.config.parallel.max_restarts
    threads = plan.taken.get("threads")
    if plan.device.type == "cpu" and not threads_are_chosen():
        each = max(1, physical_cores() // processes)
        # Refuses more than there are: each process takes the launcher's number for one that somebody has asked for.
        threads_of(threads, each, each, chosen=False)
    folder = Path(plan.summary.output_dir) / LAUNCH
    OutputFolder(folder.parent, keep=2).validate_free()
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700)
    try:
        write_request(plan, folder, second_step)
        notice(f"{processes} プロセスで学習します。", f"training in {processes} processes.")
        command = [*isolated_python("ai_finetuning.execution.worker"), str(folder)]
        read: dict[Path, int] = {}
        ended = launch(
            command,
            processes,
            folder / LOGS,
            max_restarts=restarts,
            watch=lambda: _show(folder / LOGS, read),
            threads=threads,
        )
    finally:
        remove_rows(folder)
    if ended.rank is not None or (folder / ERROR).exists():
        raise _error(folder, ended)


def remove_rows(folder: Path) -> None:
    """Deletes the user's rows from a `.launch` folder."""
    for name in ROWS:
        (folder / name).unlink(missing_ok=True)


def _show(logs: Path, read: dict[Path, int]) -> None:
    for path in sorted(logs.glob("*/attempt_*/0/std*.log")):
        with path.open("rb") as file:
            file.seek(read.get(path, 0))
            text = file.read()
        read[path] = read.get(path, 0) + len(text)
        if text:
            sys.stderr.write(text.decode("utf-8", errors="replace"))
            sys.stderr.flush()


def _error(folder: Path, ended: Ended) -> ToolkitError:
    """What went wrong, as the process that failed has written it."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        reported = json.loads((folder / ERROR).read_text(encoding="utf-8"))
        kind = getattr(errors, reported["kind"], ToolkitError)
        obtained: ToolkitError = kind(reported["ja"], reported["en"])
        return obtained
    if ended.stopped:  # before it could save: a signal ends a process that does not train yet
        step, command = saved_step(folder.parent), f"aift resume {argument(folder.parent)}"
        if step is None:
            return PreemptedError("中断しました。まだ何も保存していません。", "interrupted: nothing is saved yet.")
        return PreemptedError(
            f"中断しました。ステップ {step} まで保存済みです。再開: {command}",
            f"interrupted: saved up to step {step}. To go on: {command}",
        )
    tail, command = _last_lines(folder), f"aift resume {argument(folder.parent)}"
    return ProcessesError(
        f"ランク {ended.rank} のプロセスが終了しました（終了コード {ended.code}）。ログ: {folder / LOGS}。{tail} 直してから再開: {command}",
        f"a process of the run failed (rank {ended.rank}, exit code {ended.code}). Logs: {folder / LOGS}. {tail} "
        f"To go on: {command}",
    )


def _last_lines(folder: Path) -> str:
    """The ends of the processes' error logs."""
    lines = []
    for path in sorted((folder / LOGS).glob("*/attempt_*/*/stderr.log")):
        text = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        if text:
            lines.append(f"[rank {path.parent.name}] {text[-1][:300]}")
    return " ".join(lines)


# --- the folder


def write_request(plan: RunPlan, folder: Path, second_step: Timeline | None = None) -> None:
    """The request, with what has been found for it; rows and, where they were changed in memory, weights.

    Args:
        second_step: simulated, for the first process to compare with.

    Raises:
        ConfigError: rows that no file can hold.
    """
    request = plan.request
    _write(folder / RUN, [describe_run(request.config, {})])
    content = {
        "model": _model_spec(plan, folder),
        "use_accelerate": request.use_accelerate,
        "train": _source_spec(request.train, folder / TRAIN),
        "held_out": _source_spec(request.eval_data, folder / HELD_OUT),
        "settled": as_plain(replace(settled_of(plan), second_step=second_step)),
    }
    _write(folder / JOB, [json.dumps(content, ensure_ascii=False)])


def _write(path: Path, parts: Iterable[str]) -> None:
    with private_file(path) as file:
        for part in parts:
            file.write(part.encode())


def _model_spec(plan: RunPlan, folder: Path) -> dict[str, Any]:
    model, source = plan.request.model, plan.source
    names = {dtype: name for name, dtype in DTYPES.items() if name != "auto"}
    device = model.device or get_available_device()
    common = {
        "name": model.model_name,
        "device": device.type,
        "dtype": names.get(model.torch_dtype) if model.torch_dtype is not None else None,
        "attention": getattr(model, "attention", "auto"),
        "chat_template": getattr(model, "chat_template", None),
        "source": {
            "name": source.name,
            "path": source.path,
            "local_only": source.local_only,
            "config": dict(source.config),
            "remote_code": source.remote_code,
        },
    }
    if isinstance(model, ScratchModel):
        return common | {"kind": "scratch", "seed": model.seed}
    if isinstance(model, JapaneseModel) and model.weights_changed():
        assert model.model is not None
        model.model.save_pretrained(folder / "model")
        model.ensure_tokenizer().save_pretrained(folder / "model")
        common["weights"] = str(folder / "model")
    keys = ("load_in_8bit", "load_in_4bit", "use_flash_attention", "trust_remote_code")
    return common | {"kind": "japanese"} | {key: getattr(model, key) for key in keys if hasattr(model, key)}


def _source_spec(source: Any, path: Path) -> dict[str, Any] | None:
    if source is None:
        return None
    if isinstance(source, float):
        return {"share": source}
    if isinstance(source, str | Path):
        return {"path": str(source)}
    if isinstance(source, list) and all(isinstance(item, Path) for item in source):
        return {"paths": [str(item) for item in source]}
    if isinstance(source, Sources):
        return {"sources": [entry.plain() for entry in source.entries]}
    if isinstance(source, TextDataset):
        rows: Iterator[Any] = (
            {
                "input_ids": e.input_ids.tolist(),
                "labels": e.labels.tolist(),
                "characters": e.characters,
                "source": e.source,
            }
            for e in source.examples
        )
        _write_rows(rows, path)
        return {"tokens": str(path), "max_length": source.max_length, "pad": source.pad_token_id}
    _write_rows((_row(item) for item in source), path)
    return {"path": str(path)}


def _row(item: Any) -> Mapping[str, Any]:
    if isinstance(item, str):
        return {"text": item}
    return item if isinstance(item, Mapping) else {"messages": item}


def _write_rows(rows: Iterator[Any], path: Path) -> None:
    try:
        _write(path, (json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"学習データの行を複数プロセスに渡せません（{error}）。JSON にできる値だけにするか、ファイルのパスを渡してください。",
            f"the rows cannot be passed to several processes ({error}); use values that JSON can hold, or name a file.",
        ) from error


def read_request(folder: Path) -> TrainRequest:
    """What write_request() wrote, in a process of the run."""
    content = json.loads((folder / JOB).read_text(encoding="utf-8"))
    # A file cannot allow foreign code; the job's model says that the user did.
    trusted = ["model.trust_remote_code=true"] if content["model"].get("trust_remote_code") else []
    config = load_config(folder / RUN, trusted)
    train, eval_data = _source(content["train"]), _source(content["held_out"])
    return TrainRequest(
        _model(content["model"], config.model.architecture),
        config,
        train,
        eval_data,
        content["use_accelerate"],
        resolved(content["settled"]),
    )


def settled_of(plan: RunPlan) -> ResolvedStrategy:
    """What every process of a run takes as one of them has decided it."""
    derived = plan.derived
    cut = Cut(
        derived.batch_size, derived.gradient_accumulation_steps, derived.gradient_checkpointing, offload=plan.offload
    )
    return ResolvedStrategy(
        plan.parallel.strategy, plan.parallel.processes, cut if plan.device.type == "cuda" else None
    )


def as_plain(settled: ResolvedStrategy) -> dict[str, Any]:
    """Plain values, which resolved() reads back."""
    return asdict(settled)


def resolved(spec: dict[str, Any]) -> ResolvedStrategy:
    """What as_plain() gave."""
    cut, told = spec.get("cut"), spec.get("second_step")
    return ResolvedStrategy(
        spec["strategy"],
        spec["processes"],
        None if cut is None else Cut(**cut),
        None if told is None else Timeline(**told | {name: tuple(told[name]) for name in ("layers", "unknown")}),
    )


def _model(spec: dict[str, Any], architecture: Any) -> BaseModel:
    model = _new_model(spec, architecture)
    if "weights" not in spec:
        obtained = spec["source"]
        model.use_source(ModelSource(**obtained, catalog_row=catalog.lookup(obtained["name"])))
    return model


def _new_model(spec: dict[str, Any], architecture: Any) -> BaseModel:
    device = torch.device("cpu") if spec["device"] == "cpu" else None
    dtype = DTYPES[spec["dtype"]] if spec["dtype"] is not None else None
    if spec["kind"] == "scratch":
        return ScratchModel(
            spec["name"],
            architecture,
            device,
            dtype,
            attention=spec["attention"],
            chat_template=spec["chat_template"],
            seed=spec["seed"],
        )
    keys = ("load_in_8bit", "load_in_4bit", "use_flash_attention", "trust_remote_code", "attention", "chat_template")
    model = JapaneseModel(
        spec.get("weights", spec["name"]), device, torch_dtype=dtype, **{key: spec[key] for key in keys if key in spec}
    )
    return model


def _source(spec: dict[str, Any] | None) -> Any:
    if spec is None:
        return None
    if "share" in spec:
        return float(spec["share"])
    if "tokens" in spec:
        import numpy as np

        lines = Path(spec["tokens"]).read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        examples = [
            Example(
                np.array(row["input_ids"], np.int64),
                np.array(row["labels"], np.int64),
                row["characters"],
                row["source"],
            )
            for row in rows
        ]
        return TextDataset.of(examples, max_length=spec["max_length"], pad_token_id=spec["pad"])
    if "sources" in spec:
        return config_source(spec["sources"])
    if "paths" in spec:
        return [Path(path) for path in spec["paths"]]
    return Path(spec["path"]) if Path(spec["path"]).exists() else spec["path"]
