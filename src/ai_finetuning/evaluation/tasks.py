"""What a model is asked in an evaluation: questions with choices, questions with accepted answers, instructions, prose.

Public sets are read from a folder of the user's, in the form in which they are published or in one row a line; none of
them ships.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from .. import embedded
from ..data.bad_rows import BadRows
from ..data.doctor.examination import objective_of
from ..data.files import open_data
from ..data.messages import Comparison, Conversation
from ..data.sources import RowReading, load_samples, read_source
from ..errors import ConfigError, DataError, InputNotFoundError, Reason
from ..japanese.prompts import render, user_turn
from ..messages import argument, notice
from .answers import metrics_for
from .instructions import instructions
from .likelihood import Question, Scored
from .public_sets import SETS, Row, read_set

PROSE = "embedded:general-prose/passages"
OWN = ("data", "prose", "instructions")
Kind = Literal["choices", "answers", "instructions", "pairs", "prose"]
Form = Literal["stability", "llm-jp", "chat"]
FORMS: tuple[Form, ...] = ("stability", "llm-jp", "chat")
SEED = 0
# Items of a public set that are asked; None: all of them.
SAMPLES: dict[str, int | None] = {"jcommonsenseqa": None, "jnli": None, "jmmlu": 1000, "jsquad": 1000, "niilc": None}
_SHOTS = {"jcommonsenseqa": 3, "jnli": 3, "jmmlu": 5}
_NEW_TOKENS = {"jsquad": 48, "niilc": 64, "instructions": 512}
_OWN_NEW_TOKENS = {"exact": 64, "char_bigram_f1": 512}
# Of two answers, by the token: a sum calls the shorter one likelier. The sum is shown beside it.
PAIR_METRICS = ("accuracy", "accuracy, whole answers")
_LABELS = {"entailment": "含意", "contradiction": "矛盾", "neutral": "中立"}
_LETTERS = "ABCD"
_ASKED = {
    "jcommonsenseqa": "与えられた選択肢の中から、最適な答えを選んでください。",
    "jnli": "前提と仮説の関係を、含意、矛盾、中立の中から選んでください。",
    "jmmlu": "質問に対する正しい選択肢を選び、その記号だけを答えてください。",
    "jsquad": "次の文章を読んで、質問の答えを文章の中の言葉で短く答えてください。",
    "niilc": "次の質問に、答えの言葉だけで短く答えてください。",
}
_LLM_JP = "以下は、タスクを説明する指示と、文脈のある入力の組み合わせです。要求を適切に満たす応答を書きなさい。\n\n### 指示:\n"


@dataclass(frozen=True)
class Item:
    """One thing that is asked.

    Attributes:
        name: of the item, the same on every machine.
        text: what is asked; of prose the passage.
        choices: what may be answered, with `right` the place of the right one; of pairs the better answer and the other.
        accepted: answers that are right.
        messages: the conversation that asks, of answers, instructions and pairs.
        group: the source that it shares with other items (a work); empty where it is one alone.
        ids: tokens of the prompt, or of a text to score, where they are known already (rows of a run).
        scored: of pairs the same, both answers.
    """

    name: str
    text: str
    choices: tuple[str, ...] = ()
    right: int = 0
    accepted: tuple[str, ...] = ()
    messages: tuple[dict[str, str], ...] = ()
    group: str = ""
    ids: tuple[int, ...] = ()
    scored: tuple[Scored, ...] = ()


@dataclass(frozen=True)
class Task:
    """Items that are scored alike, fixed before any model has seen them.

    Attributes:
        name: `data`, `prose`, `instructions` or that of a public set.
        title: what a report calls it.
        form: how questions with choices become prompts.
        shots: solved examples before each question; items of them are not asked.
        per: how likelihoods of choices are compared (likelihood.best_choice).
        chance: share of right answers by guessing.
        metrics: of answers, the first being the one that is tested.
        max_new_tokens: of an answer.
    """

    name: str
    title: str
    kind: Kind
    items: tuple[Item, ...]
    form: Form = "stability"
    shots: tuple[Item, ...] = ()
    per: Literal["sum", "character"] = "sum"
    chance: float = 0.0
    metrics: tuple[str, ...] = ()
    max_new_tokens: int = 0

    @property
    def lower(self) -> bool:
        """Whether less is better."""
        return self.kind == "prose"

    @property
    def primary_metric(self) -> str:
        """The name of the score that is tested."""
        return self.metrics[0] if self.metrics else {"prose": "bits_per_character"}.get(self.kind, "accuracy")

    @property
    def is_share(self) -> bool:
        """Whether scores are 0 and 1."""
        return self.primary_metric in ("accuracy", "exact")

    def questions(self, tokenizer: Any) -> list[Question]:
        """The prompts of questions with choices, as one tokenizer's model reads them."""
        head, body = _head(self), _FORMAT[self.form]
        if self.form == "chat":
            return [
                Question(render(tokenizer, [user_turn(f"{head}{item.text}")], add_generation_prompt=True), item.choices)
                for item in self.items
            ]
        shots = "".join(body(item.text) + item.choices[item.right] + "\n\n" for item in self.shots)
        return [Question(f"{head}{shots}{body(item.text)}", item.choices) for item in self.items]


_FORMAT: dict[str, Callable[[str], str]] = {
    "stability": lambda text: f"{text}\n回答：",
    "llm-jp": lambda text: f"### 入力:\n{text}\n\n### 応答:\n",
    "chat": lambda text: text,
}


def _head(task: Task) -> str:
    asked = _ASKED.get(task.name, "")
    return f"{_LLM_JP}{asked}\n\n" if task.form == "llm-jp" else f"{asked}\n\n"


def sample(items: Sequence[Any], count: int | None) -> list[Any]:
    """At most so many items, the same ones each time, in their order."""
    if count is None or count >= len(items):
        return list(items)
    return [items[place] for place in sorted(random.Random(SEED).sample(range(len(items)), count))]


@dataclass(frozen=True)
class Asked:
    """What an evaluation measures, as it was asked for.

    Attributes:
        data: a file of the user's own questions and answers; None without one.
        tasks: `auto`, or names.
        folder: of the public sets.
        form: of questions with choices.
        limit: most items of a task; None: as many as the task has.
        columns: roles of the file's columns.
    """

    data: str | None = None
    tasks: Sequence[str] = ("auto",)
    folder: Path | None = None
    form: Form = "stability"
    limit: int | None = None
    columns: Mapping[str, str] = field(default_factory=dict)


def find_tasks(asked: Asked) -> tuple[list[Task], dict[str, Reason]]:
    """The tasks in their order, and why others of `auto` are not measured.

    Raises:
        ConfigError: an unknown name, or nothing to measure. InputNotFoundError: a set that was named and is not in the
            folder. DataError: a file that cannot be used.
    """
    known = (*OWN, *SETS)
    auto = list(asked.tasks) == ["auto"]
    unknown = [] if auto else [name for name in asked.tasks if name not in known]
    if unknown:
        raise ConfigError(
            f"--tasks の {', '.join(unknown)} を知りません。auto か、次の名前をコンマで区切って指定してください: {', '.join(known)}。",
            f"--tasks names {', '.join(unknown)}; give auto, or some of these, with commas between: {', '.join(known)}.",
        )
    names = _automatic(asked) if auto else [name for name in known if name in asked.tasks]
    if not auto and asked.data is not None and "data" not in names:
        names.insert(0, "data")
    tasks, left = [], {}
    for name in names:
        try:
            task = _task(name, asked)
        except InputNotFoundError as error:
            if not auto or name in OWN:
                raise
            left[name] = Reason(error.ja, error.en)
            continue
        tasks.append(replace(task, items=tuple(sample(task.items, asked.limit))))
    return tasks, left


def _automatic(asked: Asked) -> list[str]:
    own = ["data", "prose"] if asked.data is not None else ["prose", "instructions"]
    return [*own, *(SETS if asked.folder is not None else ())]


def _task(name: str, asked: Asked) -> Task:
    if name == "data":
        if asked.data is None:
            raise ConfigError(
                "--tasks に data がありますが、--data のファイルがありません。",
                "--tasks names data, and there is no --data.",
            )
        return own_data(asked.data, asked.columns)
    if name == "prose":
        return prose()
    if name == "instructions":
        items = tuple(
            Item(f"instructions-{item.number}", item.prompt, messages=({"role": "user", "content": item.prompt},))
            for item in instructions()
        )
        return Task(name, name, "instructions", items, max_new_tokens=_NEW_TOKENS[name])
    if asked.folder is None:
        raise ConfigError(
            f"{name} を読むフォルダーがありません。--tasks-from で指定してください。",
            f"there is no folder to read {name} from; name it with --tasks-from.",
        )
    return public_task(name, asked.folder, asked.form)


def prose() -> Task:
    """The passages of general prose that ship; works are resampled, not passages."""
    with embedded.data_file(PROSE).open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    items = tuple(Item(f"{row['work']}:{row['start']}", row["text"], group=row["work"]) for row in rows)
    return Task("prose", "prose", "prose", items)


def own_data(path: str, columns: Mapping[str, str] | None = None) -> Task:
    """The user's own questions: the last answer of each row is the expected one, what comes before it is asked. A file of
    pairs of answers is asked which of the two is likelier.

    Raises:
        DataError: rows without an answer, such as plain texts.
    """
    try:
        samples, _ = load_samples(path, columns=columns or None)
    except DataError:
        pairs = _own_pairs(path, columns)
        if pairs is None:
            raise
        return pairs
    items = []
    for number, row in enumerate(samples, start=1):
        if (
            not isinstance(row, Conversation)
            or row.messages[-1].role != "assistant"
            or not row.messages[-1].content.strip()
        ):
            raise DataError(
                f"{row.source or path} に答えがありません。--data には質問と答えの組を渡してください（文章なら bits/字 で測る別の課題になります）。",
                f"{row.source or path} has no answer; --data takes questions with their answers.",
            )
        turns = row.as_dicts()
        items.append(
            Item(
                f"data-{number}",
                str(turns[-2]["content"]) if len(turns) > 1 else "",
                accepted=(row.messages[-1].content,),
                messages=tuple(turns[:-1]),
            )
        )
    return own_questions(Path(str(path)).name, items)


def _own_pairs(path: str, columns: Mapping[str, str] | None) -> Task | None:
    """The pairs of a file; None where its first row is none. Answers that are not one text each are left out, which is said.

    Raises:
        DataError: rows that are no pairs, behind one.
    """
    how = RowReading(columns or None, objective="preference")
    try:
        rows, _ = read_source(path, how, BadRows(), shared=False)
    except DataError:
        _, batches = open_data(path, BadRows(True), columns=columns or None)
        if objective_of((row for batch in batches for row in batch.rows()), columns or None) == "preference":
            raise
        return None
    items = []
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, Comparison) or len(row.chosen) > 1 or len(row.rejected) > 1:
            continue
        choices = (row.chosen[0].content, row.rejected[0].content)
        calls = row.chosen[0].tool_calls or row.rejected[0].tool_calls
        if not calls and choices[0].strip() != choices[1].strip():  # thinking alone may differ
            asked = tuple(row.sides[0].as_dicts()[:-1])
            items.append(Item(f"data-{number}", str(asked[-1]["content"]), choices=choices, messages=asked))
    if not items:
        raise DataError(
            f"{path} の組は測れません（何回かのやり取りか、ツールの呼び出しか、文が同じです）。最後の発言の文だけが違う組にしてください。",
            f"{path}: no pair can be measured (answers of several messages, tool calls, or the same text twice); give pairs that "
            "differ in the text of their last message.",
        )
    if len(items) < len(rows):
        left = len(rows) - len(items)
        notice(
            f"{path}: {left:,} 組は測りません（何回かのやり取りか、ツールの呼び出しか、文が同じです）。",
            f"{path}: {left:,} pairs are not measured (answers of several messages, tool calls, or the same text twice).",
        )
    return pairs_task(Path(str(path)).name, items)


def pairs_task(title: str, items: Sequence[Item]) -> Task:
    """The user's own pairs: the share of which a model finds the better answer likelier, a token on average."""
    return Task("data", title, "pairs", tuple(items), chance=0.5, metrics=PAIR_METRICS)


def own_questions(title: str, items: Sequence[Item]) -> Task:
    """The task of the user's own questions, scored by how long the expected answers are."""
    metrics = metrics_for([item.accepted[0] for item in items])
    return Task("data", title, "answers", tuple(items), metrics=metrics, max_new_tokens=_OWN_NEW_TOKENS[metrics[0]])


def public_task(name: str, folder: Path, form: Form) -> Task:
    """A public set out of a folder.

    Raises:
        InputNotFoundError: it is not there. DataError: it cannot be read.
    """
    rows = read_set(name, folder)
    if SETS[name].answers:
        items = [
            Item(
                row.name,
                row.question,
                accepted=row.answers,
                messages=(
                    user_turn(
                        f"{_ASKED[name]}\n\n質問：{row.question}", f"文章：{row.context}" if row.context else None
                    ),
                ),
            )
            for row in sample(rows, SAMPLES[name])
        ]
        return Task(
            name, name, "answers", tuple(items), metrics=("exact", "char_f1_jglue"), max_new_tokens=_NEW_TOKENS[name]
        )
    count = _SHOTS[name] if form != "chat" else 0
    train = read_set(name, folder, split="train") if count and SETS[name].has_train else []
    shots = _shots(train or rows, count if train else min(count, len(rows) - 1))
    left = rows if train else [row for row in rows if row not in shots]
    if not left:
        raise DataError(
            f"{name} の問題はどれも同じで、例題のほかに出題するものがありません（{argument(folder)}）。公開された形のまま置いてください。",
            f"all questions of {name} in {argument(folder)} are the same: beside the examples there is nothing to ask. Keep the "
            "files as they are published.",
        )
    asked = [_choice_item(name, row) for row in sample(left, SAMPLES[name])]
    fixed = Counter(row.right for row in left)
    chance = 1 / len(asked[0].choices)
    if name != "jcommonsenseqa":  # answers that a model may always give, whatever is asked
        chance = max(chance, max(fixed.values()) / len(left))
    return Task(
        name,
        name,
        "choices",
        tuple(asked),
        form,
        tuple(_choice_item(name, row) for row in shots),
        "character" if name == "jcommonsenseqa" else "sum",
        chance,
    )


def _shots(rows: Sequence[Row], count: int) -> list[Row]:
    """The first rows of each label in turn where labels are fixed, else the first ones."""
    if count and rows[0].label is not None:
        found: dict[str, Row] = {}
        for row in rows:
            found.setdefault(str(row.label), row)
        return [found[label] for label in sorted(found)][:count]
    return list(rows[:count])


def _choice_item(name: str, row: Row) -> Item:
    if name == "jnli":
        labels = tuple(_LABELS)
        return Item(
            row.name,
            f"前提：{row.context}\n仮説：{row.question}",
            tuple(_LABELS.values()),
            labels.index(str(row.label)),
        )
    if name == "jmmlu":
        listed = "\n".join(f"{letter}. {text}" for letter, text in zip(_LETTERS, row.choices, strict=True))
        return Item(row.name, f"質問：{row.question}\n選択肢：\n{listed}", tuple(_LETTERS), row.right)
    listed = "\n".join(f"- {text}" for text in row.choices)
    return Item(row.name, f"質問：{row.question}\n選択肢：\n{listed}", row.choices, row.right)


def without_shots(task: Task, keep: int) -> Task:
    """The same task with fewer solved examples."""
    return replace(task, shots=task.shots[:keep])
