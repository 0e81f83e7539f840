"""A model before and after training on the same questions, in one process where the base is the adapter's own: one set of
weights, the adapter off and on; every answer greedy.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..errors import ConfigError, InputNotFoundError, Reason, ToolkitError
from ..inference.answering import identity
from ..inference.session import OpenModel, open_model
from ..inference.usable import usable
from ..japanese.default_system import system_turn
from ..messages import argument, warn
from ..models.adapters import saved_tokenizer
from ..models.generation import answer_prompts, encode_prompts, generate_answers, prompt_tokens
from ..models.hub import locate_base
from ..models.named import Named, find_named
from ..models.parts import unwrapped
from ..models.quantized import quantized_bits
from ..models.sizes import positions_in
from ..models.source import find_model
from ..models.tokenizers import load_tokenizer
from ..runs.folder import recorded_settings
from ..runs.recorded import find_run, recorded_config
from ..system.gpu import clear_gpu_memory, free_memory_bytes
from .answers import best_of
from .device_maps import Placing
from .instructions import Instruction, followed, instructions
from .language import Answered, faults_of
from .likelihood import (
    WAYS,
    Likelihood,
    QuestionScorer,
    Scored,
    best_choice,
    compute_dtype,
    encode_pairs,
    forwarded_tokens,
    longest_question,
    score_scored,
    score_texts,
)
from .pairs import row_of, scored_item
from .results import Results
from .tasks import Item, Task

BASE = "base"
# Items whose rows are written together.
_CHUNK = 256
# Answers that are made at a time: as many as come to so many tokens with their questions, between these bounds.
_ANSWER_TOKENS, _FEWEST, _MOST = 8192, 16, 64
# Items of a pilot, and characters of the text that is forwarded in it.
_PILOT, _PILOT_TOKENS = 2, 16

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Side:
    """One of the models that are compared.

    Attributes:
        key: `before` or `after`.
        name: what it is called.
        loads: what open_model() takes: the name, or the folder that a checkpoint was made into.
        base, bits: as open_model() takes them.
        adapter: whether its adapter is on.
    """

    key: str
    name: str
    loads: str
    base: str | None = None
    bits: int | None = None
    adapter: bool = True

    def shares_weights(self, other: Side) -> bool:
        """Whether both are one set of weights."""
        return (self.loads, self.base, self.bits) == (other.loads, other.base, other.bits)


@dataclass(frozen=True)
class Reader:
    """How a side reads a text: its tokenizer, and the tokens that its model takes."""

    tokenizer: Any
    positions: int | None


def sides_of(model: str, before: str | None, *, base: str | None = None, bits: int | None = None) -> list[Side]:
    """What is compared, the model before first; one side alone where nothing is known of before.

    Args:
        model: what was trained.
        before: what it is compared with: a model, or `base`; None: its base where that is known.

    Raises:
        InputNotFoundError: `base` is asked for and not known.
    """
    named = usable(model)
    after = Side("after", model, _loads(named, model), base, bits)
    if before is not None and before != BASE:
        if find_same(before, model):
            return [replace(after, key="before"), after]
        return [Side("before", before, _loads(usable(before), before), None, bits), after]
    if named.kind == "adapter":
        return [replace(after, key="before", adapter=False), after]
    found = _trained_from(named.run)
    if found is not None:
        return [Side("before", found, found, None, bits), after]
    if before == BASE:
        raise InputNotFoundError(
            f"{argument(model)} のベースモデルが分かりません。--before にモデルの名前かフォルダーを指定してください。",
            f"the base of {argument(model)} is not known; name a model or a folder with --before.",
        )
    return [after]


def _loads(named: Named, name: str) -> str:
    return named.path if named.step is not None else name


def find_same(first: str, second: str) -> bool:
    """Whether two names mean one folder, or one id."""
    return identity(first) == identity(second)


def _trained_from(run: Path | None) -> str | None:
    """The model that a run of full training began with, as its settings say."""
    if run is None:
        return None
    with contextlib.suppress(ToolkitError):  # it finds files where they were moved to, and wants all of them
        return recorded_config(find_run(run)).model.name
    model = recorded_settings(run).get("model")
    name = model.get("name") if isinstance(model, dict) else None
    with contextlib.suppress(ToolkitError):
        return find_named(name).name if isinstance(name, str) else None
    return None


def reader_of(side: Side) -> Reader:
    """The tokenizer and the positions of a side, without its weights."""
    named, loaded = find_named(side.loads), side.loads
    if named.kind == "adapter":
        loaded = locate_base(named.path, side.base)
        tokenizer = load_tokenizer(saved_tokenizer(named.path) or loaded)
    else:
        tokenizer = load_tokenizer(loaded)
    return Reader(tokenizer, positions_in(find_model(loaded).config))


@dataclass(frozen=True)
class Plan:
    """What is measured on which sides.

    Attributes:
        tasks: with the items and solved examples that every side's model takes.
        left_out: why items, or whole tasks, are not measured.
        readers: of the sides, in their order.
    """

    sides: tuple[Side, ...]
    tasks: tuple[Task, ...]
    readers: tuple[Reader, ...]
    left_out: tuple[Reason, ...] = ()

    @property
    def answers(self) -> int:
        """Answers that each side writes."""
        return sum(len(task.items) for task in self.tasks if task.kind in ("answers", "instructions"))

    @property
    def tokens(self) -> int:
        """Tokens that go through each side's model for likelihoods, by the last one's tokenizer."""
        tokenizer = self.readers[-1].tokenizer
        whole = 0
        for task in self.tasks:
            if task.kind == "choices":
                whole += forwarded_tokens(tokenizer, task.questions(tokenizer))
            elif task.kind == "pairs":
                whole += sum(len(one.ids) for item in task.items for one in _both(item, tokenizer))
            elif task.kind == "prose":
                whole += sum(
                    len(item.ids) for item in encode_pairs(tokenizer, [("", item.text) for item in task.items])
                )
        return whole

    def made_by(self) -> dict[str, Any]:
        """What the results depend on."""
        return {
            "sides": {side.key: {**identity(side.name), "adapter": side.adapter} for side in self.sides},
            "base": [side.base for side in self.sides],
            "bits": [side.bits for side in self.sides],
            "tasks": {task.name: _digest(task) for task in self.tasks},
        }


def _digest(task: Task) -> str:
    """Everything that decides what a task asks."""
    shown = [task.kind, task.form, task.per, task.metrics, task.max_new_tokens]
    content = [shown, [vars(item) for item in task.shots], [vars(item) for item in task.items]]
    return hashlib.sha256(json.dumps(content, ensure_ascii=False, default=str).encode()).hexdigest()[:16]


def plan(sides: Sequence[Side], tasks: Sequence[Task]) -> Plan:
    """What of the tasks every side can be asked: fewer solved examples where a question would be too long with them, and
    no item that is too long without.

    Raises:
        ConfigError: nothing is left.
    """
    readers: list[Reader] = []
    for place, side in enumerate(sides):
        shared = next((number for number in range(place) if sides[number].shares_weights(side)), None)
        readers.append(reader_of(side) if shared is None else readers[shared])
    kept, left = [], []
    for task in tasks:
        fitted, why = _fitted(task, readers)
        left += [why] if why is not None else []
        kept += [fitted] if fitted.items else []
    if not kept:
        ja = "".join(reason.ja for reason in left)
        raise ConfigError(
            f"測れる課題がありません。{ja}", f"there is nothing that can be measured. {''.join(r.en for r in left)}"
        )
    return Plan(tuple(sides), tuple(kept), tuple(readers), tuple(left))


def _fitted(task: Task, readers: Sequence[Reader]) -> tuple[Task, Reason | None]:
    if task.kind == "prose":
        return task, None
    asked = len(task.shots)
    while task.shots and not all(_fits(task, reader) for reader in readers):
        task = replace(task, shots=task.shots[:-1])
    good = [item for item in task.items if all(_item_fits(task, item, reader) for reader in readers)]
    lost, fewer = len(task.items) - len(good), asked - len(task.shots)
    said = []
    if fewer:
        said.append(
            Reason(
                f"例題を {asked} 問から {len(task.shots)} 問に減らしました",
                f"{len(task.shots)} examples instead of {asked}",
            )
        )
    if lost:
        said.append(
            Reason(
                f"モデルには長すぎるかテンプレートが受け付けない {lost} 件を除きました",
                f"{lost} items left out that are too long for the model, or that its template refuses",
            )
        )
    task = replace(task, items=tuple(good))
    if not said:
        return task, None
    whole = Reason.joined(said)
    return task, Reason(f"{task.title}: {whole.ja}。", f"{task.title}: {whole.en}. ")


def _fits(task: Task, reader: Reader) -> bool:
    return (
        reader.positions is None
        or longest_question(reader.tokenizer, task.questions(reader.tokenizer)) <= reader.positions
    )


def _item_fits(task: Task, item: Item, reader: Reader) -> bool:
    alone = replace(task, items=(item,))
    if task.kind == "pairs":
        longest = max(len(one.ids) for one in _both(item, reader.tokenizer))
        return reader.positions is None or longest <= reader.positions
    if task.kind == "choices":
        return _fits(alone, reader) if not task.shots else True
    try:
        tokens = prompt_tokens(reader.tokenizer, conversation(reader.tokenizer, item))
    except ToolkitError:
        return False
    return reader.positions is None or tokens < reader.positions


def _both(item: Item, tokenizer: Any) -> tuple[Scored, ...]:
    return scored_item(item, tokenizer, () if item.scored else conversation(tokenizer, item))


def conversation(tokenizer: Any, item: Item) -> list[dict[str, str]]:
    """What is asked, behind the system prompt that the model was trained with."""
    own = any(message["role"] == "system" for message in item.messages)
    return [*([] if own else system_turn(tokenizer, None)), *item.messages]


@dataclass
class Loaded:
    """The weights that are in memory: those of one side, or of two that share them.

    Attributes:
        place: how models are laid out over devices.
    """

    side: Side | None = None
    opened: OpenModel | None = None
    dtype: str = "auto"
    reasons: dict[str, Reason] = field(default_factory=dict)
    place: Placing = Placing()

    def get(self, side: Side) -> OpenModel:
        """The side's model; another one's is freed first. All sides compute in the type of the first."""
        if self.opened is None or self.side is None or not self.side.shares_weights(side):
            self.opened = None
            clear_gpu_memory()
            self.opened = open_model(side.loads, base=side.base, bits=side.bits, dtype=self.dtype, place=self.place)
            self.side = side
            _in_single_precision(self.opened.model)
            self.dtype = str(compute_dtype(self.opened.model)).rpartition(".")[2]
        return self.opened


def _in_single_precision(model: Any) -> None:
    """Lets a processor compute in fp32 where its memory holds that: 16 bit is slower there, and rounds a few answers to
    others. Quantized weights stay as they are.
    """
    if _halves_of_a_processor(model):
        model.float()


def _halves_of_a_processor(model: Any) -> list[torch.nn.Parameter]:
    """The 16-bit weights of a model that a processor can hold in fp32; none where they stay as they are."""
    weights = [weight for weight in model.parameters() if weight.dtype in (torch.bfloat16, torch.float16)]
    if not weights or weights[0].device.type != "cpu" or quantized_bits(unwrapped(model)) is not None:
        return []
    fits = 2 * sum(weight.numel() for weight in weights) < free_memory_bytes(weights[0].device) / 2
    return weights if fits else []


@contextlib.contextmanager
def in_single_precision(model: Any) -> Iterator[None]:
    """fp32 inside the block, where a processor computes and memory holds it; afterwards the weights are the tensors that
    they were.
    """
    held = [(weight, weight.data) for weight in _halves_of_a_processor(model)]
    for weight, data in held:
        weight.data = data.float()
    try:
        yield
    finally:
        for weight, data in held:
            weight.data = data


def estimate(loaded: Loaded, planned: Plan) -> float:
    """Seconds that a side takes, from a pilot of two items: likelihoods by the tokens, answers by the time of one token."""
    opened = loaded.get(planned.sides[-1])
    seconds = 0.0
    text = next((task.items[0].text for task in planned.tasks if task.kind in ("prose", "choices")), None)
    if text is not None:
        tokens = max(1, len(encode_pairs(opened.tokenizer, [("", text)])[0].ids))
        score_texts(opened.model, opened.tokenizer, [text])
        began = time.perf_counter()
        score_texts(opened.model, opened.tokenizer, [text])
        seconds += (time.perf_counter() - began) / tokens * planned.tokens
    for task in planned.tasks:
        if task.kind not in ("answers", "instructions"):
            continue
        asked = [conversation(opened.tokenizer, item) for item in task.items[:_PILOT]]
        began = time.perf_counter()
        generate_answers(
            opened.model,
            opened.tokenizer,
            asked,
            do_sample=False,
            max_new_tokens=min(_PILOT_TOKENS, task.max_new_tokens),
        )
        step = (time.perf_counter() - began) / min(_PILOT_TOKENS, task.max_new_tokens)
        rows = _at_a_time(prompt_tokens(opened.tokenizer, asked[0]), task)
        seconds += step * task.max_new_tokens * -(-len(task.items) // rows)
    return seconds


def measure(planned: Plan, results: Results, loaded: Loaded, progress: Progress = lambda done, whole: None) -> None:
    """Measures what the results lack, side by side, task by task.

    Raises:
        StorageError: results cannot be written. ToolkitError: a model cannot be loaded or computes nothing.
    """
    steps = [(side, task, _missing(results, side, task)) for side in planned.sides for task in planned.tasks]
    whole = sum(len(task.items) for _ in planned.sides for task in planned.tasks)
    done = whole - sum(len(items) for _, _, items in steps)
    progress(done, whole)
    for side, task, items in steps:
        if not items:
            continue
        opened = loaded.get(side)
        with opened.adapter(side.adapter):
            for rows in _MEASURES[task.kind](opened, task, items, loaded):
                results.add({"side": side.key, "task": task.name, **row} for row in rows)
                done += len(rows)
                progress(done, whole)


def _missing(results: Results, side: Side, task: Task) -> list[Item]:
    there = results.complete(side.key, task)
    return [item for item in task.items if item.name not in there]


Rows = list[dict[str, Any]]


def _choices(opened: OpenModel, task: Task, items: Sequence[Item], loaded: Loaded) -> Iterator[Rows]:
    """Whole chunks, so that an interrupted side is computed in the batches of one that was not."""
    places = {item.name: place for place, item in enumerate(task.items)}
    scorer = QuestionScorer(opened.model, opened.tokenizer, task.questions(opened.tokenizer))
    if scorer.reason is not None and task.name not in loaded.reasons:
        loaded.reasons[task.name] = scorer.reason
        warn(
            f"{task.title}: 選択肢を 1 つずつ計算します（共有の計算方法は使えません: {scorer.reason.ja}）。",
            f"{task.title}: choices are computed one by one (the shared way is not used: {scorer.reason.en}).",
        )
    for start in range(0, len(task.items), _CHUNK):
        chunk = task.items[start : start + _CHUNK]
        if not {item.name for item in chunk} & {item.name for item in items}:
            continue
        rows = []
        for item, scores in zip(chunk, scorer.score([places[item.name] for item in chunk]), strict=True):
            chosen = best_choice(scores, task.per)
            rows.append(
                {
                    "item": item.name,
                    "score": int(chosen == item.right),
                    "chosen": chosen,
                    "nats": [round(score.nats, 6) for score in scores],
                    "right_by": {way: int(best_choice(scores, way) == item.right) for way in WAYS},
                }
            )
        yield rows


def _prose(opened: OpenModel, task: Task, items: Sequence[Item], loaded: Loaded) -> Iterator[Rows]:
    for item in items:
        (found,) = score_texts(opened.model, opened.tokenizer, [item.text]) if not item.ids else [_of_ids(opened, item)]
        bits = found.bits_per_character
        yield [
            {"item": item.name, "score": bits, "nats": found.nats, "characters": found.characters, "work": item.group}
        ]


def _of_ids(opened: OpenModel, item: Item) -> Likelihood:
    """The likelihood of a text whose tokens are those of the run's rows."""
    (found,) = score_scored(opened.model, [Scored(item.ids, 1, len(item.text))])
    return found


def _pairs(opened: OpenModel, task: Task, items: Sequence[Item], loaded: Loaded) -> Iterator[Rows]:
    for item in items:
        yield [row_of(item, score_scored(opened.model, _both(item, opened.tokenizer)))]


def _at_a_time(longest: int, task: Task) -> int:
    """Answers to make together, the longest question of which has so many tokens."""
    return min(_MOST, max(_FEWEST, _ANSWER_TOKENS // (longest + task.max_new_tokens)))


def _written(opened: OpenModel, task: Task, items: Sequence[Item]) -> Iterator[list[tuple[Item, str, str]]]:
    """(item, answer, why it ended), batch by batch, longest questions first."""
    tokenizer = opened.tokenizer
    asked = {
        item.name: list(item.ids) or encode_prompts(opened.model, tokenizer, [conversation(tokenizer, item)])[0]
        for item in items
    }
    order = sorted(items, key=lambda item: -len(asked[item.name]))
    start = 0
    while start < len(order):
        rows = _at_a_time(len(asked[order[start].name]), task)
        batch = order[start : start + rows]
        start += rows
        answers = answer_prompts(
            opened.model,
            tokenizer,
            [asked[item.name] for item in batch],
            do_sample=False,
            max_new_tokens=task.max_new_tokens,
            batch_size=rows,
        )
        yield [(item, answer.text, answer.end) for item, answer in zip(batch, answers, strict=True)]


def _answers(opened: OpenModel, task: Task, items: Sequence[Item], loaded: Loaded) -> Iterator[Rows]:
    for batch in _written(opened, task, items):
        rows = []
        for item, answer, end in batch:
            scores = {name: best_of(name, answer, item.accepted) for name in task.metrics}
            faults = faults_of(Answered(item.text, answer, end))
            rows.append(
                {
                    "item": item.name,
                    "score": scores[task.metrics[0]],
                    "scores": scores,
                    "answer": answer,
                    "end": end,
                    "faults": faults,
                    "question": item.text,
                    "accepted": item.accepted,
                }
            )
        yield rows


def _instructions(opened: OpenModel, task: Task, items: Sequence[Item], loaded: Loaded) -> Iterator[Rows]:
    prompts: dict[str, Instruction] = {item.prompt: item for item in instructions()}
    for batch in _written(opened, task, items):
        rows = []
        for item, answer, end in batch:
            checks = followed(prompts[item.text], answer)
            faults = faults_of(Answered(item.text, answer, end))
            rows.append(
                {
                    "item": item.name,
                    "score": int(all(checks.values())),
                    "checks": checks,
                    "answer": answer,
                    "end": end,
                    "faults": faults,
                    "question": item.text,
                }
            )
        yield rows


_MEASURES: dict[str, Callable[[OpenModel, Task, Sequence[Item], Loaded], Iterator[Rows]]] = {
    "choices": _choices,
    "prose": _prose,
    "answers": _answers,
    "instructions": _instructions,
    "pairs": _pairs,
}
