"""Answers from conversations: the model's own prompt, stop tokens and strings, no half characters, no endless loops."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import takewhile
from types import TracebackType
from typing import Any, Literal, Protocol

import torch
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from ..errors import ConfigError, ModelError, ToolkitError, reason_of
from ..japanese.prompts import render
from ..messages import warn
from ..system.gpu import is_out_of_memory
from ..system.out_of_memory import with_smaller_batches
from .drawing import drawing
from .growing_text import GrowingText
from .modes import eval_mode, evaluating
from .parts import positions_of
from .sampling import validate_further, validate_sampling
from .tokenizers import PromptStyle, prompt_style

Conversation = Sequence[dict[str, str]]
# A loop is a unit that stands this often in a row at the end of a text, over this many characters in all. Rows of tables
# share their cells and are no loop.
LOOP_TIMES, LOOP_CHARACTERS = 5, 100
_WINDOW = 20
# Tokens at the end of an answer among which a stop string is looked for.
_TAIL = 32
# How an answer is made, and in what form transformers hands it over, is the toolkit's to say, whatever a maker's
# generation_config.json has for its own scripts.
_OURS: dict[str, Any] = {
    "num_beams": 1,
    "num_return_sequences": 1,
    "return_dict_in_generate": False,
    "token_healing": False,
    "penalty_alpha": None,
    "dola_layers": None,
    "prompt_lookup_num_tokens": None,
    "custom_generate": None,
    "max_time": None,
}
# Why an answer ended: as the model was trained to, at max_new_tokens, at the model's last position, in a loop.
End = Literal["stop", "length", "positions", "loop"]


@dataclass(frozen=True)
class Answer:
    """An answer and why it ended."""

    text: str
    end: End = "stop"


class Turn(Protocol):
    """An answer's share of a model that it takes in turns with others: entered by the thread that computes."""

    def __enter__(self) -> object: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None: ...

    def goes_on(self) -> bool:
        """Asked between two tokens, and may wait for the next turn; False ends the answer."""


class _Whole(contextlib.nullcontext[None]):
    """A model that one answer has for itself."""

    def goes_on(self) -> bool:
        """Always."""
        return True


class _Stops(StoppingCriteria):
    """Ends a row when its answer contains a stop string, runs in a loop, or when the caller gave up.

    Attributes:
        looping: the rows that a loop ended.
    """

    def __init__(
        self,
        tokenizer: Any,
        prompt_length: int,
        style: PromptStyle,
        given_up: threading.Event | None = None,
        turn: Turn | None = None,
    ) -> None:
        self.looping: set[int] = set()
        self._tokenizer = tokenizer
        self._prompt_length = prompt_length
        self._style = style
        self._given_up = given_up or threading.Event()
        self._turn = turn or _Whole()

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        if self._given_up.is_set() or not self._turn.goes_on():
            return torch.ones(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
        answers = input_ids[:, self._prompt_length :]
        done = [self._done(index, row) for index, row in enumerate(answers)]
        return torch.tensor(done, device=input_ids.device)

    def _done(self, index: int, row: torch.Tensor) -> bool:
        if self._style.stop_strings:
            tail = self._tokenizer.decode(row[-_TAIL:], skip_special_tokens=False)
            if _end_of(tail, self._style.stop_strings, whole=len(row) <= _TAIL) is not None:
                return True
        if len(row) % 16 or int(row[-1]) in (*self._style.stop_token_ids, self._tokenizer.pad_token_id):
            return False
        if is_looping(self._tokenizer.decode(row, skip_special_tokens=True)):
            self.looping.add(index)
            return True
        return False


def is_looping(text: str) -> bool:
    """Whether a text ends in the same words over and over: a unit with letters or digits, several times in a row."""
    window = text[-_WINDOW:]
    before = text.rfind(window, 0, len(text) - 1)
    if len(text) < LOOP_CHARACTERS or before < 0:
        return False
    unit = text[before + len(window) :]
    times = max(LOOP_TIMES, -(-LOOP_CHARACTERS // len(unit)))
    return any(map(str.isalnum, unit)) and len(set(window)) > 1 and text.endswith(unit * times)


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
    validate_further(extra)
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
        "tokenizer": tokenizer,  # for stop strings of generation_config.json
        **_OURS,
        **drawn,
        **extra,
    }


def prompt_tokens(tokenizer: Any, conversation: Conversation) -> int:
    """How many tokens a conversation has as a prompt.

    Raises:
        DataError: the template refuses it.
    """
    return len(_prompt_ids(tokenizer, conversation))


def _prompt_ids(tokenizer: Any, conversation: Conversation) -> list[int]:
    prompt = render(tokenizer, conversation, add_generation_prompt=True)
    ids: list[int] = tokenizer.encode(prompt, add_special_tokens=False)
    return ids


def encode_prompts(model: Any, tokenizer: Any, conversations: Sequence[Conversation]) -> list[list[int]]:
    """The ids of every prompt; templates write their own BOS, so none is added.

    Raises:
        ConfigError: a prompt longer than the model takes, or a token that it has no embedding for. DataError: the
            template refuses a conversation. ModelError: it makes nothing of one.
    """
    rows = [_prompt_ids(tokenizer, conversation) for conversation in conversations]
    if not all(rows):
        raise ModelError(
            "チャットテンプレートが会話から何も作らないため、モデルへの入力が空です。チャットテンプレート（chat_template.jinja）を確かめてください。",
            "the chat template makes nothing of the conversation, so that the prompt is empty; check the chat template "
            "(chat_template.jinja).",
        )
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


def _room(model: Any, prompt: int, arguments: Mapping[str, Any]) -> int:
    """New tokens that a prompt of some tokens may get: what was asked for, or the positions that the model has left."""
    positions, asked = positions_of(model.config), int(arguments["max_new_tokens"])
    return asked if positions is None else min(asked, positions - prompt)


def _min_p(model: Any, arguments: Mapping[str, Any]) -> float | None:
    """The lowest share of the likeliest token's probability: of the options, else of the model's own settings."""
    found: float | None = arguments.get("min_p", getattr(getattr(model, "generation_config", None), "min_p", None))
    return found


def say_ends(model: Any, answers: Sequence[Answer], asked: int) -> None:
    """A line for each kind of end that the model was not trained to, but the one that max_new_tokens asked for.

    Args:
        asked: max_new_tokens.
    """
    cut, loops = (sum(item.end == end for item in answers) for end in ("positions", "loop"))
    positions = positions_of(model.config)
    if cut:
        warn(
            f"モデルは質問と回答を合わせて {positions} トークンまでのため、{cut} 件の回答を途中で終えました（max_new_tokens は {asked}）。",
            f"the model takes {positions} tokens, question and answer together, so that {cut} answers ended early "
            f"(max_new_tokens is {asked}).",
        )
    if loops:
        warn(
            f"同じ言葉の繰り返しになったため、{loops} 件の回答を途中で終えました。",
            f"{loops} answers were ended because they repeated the same words over and over.",
        )


def _left_padded(rows: Sequence[list[int]], pad_token_id: int, device: torch.device) -> dict[str, torch.Tensor]:
    """input_ids and attention_mask, [rows, tokens] int64."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad_token_id, dtype=torch.int64)
    mask = torch.zeros((len(rows), width), dtype=torch.int64)
    for index, row in enumerate(rows):
        ids[index, width - len(row) :] = torch.tensor(row)
        mask[index, width - len(row) :] = 1
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def _end_of(text: str, stops: Sequence[str], *, whole: bool = True) -> int | None:
    """Where a text ends by its stop strings; None where none is in it.

    Args:
        text: an answer or the end of one.
        stops: each begins with a line end.
        whole: the text begins where the answer does, which is the beginning of a line.
    """
    found = [place for stop in stops if (place := text.find(stop)) >= 0]
    found += [0 for stop in stops if whole and text.startswith(_without_line_end(stop))]
    return min(found, default=None)


def _without_line_end(stop: str) -> str:
    return stop.removeprefix("\n").removeprefix("<NL>")


def clean_answer(text: str, style: PromptStyle) -> str:
    """The answer alone: cut at the first stop string, `<NL>` as line ends, no half character at the end."""
    text = text[: _end_of(text, style.stop_strings)]
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


def generate_text(model: Any, tokenizer: Any, conversations: Sequence[Conversation], **options: Any) -> list[str]:
    """One answer for each conversation, in their order; the arguments and errors are those of `generate_answers`.

    Answers that end at the model's last position, or in a loop, are told in one line.
    """
    answers = generate_answers(model, tokenizer, conversations, **options)
    say_ends(model, answers, Sampling.taken_from(options)[0].max_new_tokens)
    return [answer.text for answer in answers]


def generate_answers(
    model: Any,
    tokenizer: Any,
    conversations: Sequence[Conversation],
    *,
    style: PromptStyle | None = None,
    seed: int | Sequence[int] | None = None,
    batch_size: int = 32,
    **options: Any,
) -> list[Answer]:
    """One answer for each conversation, in their order, and why each ended.

    Prompts of similar length make a batch, longest first. Where memory runs out, the batch is halved and tried again.
    In fp32 greedy answers are the same whatever the size of the batch.

    Args:
        model: a causal language model; its training mode is put back afterwards.
        tokenizer: with chat template.
        conversations: messages that end with the user's turn.
        style: how answers end; None is derived from tokenizer and model.
        seed: of the sampling; or one for each conversation, and then no answer depends on those beside it.
        batch_size: most conversations answered at a time.
        **options: the settings of `Sampling` (max_new_tokens, temperature, top_p, top_k, do_sample), and further
            arguments of `generate` (repetition_penalty, ...).

    Raises:
        ConfigError: a value out of range, or a prompt longer than the model takes.
    """
    style = style or prompt_style(tokenizer, getattr(model, "generation_config", None))
    _arguments(tokenizer, style, options, batch_size)  # refused before any prompt is made
    if not conversations:
        return []
    rows = encode_prompts(model, tokenizer, conversations)
    return answer_prompts(model, tokenizer, rows, style=style, seed=seed, batch_size=batch_size, **options)


def answer_prompts(
    model: Any,
    tokenizer: Any,
    rows: Sequence[list[int]],
    *,
    style: PromptStyle | None = None,
    seed: int | Sequence[int] | None = None,
    batch_size: int = 32,
    **options: Any,
) -> list[Answer]:
    """generate_answers() for prompts that are tokens already, each at least one and fewer than the model has positions."""
    style = style or prompt_style(tokenizer, getattr(model, "generation_config", None))
    arguments = _arguments(tokenizer, style, options, batch_size)
    order = sorted(range(len(rows)), key=lambda place: -len(rows[place]))
    answers: dict[int, Answer] = {}
    own_seeds = seed if isinstance(seed, Sequence) and arguments["do_sample"] else None
    if seed is not None and not isinstance(seed, Sequence):
        torch.manual_seed(seed)
    min_p = _min_p(model, arguments)

    def answer(size: int) -> int:
        first = order[len(answers)]
        room = _room(model, len(rows[first]), arguments)
        places = order[len(answers) : len(answers) + size]
        if room < arguments["max_new_tokens"]:
            # Near the last position the room depends on the length, and no answer may be shorter for its neighbours.
            places = [place for place in places if len(rows[place]) == len(rows[first])]
        batch = [rows[place] for place in places]
        settings = arguments | {"max_new_tokens": room}
        if own_seeds is not None:
            settings |= drawing(arguments, [own_seeds[place] for place in places], min_p)
        obtained = _answers(model, tokenizer, batch, style, settings)
        if room < arguments["max_new_tokens"]:
            obtained = [Answer(item.text, "positions") if item.end == "length" else item for item in obtained]
        answers.update(zip(places, obtained, strict=True))
        return size

    with evaluating(model):
        while len(answers) < len(rows):
            batch_size = with_smaller_batches(answer, min(batch_size, len(rows) - len(answers)), _say_halved)
    return [answers[place] for place in range(len(rows))]


@contextlib.contextmanager
def _answering() -> Iterator[None]:
    """Refuses a generation_config.json, a config.json or weights that transformers fails over."""
    try:
        yield
    except Exception as error:  # whatever its settings and its own code raise
        if isinstance(error, ToolkitError | MemoryError) or is_out_of_memory(error):
            raise
        raise ModelError(
            f"モデルが答えを生成できません（{reason_of(error)}）。フォルダーの generation_config.json と config.json、重みを確かめてください。",
            f"the model cannot generate an answer ({reason_of(error)}); check its generation_config.json, config.json and "
            "weights.",
        ) from error


def _answers(
    model: Any, tokenizer: Any, rows: Sequence[list[int]], style: PromptStyle, arguments: dict[str, Any]
) -> list[Answer]:
    """The answers to one batch of prompts."""
    inputs = _left_padded(rows, tokenizer.pad_token_id, model.device)
    length = inputs["input_ids"].shape[1]
    stops = _Stops(tokenizer, length, style)
    with _answering():
        output = model.generate(**inputs, stopping_criteria=StoppingCriteriaList([stops]), **arguments)
    return [
        _ended(tokenizer, row[length:].tolist(), style, index in stops.looping, arguments["max_new_tokens"])
        for index, row in enumerate(output)
    ]


def _ended(tokenizer: Any, ids: Sequence[int], style: PromptStyle, looping: bool, room: int) -> Answer:
    """The answer that an answer's ids are."""
    text = _decode(tokenizer, ids, style)
    ends = {*style.stop_token_ids, tokenizer.pad_token_id}
    if looping:
        end: End = "loop"
    elif len(ids) < room or any(number in ends for number in ids) or _end_of(text, style.stop_strings) is not None:
        end = "stop"
    else:
        end = "length"
    return Answer(clean_answer(text, style), end)


def continue_tokens(model: Any, tokenizer: Any, row: Sequence[int], *, style: PromptStyle, **options: Any) -> str:
    """The answer to a prompt that is tokens already, such as the beginning of a row of training data.

    Args:
        row: at least one token, fewer than the model has positions.
        options: as generate_text takes them.
    """
    with evaluating(model):
        return _answers(model, tokenizer, [list(row)], style, _arguments(tokenizer, style, options))[0].text


def text_of(tokenizer: Any, ids: Sequence[int], style: PromptStyle) -> str:
    """The text of an answer's tokens, cleaned as an answer is: what a row expects beside what a model says."""
    return clean_answer(_decode(tokenizer, ids, style), style)


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
    ended: Callable[[End], None] | None = None,
    seed: int | None = None,
    turn: Turn | None = None,
    **options: Any,
) -> Iterator[str]:
    """The answer piece by piece; together the pieces are what generate_text returns for the same options.

    Half characters and beginnings of stop strings are held back. Closing the iterator stops the generation.

    Args:
        ended: is told why the answer ended, behind its last piece.
        seed: of the sampling: the answer is then that of generate_answers with the same one in a list.
        turn: the answer takes the model in turns with others.
    """
    style = style or prompt_style(tokenizer, getattr(model, "generation_config", None))
    arguments = _arguments(tokenizer, style, options)
    rows = encode_prompts(model, tokenizer, [conversation])
    inputs = _left_padded(rows, tokenizer.pad_token_id, model.device)
    given_up, failure = threading.Event(), []
    streamer = _Ids()
    length = inputs["input_ids"].shape[1]
    whose = turn or _Whole()
    stops = _Stops(tokenizer, length, style, given_up, whose)
    room = _room(model, length, arguments)
    whole: list[Answer] = []
    settings = arguments | {"max_new_tokens": room, "stopping_criteria": StoppingCriteriaList([stops])}
    if seed is not None and arguments["do_sample"]:
        settings |= drawing(arguments, [seed], _min_p(model, arguments))

    def work() -> None:
        try:
            with whose, _answering(), torch.no_grad():
                output = model.generate(**inputs, streamer=streamer, **settings)
            whole.append(_ended(tokenizer, output[0, length:].tolist(), style, 0 in stops.looping, room))
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
    answer = whole[0]
    if answer.end == "length" and room < arguments["max_new_tokens"]:
        answer = Answer(answer.text, "positions")
    say_ends(model, [answer], arguments["max_new_tokens"])
    if ended is not None:
        ended(answer.end)


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
        end = _end_of(
            whole, style.stop_strings
        )  # looked for in front of what is held back, which may be its last character
        opens = end is None and any(_without_line_end(stop).startswith(whole.strip()) for stop in style.stop_strings)
        safe = "" if opens else clean_answer(_without_beginning_of(whole[:end], marks), style)
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
