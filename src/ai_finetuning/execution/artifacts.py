"""What stays of a run: model or adapter, tokenizer, configuration, numbers, curve, card."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..config.plain import to_plain
from ..config.run import RunConfig
from ..config.run_folder import CHECKPOINTS, CONFIG, CURVE, ENVIRONMENT, METRICS, REPORT, WITHOUT_WEIGHTS
from ..config.run_yaml import absolute_paths, describe_run
from ..config.section import explicitly_set, with_values
from ..config.sections import CheckpointConfig
from ..data.vocabulary import vocabulary_line
from ..engine.checkpoint.read import write_shards
from ..engine.checkpoint.store import load as load_checkpoint
from ..engine.metrics import read_metrics
from ..errors import ModelError, ToolkitError
from ..evaluation.curves import draw_curve
from ..evaluation.figures import figures_of
from ..evaluation.verdict import closing_lines, verdict
from ..inference.usable import write_without_weights
from ..messages import notice, warn
from ..models.activation_checkpointing import disable_activation_checkpointing
from ..models.adapter_folder import base_name, is_adapter, note_training_base, recorded_config
from ..models.adapters import load_adapter, quiet_peft, tied_names, write_adapter
from ..models.loading import load_causal_lm
from ..models.quantized import quantized_bits
from ..models.tokenizers import repair_generation_config, save_generation_config
from ..runs.folder import STAGING, read_run
from ..runs.phase import write_run
from ..runs.weights import place_saved
from ..system.environment import environment
from ..system.gpu import is_out_of_memory
from .adapter_start import parent_of
from .base_weights import load_base
from .build import Built
from .derived import Derived
from .fingerprint import weights_mark
from .model_card import Base, model_card
from .output_folder import OutputFolder, new_folder, not_written, validate_new_folder
from .reporting import RunReport, data_names, report_of
from .request import TrainRequest
from .resolve import RunPlan
from .result import Result
from .resume import validate_weights

# Where a setting stands that the run derives.
# Of a plan, what says nothing of the run on another day.
_OF_THE_MOMENT = frozenset(
    (
        "memory",
        "free_memory_bytes",
        "free_disk_bytes",
        "speed",
        "measured_memory",
        "limit_bytes",
        "devices",
        "choice",
        "calibration",
    )
)
_SETTINGS = {
    "precision": "training.runtime.precision",
    "warmup_steps": "training.warmup_steps",
    "gradient_checkpointing": "training.gradient_checkpointing",
    "kernels": "training.runtime.kernels",
    "dtype": "model.dtype",
    "attention": "model.attention",
    "target_modules": "lora.target_modules",
    "eval_steps": "training.eval_steps",
}
# Settings that a run derives on a GPU only: said where it took something else than the settings.
_CUT = {
    "batch_size": "training.batch_size",
    "gradient_accumulation_steps": "training.gradient_accumulation_steps",
}


def descriptions(plan: RunPlan, derived: Derived) -> dict[str, str]:
    """The files that describe a run: what `aift train` reads again, and the machine."""
    request = plan.request
    config = absolute_paths(_as_a_new_run(_with_data(request)), Path.cwd())
    return {
        CONFIG: describe_run(
            config,
            {
                _SETTINGS[name]: value
                for name, value in asdict(derived).items()
                if name in _SETTINGS and (name, value) != ("eval_steps", None)
            }
            | {
                key: getattr(derived, name)
                for name, key in _CUT.items()
                if getattr(derived, name) != getattr(request.config.training, name)
            },
        ),
        ENVIRONMENT: json.dumps(environment(), ensure_ascii=False, indent=1),
    }


def _with_data(request: TrainRequest) -> RunConfig:
    """The settings with the files that a trainer was given by argument, so that `aift train` finds them again."""
    data = request.config.data
    for name, source in (("train", request.train), ("eval", request.eval_data)):
        items = source if isinstance(source, list) else [source]
        if getattr(data, name) is None and all(isinstance(item, Path) for item in items):
            data = with_values(data, **{name: [str(item) for item in items] if source is items else str(source)})
        elif getattr(data, name) is None and isinstance(source, str | float):
            data = with_values(data, **{name: source})
    return with_values(request.config, data=data) if data is not request.config.data else request.config


def _as_a_new_run(config: RunConfig) -> RunConfig:
    """Without what only says how this process came to the run: config.yaml describes the run, and a rerun starts from
    the beginning.
    """
    checkpoint = config.training.checkpoint
    own = checkpoint.resume_from_checkpoint is not None and (
        checkpoint.resume_from_checkpoint == "auto"
        or Path(checkpoint.resume_from_checkpoint).resolve() == Path(config.training.output_dir).resolve()
    )
    values = to_plain(checkpoint, given_only=True)
    for name in ("restart", "allow_changed", *(["resume_from_checkpoint"] if own else [])):
        values.pop(name, None)
    training = with_values(config.training, checkpoint=CheckpointConfig(**values))
    return with_values(config, training=training) if "checkpoint" in explicitly_set(config.training) else config


def write_beside(plan: RunPlan, folder: OutputFolder, model: Any, dtype: torch.dtype) -> None:
    """Writes, before the first step, what makes a model of any checkpoint of this run.

    Raises:
        StorageError: it cannot be written.
    """
    place = folder.path / CHECKPOINTS / WITHOUT_WEIGHTS
    try:
        write_without_weights(model, plan.tokenizer, place, full=plan.request.full, dtype=dtype, home=folder.path)
    except OSError as error:
        raise not_written(place, error) from error


def finish(
    plan: RunPlan,
    folder: OutputFolder,
    result: Result,
    dtype: torch.dtype,
    report: RunReport,
    export: Callable[[Path], None] | None = None,
    pending: dict[str, Any] | None = None,
) -> None:
    """Saves everything; the run counts as completed only when all of it is in place.

    Args:
        report: asks the trained model, and makes the last page.
        export: writes the weights of a model whose parts lie in several processes; None: the model is whole here.
        pending: run.json's `verdict` until there is one.

    Raises:
        StorageError: the model cannot be written.
    """
    model: Any = result.model
    disable_activation_checkpointing(model)
    model.eval()
    if export is None and plan.request.full:
        model.to(dtype)
    history = result.history = read_metrics(folder.path / METRICS)
    summary = summarize(result, plan)
    general = report.ask(model)

    def save(path: Path) -> None:
        with quiet_peft():
            (export or model.save_pretrained)(path)
        # From here on nothing can cost the weights.
        for name, write in (
            *_beside_weights(model, plan.tokenizer, path, folder.path),
            ("README.md", lambda: _write_card(plan, summary, path, general)),
            (REPORT, lambda: (path / REPORT).write_bytes(report.completed(history, summary, result.saved_step))),
            (CURVE, lambda: _draw(history, path / CURVE)),
        ):
            _try_to_write(name, write)

    names = folder.place_model(save, f"step{summary['saved_step']}")
    folder.complete(files=names, base_bits=quantized_bits(model), result=summary, verdict=pending)
    what = ("モデル", "the model") if plan.request.full else ("LoRA アダプター", "the LoRA adapter")
    notice(f"{what[0]}を {folder.path} に保存しました。", f"{what[1]} is in {folder.path}.")
    for line in closing_lines(verdict(history, result.saved_step), folder.path / REPORT):
        notice(line.ja, line.en)


def _try_to_write(name: str, write: Callable[[], Any]) -> None:
    """Writes what a model can do without; only a disk that fails stops the save."""
    try:
        write()
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        warn(
            f"{name} を保存できませんでした（{type(error).__name__}: {str(error)[:200]}）。重みは保存します。",
            f"{name} could not be saved ({type(error).__name__}: {str(error)[:200]}); the weights are.",
        )


def rehearse(plan: RunPlan, folder: OutputFolder, built: Built) -> None:
    """Tries, before the first step, what the end of the run will write beside the weights: on the real objects.

    Raises:
        ModelError: the model's or the tokenizer's files cannot be made. ConfigError: something is in the way.
        StorageError: the folder cannot be written.
    """
    model: Any = built.model
    repair_generation_config(model.generation_config)
    summary = summarize(Result(model, folder.path, built.run.state), plan)

    def save(path: Path) -> None:
        full, dtype = plan.request.full, built.save_dtype
        write_without_weights(model, plan.tokenizer, path, full=full, dtype=dtype, home=folder.path)
        _try_to_write("README.md", lambda: _write_card(plan, summary, path))

    try:
        folder.rehearse(save)
    except ToolkitError:
        raise
    except OSError as error:
        raise not_written(folder.path, error) from error
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error)[:300]}"
        raise ModelError(
            f"{plan.request.model.model_name} の設定かトークナイザーを保存できないため（{reason}）、学習を始めません。モデルのフォルダーの中身を確認してください。",
            f"the configuration or the tokenizer of {plan.request.model.model_name} cannot be saved ({reason}), so the "
            "run does not start; check the files of the model.",
        ) from error


def _write_card(plan: RunPlan, summary: dict[str, Any], path: Path, answers: Sequence[tuple[str, str]] = ()) -> None:
    card = model_card(plan.request.config, summary, environment(), Base.of(plan.source), answers)
    (path / "README.md").write_bytes(card.encode("utf-8", "replace"))


def _write_model(write: Callable[[Path], Any], model: Any, tokenizer: Any, place: Path, home: Path) -> None:
    """Model or adapter, generation config and tokenizer; `home` is the folder that `place` will be."""
    with quiet_peft():
        write(place)
    for _, write_it in _beside_weights(model, tokenizer, place, home):
        write_it()


def _beside_weights(model: Any, tokenizer: Any, place: Path, home: Path) -> tuple[tuple[str, Callable[[], Any]], ...]:
    """What lies beside the weights in `place`, by name, and what writes it."""

    def note_base() -> None:
        (place / "README.md").unlink(missing_ok=True)  # peft's empty card
        if is_adapter(place):
            note_training_base(place, home, base_name(recorded_config(place)), quantized_bits(model))

    return (
        ("adapter_config.json", note_base),
        ("generation_config.json", lambda: save_generation_config(model.generation_config, tokenizer, place)),
        ("tokenizer", lambda: tokenizer.save_pretrained(place)),
    )


def save_trained(result: Result, tokenizer: Any, place: Path) -> None:
    """Writes what a run gave into a new folder, or once more into the run's own.

    Raises:
        ConfigError: the folder holds something else. StorageError: it cannot be written.
    """
    model: Any = result.model
    own = place.resolve() == result.folder.resolve()
    if not own:
        validate_new_folder(place)
    staging = place / STAGING if own else place
    with new_folder(staging) as folder:
        _write_model(model.save_pretrained, model, tokenizer, folder, place)
    if own:
        names = place_saved(staging, place, "saved")
        run = read_run(place)
        others = [name for name in run.get("files", ()) if ".safetensors" not in name]
        write_run(place, run | {"files": sorted({*others, *names})})


def export_of(plan: RunPlan, model: Any, checkpoint: Path, dtype: torch.dtype) -> Callable[[Path], None]:
    """Writes a model out of a checkpoint, a tensor at a time: no process ever holds all of it."""

    def export(path: Path) -> None:
        if plan.request.full:
            write_shards(path, checkpoint, dtype=dtype, tied=tied_names(model))
            config = copy.deepcopy(model.config)
            config.dtype = dtype
            config.architectures = [type(model).__name__]
            config.save_pretrained(path)
        else:
            write_adapter(path, model, load_checkpoint(checkpoint).tensors["model"])

    return export


def _draw(history: list[dict[str, Any]], path: Path) -> None:
    """The curve; a picture that cannot be drawn is no reason to lose a model."""
    try:
        draw_curve(history, path)
    except (ImportError, RuntimeError, ValueError) as error:
        warn(f"損失の図を描けませんでした（{error}）。", f"the curve could not be drawn ({error}).")


def summarize(result: Result, plan: RunPlan) -> dict[str, Any]:
    """The measured numbers of a run."""
    steps = [row for row in result.history if "loss" in row]
    evaluations = [row for row in result.history if "eval_loss" in row]
    last = [row for row in evaluations if result.saved_step in (None, row["step"])]  # of the weights that are saved
    state = result.state
    assert state is not None
    tail = [row["loss"] for row in steps[-10:] if row["loss"] is not None]
    return {
        "steps": state.step,
        "epochs": steps[-1]["epoch"] if steps else 0,
        "tokens": state.tokens,
        "skipped_steps": state.skipped,
        "train_loss_last_10_steps": sum(tail) / len(tail) if tail else None,
        "held_out_before": _scores(evaluations[0]) if evaluations and evaluations[0]["step"] == 0 else None,
        "held_out_after": _scores(last[-1]) if last else None,
        "best_step": state.best_step,
        "saved_step": result.saved_step or state.step,
        "verdict": asdict(verdict(result.history, result.saved_step)),
        "data": data_names(plan),
        "parent": parent_of(plan.request.config),
        "seconds": round(result.seconds, 1),
        "tokens_per_second": round(state.tokens / result.seconds, 1) if result.seconds > 0 else None,
        "peak_memory_gb": round(result.peak_memory_bytes / 1e9, 2),
        "estimated_memory_gb": round(plan.summary.memory.total / 1e9, 2),
        "characters_per_token": round(report_of(plan).characters_per_token, 3),
        "vocabulary": vocabulary_line(report_of(plan).vocabulary),
        "plan": {key: value for key, value in asdict(plan.summary).items() if key not in _OF_THE_MOMENT}
        | plan.summary.uncounted()
        | {name: getattr(plan.derived, name) for name in _CUT},
    }


def _scores(row: dict[str, Any]) -> dict[str, Any]:
    return {key: row.get(key) for key in ("step", *(key for _, key in figures_of([row])))}


def load_saved(plan: RunPlan, folder: Path, weights: str | None = None) -> nn.Module:
    """The model of a completed run; on the CPU where one device cannot hold what several trained.

    Args:
        weights: the mark of an adapter's base, where that has to be compared.

    Raises:
        ConfigError: the base has other weights.
    """
    try:
        return _load_saved(plan, folder, plan.request.model.device, weights)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    warn(
        "1 つのデバイスにモデルが収まらないため、学習済みモデルを CPU に読み込みました。",
        "the model does not fit on one device, so the trained model was loaded on the CPU.",
    )
    return _load_saved(plan, folder, torch.device("cpu"), weights)


def _load_saved(plan: RunPlan, folder: Path, device: torch.device | None, weights: str | None) -> nn.Module:
    model: Any
    if plan.request.full:
        model = load_causal_lm(str(folder), dtype=plan.request.model.torch_dtype, device=device)
    else:
        module, _ = load_base(plan, {"device": device})
        if weights is not None:
            validate_weights({"weights": weights}, {"weights": weights_mark(module)}, allowed=False)
        model = load_adapter(module, folder)
    trained: nn.Module = model.eval()
    return trained
