"""From what the user hands in to the examples of a run: read, encode, cache, hold out."""

from __future__ import annotations

import copy
import random
import re
from array import array
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ..config.data import DataConfig
from ..config.mixture import Entry, Sources
from ..config.preference import Objective
from ..errors import ConfigError, DataError, StorageError, localized
from ..labels import FROM_BASE, IGNORED
from ..messages import notice
from .bad_rows import BadRows
from .contradictions import note_contradictions_of
from .conversations import common_system
from .encode_report import EncodeReport
from .example import Example
from .examples import (
    Chosen,
    Joined,
    blocks_of,
    characters_of,
    chosen,
    digest_of,
    longest_of,
    marks_of,
    names_of,
    reader_of,
)
from .files import lines_of_twice, matching
from .messages import Sample
from .pieces import Reading, validate_objective, with_questions
from .prepared import open_prepared, prepared_folder
from .sources import RowReading, read_source
from .store.folder import cached_store
from .store.preparing import Encoder, Preparation, left_aside, lines_of, sources_of
from .streamed import RowStream, lines_of_look, report_of
from .text_dataset import TextDataset
from .tokenize import count_label_tokens, encode
from .vocabulary import vocabulary_loss

# Gives what encodes files of so many bytes for a tokenizer; None where this process does it alone.
Encoders = Callable[[Any, int], Callable[[Reading], Encoder] | None]
# The rule of new runs, that of runs that noted it, and that of runs that noted none.
SPLIT, ROWS_SPLIT, FIRST_SPLIT = "equal questions", "equal rows", "rows"


@dataclass(frozen=True)
class PreparedData:
    """Examples for training and evaluation, and what to report about them.

    Attributes:
        digest: SHA-256 over the training tokens and labels, in order.
        old: rows of an earlier training to take a share from (`data.replay`).
        sizes: training rows of each entry of `data.train`, one behind another; empty where it has no entries.
        stream: what gives the training rows where they are streamed; `train` and `report` are those of its first piece.
    """

    train: Sequence[Example]
    eval_data: Sequence[Example]
    lines: list[str]
    report: EncodeReport
    digest: str
    old: Sequence[Example] = ()
    objective: Objective = "sft"
    sizes: tuple[int, ...] = ()
    stream: RowStream | None = None

    @property
    def every(self) -> Sequence[Example]:
        """All rows that go through the model."""
        return Joined(self.train, self.old, self.eval_data)

    @property
    def longest(self) -> int:
        """Tokens of the longest row; of streamed rows that none exceeds."""
        there = longest_of(self.every)
        return there if self.stream is None else max(there, self.stream.max_length)

    @property
    def eval_characters(self) -> int | None:
        """Characters of the scored evaluation text; None where unknown."""
        return int(characters_of(self.eval_data).sum()) or None


def prepare(
    train: Any,
    eval_data: Any,
    tokenizer: Any,
    config: DataConfig,
    *,
    seed: int,
    split: str = SPLIT,
    encoders: Encoders | None = None,
    objective: Objective = "sft",
) -> PreparedData:
    """Examples of training and evaluation data.

    Args:
        train: TextDataset, texts, rows, conversations, a Dataset, a path or a list of paths, or Sources.
        eval_data: the same, None, or a share of the training rows used for evaluation (a float).
        tokenizer: with pad token and chat template.
        config: how rows become tokens.
        seed: decides which rows become evaluation data.
        split: the rule by which it does, a key of SPLITS.
        encoders: who encodes large files; None for this process alone.
        objective: what is learnt from: `preference` makes rows with a fork, `kto` rows with a mark.

    Raises:
        DataError: data that cannot be trained on; see sources and tokenize.
    """
    entries = train.entries if isinstance(train, Sources) else ()
    examples: Sequence[Example]
    if config.streaming:
        return _streamed(train, eval_data, tokenizer, config, encoders)
    if entries:
        examples, report, lines = _load_entries(entries, tokenizer, config, encoders, objective)
    else:
        examples, report, lines = load_examples(train, tokenizer, config, encoders, objective)
    whole = examples
    lines += lines_of_twice(train.paths if isinstance(train, Sources) else train)
    scored: Sequence[Example] = []
    if isinstance(eval_data, float):
        examples, scored = SPLITS[split](examples, eval_data, seed)
        lines.append(localized(f"評価用に分けた行: {len(scored)}", f"rows for evaluation: {len(scored)}"))
    elif eval_data is not None:
        scored, more = _scored(eval_data, tokenizer, config, encoders, objective)
        lines += more
        both = shared_rows(examples, scored)
        if both:
            lines.append(
                localized(
                    f"評価データ {len(scored)} 行のうち {both} 行が学習データと同じです。評価が実際より良く見えます",
                    f"{both} of {len(scored)} evaluation rows are training rows as well: the evaluation will look better "
                    "than it is",
                )
            )
    if objective == "kto":
        _check_marks(examples)
    old = _old_rows(tokenizer, config, scored, lines, encoders) if objective == "sft" else []
    sizes = _sizes(entries, whole, examples)
    return PreparedData(examples, scored, lines, report, digest_of(Joined(examples, old)), old, objective, sizes)


def _scored(
    eval_data: Any, tokenizer: Any, config: DataConfig, encoders: Encoders | None, objective: Objective
) -> tuple[Sequence[Example], list[str]]:
    """The rows of evaluation data that is no share, and what is said of them."""
    scored, _, more = load_examples(eval_data, tokenizer, replace(config, max_samples=None), encoders, objective)
    return scored, [localized(f"評価: {line}", f"evaluation: {line}") for line in more]


def _streamed(
    train: Any, eval_data: Any, tokenizer: Any, config: DataConfig, encoders: Encoders | None
) -> PreparedData:
    """Training rows that are read while they are trained on, of which the first are looked at; evaluation data as ever."""
    items = train if isinstance(train, list) else [train]
    stream = RowStream([str(item) for item in items], tokenizer, config)
    examples, account = stream.look()
    lines = lines_of_look(account)
    scored: Sequence[Example] = []
    if eval_data is not None:
        scored, more = _scored(eval_data, tokenizer, config, encoders, "sft")
        told = localized(
            "ストリーミングでは、評価データが学習データにも含まれるかどうかは調べません（`aift data doctor 学習データ --eval 評価データ` で調べられます）",
            "streamed training data is not searched for the evaluation data (`aift data doctor TRAIN --eval EVAL` does that)",
        )
        lines += [*more, told]
    return PreparedData(examples, scored, lines, report_of(account), stream.digest(), stream=stream)


def _check_marks(examples: Sequence[Example]) -> None:
    """Refuses answers all of which are good, or all bad: KTO compares the two.

    Raises:
        DataError: with the kind that is missing.
    """
    marks = marks_of(examples)
    alone_ja = "（良い回答だけを学習するなら、印の列を除いて objective: sft にします）"
    alone_en = " (to learn good answers alone, remove the column of marks and use objective: sft)"
    for mark, ja, en in ((1, "良い", "good"), (-1, "悪い", "bad")):
        if not (marks == mark).any():
            also_ja, also_en = (alone_ja, alone_en) if mark < 0 else ("", "")
            raise DataError(
                f"学習データの {len(marks)} 行に{ja}回答がありません。objective: kto には良い回答と悪い回答の両方が要ります。{ja}回答の行を加えてください{also_ja}。",
                f"none of the {len(marks)} training rows has a {en} answer; objective: kto needs good and bad ones: add rows with "
                f"{en} answers{also_en}.",
            )


def _load_entries(
    entries: Sequence[Entry],
    tokenizer: Any,
    config: DataConfig,
    encoders: Encoders | None,
    objective: Objective,
) -> tuple[Joined, EncodeReport, list[str]]:
    """load_examples() of every entry of `data.train`, one behind another.

    Raises:
        DataError: data that cannot be trained on.
    """
    parts: list[Sequence[Example]] = []
    whole: EncodeReport | None = None
    lines: list[str] = []
    for entry in entries:
        _check_prepared(entry)
        own = config if entry.max_samples is None else replace(config, max_samples=entry.max_samples)
        examples, report, more = load_examples(entry.source, tokenizer, own, encoders, objective)
        parts.append(examples)
        if whole is None:
            whole = copy.deepcopy(report)
        else:
            whole.merge_source(report)
        lines += [f"{entry.name}: {line}" for line in more]
    assert whole is not None
    return Joined(*parts), whole, lines


def _check_prepared(entry: Entry) -> None:
    """Refuses max_samples of an entry whose rows were counted when its folder was prepared.

    Raises:
        ConfigError: with what to do instead.
    """
    if entry.max_samples is None or (folder := prepared_folder(entry.source)) is None:
        return
    most = entry.max_samples
    raise ConfigError(
        f"data.train の {entry.name} の max_samples が {most} ですが、{folder} は用意したデータのフォルダーで、行数は用意したときに決まっています。"
        f"max_samples を消すか、`aift data prepare ... data.max_samples={most}` で用意し直してください。",
        f"max_samples of {entry.name} in data.train is {most}, but {folder} is a folder of prepared data, whose rows were counted "
        f"when it was prepared: remove max_samples, or prepare it anew with `aift data prepare ... data.max_samples={most}`.",
    )


def _sizes(entries: Sequence[Entry], whole: Sequence[Example], train: Sequence[Example]) -> tuple[int, ...]:
    """Training rows of each entry.

    Args:
        whole, train: the rows of all entries before and after evaluation rows were taken out.

    Raises:
        DataError: an entry has none.
    """
    if not isinstance(whole, Joined) or not entries:
        return ()
    places = train.places if isinstance(train, Chosen) else np.arange(len(whole))
    ends = np.searchsorted(places, whole.ends)
    sizes = np.diff(ends, prepend=0).tolist()
    for entry, rows in zip(entries, sizes, strict=True):
        if not rows:
            raise DataError(
                f"data.train の {entry.name} の行は、すべて評価用に分けられました。data.eval の割合を下げるか、評価用のファイルを指定してください。",
                f"all rows of {entry.name} in data.train became evaluation rows; lower the share in data.eval, or give it a file.",
            )
    return tuple(sizes)


def _old_rows(
    tokenizer: Any, config: DataConfig, scored: Sequence[Example], lines: list[str], encoders: Encoders | None
) -> Sequence[Example]:
    """The rows of `data.replay` without those that are evaluation rows; adds what is to be said about them.

    Raises:
        DataError: none of them can be learnt.
    """
    path = config.replay.path
    if path is None:
        return []
    names = [found for item in (path if isinstance(path, list) else [path]) for found in matching(item)]
    source = [Path(item) for item in names] if isinstance(path, list) or names != [path] else path
    read, _, more = load_examples(source, tokenizer, replace(config, max_samples=None), encoders)
    lines += [localized(f"以前のデータ: {line}", f"replay: {line}") for line in more]
    evaluated = {content for _, content, _ in names_of(scored)}
    learnt = chain.from_iterable(some.tolist() for some in blocks_of(reader_of(read, "learnt"), 0, len(read)))
    useful = zip(names_of(read), learnt, strict=True)
    kept = array(
        "q", (place for place, ((_, name, _), labels) in enumerate(useful) if labels and name not in evaluated)
    )
    old = chosen(read, kept)
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


def load_examples(
    source: Any, tokenizer: Any, config: DataConfig, encoders: Encoders | None = None, objective: Objective = "sft"
) -> tuple[Sequence[Example], EncodeReport, list[str]]:
    """The examples of training or evaluation data; of each source in it (`config.max_samples`) the first rows only.
    Those of files come out of the cache, into which they are written where they have not been seen, or out of a folder
    that was prepared.

    Args:
        encoders: who encodes large files; None for this process alone.
        objective: see prepare.

    Raises:
        ConfigError: settings that the objective does not go with. DataError: see prepare.
    """
    validate_objective(config, objective)
    folder = prepared_folder(source)
    if folder is not None:
        return open_prepared(folder, tokenizer, config, objective)
    if isinstance(source, TextDataset):
        if not all(_is_of(objective, item) for item in source.examples):
            raise DataError(
                f"TextDataset はただの文章で、objective: {objective} では学習できません。回答の組か、良し悪しの付いた行を渡してください。",
                f"a TextDataset holds plain texts, which objective: {objective} cannot learn from; give pairs of answers or "
                "marked ones.",
            )
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
    if files and config.cache:
        try:
            return _from_cache(files, tokenizer, config, encoders, objective)
        except StorageError:  # a disk without room is no error: the tokens are made in memory
            notice(
                "トークンをキャッシュ（AIFT_CACHE）に書けないので、メモリー上で作ります。空き容量と権限を確認してください。",
                "the tokens cannot be written to the cache (AIFT_CACHE) and are made in memory; see that there is room and the "
                "right to write.",
            )
    # Every problem of the data in one list: those of the files, of the rows and of what they become for this model.
    bad = BadRows(config.skip_bad_rows)
    samples, lines = read_samples(source, config, bad, objective)
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
    examples = with_questions(examples, samples)
    report.left_out = len(bad)
    report.left_out_reasons = [[ja, en, count] for (ja, en), count in bad.counts.most_common()]
    report.vocabulary = vocabulary_loss(samples, tokenizer)
    report.system = common_system(samples)
    note_contradictions_of(report, examples)
    lines += bad.lines() + report.lines()
    return examples, report, lines


def _from_cache(
    files: Sequence[Path], tokenizer: Any, config: DataConfig, encoders: Encoders | None, objective: Objective
) -> tuple[Sequence[Example], EncodeReport, list[str]]:
    paths = [str(path) for path in files]
    asked = Preparation(tuple(paths), config, tokenizer, sources_of(paths), objective)
    size = sum(source.bytes for source in asked.sources)
    examples, manifest = cached_store(asked, encoder=encoders(tokenizer, size) if encoders is not None else None)
    return examples, manifest.report, lines_of(manifest, config.max_samples)


def _is_of(objective: Objective, example: Example) -> bool:
    """Whether a row of tokens is what the objective learns from."""
    return objective == ("preference" if example.fork else "kto" if example.mark else "sft")


def read_samples(
    source: Any, config: DataConfig, bad: BadRows, objective: Objective = "sft"
) -> tuple[list[Sample], list[str]]:
    """(samples, lines about what was read) of training or evaluation data, as the settings read it.

    Args:
        bad: receives the rows that cannot be used.
        objective: see prepare.

    Raises:
        DataError: see sources.load_samples.
    """
    files = _files(source)
    how = RowReading(
        config.columns,
        config.system_prompt,
        objective,
        config.sheet,
        asdict(config.normalize),
        tuple(config.doctor.ignore),
    )
    samples: list[Sample] = []
    lines: list[str] = []
    for part in _parts(source if not files or isinstance(source, str | Path) else files, config):
        of_part, read = read_source(part, how, bad, shared=True)
        samples += of_part[: config.max_samples]
        lines += read.lines() + _left_aside(of_part, config)
    return samples, lines


def _parts(source: Any, config: DataConfig) -> list[Any]:
    """What is read at a time: each path by itself where the rows of each are counted."""
    paths = isinstance(source, list) and bool(source) and all(isinstance(item, Path) for item in source)
    return source if paths and config.max_samples is not None else [source]


def _left_aside(rows: Sequence[object], config: DataConfig) -> list[str]:
    return left_aside(len(rows) - (config.max_samples or len(rows)), config.max_samples)


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


def _divide(examples: Sequence[Example], evaluated: set[str]) -> tuple[Sequence[Example], Sequence[Example]]:
    sides: tuple[list[int], list[int]] = ([], [])
    for place, (source, _, _) in enumerate(names_of(examples)):
        sides[source in evaluated].append(place)
    return chosen(examples, sides[0]), chosen(examples, sides[1])


def hold_out_rows(examples: Sequence[Example], share: float, seed: int) -> tuple[Sequence[Example], Sequence[Example]]:
    """(training, evaluation) as the runs before version 0.3 divided: whole source rows, equal rows wherever they fall.

    Raises:
        DataError: the share leaves one side empty.
    """

    def name(source: str) -> str:
        return re.sub(r"^.*[/\\]", "", source)  # those runs named a row by its file's last part

    found = {source: name(source) for source, _, _ in names_of(examples)}
    sources = sorted(set(found.values()))
    evaluated = set(random.Random(seed).sample(sources, _count(len(sources), share)))
    return _divide(examples, {source for source, short in found.items() if short in evaluated})


def hold_out(examples: Sequence[Example], share: float, seed: int) -> tuple[Sequence[Example], Sequence[Example]]:
    """(training, evaluation): all rows of one source on one side, all equal rows, and all with the same question.

    Rows are taken in the order of the data, so that the division does not depend on where the files lie. Where no question
    stands twice it is the division of `hold_out_equal_rows`.

    Raises:
        DataError: the share leaves one side empty.
    """
    return _hold_out(examples, share, seed, with_question=True)


def hold_out_equal_rows(
    examples: Sequence[Example], share: float, seed: int
) -> tuple[Sequence[Example], Sequence[Example]]:
    """(training, evaluation) as runs divided before questions were compared: all rows of one source on one side, and all equal ones.

    Raises:
        DataError: the share leaves one side empty.
    """
    return _hold_out(examples, share, seed, with_question=False)


def _hold_out(
    examples: Sequence[Example], share: float, seed: int, *, with_question: bool
) -> tuple[Sequence[Example], Sequence[Example]]:
    """(training, evaluation): what shares a source, its tokens or its question is on one side; an empty question is none."""
    group: dict[str, str] = {}  # a source, and the first source that has a row equal to one of its rows

    def root(source: str) -> str:
        while group[source] != source:
            group[source] = source = group[group[source]]
        return source

    first: dict[bytes | str, str] = {}
    for own, content, question in names_of(examples):
        group.setdefault(own, own)
        for key in (content, question) if with_question and question else (content,):
            group[root(own)] = root(first.setdefault(key, own))
    groups: dict[str, list[str]] = {}
    for source in group:
        groups.setdefault(root(source), []).append(source)
    count = _count(len(group), share)
    order = list(groups)
    random.Random(seed).shuffle(order)
    evaluated: set[str] = set()
    for name in order:
        if len(evaluated) + len(groups[name]) <= count:
            evaluated.update(groups[name])
    if not evaluated:  # every group is larger than the share: the smallest comes nearest
        evaluated.update(groups[min(order, key=lambda name: len(groups[name]))])
    if len(evaluated) == len(group):
        raise DataError(
            f"data.eval が {share} ですが、{len(group)} 行はすべて同じ内容で、学習と評価に分けられません。",
            f"data.eval is {share}, but all {len(group)} rows are equal and cannot be divided into training and evaluation.",
        )
    return _divide(examples, evaluated)


def shared_rows(train: Sequence[Example], eval_data: Sequence[Example]) -> int:
    """How many evaluation rows are training rows as well."""
    known = {content for _, content, _ in names_of(train)}
    return sum(content in known for _, content, _ in names_of(eval_data))


# Rules that choose the evaluation rows; a run continues under the rule that it began with.
SPLITS: dict[str, Callable[[Sequence[Example], float, int], tuple[Sequence[Example], Sequence[Example]]]] = {
    FIRST_SPLIT: hold_out_rows,
    ROWS_SPLIT: hold_out_equal_rows,
    SPLIT: hold_out,
}
