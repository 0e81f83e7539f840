"""Public Japanese question sets as they are published, and one row a line: JGLUE (JCommonsenseQA, JNLI, JSQuAD), NIILC,
JMMLU.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ..data.compression import unpack
from ..errors import DataError, InputNotFoundError, reason_of
from ..messages import argument, excerpt

# Files of a folder that are looked at, and folders inside each other.
_MOST_FILES, _MOST_DEEP = 20_000, 4
_PACKED = (".gz", ".bz2", ".xz", ".zst")
_LABELS = ("entailment", "contradiction", "neutral")


@dataclass(frozen=True)
class Row:
    """A question of a set.

    Attributes:
        name: its id.
        context: what it is about (a passage, a premise).
        choices, right: what may be answered, and the place of the right one.
        label: of sets whose answers are labels.
        answers: every accepted answer.
    """

    name: str
    question: str
    context: str = ""
    choices: tuple[str, ...] = ()
    right: int = 0
    label: str | None = None
    answers: tuple[str, ...] = ()


@dataclass(frozen=True)
class PublicSet:
    """How a set is found and read.

    Attributes:
        splits: words of the file's name, the first that is there is taken.
        endings: of its files, without compression.
        read: rows of a file.
        answers: whether it asks for answers, not for choices.
        has_train: whether examples are taken from its training file, where that is there.
    """

    splits: tuple[str, ...]
    endings: tuple[str, ...]
    read: Callable[[Path, Path], list[Row]]
    answers: bool = False
    has_train: bool = True


def read_set(name: str, folder: Path, *, split: str | None = None) -> list[Row]:
    """All rows of a set in a folder, at any depth.

    Args:
        split: another one than that which is asked; where it is not there, no rows.

    Raises:
        InputNotFoundError: no such set, or no folder. DataError: a file that is no such set.
    """
    if not folder.is_dir():
        raise InputNotFoundError(
            f"--tasks-from のフォルダー {argument(folder)} がありません。",
            f"the folder {argument(folder)} of --tasks-from does not exist.",
        )
    found = _files(folder, name, SETS[name], (split,) if split else SETS[name].splits)
    if not found and split:
        return []
    if not found:
        words = " / ".join(word for word in SETS[name].splits if word)
        raise InputNotFoundError(
            f"{argument(folder)} に {name} がありません（名前に {name} {words} を含む {' '.join(SETS[name].endings)} を探しました）。",
            f"{argument(folder)} has no {name} (looked for {' '.join(SETS[name].endings)} with {name} {words} in the name).",
        )
    rows: list[Row] = []
    for path in found:
        try:
            rows += SETS[name].read(path, folder)
        except (
            ValueError,
            KeyError,
            TypeError,
            IndexError,
            AttributeError,
            RecursionError,
            ElementTree.ParseError,
            csv.Error,
        ) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(
                f"{argument(path)} を {name} として読めません（{excerpt(reason_of(error))}）。公開された形のまま置いてください。",
                f"{argument(path)} cannot be read as {name} ({excerpt(reason_of(error))}); keep the file as it is published.",
            ) from error
    if not rows:
        raise DataError(f"{argument(found[0])} に問題がありません。", f"{argument(found[0])} has no questions.")
    return rows


def _ending(path: Path) -> str:
    return Path(path.stem).suffix.lower() if path.suffix.lower() in _PACKED else path.suffix.lower()


def _walk(folder: Path) -> Iterator[Path]:
    """Files below a folder, by name, no deeper and no more than a set's folder has; links to folders are not followed."""
    count = 0
    for place, inside, names in os.walk(folder):
        deep = len(Path(place).relative_to(folder).parts)
        inside[:] = sorted(item for item in inside if not item.startswith(".")) if deep < _MOST_DEEP else []
        for file in sorted(names):
            count += 1
            if count > _MOST_FILES:
                return
            if not file.startswith("."):
                yield Path(place) / file


def _files(folder: Path, name: str, kind: PublicSet, splits: Sequence[str]) -> list[Path]:
    """The files of a split: one, of several versions the last by name, or all of a set that has one for each subject."""
    mine = []
    for path in _walk(folder):
        whole = (Path(folder.resolve().name) / path.relative_to(folder)).as_posix().lower()
        if name in whole and _ending(path) in kind.endings and path.is_file():
            mine.append(path)
    for split in splits:
        if not split:  # no splits: one file a subject
            parts = [path for path in mine if "nc_nd" not in path.as_posix().lower()]
            whole_file = [path for path in parts if _ending(path) == ".jsonl"]
            return whole_file[:1] or parts
        here = [path for path in mine if split in path.name.lower() and "context" not in path.name.lower()]
        if here:
            return here[-1:]  # of several versions the newest
    return []


def _text(path: Path) -> str:
    raw, _, _ = unpack(path, {".json", ".jsonl", ".csv", ".xml"})
    return raw.decode("utf-8-sig")


def _lines(path: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in _text(path).splitlines() if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("a line is no object")
    return rows


def _string(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("an empty or missing text")
    return value.strip()


def _place(value: object, count: int) -> int:
    place = int(value) if isinstance(value, int | str) and not isinstance(value, bool) else -1
    if not 0 <= place < count:
        raise ValueError(f"label {value} of {count} choices")
    return place


def _read_jcommonsenseqa(path: Path, _: Path) -> list[Row]:
    """JGLUE: q_id, question, choice0 - choice4, label; or id, question, choices, label."""
    rows = []
    for row in _lines(path):
        choices = row.get("choices") or [row[f"choice{number}"] for number in range(5)]
        if not isinstance(choices, list) or len(choices) < 2:
            raise ValueError("too few choices")
        texts = tuple(_string(choice) for choice in choices)
        name = row["q_id"] if "q_id" in row else row["id"]
        rows.append(Row(f"{name}", _string(row["question"]), choices=texts, right=_place(row["label"], len(texts))))
    return rows


def _read_jnli(path: Path, _: Path) -> list[Row]:
    """JGLUE: sentence_pair_id, sentence1, sentence2, label; or id, premise, hypothesis, label."""
    rows = []
    for row in _lines(path):
        first, second = ("sentence1", "sentence2") if "sentence1" in row else ("premise", "hypothesis")
        name, label = row.get("sentence_pair_id", row.get("id")), row["label"]
        if label not in _LABELS:
            raise ValueError(f"label {label}")
        rows.append(Row(f"{name}", _string(row[second]), _string(row[first]), right=_LABELS.index(label), label=label))
    return rows


def _read_jsquad(path: Path, folder: Path) -> list[Row]:
    """JGLUE: SQuAD's JSON, whose contexts begin with `title [SEP] `; or id, context_id, question, answers with the contexts
    in another file.
    """
    if _ending(path) == ".jsonl":
        contexts = _contexts(folder)
        return [
            Row(
                f"{row['id']}",
                _string(row["question"]),
                _string(row["context"] if "context" in row else contexts[row["context_id"]]),
                answers=tuple(_string(answer) for answer in row["answers"]),
            )
            for row in _lines(path)
        ]
    rows = []
    for article in json.loads(_text(path))["data"]:
        for paragraph in article["paragraphs"]:
            context = _string(paragraph["context"].split("[SEP]", 1)[-1])
            for asked in paragraph["qas"]:
                answers = tuple(dict.fromkeys(_string(answer["text"]) for answer in asked["answers"]))
                if answers:
                    rows.append(Row(f"{asked['id']}", _string(asked["question"]), context, answers=answers))
    return rows


def _contexts(folder: Path) -> Mapping[str, str]:
    places = [folder, folder.absolute().parent / "prose"]
    for place in places:
        for path in _walk(place) if place.is_dir() else ():
            if "jsquad_contexts" in path.name.lower():
                return {str(row["id"]): str(row["text"]) for row in _lines(path)}
    raise DataError(
        f"{argument(folder)} に JSQuAD の文章（jsquad_contexts*.jsonl）がありません。JGLUE の valid-v1.*.json を置いてください。",
        f"{argument(folder)} has no contexts of JSQuAD (jsquad_contexts*.jsonl); put JGLUE's valid-v1.*.json there.",
    )


def _read_niilc(path: Path, _: Path) -> list[Row]:
    """NIILC-QA's XML: question with id, text and accepted answers; or id, question, answers. Questions without an answer
    are left out.
    """
    if _ending(path) == ".jsonl":
        pairs = [(f"{row['id']}", row["question"], row["answers"]) for row in _lines(path)]
    else:
        text = _text(path)
        if "<!DOCTYPE" in text or "<!ENTITY" in text:  # entities of such a file could grow without end
            raise ValueError("a DOCTYPE")
        tree = ElementTree.fromstring(text)  # nosec B314  # without a DOCTYPE it has no entities of its own
        pairs = [
            (f"{item.get('id')}", item.findtext("text"), [answer.text for answer in item.iter("answer")])
            for item in tree.iter("question")
        ]
    rows = []
    for name, asked, answers in pairs:
        accepted = tuple(dict.fromkeys(answer.strip() for answer in answers if answer and answer.strip()))
        if accepted:
            rows.append(Row(name, _string(asked), answers=accepted))
    return rows


def _read_jmmlu(path: Path, _: Path) -> list[Row]:
    """JMMLU: a CSV of each subject (question, four choices, letter) without a heading; or id, question, choices, label."""
    if _ending(path) == ".jsonl":
        return [
            Row(
                f"{row['id']}",
                _string(row["question"]),
                choices=tuple(_string(f"{choice}") for choice in row["choices"]),
                right=_place(row["label"], 4),
            )
            for row in _lines(path)
        ]
    rows = []
    for number, cells in enumerate(csv.reader(io.StringIO(_text(path)))):
        letter = cells[5].strip() if len(cells) > 5 else ""
        if number == 0 and letter not in ("A", "B", "C", "D"):
            continue  # a heading
        if not cells:
            continue
        if letter not in ("A", "B", "C", "D"):
            raise ValueError(f"row {number + 1}: answer {letter!r}")
        choices = tuple(_string(cell) for cell in cells[1:5])
        rows.append(Row(f"{path.stem}-{number}", _string(cells[0]), choices=choices, right="ABCD".index(letter)))
    return rows


SETS: dict[str, PublicSet] = {
    "jcommonsenseqa": PublicSet(("valid", "dev"), (".json", ".jsonl"), _read_jcommonsenseqa),
    "jnli": PublicSet(("valid", "dev"), (".json", ".jsonl"), _read_jnli),
    "jmmlu": PublicSet(("",), (".csv", ".jsonl"), _read_jmmlu, has_train=False),
    "niilc": PublicSet(("dev", "test"), (".xml", ".jsonl"), _read_niilc, answers=True),
    "jsquad": PublicSet(("valid", "dev"), (".json", ".jsonl"), _read_jsquad, answers=True),
}
