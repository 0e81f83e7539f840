"""Files of samples: JSON lines, each a question with several answers; what `aift sample` writes and `aift score` reads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.hints import near_files
from ..data.encoding import UNREADABLE, decode
from ..errors import DataError, InputNotFoundError, StorageError
from ..system.files import write_in_place
from .question_files import Questions

if TYPE_CHECKING:
    from .answering import Outcome

KIND = ".jsonl"
_OWN = ("number", "question", "material", "system", "row", "samples", "ends", "right")


@dataclass(frozen=True)
class Sampled:
    """A question and the answers that were drawn for it.

    Attributes:
        place: where it stands, for messages (`samples.jsonl:3`).
        number: of its row in the file of questions.
        question, material, system: what was asked; empty where there is none. `system` is that of the row or `--system`,
            not what the model asks by itself.
        row: the whole row of the file of questions, by its headings.
        samples: the answers.
        ends: for each why it ended (models.generation.End).
        right: for each whether it is right; empty where nobody has judged.
    """

    place: str
    number: int
    question: str
    samples: tuple[str, ...]
    ends: tuple[str, ...]
    material: str = ""
    system: str = ""
    row: Mapping[str, Any] = field(default_factory=dict)
    right: tuple[bool, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The line of the file."""
        beside = {"material": self.material, "system": self.system}
        line = {"number": self.number, "question": self.question, **{k: v for k, v in beside.items() if v}}
        line |= {"row": dict(self.row), "samples": list(self.samples), "ends": list(self.ends)}
        return line | ({"right": list(self.right)} if self.right else {})


def sampled(questions: Questions, outcomes: Sequence[Outcome], system: str | None) -> list[Sampled]:
    """The questions that were answered, in their order.

    Args:
        outcomes: one a question.
        system: that was asked of the rows without one of their own; None is the model's own.
    """
    return [
        Sampled(
            item.place,
            item.number,
            item.text,
            outcome.answers,
            outcome.ends,
            item.material,
            item.system or system or "",
            questions.values(place),
        )
        for place, (item, outcome) in enumerate(zip(questions.questions, outcomes, strict=True))
        if outcome.ends
    ]


def write_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """JSON lines in the place of a file, in one step; bytes that no encoding has become U+FFFD.

    Raises:
        StorageError: it cannot be written; what was there is as it was.
    """
    text = "".join(json.dumps(line, ensure_ascii=False, default=str) + "\n" for line in lines)
    try:
        write_in_place(path, UNREADABLE.sub("\ufffd", text).encode("utf-8"))
    except OSError as error:
        raise StorageError(
            f"{path} に書けません（{error.strerror or error}）。空き容量と権限を確認して、同じコマンドをもう一度実行してください。",
            f"{path} cannot be written ({error.strerror or error}); check space and rights, then run the same command "
            "again.",
        ) from error


def read_samples(path: Path) -> list[Sampled]:
    """The questions of a file of samples. Only `question` and `samples` have to be there, so that answers which another
    program has drawn can be read; without `row` the keys that are not of this format stand for it.

    Raises:
        InputNotFoundError: no such file. DataError: a line that is no question with samples.
    """
    if not path.is_file():
        near = near_files(path, (KIND,))
        raise InputNotFoundError(
            f"回答の候補のファイル {path} がありません。{near.ja}",
            f"the file of samples {path} does not exist.{near.en}",
        )
    text, _ = decode(path.read_bytes(), str(path))
    obtained = []
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), start=1):
        if line.strip():
            try:
                obtained.append(_read(json.loads(line), f"{path}:{number}", number))
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise DataError(
                    f'{path}:{number}: 質問と回答の候補の行ではありません（{error}）。aift sample が書いたファイルか、{{"question": "…", "samples": ["…"]}} '
                    "の行のファイルを指定してください。",
                    f"{path}:{number}: no question with samples ({error}); give a file that aift sample wrote, or lines "
                    'like {"question": "...", "samples": ["..."]}.',
                ) from None
    if not obtained:
        raise DataError(f"{path} に行がありません。", f"{path} holds no line.")
    return obtained


def _read(values: Any, place: str, number: int) -> Sampled:
    """A line.

    Raises:
        ValueError, TypeError, KeyError: it is none.
    """
    if not isinstance(values, dict):
        raise TypeError("not an object")
    missing = [name for name in ("question", "samples") if name not in values]
    if missing:
        raise KeyError(missing[0])
    samples = values["samples"]
    ends: Any = values.get("ends", ["stop"] * len(samples) if isinstance(samples, list) else None)
    texts = [values["question"], values.get("material", ""), values.get("system", "")]
    row = values.get("row", {name: value for name, value in values.items() if name not in _OWN})
    if not all(isinstance(item, str) for item in texts) or not isinstance(row, dict):
        raise TypeError("question, material, system: text; row: an object")
    if not all(isinstance(item, list) and all(isinstance(text, str) for text in item) for item in (samples, ends)):
        raise TypeError("samples, ends: lists of texts")
    if len(ends) != len(samples) or not samples:
        raise ValueError(f"samples: {len(samples)}, ends: {len(ends)}")
    own = values.get("number")
    return Sampled(
        place, own if type(own) is int else number, texts[0], tuple(samples), tuple(ends), texts[1], texts[2], row
    )
