"""A run over pairs of answers, or marked ones: what it refuses, its loss, its rows, and the references that it keeps."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ..config.run_folder import CHECKPOINTS, REFERENCES
from ..data.answers import AnswerRows, Mismatched
from ..data.cache import code_version
from ..data.example import Example
from ..data.examples import digest_of, forks_of, marks_of
from ..engine.answer_scores import make_document_scores, make_padded_scores
from ..engine.preference_loss import PreferenceLoss
from ..engine.references import reference_scores
from ..errors import CheckpointError, ConfigError, DataError
from ..messages import notice
from ..models.documents import VarlenForward, why_no_forks
from ..models.quantized import plain_parts
from ..parallel.batch import LossFunction
from ..parallel.weights.layout import local
from ..system.files import is_private, replacing, write_in_place
from ..system.folders import private_cache
from .objective import preference_of
from .resolve import RunPlan
from .resume import ResumePoint

# Raised where what is computed before step 1 changes.
_VERSION = 1


def build_preference(
    plan: RunPlan, path: VarlenForward | None, usual: LossFunction, evaluated: AnswerRows, *, positions: bool
) -> tuple[PreferenceLoss, AnswerRows]:
    """The loss of a run over answers, and how its training rows become batches; references come later (give_references).

    Args:
        path: of the step.
        usual: the token loss on it.
        evaluated: told how the evaluation rows do.
        positions: whether padded rows are given positions.

    Raises:
        DataError: rows that are no pairs, or have no mark. ConfigError: a run that goes on from another trainer's checkpoint.
    """
    config = plan.request.config
    if plan.resume is not None and plan.resume.foreign is not None:
        raise ConfigError(
            f"{plan.resume.foreign} は別のツールのチェックポイントで、学習前のモデルが分からないため、objective: {config.objective} では続けられません。そのモデルを model.name に指定して最初から始めてください。",
            f"{plan.resume.foreign} is another tool's checkpoint, which does not tell the model before its first step, so "
            f"objective: {config.objective} cannot go on from it: name that model in model.name and begin a new run.",
        )
    settings = preference_of(config)
    assert settings is not None
    _check_rows(config.objective, plan.data.train, plan.data.eval_data)
    why = None if path is None else why_no_forks(path, autocast=plan.precision.autocast, longest=plan.data.longest)
    shared = path is not None and why is None
    if config.objective == "preference" and why is not None:
        notice(
            f"組の共通部分は共有せず、回答ごとに計算します（{why.ja}）。結果は同じで、時間とメモリーが増えます。",
            f"the answers of a pair do not share what they begin with ({why.en}): the same results, with more time and "
            "memory.",
        )
    scores = make_padded_scores(positions=positions) if path is None else make_document_scores(path)
    rows = AnswerRows(shared)
    evaluated.shared = shared
    if config.objective == "kto" and settings.loss == "kto":
        seed, most = config.training.runtime.seed, plan.data.longest
        for of, examples in ((rows, plan.data.train), (evaluated, plan.data.eval_data)):
            of.others = Mismatched(examples, seed, most) if len(examples) else None
    plan.loader.answers = rows
    return PreferenceLoss(usual, scores, settings), rows


def _check_rows(objective: str, *data: Sequence[Example]) -> None:
    for examples in data:
        bare = (forks_of(examples) == 0).all(axis=1) if objective == "preference" else marks_of(examples) == 0
        if not bare.any():
            continue
        source = examples[int(bare.argmax())].source
        if objective == "preference":
            raise DataError(
                f"{source or 'データ'} は良い回答と悪い回答の組ではありません。objective: preference には prompt、chosen、rejected のようなデータを指定してください。",
                f"{source or 'the data'} is no pair of answers; objective: preference needs data with prompt, chosen and "
                "rejected.",
            )
        raise DataError(
            f"{source or 'データ'} に良し悪しの印がありません。objective: kto には prompt、completion、label のようなデータを指定してください。",
            f"{source or 'the data'} has no mark; objective: kto needs data with prompt, completion and label.",
        )


def without_dropout(model: nn.Module, *, told: float) -> None:
    """Switches dropout off in place: it would put noise on both sides of every comparison (docs/preference.md).

    Args:
        told: what the settings say of adapters.
    """
    found = told > 0
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            found |= module.p > 0
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if "dropout" in name and isinstance(value, float) and value > 0:
                setattr(module, name, 0.0)
                found = True
    if found:
        notice(
            "回答を比べる学習なので、ドロップアウトは 0 にします。",
            "dropout is 0: answers are compared with each other, and it would be noise in every comparison.",
        )


def give_references(plan: RunPlan, built: Any, folder: Path, start: ResumePoint | None) -> None:
    """Gives the rows of a run the log-probabilities before step 1: of a resumed run those that it kept, else computed now,
    or by an earlier run on the same base and data; they are kept in the run's folder.

    Args:
        built: the Built of the plan (execution/build.py).
        folder: of the run.
        start: where it goes on from; its weights are loaded already.

    Raises:
        CheckpointError: what the run that is resumed kept is not there, or is another one's.
    """
    run = built.run
    if run.preference is None or not run.preference.facts.reference:
        return
    about = _about(plan, run.fingerprint["weights"])
    if start is not None and (start.checkpoint is not None or start.finished is not None):
        said, kept = _of_resumed(start, about, evaluates=bool(plan.data.eval_data))
    else:
        said, kept = about, _before_step_1(plan, built, about)
    if run.strategy.is_main:
        (folder / CHECKPOINTS).mkdir(exist_ok=True)
        write_in_place(folder / CHECKPOINTS / REFERENCES, _written(kept, said))
    for name, rows in zip(("train", "eval"), built.answers or (), strict=False):
        rows.reference = kept.get(name)


def pretend_references(plan: RunPlan, built: Any) -> None:
    """Numbers in the place of references, for steps of which nothing is kept."""
    for rows, examples in zip(built.answers or (), (plan.data.train, plan.data.eval_data), strict=False):
        rows.reference = torch.zeros(len(examples), 2, 2)


def _before_step_1(plan: RunPlan, built: Any, about: dict[str, Any]) -> dict[str, Tensor]:
    """Computed now, or by an earlier run in the same way, which has left them in the user's cache."""
    run = built.run
    key = hashlib.sha256(json.dumps(about | _how(plan, built), sort_keys=True).encode()).hexdigest()
    cached = not plan.request.config.model.extra_tokens  # whose embedding rows are new in every run
    kept = _from_cache(run, key, about) if cached else None
    if kept is not None:
        return kept
    kept = {}
    parts = (("train", plan.data.train, built.answers[0]), ("eval", plan.data.eval_data, built.answers[1]))
    for name, examples, rows in parts:
        if len(examples):
            kept[name] = reference_scores(run, examples, rows, plan.tokenizer.pad_token_id)
    if run.strategy.is_main and cached:
        _into_cache(key, kept, about)
    count = sum(map(len, kept.values()))
    notice(
        f"参照の対数確率: {count:,} 行を学習前に計算しました。",
        f"reference log-probabilities: {count:,} rows, computed before step 1.",
    )
    return kept


def _about(plan: RunPlan, weights: str) -> dict[str, Any]:
    """What decides the references of a run, whatever the code and the machine are."""
    config = plan.request.config
    return {
        "version": _VERSION,
        "data": [plan.data.digest, digest_of(plan.data.eval_data)],
        "weights": weights,
        "adapter": plan.fingerprint.get("lora.adapter"),
        "bits": plan.request.bits,
        # KTO's other answers follow from the seed and from where they are cut.
        "others": [config.training.runtime.seed, plan.data.longest] if config.objective == "kto" else None,
    }


def _how(plan: RunPlan, built: Any) -> dict[str, Any]:
    """By what the numbers are computed: the same way gives a margin of 0 before step 1."""
    path: VarlenForward | None = built.path
    return {
        "code": code_version(),
        "weights": built.run.strategy.gather(_hashes(plan, built.model)),
        "dtype": built.derived.dtype,
        "torch": torch.__version__,
        "precision": plan.precision.name,
        "device": plan.device.type,
        "path": None if path is None else [path.name, path.compiled, str(path.chosen), built.derived.products],
        "shared": built.answers[0].shared,
        "parallel": asdict(plan.parallel.sizes),
        "method": plan.request.config.effective_method,
    }


def _hashes(plan: RunPlan, model: nn.Module) -> list[int]:
    """Of this process's part of every weight that the fingerprint knows by a few values only; of an adapter it knows more."""
    hashes = []
    for weight in model.parameters():
        if plan.request.full or not weight.requires_grad:
            for part in plain_parts(local(weight.detach())):
                part = part if part.device.type in ("cpu", "cuda") else part.cpu()
                hashes.append(int(torch.hash_tensor(part).view(torch.int64)))
    return hashes


def _of_resumed(
    start: ResumePoint, about: dict[str, Any], *, evaluates: bool
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Of the run that is resumed, with what they are about: a run that no longer evaluates needs none of the evaluation data.

    Raises:
        CheckpointError: not there, or another run's, or of other evaluation data.
    """
    place = start.checkpoint.parent if start.checkpoint is not None else None
    if place is None:
        assert start.finished is not None
        place = start.finished.folder / CHECKPOINTS
    path = place / REFERENCES
    said, found = _read(path)
    if said == about:
        return said, found
    evaluated_otherwise = _rows(said) == _rows(about)
    if evaluated_otherwise and not evaluates and said.get("others") == about["others"]:
        return said, found
    if evaluated_otherwise:
        raise CheckpointError(
            f"{path} に、この評価データ（data.eval）の学習前の対数確率がありません。途中まで学習した重みからは計算し直せないので、始めたときと同じ data.eval を指定してください（評価しないなら data.eval を外します）。ほかのデータでの評価は、学習の後に aift eval でできます。",
            f"{path} does not hold the log-probabilities before step 1 of this evaluation data (data.eval), and weights that "
            "have trained cannot tell them: give the data.eval that the run began with, or none, and evaluate on other data "
            "with aift eval afterwards.",
        )
    if not path.is_file():
        ja, en = "がありません", "is not there"
    elif said:
        ja, en = "は別のデータか別のモデルのものです", "belongs to other data or another model"
    else:
        ja, en = "が壊れています", "is damaged"
    raise CheckpointError(
        f"{path} {ja}。学習前のモデルの対数確率は、途中まで学習した重みからは計算し直せません。実行のフォルダーごとコピーするか、別の training.output_dir で最初から学習してください。",
        f"{path} {en}. The log-probabilities before step 1 cannot be computed from weights that have trained: copy the "
        "run's whole folder, or train from the beginning in another training.output_dir.",
    )


def _rows(about: dict[str, Any]) -> dict[str, Any]:
    """What references are about, without the evaluation data; KTO's other answers are cut as the longest of all rows is."""
    return about | {"data": about.get("data", [None])[:1], "others": None}


def _written(kept: dict[str, Tensor], about: dict[str, Any]) -> bytes:
    return save(
        kept, {"about": json.dumps(about | {"sha256": _checksum(kept)})}
    )  # one key: several have no fixed order


def _checksum(kept: dict[str, Tensor]) -> str:
    parts = [
        f"{name}{list(kept[name].shape)}".encode() + kept[name].contiguous().numpy().tobytes() for name in sorted(kept)
    ]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What the references of a file are about, and they themselves; nothing where it is not there, or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            said = dict(json.loads((file.metadata() or {}).get("about", "{}")))
            kept = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dictionary
            # Files of older versions have no checksum.
            return (said, kept) if said.pop("sha256", None) in (None, _checksum(kept)) else ({}, {})
    except (OSError, TypeError, ValueError, SafetensorError):
        return {}, {}


def _cache_file(key: str) -> Path:
    return private_cache("references") / f"{key}.safetensors"


def _from_cache(run: Any, key: str, about: dict[str, Any]) -> dict[str, Tensor] | None:
    """What an earlier run has kept, as the main process finds it; on every process."""
    found = None
    if run.strategy.is_main:
        path = _cache_file(key)
        if path.is_file() and is_private(path):
            said, kept = _read(path)
            found = kept if said == about else None
    told = None if found is None else {name: value.numpy() for name, value in found.items()}
    told = run.strategy.gather(told)[0]
    return None if told is None else {name: torch.from_numpy(value) for name, value in told.items()}


def _into_cache(key: str, kept: dict[str, Tensor], about: dict[str, Any]) -> None:
    with contextlib.suppress(OSError), replacing(_cache_file(key), mode=0o600) as file:
        file.write(_written(kept, about))
