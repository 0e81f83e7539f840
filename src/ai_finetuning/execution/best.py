"""The weights of the best evaluation: kept beside the checkpoints, put back where the run returns them, named at its end."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from ..engine.checkpoint.store import CheckpointStore
from ..engine.state import Run
from ..errors import Reason
from ..messages import argument, notice, warn
from ..models.adapter_folder import base_name, is_adapter, note_training_base, recorded_config
from ..models.adapters import saved_name
from ..models.quantized import quantized_bits
from ..models.tokenizers import save_generation_config
from .artifacts import export_of
from .resolve import RunPlan


def keeper(plan: RunPlan, model: Any, dtype: torch.dtype, home: Path) -> Callable[[Path, Path], None]:
    """What makes a model's or an adapter's folder of a checkpoint, while training goes on.

    Args:
        dtype: of a full model on disk.
        home: the folder that it will be.
    """
    bits = quantized_bits(model)

    def export(checkpoint: Path, place: Path) -> None:
        export_of(plan, model, checkpoint, dtype)(place)
        if is_adapter(place):
            note_training_base(place, home, base_name(recorded_config(place)), bits)
        save_generation_config(copy.deepcopy(model.generation_config), plan.tokenizer, place)
        plan.tokenizer.save_pretrained(place)

    return export


def put_back(plan: RunPlan, run: Run) -> bool:
    """Whether the kept weights are those of the best step; where a process holds the model, they are in it now."""
    step = run.state.best_step
    assert step is not None
    problems = run.store.best_of(step)
    if not run.store.agree(not problems):
        why = (
            Reason.joined(problems)
            if problems
            else Reason("別のプロセスから読めません", "another process cannot read them")
        )
        warn(
            f"最良のステップ {step} の重みが使えないため（{why.ja}）、最後の重みを返します。",
            f"the best weights, of step {step}, cannot be used ({why.en}); returning the last weights.",
        )
        return False
    if not plan.parallel.in_parts:
        weights = _weights(run.store.best, run.model, adapter=not plan.request.full)
        run.strategy.load_tensors(run.model, run.optimizer, {"model": weights})
    notice(f"最良のステップ {step} の重みに戻しました。", f"restored the best weights, from step {step}.")
    return True


def _weights(folder: Path, model: nn.Module, *, adapter: bool) -> dict[str, torch.Tensor]:
    """The trained weights in a folder, by their names in the model."""
    saved = {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}
    if not adapter:
        return saved
    return {name: saved[saved_name(name)] for name, weight in model.named_parameters() if weight.requires_grad}


def copy_of(store: CheckpointStore) -> Callable[[Path], None]:
    """Writes the kept weights where a model is saved."""

    def export(path: Path) -> None:
        for pattern in ("*.safetensors", "*config.json", "*.index.json"):
            for file in store.best.glob(pattern):
                shutil.copy(file, path / file.name)

    return export


def describe(run: Run, history: list[dict[str, Any]]) -> dict[str, Any] | None:
    """What run.json says of the best evaluation; None without one."""
    scores = [row["eval_loss"] for row in history if "eval_loss" in row]
    step, store = run.state.best_step, run.store
    if step is None or not scores:
        return None
    kept = not store.best_of(step)
    if not kept and store.best.is_dir():
        shutil.rmtree(store.best, ignore_errors=True)  # of a step that is not the best one: it would be taken for it
    folder = str(store.best.relative_to(store.folder.parent)) if kept else None
    return {"step": step, "eval_loss": run.state.best_loss, "last_eval_loss": scores[-1], "folder": folder}


def tell(best: dict[str, Any] | None, plan: RunPlan, run: Run, *, returned: bool) -> None:
    """Says at the end of a run that its last weights are not its best ones, and what to type."""
    state = run.state
    if best is None or returned or best["step"] == state.step or best["last_eval_loss"] <= best["eval_loss"]:
        return
    step, low, last = best["step"], best["eval_loss"], best["last_eval_loss"]
    ja = f"最良はステップ {step}（評価損失 {low:.2f}）、最後のステップ {state.step} は {last:.2f} で悪化しています。"
    en = f"best: step {step}, {low:.2f}; last: step {state.step}, {last:.2f}, which is worse."
    if best["folder"] is not None:
        command, result = f"aift chat {argument(run.store.best)}", f"aift runs best {argument(run.store.folder.parent)}"
        ja += f"最良の重みを使う: {command} ／ 最良の重みを結果にする: {result} ／ 次の学習から最良の重みを返す: training.checkpoint.load_best=true"
        en += f" To use the best weights: {command}; to make them the result: {result}; to get them from the next run: training.checkpoint.load_best=true."
    elif step == 0:
        ja += "学習で良くなっていません。learning_rate を下げるか、評価データが学習データと同じ種類か確かめてください。"
        en += " Training made it worse: lower learning_rate, or see whether the evaluation data is of the same kind."
    else:
        why = Reason("checkpoint.keep_best=false", "checkpoint.keep_best=false")
        if plan.request.config.training.checkpoint.keep_best:
            why = Reason("ディスクの空きがないか、書けなかったため", "no room on the disk, or it could not be written")
        ja += f"最良の重みは残していません（{why.ja}）。training.checkpoint.load_best=true で学習し直すと、最良の重みを返します。"
        en += f" The best weights were not kept ({why.en}); training again with training.checkpoint.load_best=true returns them."
    warn(ja, en)
