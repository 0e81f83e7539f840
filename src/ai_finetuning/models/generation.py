"""Answers from conversations: the model's own prompt, stop tokens and strings, no half characters, no endless loops."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import takewhile
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from ..errors import ConfigError, ModelError, ToolkitError, reason_of
from ..japanese.prompts import render
from ..messages import warn
from ..system.out_of_memory import with_smaller_batches
from .growing_text import GrowingText
from .modes import eval_mode, evaluating
from .parts import positions_of
from .sampling import validate_sampling
from .tokenizers import PromptStyle, prompt_style

Conversation = Sequence[dict[str, str]]
# A window of this many characters that comes back this often is a loop.
LOOP_WINDOW, LOOP_TIMES = 20, 4


class _Stops(StoppingCriteria):
    """Ends a row when its answer contains a stop string, runs in a loop, or when the caller gave up."""

    def __init__(self, tokenizer: Any, prompt_length: int, strings: Sequence[str], given_up: threading.Event) -> None:
        self._tokenizer = tokenizer
        self._prompt_length = prompt_length
        self._strings = strings
        self._given_up = given_up

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        if self._given_up.is_set():
            return torch.ones(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
        answers = input_ids[:, self._prompt_length :]
        done = [self._done(row) for row in answers]
        return torch.tensor(done, device=input_ids.device)

    def _done(self, row: torch.Tensor) -> bool:
        if self._strings:
            tail = self._tokenizer.decode(row[-32:], skip_special_tokens=False)
            if any(stop in tail for stop in self._strings):
                return True
        if len(row) < LOOP_WINDOW or len(row) % 16:
            return False
        return is_looping(self._tokenizer.decode(row, skip_special_tokens=True))


def is_looping(text: str) -> bool:
    """Whether a text ends in the same 20 characters four times over."""
    window = text[-LOOP_WINDOW:]
    return len(window) == LOOP_WINDOW and len(set(window)) > 1 and text.count(window) >= LOOP_TIMES


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn; every setting as in transformers."""

    max_new_tokens: int = 512
    temperature: float = 0.7
    top_p: float = 0.9
    top_k: int = 50
    do_sample: bool = True

    @classmethod
    def taken_from(cls, options: Mapping[str, Any]) -> tuple[Sampling, dict[str, Any]]:
        """The settings among some options, and the rest of them."""
        names = {item.name for item in fields(cls)}
        settings = {name: value for name, value in options.items() if name in names}
        return cls(**settings), {name: value for name, value in options.items() if name not in names}


def _arguments(tokenizer: Any, style: PromptStyle, options: Mapping[str, Any], batch_size: int = 1) -> dict[str, Any]:
    """The arguments of `generate`."""
    sampling, extra = Sampling.taken_from(options)
    validate_sampling(**asdict(sampling), batch_size=batch_size)
    drawn = (
        {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
        if sampling.do_sample
        else dict.fromkeys(("temperature", "top_p", "top_k"))
    )
    return {
        "max_new_tokens": sampling.max_new_tokens,
        "do_sample": sampling.do_sample,
        "eos_token_id": list(style.stop_token_ids) or None,
        "pad_token_id": tokenizer.pad_token_id,
        "use_cache": True,
        **drawn,
        **extra,
    }


def _encode(model: Any, tokenizer: Any, conversations: Sequence[Conversation]) -> list[list[int]]:
    """The ids of every prompt; templates write their own BOS, so none is added.

    Raises:
        ConfigError: a prompt longer than the model takes, or a token that it has no embedding for.
    """
    prompts = [render(tokenizer, conversation, add_generation_prompt=True) for conversation in conversations]
    rows = [tokenizer.encode(prompt, add_special_tokens=False) for prompt in prompts]
    width, max_positions = max(map(len, rows)), positions_of(model.config)
    known = model.get_input_embeddings().weight.shape[0]
    beyond = next((number for row in rows for number in row if number >= known), None)
    if beyond is not None:
        token = tokenizer.convert_ids_to_tokens(beyond)
        raise ConfigError(
            f"入力のトークン {token}（ID {beyond}）は、モデルの埋め込み {known} 行にありません。この文字列を使わないか、このモデル用のトークナイザーを使ってください。",
            f"the prompt contains the token {token} (id {beyond}), and the model has {known} embedding rows; leave it "
            "out, or use the tokenizer that belongs to this model.",
        )
    if max_positions is not None and width >= max_positions:
        raise ConfigError(
            f"入力が {width} トークンで、モデルの上限 {max_positions} に達しています。短くしてください。",
            f"the prompt has {width} tokens, and the model takes at most {max_positions}; shorten it.",
        )
    return rows


def _within_positions(model: Any, inputs: dict[str, Any], **arguments: Any) -> torch.Tensor:
    """`generate` with no more new tokens than the model has positions behind the prompts; one line says where that ended
    an answer.
    """
    prompt, positions = inputs["input_ids"].shape[1], positions_of(model.config)
    asked = arguments["max_new_tokens"]
    room = asked if positions is None else min(asked, positions - prompt)
    try:
        output: torch.Tensor = model.generate(**inputs, **arguments | {"max_new_tokens": room})
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
        if isinstance(error, ToolkitError):
            raise
        raise ModelError(
            f"モデルが答えを生成できません（{reason_of(error)}）。フォルダーの generation_config.json と config.json を確かめてください。",
            f"the model cannot generate an answer ({reason_of(error)}); check its generation_config.json and config.json.",
        ) from error
    ends = set(arguments["eos_token_id"] or ()) | {arguments["pad_token_id"]}
    if room < asked and output.shape[1] == prompt + room and any(int(last) not in ends for last in output[:, -1]):
        warn(
            f"モデルは {positions} トークンまでのため、答えを {room} トークンで終えました（max_new_tokens は {asked}）。",
            f"the model takes {positions} tokens, so an answer ends after {room} of them (max_new_tokens is {asked}).",
        )
    return output


def _left_padded(rows: Sequence[list[int]], pad_token_id: int, device: torch.device) -> dict[str, torch.Tensor]:
    """input_ids and attention_mask, [rows, tokens] int64."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad_token_id, dtype=torch.int64)
    mask = torch.zeros((len(rows), width), dtype=torch.int64)
    for index, row in enumerate(rows):
        ids[index, width - len(row) :] = torch.tensor(row)
        mask[index, width - len(row) :] = 1
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def clean_answer(text: str, style: PromptStyle) -> str:
    """The answer alone: cut at the first stop string, `<NL>` as line ends, no half character at the end."""
    for stop in style.stop_strings:
        text = text.split(stop, 1)[0]
    if style.newline is not None:
        text = text.replace(style.newline, "\n")
    return text.strip().rstrip("\ufffd").strip()


def _decode(tokenizer: Any, ids: Sequence[int], style: PromptStyle) -> str:
    """The text of an answer's ids up to the first that ends it, not cleaned yet."""
    stops = set(style.stop_token_ids)
    kept = list(takewhile(lambda number: number not in stops, ids))
    # `<NL>` is a special token for some tokenizers; it must survive until it becomes a line end.
    text = str(tokenizer.decode(kept, skip_special_tokens=style.newline is None))
    if style.newline is not None:
        for token in set(tokenizer.all_special_tokens) - {style.newline}:
            text = text.replace(token, "")
    return text


def generate_text(
    model: Any,
    tokenizer: Any,
    conversations: Sequence[Conversation],
    *,
    style: PromptStyle | None = None,
    seed: int | None = None,
    batch_size: int = 32,
    **options: Any,
) -> list[str]:
    """One answer for each conversation, in their order.

    Prompts of similar length make a batch, longest first. Where memory runs out, the batch is halved and tried again.

    Args:
        model: a causal language model; its training mode is put back afterwards.
        tokenizer: with chat template.
        conversations: messages that end with the user's turn.
        style: how answers end; None is derived from tokenizer and model.
        seed: of the sampling.
        batch_size: most conversations answered at a time.
        **options: the settings of `Sampling` (max_new_tokens, temperature, top_p, top_k, do_sample), and further
            arguments of `generate` (repetition_penalty, ...).

    Raises:
        ConfigError: a value out of range, or a prompt longer than the model takes.
    """
    style = style or prompt_style(tokenizer, getattr(model, "generation_config", None))
    arguments = _arguments(tokenizer, style, options, batch_size)
    if not conversations:
        return []
    rows = _encode(model, tokenizer, conversations)
    order = sorted(range(len(rows)), key=lambda place: -len(rows[place]))
    answers: dict[int, str] = {}
    if seed is not None:
        torch.manual_seed(seed)

    def answer(size: int) -> int:
        places = order[len(answers) : len(answers) + size]
        obtained = _answers(model, tokenizer, [rows[place] for place in places], style, arguments)
        answers.update(zip(places, obtained, strict=True))
        return size

    with evaluating(model):
        while len(answers) < len(rows):
            batch_size = with_smaller_batches(answer, min(batch_size, len(rows) - len(answers)), _say_halved)
    return [answers[place] for place in range(len(rows))]


def _answers(
    model: Any, tokenizer: Any, rows: Sequence[list[int]], style: PromptStyle, arguments: dict[str, Any]
) -> list[str]:
    """The answers to one batch of prompts."""
    inputs = _left_padded(rows, tokenizer.pad_token_id, model.device)
    length = inputs["input_ids"].shape[1]
    stops = StoppingCriteriaList([_Stops(tokenizer, length, style.stop_strings, threading.Event())])
    output = _within_positions(model, inputs, stopping_criteria=stops, **arguments)
    return [clean_answer(_decode(tokenizer, row[length:].tolist(), style), style) for row in output]


def _say_halved(size: int, reason: str) -> None:
    warn(
        f"生成でメモリーが足りないため、バッチを {size} 件に減らしてやり直します（{reason}）。",
        f"out of memory while generating ({reason}): retrying with batches of {size} conversations.",
    )


def stream_text(
    model: Any,
    tokenizer: Any,
    conversation: Conversation,
    *,
    style: PromptStyle | None = None,
    **options: Any,
) -> Iterator[str]:
    """The answer piece by piece; together the pieces are what generate_text returns for the same options.

    Half characters and beginnings of stop strings are held back. Closing the iterator stops the generation.
    """
    style = style or prompt_style(tokenizer, getattr(model, "generation_config", None))
    arguments = _arguments(tokenizer, style, options)
    rows = _encode(model, tokenizer, [conversation])
    inputs = _left_padded(rows, tokenizer.pad_token_id, model.device)
    given_up, failure = threading.Event(), []
    streamer = _Ids()
    criteria = StoppingCriteriaList([_Stops(tokenizer, inputs["input_ids"].shape[1], style.stop_strings, given_up)])

    def work() -> None:
        try:
            with torch.no_grad():
                _within_positions(model, inputs, streamer=streamer, stopping_criteria=criteria, **arguments)
        except Exception as error:  # handed to the reader below; a thread's exception would vanish
            failure.append(error)
            streamer.end()

    thread = threading.Thread(target=work, daemon=True)
    with eval_mode(model):
        thread.start()
        try:
            yield from _pieces(streamer, tokenizer, style)
        finally:
            given_up.set()
            thread.join()
    if failure:
        raise failure[0]


class _Ids(BaseStreamer):
    """The ids of an answer as they are drawn, handed to another thread.

    transformers' own streamers decode line by line, which loses the blanks that begin a line.
    """

    def __init__(self) -> None:
        self._drawn: queue.SimpleQueue[list[int] | None] = queue.SimpleQueue()
        self._prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        """Takes the prompt first, then one id at a time."""
        if self._prompt_seen:
            self._drawn.put(value.flatten().tolist())
        self._prompt_seen = True

    def end(self) -> None:
        """Nothing more comes."""
        self._drawn.put(None)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._drawn.get, None)


def _pieces(streamer: Iterable[list[int]], tokenizer: Any, style: PromptStyle) -> Iterator[str]:
    """What may be shown already, cleaned; the rest waits."""
    marks = [*style.stop_strings, *([style.newline] if style.newline else []), *tokenizer.all_special_tokens]
    text = GrowingText(lambda ids: _decode(tokenizer, ids, style))
    whole, shown = "", 0
    for drawn in streamer:
        whole = text.add(drawn)
        safe = clean_answer(_without_beginning_of(whole, marks), style)
        if len(safe) > shown:
            yield safe[shown:]
            shown = len(safe)
    last = clean_answer(whole, style)
    if len(last) > shown:
        yield last[shown:]


def _without_beginning_of(text: str, marks: Sequence[str]) -> str:
    """The text without a tail that could be the beginning of a mark, and without a trailing blank that cleaning may
    take.
    """
    cut = 0
    for mark in marks:
        for length in range(min(len(mark) - 1, len(text)), 0, -1):
            if text.endswith(mark[:length]):
                cut = max(cut, length)
                break
    return text[: len(text) - cut].rstrip("\ufffd").rstrip()
