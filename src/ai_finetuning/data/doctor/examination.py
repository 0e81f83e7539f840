"""One examination of a file: every rule over every row, what only several rows tell together, and the data in numbers."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from ...config.preference import Objective
from ...errors import DataError
from ...japanese.language import find_refusal, ja_share
from ...japanese.style import styles
from ..bad_rows import BadRow, BadRows
from ..encode_report import LONG_CHOSEN
from ..files import read_rows
from ..formats import build, find_format, is_unmarked
from ..rendering import Prompts
from ..rows import FileReport, Row
from ..sources import LIKELY_ROWS, LIKELY_SHARE
from .duplicates import Pair, groups, near_pairs
from .leakage import Leakage, find_leakage, question_key
from .passages import JUDGED, Passage, Place, Sample, sample_of
from .rules import RULES, Rule, Severity, find, normalised

Span = tuple[int, int]
# A set of answers is one of classes where it has so few, and often.
_CLASSES, _COMMON = 20, 20


@dataclass(frozen=True)
class Hit:
    """Where a rule found something.

    Attributes:
        number, source: the row.
        place: of the text in it; empty where the whole row is meant.
        spans: in the text, in characters.
        others: sources of the rows that this one is found with.
    """

    number: int
    source: str
    place: Place = ()
    spans: tuple[Span, ...] = ()
    others: tuple[str, ...] = ()


@dataclass
class Examination:
    """What was found.

    Attributes:
        report: the file.
        samples: its rows.
        bad: rows that cannot be used for training, with the reason.
        unread: those among them that are no rows at all, and so not among the samples.
        hits: by the key of the rule.
        leakage: None without evaluation data.
        evaluated_bad: rows of the evaluation data that cannot be used for training.
        gauges: numbers about the whole, by name; nothing in them is text of a row.
        common: the most frequent answers, with how often they stand there.
        columns: roles of columns, as the file was read with.
        refused: of the samples that cannot be used for training, by their number, the reason (Japanese, English).
        objective: what the rows are for.
    """

    report: FileReport
    samples: list[Sample]
    bad: BadRows
    unread: int = 0
    rules: tuple[Rule, ...] = RULES
    hits: dict[str, list[Hit]] = field(default_factory=dict)
    leakage: Leakage | None = None
    evaluated_bad: int = 0
    gauges: dict[str, Any] = field(default_factory=dict)
    common: list[tuple[str, int]] = field(default_factory=list)
    columns: Mapping[str, str] | None = None
    refused: dict[int, tuple[str, str]] = field(default_factory=dict)
    objective: Objective = "sft"

    def rows(self, key: str) -> int:
        """How many rows a rule found."""
        if key == "unreadable":
            return len(self.bad)
        return len({hit.number for hit in self.hits.get(key, ())})

    def severity(self, rule: Rule) -> Severity:
        """A rule's severity here: what is only likely in one row is certain in many."""
        rows = self.rows(rule.key)
        certain = rule.key == "mojibake_likely" and rows >= LIKELY_ROWS and rows >= LIKELY_SHARE * len(self.samples)
        return "error" if certain else rule.severity

    @property
    def has_errors(self) -> bool:
        """Whether a rule of severity `error` found anything."""
        return any(self.rows(rule.key) and self.severity(rule) == "error" for rule in self.rules)


def read_samples(
    path: str | Path,
    columns: Mapping[str, str] | None = None,
    sheet: str | None = None,
    objective: Objective | None = None,
) -> Examination:
    """The rows of a file with their texts, and those that cannot be trained on; no rule was asked yet.

    Args:
        objective: what is learnt from them; None: see objective_of.

    Raises:
        InputNotFoundError, DataError: see files.read_rows.
    """
    bad = BadRows(skip=True)
    rows, report = read_rows(path, columns=columns, sheet=sheet, bad=bad)
    if objective is None:
        objective = objective_of(rows, columns)
    found = Examination(report, [], bad, len(bad), columns=columns, objective=objective)
    for number, row in enumerate(rows, start=1):
        found.samples.append(sample_of(row, number, columns))
        error = refusal_of(row, columns, objective)
        if error is not None:
            bad.add(error, row.source)
            found.refused[number] = (error.ja, error.en)
    return found


def objective_of(rows: Iterable[Row], columns: Mapping[str, str] | None) -> Objective:
    """The objective that learns from rows, by the first one that has a format: a pair of answers, a marked answer, or plain
    data. A row whose mark is empty, or not known, tells nothing.
    """
    for row in rows:
        try:
            found, shape = find_format(row.values, columns)
        except DataError:  # which reading it says in full
            continue
        if found is not None and not is_unmarked(found, shape):
            return JUDGED.get(found.key, "sft")
    return "sft"


def refusal_of(row: Row, columns: Mapping[str, str] | None, objective: Objective) -> BadRow | None:
    """Why a row cannot be used for training; None where it can."""
    try:
        _check(row, columns, objective)
    except BadRow as error:
        return error
    except DataError as error:
        return BadRow(error.for_files.ja.rstrip("。"), error.for_files.en.rstrip("."))
    return None


def _check(row: Row, columns: Mapping[str, str] | None, objective: Objective) -> None:
    """Builds a row as training would."""
    obtained, shape = find_format(row.values, columns, objective)
    if obtained is None:
        raise BadRow("列から学習データを作れません", "the columns make no training sample")
    build(shape.values, obtained, shape, row.source, None)


def pair_of(sample: Sample) -> Pair:
    """What a row asks and answers, as duplicates are compared."""
    if not any(item.role == "question" for item in sample.passages):
        return Pair("", "", sample.said("answer") or sample.said("text"))
    return Pair(sample.said("question"), sample.said("material"), sample.said("answer"))


def examine(
    path: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    sheet: str | None = None,
    evaluated: str | Path | None = None,
    tokenizer: Any = None,
    only: Sequence[str] = (),
    ignore: Sequence[str] = (),
    objective: Objective | None = None,
) -> Examination:
    """Everything that the doctor has to say about a file; nothing is changed.

    Args:
        path: the file.
        columns, sheet: as in the settings of data.
        evaluated: evaluation data, for leakage.
        tokenizer: of the model to train, for text that it reads as special tokens.
        only: keys of rules; empty for all.
        ignore: keys of rules that are left out.
        objective: see read_samples.

    Raises:
        InputNotFoundError, DataError: see files.read_rows.
    """
    found = read_samples(path, columns, sheet, objective)
    samples = found.samples
    found.rules = rules = chosen_rules(only, ignore)
    found.hits = hits_of(samples, rules)
    keys = {rule.key for rule in rules}
    if tokenizer is not None and "special_token" in keys:
        found.hits["special_token"] = _special(samples, Prompts(tokenizer, "auto"))
    pairs = [pair_of(item) for item in samples]
    if "near_duplicate" in keys:
        found.hits["near_duplicate"] = _near(samples, pairs)
    if "same_question" in keys:
        found.hits["same_question"] = _same_question(samples, pairs)
    if "pair_swapped" in keys:
        found.hits["pair_swapped"] = _swapped(samples)
    if "pair_length" in keys:
        found.hits["pair_length"] = _long_chosen(samples)
    if evaluated is not None:
        others = read_samples(evaluated, columns, sheet, found.objective)
        if not others.samples:
            raise others.bad.empty(others.report.path)
        found.leakage = find_leakage(pairs, [pair_of(item) for item in others.samples])
        found.evaluated_bad = len(others.bad)
        for key, leaks in (
            ("leak_question", found.leakage.question),
            ("leak_near", found.leakage.near),
            ("leak_coverage", found.leakage.coverage),
        ):
            found.hits[key] = [
                Hit(samples[ours].number, samples[ours].source, others=(others.samples[theirs].source,))
                for ours, theirs in leaks
            ]
    if not only:
        found.gauges, found.common = _gauges(samples)
    return found


def chosen_rules(only: Sequence[str] = (), ignore: Sequence[str] = ()) -> tuple[Rule, ...]:
    """The rules of these keys (of all where there are none) without those that are left out."""
    return tuple(rule for rule in RULES if (not only or rule.key in only) and rule.key not in ignore)


def hits_of(samples: Sequence[Sample], rules: Sequence[Rule] = RULES) -> dict[str, list[Hit]]:
    """What the rules that look at one text find, by their keys."""
    hits: dict[str, list[Hit]] = defaultdict(list)
    looking = [rule for rule in rules if rule.find is not None]
    for sample in samples:
        for item in sample.passages:
            for rule in looking:
                spans = find(rule, item)
                if spans:
                    hits[rule.key].append(Hit(sample.number, sample.source, item.place, tuple(spans)))
    return dict(hits)


def _special(samples: Sequence[Sample], prompts: Prompts) -> list[Hit]:
    hits = []
    for sample in samples:
        for item in sample.passages:
            found = prompts.special_in(item.text) if item.role != "text" else None
            if found is not None:
                hits.append(Hit(sample.number, sample.source, item.place, (found[0],)))
    return hits


def near_groups(samples: Sequence[Sample], pairs: Sequence[Pair]) -> list[list[int]]:
    """The indices of rows that are near duplicates of each other, the first one of each group in front."""
    members: dict[int, list[int]] = defaultdict(list)
    for index, root in enumerate(groups(len(samples), near_pairs(pairs))):
        members[root].append(index)
    return [group for group in members.values() if len(group) > 1]


def _near(samples: Sequence[Sample], pairs: Sequence[Pair]) -> list[Hit]:
    """Every row of a group but the first, with the first."""
    hits = [
        Hit(samples[index].number, samples[index].source, others=(samples[group[0]].source,))
        for group in near_groups(samples, pairs)
        for index in group[1:]
    ]
    return sorted(hits, key=lambda hit: hit.number)


def _same_question(samples: Sequence[Sample], pairs: Sequence[Pair]) -> list[Hit]:
    """Rows whose question and material other rows have, with another answer."""
    by_question: dict[str, list[int]] = defaultdict(list)
    for index, pair in enumerate(pairs):
        # Several pairs of one question are no contradiction, and an answer marked as bad is none to a good one.
        compared = samples[index].pair or any(item.role == "rejected" for item in samples[index].passages)
        key = "" if compared else question_key(pair)
        if key:
            by_question[key].append(index)
    hits = []
    for members in by_question.values():
        if len({normalised(pairs[index].answer) for index in members}) > 1:
            sources = [samples[index].source for index in members]
            hits += [
                Hit(
                    samples[index].number,
                    samples[index].source,
                    others=tuple(name for name in sources if name != own)[:5],
                )
                for index, own in zip(members, sources, strict=True)
            ]
    return sorted(hits, key=lambda hit: hit.number)


def _swapped(samples: Sequence[Sample]) -> list[Hit]:
    """Pairs whose chosen answer another row of the same question rejects, while it chooses the other one."""
    said: dict[tuple[str, ...], list[int]] = defaultdict(list)
    both = [
        (item.said("question"), item.said("material"), item.said("answer"), item.said("rejected")) for item in samples
    ]
    for index, (item, key) in enumerate(zip(samples, both, strict=True)):
        if item.pair and key[2].strip() != key[3].strip():
            said[tuple(map(str.strip, key))].append(index)
    hits = []
    for (question, material, chosen, rejected), members in said.items():
        others = said.get((question, material, rejected, chosen), ())
        sources = tuple(samples[index].source for index in others)[:5]
        hits += [Hit(samples[index].number, samples[index].source, others=sources) for index in members if sources]
    return sorted(hits, key=lambda hit: hit.number)


def _long_chosen(samples: Sequence[Sample]) -> list[Hit]:
    """Pairs whose chosen answer is much longer, where that is so of most of them."""
    ratios = {
        index: len(item.said("answer")) / max(1, len(item.said("rejected")))
        for index, item in enumerate(samples)
        if item.pair and item.said("rejected")
    }
    if not ratios or median(ratios.values()) <= LONG_CHOSEN:
        return []
    return [Hit(samples[index].number, samples[index].source) for index, ratio in ratios.items() if ratio > LONG_CHOSEN]


def _answers(samples: Sequence[Sample]) -> list[Passage]:
    return [item for sample in samples for item in sample.passages if item.role == "answer"]


def _gauges(samples: Sequence[Sample]) -> tuple[dict[str, Any], list[tuple[str, int]]]:
    """Numbers about all answers, and the most frequent ones."""
    texts = [item.text for item in _answers(samples)]
    if not texts:
        return {}, []
    kinds = [styles(text) for text in texts]
    polite, plain = sum(item.polite for item in kinds), sum(item.plain for item in kinds)
    lengths = sorted(map(len, texts))
    counts = Counter(text.strip() for text in texts)
    common = [(text, count) for text, count in counts.most_common(_COMMON) if count > 1]
    whole = "".join(texts)
    gauges: dict[str, Any] = {
        "answers": len(texts),
        "polite_sentences": polite,
        "plain_sentences": plain,
        "ja_share": round(sum(map(ja_share, texts)) / len(texts), 4),
        "anata_share": round(sum("あなた" in text for text in texts) / len(texts), 4),
        "refusal_share": round(sum(bool(find_refusal(text)) for text in texts) / len(texts), 4),
        "median_length": lengths[len(lengths) // 2],
        "longest": lengths[-1],
        "full_width_digits": sum(whole.count(chr(0xFF10 + digit)) for digit in range(10)),
        "half_width_digits": sum(whole.count(str(digit)) for digit in range(10)),
        "punctuation": {mark: whole.count(mark) for mark in "、。，．"},
        "different_answers": len(counts),
    }
    if 1 < len(counts) <= _CLASSES and len(texts) >= 5 * len(counts):
        gauges["class_shares"] = sorted((round(count / len(texts), 4) for count in counts.values()), reverse=True)
    return gauges, common
