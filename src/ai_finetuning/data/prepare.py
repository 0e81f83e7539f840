"""From what the user hands in to the examples of a run: read, encode, cache, hold out."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..config.data import DataConfig
from ..errors import DataError, localized
from . import cache
from .sources import load_samples
from .text_dataset import TextDataset
from .tokenize import EncodeReport, Example, count_label_tokens, encode
from .vocabulary import vocabulary_loss

SPLIT = "rows"


@dataclass(frozen=True)
class PreparedData:
    """Examples for training and evaluation, and what to report about them.

    Attributes:
        digest: SHA-256 over the training tokens and labels, in order.
    """

    train: list[Example]
    eval_data: list[Example]
    lines: list[str]
    report: EncodeReport
    digest: str

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(len(item) for item in (*self.train, *self.eval_data))

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
        scored, _, more = load_examples(eval_data, tokenizer, config)
        lines += [localized(f"評価: {line}", f"evaluation: {line}") for line in more]
    return PreparedData(examples, scored, lines, report, digest_of(examples))


def load_examples(source: Any, tokenizer: Any, config: DataConfig) -> tuple[list[Example], EncodeReport, list[str]]:
    """One source's examples, from the cache where it has been seen."""
    if isinstance(source, TextDataset):
        examples = source.examples
        report = EncodeReport(
            rows=len(examples),
            tokens=sum(map(len, examples)),
            label_tokens=count_label_tokens(examples),
            characters=sum(item.characters for item in examples),
            longest=max(map(len, examples)),
            max_length=source.max_length,
        )
        return examples, report, report.lines()
    files = _files(source)
    settings = asdict(config)
    for name in ("train", "eval", "packing", "group_by_length", "cache"):
        settings.pop(name)
    key = cache.cache_key(files, tokenizer, settings) if files and config.cache else None
    obtained = cache.read(key) if key is not None else None
    if obtained is not None:
        return obtained
    samples, read = load_samples(
        source if not files or isinstance(source, str | Path) else files,
        columns=config.columns,
        system_prompt=config.system_prompt,
        skip_bad_rows=config.skip_bad_rows,
        normalize=asdict(config.normalize),
    )
    examples, report = encode(
        samples, tokenizer, max_length=config.max_length, on_long=config.on_long, loss_on=config.loss_on
    )
    report.vocabulary = vocabulary_loss(samples, tokenizer)
    lines = read.lines() + report.lines()
    if key is not None:
        cache.write(key, examples, report, lines)
    return examples, report, lines


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


def hold_out(examples: Sequence[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """(training, evaluation): whole source rows, so that no turn of one conversation is on both sides.

    Raises:
        DataError: the share leaves one side empty.
    """
    sources = sorted({item.source for item in examples})
    count = round(share * len(sources))
    if not 0 < count < len(sources):
        raise DataError(
            f"data.eval が {share} ですが、{len(sources)} 行では評価か学習のどちらかが 0 行になります。割合を変えるか、別のファイルを指定してください。",
            f"data.eval is {share}, which leaves no row for training or none for evaluation ({len(sources)} rows in "
            "all); change "
            "the share or name a file.",
        )
    chosen = set(random.Random(seed).sample(sources, count))
    return [item for item in examples if item.source not in chosen], [
        item for item in examples if item.source in chosen
    ]


# Rules that choose the evaluation rows; a run continues under the rule that it began with.
SPLITS: dict[str, Callable[[Sequence[Example], float, int], tuple[list[Example], list[Example]]]] = {SPLIT: hold_out}


def digest_of(examples: Sequence[Example]) -> str:
    """SHA-256 over tokens and labels."""
    digest = hashlib.sha256()
    for item in examples:
        digest.update(len(item).to_bytes(8, "little"))
        digest.update(item.input_ids.tobytes())
        digest.update(item.labels.tobytes())
    return digest.hexdigest()
