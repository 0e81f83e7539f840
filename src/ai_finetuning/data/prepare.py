"""From what the user hands in to the examples of a run: read, encode, cache, hold out."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..config.data import DataConfig
from ..errors import DataError, localized
from ..labels import FROM_BASE, IGNORED
from . import cache
from .bad_rows import BadRows
from .conversations import common_system
from .doctor.leakage import pair_of, question_key
from .messages import Sample
from .mixture import learnt_tokens
from .sources import load_samples
from .text_dataset import TextDataset
from .tokenize import EncodeReport, Example, count_label_tokens, encode
from .vocabulary import vocabulary_loss

# The rule of new runs, that of runs that noted it, and that of runs that noted none.
SPLIT, ROWS_SPLIT, FIRST_SPLIT = "equal questions", "equal rows", "rows"


@dataclass(frozen=True)
class PreparedData:
    """Examples for training and evaluation, and what to report about them.

    Attributes:
        digest: SHA-256 over the training tokens and labels, in order.
        old: rows of an earlier training to take a share from (`data.replay`).
    """

    train: list[Example]
    eval_data: list[Example]
    lines: list[str]
    report: EncodeReport
    digest: str
    old: Sequence[Example] = ()

    @property
    def every(self) -> list[Example]:
        """All rows that go through the model."""
        return [*self.train, *self.old, *self.eval_data]

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(map(len, self.every))

    @property
    def eval_characters(self) -> int | None:
        """Characters of the scored evaluation text; None where unknown."""
        return sum(item.characters for item in self.eval_data) or None


def prepare(
    train: Any, eval_data: Any, tokenizer: Any, config: DataConfig, *, seed: int, split: str = SPLIT
) -> PreparedData:
    """Examples of training and evaluation data.

    Args:
        train: TextDataset, texts, rows, conversations, a Dataset, a path or a list of paths.
        eval_data: the same, None, or a share of the training rows used for evaluation (a float).
        tokenizer: with pad token and chat template.
        config: how rows become tokens.
        seed: decides which rows become evaluation data.
        split: the rule by which it does, a key of SPLITS.

    Raises:
        DataError: data that cannot be trained on; see sources and tokenize.
    """
    examples, report, lines = load_examples(train, tokenizer, config)
    scored: list[Example] = []
    if isinstance(eval_data, float):
        examples, scored = SPLITS[split](examples, eval_data, seed)
        lines.append(localized(f"評価用に分けた行: {len(scored)}", f"rows for evaluation: {len(scored)}"))
    elif eval_data is not None:
        scored, _, more = load_examples(eval_data, tokenizer, replace(config, max_samples=None))
        lines += [localized(f"評価: {line}", f"evaluation: {line}") for line in more]
        both = shared_rows(examples, scored)
        if both:
            lines.append(
                localized(
                    f"評価データ {len(scored)} 行のうち {both} 行が学習データと同じです。評価が実際より良く見えます",
                    f"{both} of {len(scored)} evaluation rows are training rows as well: the evaluation will look better "
                    "than it is",
                )
            )
    old = _old_rows(tokenizer, config, scored, lines)
    return PreparedData(examples, scored, lines, report, digest_of([*examples, *old]), old)


def _old_rows(tokenizer: Any, config: DataConfig, scored: Sequence[Example], lines: list[str]) -> list[Example]:
    """The rows of `data.replay` without those that are evaluation rows; adds what is to be said about them.

    Raises:
        DataError: none of them can be learnt.
    """
    path = config.replay.path
    if path is None:
        return []
    source = [Path(item) for item in path] if isinstance(path, list) else path
    read, _, more = load_examples(source, tokenizer, replace(config, max_samples=None))
    lines += [localized(f"以前のデータ: {line}", f"replay: {line}") for line in more]
    evaluated = {item.input_ids.tobytes() for item in scored}
    old = [item for item in read if learnt_tokens(item) and item.input_ids.tobytes() not in evaluated]
    if len(old) < len(read):
        left = len(read) - len(old)
        lines.append(
            localized(
                f"以前のデータのうち {left} 行は、評価の行と同じか学習対象トークンがないので使いません",
                f"replay: {left} rows are evaluation rows or have no label tokens and are not used",
            )
        )
    if not old:
        raise DataError(
            f"data.replay.path の {path} に、学習に使える行がありません（{len(read)} 行はすべて評価の行と同じです）。別のデータを指定してください。",
            f"data.replay.path {path} has no row to train on (all {len(read)} are evaluation rows); name other data.",
        )
    return old if config.replay.distill is None else [_from_base(item) for item in old]


def _from_base(item: Example) -> Example:
    """The row with the base's predictions in the place of its own label tokens."""
    return replace(item, labels=np.where(item.labels == IGNORED, IGNORED, FROM_BASE).astype(item.labels.dtype))


def load_examples(source: Any, tokenizer: Any, config: DataConfig) -> tuple[list[Example], EncodeReport, list[str]]:
    """The examples of training or evaluation data, from the cache where it has been seen; of each source in it
    (`config.max_samples`) the first rows only.
    """
    if isinstance(source, TextDataset):
        examples = source.examples[: config.max_samples]
        report = EncodeReport(
            rows=len(examples),
            tokens=sum(map(len, examples)),
            label_tokens=count_label_tokens(examples),
            characters=sum(item.characters for item in examples),
            longest=max(map(len, examples)),
            max_length=source.max_length,
        )
        return examples, report, _left_aside(source.examples, config) + report.lines()
    files = _files(source)
    settings = asdict(config)
    for name in ("train", "eval", "replay", "packing", "group_by_length", "cache"):
        settings.pop(name)
    key = cache.cache_key(files, tokenizer, settings) if files and config.cache else None
    obtained = cache.read(key) if key is not None else None
    if obtained is not None:
        return obtained
    # Every problem of the data in one list: those of the files, of the rows and of what they become for this model.
    bad = BadRows(config.skip_bad_rows)
    samples, lines = read_samples(source, config, bad)
    try:
        examples, report = encode(
            samples,
            tokenizer,
            max_length=config.max_length,
            on_long=config.on_long,
            loss_on=config.loss_on,
            bad=bad,
        )
    except DataError:
        bad.refuse()
        raise
    bad.refuse()
    examples = _with_questions(examples, samples)
    report.left_out = len(bad)
    report.left_out_reasons = [[ja, en, count] for (ja, en), count in bad.counts.most_common()]
    report.vocabulary = vocabulary_loss(samples, tokenizer)
    report.system = common_system(samples)
    lines += bad.lines() + report.lines()
    if key is not None:
        cache.write(key, examples, report, lines)
    return examples, report, lines


def read_samples(source: Any, config: DataConfig, bad: BadRows) -> tuple[list[Sample], list[str]]:
    """(samples, lines about what was read) of training or evaluation data, as the settings read it.

    Args:
        bad: receives the rows that cannot be used.

    Raises:
        DataError: see sources.load_samples.
    """
    files = _files(source)
    samples: list[Sample] = []
    lines: list[str] = []
    for part in _parts(source if not files or isinstance(source, str | Path) else files, config):
        of_part, read = load_samples(
            part,
            columns=config.columns,
            system_prompt=config.system_prompt,
            normalize=asdict(config.normalize),
            sheet=config.sheet,
            bad=bad,
        )
        samples += of_part[: config.max_samples]
        lines += read.lines() + _left_aside(of_part, config)
    return samples, lines


def _with_questions(examples: Sequence[Example], samples: Sequence[Sample]) -> list[Example]:
    """The examples with a digest of the question that their row asks."""
    asked = {sample.source: question_key(pair_of(sample)) for sample in samples}
    digests = {
        source: hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        for source, key in asked.items()
        if key
    }
    return [replace(item, question=digests.get(item.source, "")) for item in examples]


def _parts(source: Any, config: DataConfig) -> list[Any]:
    """What is read at a time: each path by itself where the rows of each are counted."""
    paths = isinstance(source, list) and bool(source) and all(isinstance(item, Path) for item in source)
    return source if paths and config.max_samples is not None else [source]


def _left_aside(rows: Sequence[object], config: DataConfig) -> list[str]:
    """The line that says how many rows of a source `max_samples` leaves aside."""
    limit = config.max_samples
    if limit is None or len(rows) <= limit:
        return []
    left = len(rows) - limit
    return [
        localized(
            f"data.max_samples が {limit} なので、先頭の {limit} 行だけを使います（使わない行: {left}）",
            f"data.max_samples is {limit}: the first {limit} rows are used, {left} rows left aside",
        )
    ]


def _files(source: Any) -> list[Path]:
    """The files that a source names; empty where it is no file."""
    items = [source] if isinstance(source, str | Path) else source
    if isinstance(items, Sequence) and items and all(isinstance(item, Path) for item in items):
        paths = list(items)
    elif isinstance(source, str):
        paths = [Path(source)]
    else:
        return []
    return paths if all(path.is_file() for path in paths) else []


def _count(rows: int, share: float) -> int:
    """How many of some rows are a share of them.

    Raises:
        DataError: the share leaves one side empty.
    """
    count = round(share * rows)
    if not 0 < count < rows:
        raise DataError(
            f"data.eval が {share} ですが、{rows} 行では評価か学習のどちらかが 0 行になります。割合を変えるか、別のファイルを指定してください。",
            f"data.eval is {share}, which leaves no row for training or none for evaluation ({rows} rows in all); change "
            "the share or name a file.",
        )
    return count


def _divide(examples: Sequence[Example], chosen: set[str]) -> tuple[list[Example], list[Example]]:
    return [item for item in examples if item.source not in chosen], [
        item for item in examples if item.source in chosen
    ]


def hold_out_rows(examples: Sequence[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """(training, evaluation) as the runs before version 0.3 divided: whole source rows, equal rows wherever they fall.

    Raises:
        DataError: the share leaves one side empty.
    """

    def name(item: Example) -> str:
        return re.sub(r"^.*[/\\]", "", item.source)  # those runs named a row by its file's last part

    sources = sorted({name(item) for item in examples})
    chosen = set(random.Random(seed).sample(sources, _count(len(sources), share)))
    return _divide(examples, {item.source for item in examples if name(item) in chosen})


def hold_out(examples: Sequence[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """(training, evaluation): all rows of one source on one side, all equal rows, and all with the same question.

    Rows are taken in the order of the data, so that the division does not depend on where the files lie. Where no question
    stands twice it is the division of `hold_out_equal_rows`.

    Raises:
        DataError: the share leaves one side empty.
    """
    return _hold_out(examples, share, seed, lambda item: (item.input_ids.tobytes(), item.question))


def hold_out_equal_rows(examples: Sequence[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """(training, evaluation) as runs divided before questions were compared: all rows of one source on one side, and all equal ones.

    Raises:
        DataError: the share leaves one side empty.
    """
    return _hold_out(examples, share, seed, lambda item: (item.input_ids.tobytes(),))


def _hold_out(
    examples: Sequence[Example], share: float, seed: int, keys: Callable[[Example], tuple[bytes | str, ...]]
) -> tuple[list[Example], list[Example]]:
    """(training, evaluation): what shares a source or a key is on one side; an empty key is none."""
    group: dict[str, str] = {}  # a source, and the first source that has a row equal to one of its rows

    def root(source: str) -> str:
        while group[source] != source:
            group[source] = source = group[group[source]]
        return source

    first: dict[bytes | str, str] = {}
    for item in examples:
        group.setdefault(item.source, item.source)
        for key in (key for key in keys(item) if key):
            group[root(item.source)] = root(first.setdefault(key, item.source))
    groups: dict[str, list[str]] = {}
    for source in group:
        groups.setdefault(root(source), []).append(source)
    count = _count(len(group), share)
    order = list(groups)
    random.Random(seed).shuffle(order)
    chosen: set[str] = set()
    for name in order:
        if len(chosen) + len(groups[name]) <= count:
            chosen.update(groups[name])
    if not chosen:  # every group is larger than the share: the smallest comes nearest
        chosen.update(groups[min(order, key=lambda name: len(groups[name]))])
    if len(chosen) == len(group):
        raise DataError(
            f"data.eval が {share} ですが、{len(group)} 行はすべて同じ内容で、学習と評価に分けられません。",
            f"data.eval is {share}, but all {len(group)} rows are equal and cannot be divided into training and evaluation.",
        )
    return _divide(examples, chosen)


def shared_rows(train: Sequence[Example], eval_data: Sequence[Example]) -> int:
    """How many evaluation rows are training rows as well."""
    known = {item.input_ids.tobytes() for item in train}
    return sum(item.input_ids.tobytes() in known for item in eval_data)


# Rules that choose the evaluation rows; a run continues under the rule that it began with.
SPLITS: dict[str, Callable[[Sequence[Example], float, int], tuple[list[Example], list[Example]]]] = {
    FIRST_SPLIT: hold_out_rows,
    ROWS_SPLIT: hold_out_equal_rows,
    SPLIT: hold_out,
}


def digest_of(examples: Sequence[Example]) -> str:
    """SHA-256 over tokens and labels."""
    digest = hashlib.sha256()
    for item in examples:
        digest.update(len(item).to_bytes(8, "little"))
        digest.update(item.input_ids.tobytes())
        digest.update(item.labels.tobytes())
    return digest.hexdigest()
