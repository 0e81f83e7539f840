"""What training data holds of the evaluation data, in one warning, before training and before a model is evaluated. Nothing
that is measured or trained depends on it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sized
from pathlib import Path
from typing import Any

from ..config.data import DataConfig
from ..config.mixture import Sources, paths_of
from ..config.preference import Objective
from ..config.run import RunConfig
from ..data.bad_rows import BadRows
from ..data.cache import code_version
from ..data.doctor.leakage import Leakage, find_leakage, pair_of, question_key
from ..data.examples import digest_of
from ..data.messages import Sample
from ..data.prepare import PreparedData, read_samples
from ..data.text_dataset import TextDataset
from ..errors import Reason, ToolkitError
from ..messages import warn
from ..system.files import is_private, read_bounded, write_in_place
from ..system.folders import private_cache

# Bytes of training files in which questions of an evaluation are looked for.
_MOST_BYTES = 256 << 20
_COUNTS = ("question", "near", "coverage", "evaluated", "ours", "theirs", "of_ours", "of_theirs")


def warn_of_leakage(train: Any, eval_data: Any, data: PreparedData, config: DataConfig) -> None:
    """Compares training and evaluation data, where the latter is a file, and warns with counts. Data that was compared
    before is not compared again.

    Args:
        train, eval_data: as the user gave them.
        data: what became of them.
        config: how they are read.
    """
    train = train.paths if isinstance(train, Sources) else train
    if data.stream is not None:  # it says so itself
        return
    if not _is_file(eval_data) or not isinstance(train, str | Path | Sized) or isinstance(train, TextDataset):
        return
    digest = hashlib.sha256(f"{data.digest} {digest_of(data.eval_data)} {code_version()}".encode())
    entry = private_cache("leakage") / f"{digest.hexdigest()}.json"
    counts = _remembered(entry)
    if counts is None:
        try:
            ours, _ = read_samples(train, config, BadRows(skip=True), data.objective)
            theirs, _ = read_samples(eval_data, config, BadRows(skip=True), data.objective)
        except ToolkitError:  # the files are no longer what the run has read
            return
        counts = _counts(find_leakage([pair_of(item) for item in ours], [pair_of(item) for item in theirs]))
        with contextlib.suppress(OSError):
            write_in_place(entry, json.dumps(counts).encode())
    _say({name: 0 if f"leak_{name}" in config.doctor.ignore else count for name, count in counts.items()})


def warn_of_trained(config: RunConfig, data: str) -> None:
    """Warns where questions that a trained model is asked stand in the files that it was trained on. Files that are not here
    any more, and more than a model is asked about in good time, are not looked at.

    Args:
        config: of the run.
        data: a file of questions.
    """
    train = paths_of(config.data.train)
    if not _is_file(train) or sum(Path(item).stat().st_size for item in train) > _MOST_BYTES:
        return
    asked = [question_key(pair_of(item)) for item in _read(data, DataConfig(), config.objective)]
    known = {
        question_key(pair_of(item)) for item in _read([Path(item) for item in train], config.data, config.objective)
    } - {""}
    count = sum(key in known for key in asked)
    if not count:
        return
    divided = isinstance(config.data.eval, float)
    part = Reason("（評価用に分けた行も数えています）", " (rows that were set aside for evaluation are counted)")
    ja, en = (part.ja, part.en) if divided else ("", "")
    warn(
        f"{data} の {len(asked):,} 行のうち {count:,} 行の質問は、このモデルの学習データ（{', '.join(train)}）にあります{ja}。"
        "覚えた答えを測ることになり、結果は実際より良く見えます。学習に使っていない質問で測ってください（aift data split で分けられます）。",
        f"of {len(asked):,} rows of {data} {count:,} have a question of the data that this model was trained on "
        f"({', '.join(train)}){en}: what it has learnt by heart is measured, and the result looks better than it is. Ask what "
        "was not trained on (aift data split divides a file).",
    )


def _read(source: Any, config: DataConfig, objective: Objective) -> list[Sample]:
    """The rows of files, by what a run learns from and else as answers, or pairs; none where they cannot be read."""
    kinds: tuple[Objective, ...] = (objective, "sft", "preference")
    for kind in dict.fromkeys(kinds):
        with contextlib.suppress(ToolkitError):
            return read_samples(source, config, BadRows(skip=True), kind)[0]
    return []


def _is_file(eval_data: Any) -> bool:
    items = eval_data if isinstance(eval_data, list | tuple) else [eval_data]
    return bool(items) and all(isinstance(item, str | Path) and Path(item).is_file() for item in items)


def _counts(found: Leakage) -> dict[str, int]:
    lengths = (len(found.question), len(found.near), len(found.coverage), found.evaluated)
    return dict(zip(_COUNTS, (*lengths, *found.looked_at, *found.rows), strict=True))


def _remembered(entry: Path) -> dict[str, int] | None:
    if not is_private(entry):
        return None
    try:
        counts = json.loads(read_bounded(entry, 4096))
        return {name: int(counts[name]) for name in _COUNTS}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _say(counts: dict[str, int]) -> None:
    if not counts["question"] + counts["near"] + counts["coverage"]:
        return
    sampled = (counts["ours"], counts["theirs"]) != (counts["of_ours"], counts["of_theirs"])
    ja = (
        f"（後の 2 つは、学習 {counts['of_ours']:,} 行のうち {counts['ours']:,} 行、評価 {counts['of_theirs']:,} 行のうち {counts['theirs']:,} "
        "行の標本で数えました）"
    )
    en = (
        f" (the last two in a sample of {counts['ours']:,} of {counts['of_ours']:,} training rows and {counts['theirs']:,} of "
        f"{counts['of_theirs']:,} evaluation rows)"
    )
    warn(
        f"評価データ {counts['evaluated']:,} 行のうち、学習データと同じ質問が {counts['question']:,} 行、ほぼ同じ質問と回答が {counts['near']:,} 行、"
        f"質問の 9 割を学習データの 1 行が含むものが {counts['coverage']:,} 行あります{ja if sampled else ''}。評価が実際より良く見えます。"
        "`aift data doctor 学習データ --eval 評価データ` でどの行か分かります。",
        f"of {counts['evaluated']:,} evaluation rows {counts['question']:,} have a question of the training data, "
        f"{counts['near']:,} are nearly a row of it, and of {counts['coverage']:,} one training row holds nine tenths of the "
        f"question{en if sampled else ''}: the evaluation will look better than it is. `aift data doctor TRAIN --eval EVAL` "
        "names them.",
    )
