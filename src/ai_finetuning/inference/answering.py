"""Answers to a file of questions: one load, batches, and a record of what is answered, from which a stopped command goes
on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import Reason, ToolkitError
from ..japanese.default_system import system_turn
from ..japanese.prompts import user_turn
from ..models.drawing import seed_of
from ..models.generation import Answer, encode_prompts, generate_answers
from ..models.named import find_named
from .question_files import Question
from .session import OpenModel
from .unfinished import Unfinished


@dataclass(frozen=True)
class Outcome:
    """What became of a question.

    Attributes:
        answers: a text for each column, or each sample; empty for an empty or refused question.
        ends: why each answer ended.
        refused: why the question could not be asked (Japanese, English).
    """

    answers: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()
    refused: tuple[str, str] | None = None


@dataclass(frozen=True)
class Asking:
    """How questions are asked.

    Attributes:
        system: the system text; None is the one that the model was trained with, "" none.
        variants: for each column of answers whether the adapter is in use.
        batch_size: most answers made at a time.
        seed: from it each answer has its own, so that it is the same in other batches, and in a resumed command.
        options: of generate_answers.
        samples: answers to a question for each of the variants.
    """

    system: str | None
    variants: tuple[bool, ...]
    batch_size: int
    seed: int
    options: Mapping[str, Any]
    samples: int = 1


@dataclass
class Record:
    """What is answered so far, in a file beside the answers; a line a question.

    Attributes:
        file: it.
        outcomes: by the place of the question.
    """

    file: Unfinished
    outcomes: dict[int, Outcome]

    @classmethod
    def open(cls, path: Path, made_by: Mapping[str, Any], *, restart: bool) -> Record:
        """The record at a path, with what an earlier command has answered.

        Args:
            made_by: what the answers depend on; another command does not go on with them.
            restart: forget that.

        Raises:
            ConfigError, StorageError: see Unfinished.read.
        """
        file = Unfinished.at(path, made_by, Reason("途中の回答", "the answers so far"))
        columns = len(file.made_by.get("variants", ())) * int(file.made_by.get("samples", 1))
        return cls(file, dict(file.read(partial(_outcome, columns=columns), restart=restart)))

    @property
    def path(self) -> Path:
        """Of the file."""
        return self.file.path

    def add(self, outcomes: Mapping[int, Outcome]) -> None:
        """Writes answers to disk before the next ones are made.

        Raises:
            StorageError: they cannot be written.
        """
        lines = []
        for place, item in outcomes.items():
            line: dict[str, Any] = {"question": place, "answers": item.answers, "ends": item.ends}
            lines.append(line | ({"refused": item.refused} if item.refused else {}))
        self.file.add(lines)
        self.outcomes.update(outcomes)


def _outcome(row: dict[str, Any], columns: int) -> tuple[int, Outcome]:
    """A line of the record: (place of the question, its outcome with so many answers).

    Raises:
        ValueError, KeyError, TypeError: it is no such line.
    """
    place, answers, ends, refused = row["question"], row["answers"], row["ends"], row.get("refused")
    texts = [*answers, *ends, *(refused or ())]
    if type(place) is not int or not all(isinstance(text, str) for text in texts):
        raise ValueError("not texts")
    if (
        len(answers) != len(ends)
        or not (refused is None or len(refused) == 2)
        or (answers and len(answers) != columns > 0)
    ):
        raise ValueError("not as many")
    return place, Outcome(tuple(answers), tuple(ends), tuple(refused) if refused else None)


def ask(
    opened: OpenModel,
    questions: Sequence[Question],
    asking: Asking,
    record: Record,
    progress: Callable[[int, int], None] = lambda done, whole: None,
) -> list[Outcome]:
    """An outcome for each question, in their order; what the record has is not asked again.

    Questions of similar length make a batch, longest first. Empty ones stay empty; one that is too long for the model, or
    that its template refuses, is refused by itself.

    Args:
        progress: is told the tokens of the questions that are answered, and of all.

    Raises:
        StorageError: the record cannot be written. ConfigError: a value out of range.
    """
    conversations = {
        place: [*system_turn(opened.tokenizer, item.system or asking.system), user_turn(item.text, item.material)]
        for place, item in enumerate(questions)
        if item.text and not item.unreadable
    }
    lengths, refused = _measure(opened, questions, conversations)
    new = {place: outcome for place, outcome in refused.items() if place not in record.outcomes}
    if new:
        record.add(new)
    order = sorted(lengths, key=lambda place: (-lengths[place], place))
    at_a_time = max(1, asking.batch_size // asking.samples)
    batches = [order[start : start + at_a_time] for start in range(0, len(order), at_a_time)]
    whole = sum(lengths.values())
    done = sum(lengths[place] for place in order if place in record.outcomes)
    progress(done, whole)
    for batch in batches:
        missing = [place for place in batch if place not in record.outcomes]
        if missing:  # all of the batch again: in 16 bits other neighbours round otherwise
            record.add(_answer(opened, [conversations[place] for place in batch], asking, batch))
            done += sum(lengths[place] for place in missing)
            progress(done, whole)
    empty = Outcome(("",) * len(asking.variants) * asking.samples)
    return [record.outcomes.get(place, empty) for place in range(len(questions))]


def _answer(
    opened: OpenModel, conversations: Sequence[Any], asking: Asking, places: Sequence[int]
) -> dict[int, Outcome]:
    """The outcomes of the questions at these places, recorded together."""
    answers: dict[int, list[Answer]] = {place: [] for place in places}
    owners = [place for place in places for _ in range(asking.samples)]
    for adapter in asking.variants:
        with opened.adapter(adapter):
            obtained = generate_answers(
                opened.model,
                opened.tokenizer,
                [conversation for conversation in conversations for _ in range(asking.samples)],
                seed=[seed_of(asking.seed, place, sample) for place in places for sample in range(asking.samples)],
                batch_size=min(asking.batch_size, len(owners)),
                **asking.options,
            )
        for place, item in zip(owners, obtained, strict=True):
            answers[place].append(item)
    return {
        place: Outcome(tuple(item.text for item in items), tuple(item.end for item in items))
        for place, items in answers.items()
    }


def _measure(
    opened: OpenModel, questions: Sequence[Question], conversations: Mapping[int, Any]
) -> tuple[dict[int, int], dict[int, Outcome]]:
    """(tokens of every prompt, the questions that cannot be asked)."""
    lengths: dict[int, int] = {}
    refused = {
        place: Outcome(
            refused=(
                "文字コードにないバイトがあります。",
                "it holds bytes that the encoding of the file does not have.",
            )
        )
        for place, item in enumerate(questions)
        if item.unreadable
    }
    for place, conversation in conversations.items():
        try:
            lengths[place] = len(encode_prompts(opened.model, opened.tokenizer, [conversation])[0])
        except ToolkitError as error:
            refused[place] = Outcome(refused=(error.ja, error.en))
    return lengths, refused


def identity(name: str) -> dict[str, Any]:
    """What tells a model or adapter from another one under the same name: its files' sizes and times."""
    folder = find_named(name).folder  # of an interrupted run that of its newest checkpoint
    if folder is None:
        return {"name": name}
    files = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".json", ".jinja", ".model"))
    weights = {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in files if path.is_file()}
    return {"name": str(folder.resolve()), "files": weights}
