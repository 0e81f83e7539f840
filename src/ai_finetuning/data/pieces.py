"""Some rows of a file to tokens, by themselves: what a worker does. What is said about them adds up, and is judged when
the last of them is done.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from ..config.data import DataConfig
from ..config.preference import Objective
from ..errors import ConfigError, DataError
from .bad_rows import BadRows
from .conversations import systems_of
from .data_report import DataReport
from .doctor.leakage import pair_of, question_key
from .doctor.rules import validate_keys
from .encode_report import EncodeReport
from .example import Example
from .files import RowBatch
from .messages import Sample
from .rendering import Prompts
from .rows import FileReport
from .sources import (
    RowReading,
    clean,
    files_of,
    note_what_is_odd,
    nothing_left,
    refuse_half_marked,
    samples_of,
    without_likely,
)
from .tokenize import Segmenter, check_encoded, encode_some
from .vocabulary import VocabularyCounts, VocabularyMeter


@dataclass(frozen=True)
class Reading:
    """How rows become tokens: what a worker has to know of the settings.

    Attributes:
        certain: files in which rows that are perhaps mojibake are.
        ignore: keys of rules of the data doctor that are not applied.
        objective: what is learnt from; rows of another one are bad rows.
    """

    columns: dict[str, str] | None
    system_prompt: str | None
    normalize: dict[str, bool]
    max_length: int
    on_long: str
    loss_on: str
    certain: set[str] = field(default_factory=set)
    ignore: tuple[str, ...] = ()
    objective: Objective = "sft"

    @classmethod
    def of(cls, config: DataConfig, certain: Collection[str] = (), objective: Objective = "sft") -> Reading:
        """As the settings say.

        Raises:
            ConfigError: data.doctor.ignore names no rule; settings that the objective does not go with.
        """
        validate_keys(config.doctor.ignore, "data.doctor.ignore")
        validate_objective(config, objective)
        return cls(
            config.columns,
            config.system_prompt,
            asdict(config.normalize),
            config.max_length,
            config.on_long,
            config.loss_on,
            set(certain),
            tuple(config.doctor.ignore),
            objective,
        )


def validate_objective(config: DataConfig, objective: Objective) -> None:
    """Refuses settings under which answers cannot be compared or judged.

    Raises:
        ConfigError: with the setting and the way out.
    """
    for name, value, refused, ja, en in (
        (
            "replay.path",
            config.replay.path,
            config.replay.path or "",
            "以前の学習の行は混ぜられません。消してください。",
            "rows of an earlier training cannot be mixed in: remove it.",
        ),
        (
            "loss_on",
            config.loss_on,
            "all",
            "比べるのは回答だけです。auto にしてください。",
            "only answers are compared: use auto.",
        ),
        (
            "on_long",
            config.on_long,
            "split",
            "回答は切り分けられません。truncate、drop、error のどれかにしてください。",
            "answers cannot be divided: use truncate, drop or error.",
        ),
    ):
        if objective != "sft" and value == refused:
            raise ConfigError(
                f"data.{name} が {value} ですが、objective: {objective} では使えません。{ja}",
                f"data.{name} is {value}, which does not go with objective: {objective}: {en}",
            )


@dataclass
class Problems:
    """Bad rows by what they failed at, so that they are listed in that order whatever the pieces."""

    read: BadRows = field(default_factory=BadRows)
    shaped: BadRows = field(default_factory=BadRows)
    cleaned: BadRows = field(default_factory=BadRows)
    likely: BadRows = field(default_factory=BadRows)
    encoded: BadRows = field(default_factory=BadRows)

    def merge(self, later: Problems) -> None:
        """Adds those of what comes behind."""
        for name in ("read", "shaped", "cleaned", "likely", "encoded"):
            getattr(self, name).merge(getattr(later, name))

    def without_excerpts(self) -> Problems:
        """The same without what stands in the rows: files get none of it."""
        return Problems(*(getattr(self, item.name).without_excerpts() for item in fields(self)))


@dataclass
class Account:
    """What became of rows, in numbers that add up.

    Attributes:
        rows: that were read.
        columns: names of their columns.
        samples, likely: how many they made, and how many of those are perhaps mojibake, by file.
        systems: system texts of the conversations, at most two.
    """

    rows: int = 0
    columns: dict[str, None] = field(default_factory=dict)
    samples: Counter[str] = field(default_factory=Counter)
    likely: Counter[str] = field(default_factory=Counter)
    problems: Problems = field(default_factory=Problems)
    data: DataReport = field(default_factory=DataReport)
    encoded: EncodeReport = field(default_factory=EncodeReport)
    lost: VocabularyCounts = field(default_factory=VocabularyCounts)
    systems: list[str] = field(default_factory=list)

    def merge(self, later: Account) -> None:
        """Adds what became of the rows behind these."""
        self.rows += later.rows
        self.columns |= later.columns
        self.samples.update(later.samples)
        self.likely.update(later.likely)
        self.problems.merge(later.problems)
        self.data.merge(later.data)
        self.encoded.merge(later.encoded)
        self.lost.merge(later.lost)
        self.systems = list(dict.fromkeys([*self.systems, *later.systems]))[:2]


class Headless(Exception):
    """A piece has a row without a format, and nobody has said what columns the rows of its file have."""


class PieceMaker:
    """Makes pieces of data, one after another.

    Args:
        tokenizer: with pad token and chat template.
        reading: how.
        many: whether many characters are known to come.
    """

    def __init__(self, tokenizer: Any, reading: Reading, *, many: bool = False) -> None:
        self._reading = reading
        self._prompts = Prompts(tokenizer, reading.loss_on)
        self._segmenter = Segmenter(tokenizer, many=many)
        self._meter = VocabularyMeter(tokenizer)

    def make(
        self, batch: RowBatch, heading: Sequence[str] | None, limit: int | None = None
    ) -> tuple[list[Example], Account]:
        """The examples of some rows, and what became of them. What a reader finds in the lines is noted in the account.

        Args:
            heading: columns of the first row of the file that has a format, where somebody has looked.
            limit: how many samples to encode; the others are read only.

        Raises:
            Headless: the heading is needed. DataError: two columns of one role.
        """
        reading, account = self._reading, Account()
        problems, report = account.problems, account.data
        rows = replace(batch, file=replace(batch.file, bad=problems.read)).rows()
        account.rows = len(rows)
        account.columns = dict.fromkeys(str(key) for row in rows for key in row.values) if reading.columns else {}
        report.bad = problems.shaped
        how = RowReading(reading.columns, reading.system_prompt, reading.objective)
        samples = samples_of(rows, report, how, _given(heading))
        report.bad = problems.cleaned
        cleaned, likely = clean(samples, reading.normalize, report, reading.ignore)
        account.samples, account.likely = files_of(samples), files_of(likely)
        report.bad = problems.likely
        cleaned = without_likely(cleaned, likely, reading.certain, report)
        report.bad = BadRows()
        for sample in cleaned:
            note_what_is_odd(sample, report, reading.ignore)
        report.samples = len(cleaned)
        taken = cleaned if limit is None else cleaned[:limit]
        examples, account.encoded = encode_some(
            taken, self._prompts, reading.max_length, reading.on_long, problems.encoded, self._segmenter
        )
        account.lost = self._meter.count(taken)
        account.systems = systems_of(taken)[:2]
        return with_questions(examples, taken), account


def _given(heading: Sequence[str] | None) -> Callable[[], Sequence[str]]:
    def give() -> Sequence[str]:
        if heading is None:
            raise Headless
        return heading

    return give


def with_questions(examples: Sequence[Example], samples: Sequence[Sample]) -> list[Example]:
    """The examples with a digest of the question that their row asks."""
    asked = {sample.source: question_key(pair_of(sample)) for sample in samples}
    digests = {
        source: hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        for source, key in asked.items()
        if key
    }
    return [replace(item, question=digests[item.source]) if item.source in digests else item for item in examples]


@dataclass
class Group:
    """What was read of one file, folder or data set.

    Attributes:
        report: what was found in it.
        account: what became of its rows.
        bad: rows that the reader refused.
    """

    report: FileReport
    account: Account
    bad: BadRows

    @property
    def unread(self) -> int:
        """Rows that could not be read, or have no shape."""
        problems = self.account.problems
        return len(self.bad) + len(problems.read) + len(problems.shaped)


def judge(parts: Sequence[Sequence[Group]], skip: bool) -> tuple[EncodeReport, BadRows]:
    """(report, bad rows) of everything together.

    Args:
        parts: what was read, by what is counted together.
        skip: whether bad rows are left out instead of refused.

    Raises:
        DataError: bad rows, no usable row, or a cut that leaves too little.
    """
    bad, whole = BadRows(skip), Account()
    for part in parts:
        for group in part:
            for stage in (group.bad, group.account.problems.read, group.account.problems.shaped):
                bad.merge(stage)
            whole.merge(group.account)
        for name in ("cleaned", "likely"):
            for group in part:
                bad.merge(getattr(group.account.problems, name))
        if not sum(group.account.data.samples for group in part) and (skip or not len(bad)):
            found = [group.account.data for group in part]
            raise nothing_left(bad, sum(data.ties for data in found), sum(data.unlearnt for data in found))
    if skip:  # else the marked rows are refused
        refuse_half_marked(whole.data)
    bad.merge(whole.problems.encoded)
    report = whole.encoded
    try:
        check_encoded(report, bad)
    except DataError:
        bad.refuse()
        raise
    bad.refuse()
    report.left_out = len(bad)
    report.left_out_reasons = [[ja, en, count] for (ja, en), count in bad.counts.most_common()]
    report.vocabulary = whole.lost.loss()
    report.system = whole.systems[0] or None if len(whole.systems) == 1 else None
    return report, bad
