"""How likely a model finds a text after another one: choices of a question, and whole passages.

A prompt and its choice are encoded as one string, so that the model meets the tokens that it was trained on. Questions
with the same beginning (examples before the question) share its keys and values, and the choices of a question stand in
one row, where a mask keeps each of them from seeing the others.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from ..data.rendering import Rendered
from ..data.tokenize import segment
from ..engine.metrics import text_metrics
from ..errors import ModelError, Reason, refusing
from ..models.modes import evaluating
from ..models.parts import positions_of, unwrapped

# Tokens of a batch, and most bytes of fp32 logits that exist at a time.
BUDGET, _LOGIT_BYTES = 4096, 256 * 2**20
# Most relative difference of log-likelihoods to the plain way, by what is computed in.
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 4e-2}
# Questions on which the shared way is tried.
_PROBED = 2

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Question:
    """A prompt and the texts that may follow it."""

    prompt: str
    choices: tuple[str, ...]


@dataclass(frozen=True)
class Likelihood:
    """How likely a text is.

    Attributes:
        nats: log-likelihood, at most 0.
        tokens, characters: of what was scored.
        greedy: whether the model would have written exactly this.
    """

    nats: float
    tokens: int
    characters: int
    greedy: bool

    @property
    def bits_per_character(self) -> float:
        """Bits that a character costs."""
        bits = text_metrics(-self.nats, self.tokens, self.characters)["eval_bits_per_character"]
        return math.nan if bits is None else bits


@dataclass(frozen=True)
class Scored:
    """Tokens of which the last are scored.

    Attributes:
        ids: of prompt and text.
        first: place of the first token of the text; never 0, since nothing predicts that one.
        characters: of the scored text.
    """

    ids: tuple[int, ...]
    first: int
    characters: int


def encode_pairs(tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> list[Scored]:
    """(prompt, text) pairs as tokens; a token over the boundary belongs to the text. The tokenizer's own BOS is kept, an
    EOS that it adds is not.
    """
    rendered = [
        Rendered(prompt + text, ((len(prompt), len(prompt) + len(text)),), (), "", True, False)
        for prompt, text in pairs
    ]
    found = []
    for item, (coded, places) in zip(rendered, segment(rendered, tokenizer), strict=True):
        ids, ends = list(coded), np.asarray(places).reshape(-1, 2)
        count = len(ids)
        while count > 1 and ids[count - 1] == tokenizer.eos_token_id and ends[count - 1, 0] == ends[count - 1, 1]:
            count -= 1
        ((start, stop),) = item.spans
        first = next((place for place in range(count) if ends[place, 1] > start), count)
        if first == 0:
            start, first = int(ends[0, 1]), 1
        found.append(Scored(tuple(ids[:count]), first, stop - start))
    return found


def longest_question(tokenizer: Any, questions: Sequence[Question]) -> int:
    """Tokens of the longest prompt with a choice."""
    pairs = [(item.prompt, choice) for item in questions for choice in item.choices]
    return max((len(item.ids) for item in encode_pairs(tokenizer, pairs)), default=0)


def score_texts(model: Any, tokenizer: Any, texts: Sequence[str], progress: Progress | None = None) -> list[Likelihood]:
    """The likelihood of each text, with nothing before it; one longer than the model takes is scored part by part.

    Raises:
        ModelError: the model fails.
    """
    most = positions_of(unwrapped(model).config) or math.inf
    found = []
    for item in encode_pairs(tokenizer, [("", text) for text in texts]):
        size = int(min(most, len(item.ids)))
        parts = [item.ids[start : start + size] for start in range(0, len(item.ids), size)]
        nats, scored, greedy = 0.0, 0, True
        for part in parts:
            if len(part) > 1:
                values, best = _plain(model, Scored(part, 1, 0))
                nats, scored, greedy = nats + values, scored + len(part) - 1, greedy and best
        found.append(Likelihood(nats, scored, item.characters, greedy))
        if progress is not None:
            progress(1)
    return found


def score_scored(model: Any, items: Sequence[Scored]) -> list[Likelihood]:
    """The likelihood of each item in a forward pass of its own: what every faster way is held against."""
    return [_likelihood(item, *_plain(model, item)) for item in items]


class QuestionScorer:
    """Scores the choices of questions, in the shared way where that computes what the model does.

    The shared way is tried on two questions against one forward pass a choice, and not used where it differs.

    Args:
        way: `plain`: one forward pass a choice.

    Attributes:
        reason: why the shared way is not used; None where it is.

    Raises:
        ModelError: a question is longer than the model takes, or the model fails.
    """

    def __init__(
        self, model: Any, tokenizer: Any, questions: Sequence[Question], *, way: Literal["auto", "plain"] = "auto"
    ) -> None:
        pairs = [(item.prompt, choice) for item in questions for choice in item.choices]
        coded = iter(encode_pairs(tokenizer, pairs))
        self._model = model
        self._rows = [[next(coded) for _ in item.choices] for item in questions]
        self._shared: _Shared | None = None
        self.reason: Reason | None = None
        if self._rows:
            _validate_length(model, self._rows)
            if way == "auto":
                self._shared, self.reason = _shared_way(model, self._rows)

    def score(
        self, places: Sequence[int], *, budget: int = BUDGET, progress: Progress | None = None
    ) -> list[list[Likelihood]]:
        """The likelihood of each choice of the questions at these places.

        Args:
            budget: tokens that are forwarded at a time.
            progress: is told how many more questions are done.
        """
        rows = [self._rows[place] for place in places]
        if self._shared is None:
            found = []
            for row in rows:
                found.append(score_scored(self._model, row))
                if progress is not None:
                    progress(1)
            return found
        scores: dict[int, list[Likelihood]] = {}
        shared, behind = self._shared, [_row(row, self._shared.prefix) for row in rows]
        for batch in _batches(behind, budget):
            obtained = shared.score([behind[place] for place in batch])
            for place, values in zip(batch, obtained, strict=True):
                scores[place] = [_likelihood(item, *value) for item, value in zip(rows[place], values, strict=True)]
            if progress is not None:
                progress(len(batch))
        return [scores[place] for place in range(len(rows))]


def score_questions(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    *,
    budget: int = BUDGET,
    way: Literal["auto", "plain"] = "auto",
) -> tuple[list[list[Likelihood]], Reason | None]:
    """The likelihood of each choice of each question, and why it was not computed in the shared way; see QuestionScorer."""
    scorer = QuestionScorer(model, tokenizer, questions, way=way)
    return scorer.score(range(len(questions)), budget=budget), scorer.reason


def forwarded_tokens(tokenizer: Any, questions: Sequence[Question]) -> int:
    """Tokens that go through the model for these questions in the shared way."""
    coded = iter(encode_pairs(tokenizer, [(item.prompt, choice) for item in questions for choice in item.choices]))
    rows = [[next(coded) for _ in item.choices] for item in questions]
    if not rows:
        return 0
    prefix = max(0, _common([row[0].ids for row in rows], min(map(_trunk_length, rows)) - 1))
    return prefix + sum(len(_row(row, prefix)) for row in rows)


def _likelihood(item: Scored, nats: float, greedy: bool) -> Likelihood:
    return Likelihood(nats, len(item.ids) - item.first, item.characters, greedy)


def _validate_length(model: Any, rows: Sequence[Sequence[Scored]]) -> None:
    most, longest = positions_of(unwrapped(model).config), max(len(item.ids) for row in rows for item in row)
    if most is not None and longest > most:
        raise ModelError(
            f"問題が {longest} トークンあり、モデルの上限 {most} を超えます。例題を減らすか、短い問題だけにしてください。",
            f"a question has {longest} tokens, and the model takes {most}; give fewer examples, or shorter questions.",
        )


def _device(model: Any) -> torch.device:
    device: torch.device = next(iter(model.get_input_embeddings().parameters())).device
    return device


def _plain(model: Any, item: Scored) -> tuple[float, bool]:
    """(log-likelihood, whether greedy) of one text in one forward pass of the model itself."""
    ids = torch.tensor([item.ids], device=_device(model))
    with evaluating(model), _computing(model):
        logits = model(input_ids=ids, use_cache=False).logits[0, item.first - 1 : -1]
        return _picked(logits, ids[0, item.first :].to(logits.device))


def _picked(logits: Tensor, targets: Tensor) -> tuple[float, bool]:
    """Sum of the targets' log-probabilities from logits [tokens, vocabulary], and whether each is the largest."""
    logits = logits.float()
    nats = torch.log_softmax(logits, -1).gather(1, targets[:, None])
    return float(nats.double().sum()), bool((logits.argmax(-1) == targets).all())


def _computing(model: Any) -> contextlib.AbstractContextManager[None]:
    name = type(unwrapped(model)).__name__
    return refusing(
        ModelError,
        f"{name} は計算に失敗します（{{reason}}）。config.json と重みが合っているかを確かめてください。",
        f"{name} fails ({{reason}}); check that config.json and weights belong together.",
    )


@dataclass(frozen=True)
class _Row:
    """A question behind the shared prefix.

    Attributes:
        trunk: tokens that all choices have in common, at least one.
        branches: the tokens of each choice behind them.
        skipped: of each branch, the tokens at its beginning that still belong to the prompt.
    """

    trunk: tuple[int, ...]
    branches: tuple[tuple[int, ...], ...]
    skipped: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.trunk) + sum(map(len, self.branches))


def _common(rows: Sequence[Sequence[int]], most: int) -> int:
    """How many tokens all rows have in common at their beginning, at most `most`."""
    first = rows[0]
    count = min(most, len(first))
    for row in rows[1:]:
        count = next(
            (place for place in range(min(count, len(row))) if row[place] != first[place]), min(count, len(row))
        )
    return count


def _trunk_length(row: Sequence[Scored]) -> int:
    """Tokens in front of which the choices of a question part; every scored token is behind them."""
    return _common([item.ids for item in row], min(item.first for item in row))


def _row(row: Sequence[Scored], prefix: int) -> _Row:
    trunk = _trunk_length(row)
    return _Row(
        row[0].ids[prefix:trunk],
        tuple(item.ids[trunk:] for item in row),
        tuple(item.first - trunk for item in row),
    )


def _batches(rows: Sequence[_Row], budget: int) -> Iterator[list[int]]:
    """Places of rows of similar lengths, longest first, of at most `budget` padded tokens."""
    order = sorted(range(len(rows)), key=lambda place: (-len(rows[place]), place))
    start = 0
    while start < len(order):
        count = max(1, budget // len(rows[order[start]]))
        yield order[start : start + count]
        start += count


@dataclass
class _Shared:
    """The shared way of one model over questions that begin alike.

    Attributes:
        prefix: tokens that all questions begin with.
        cache: keys and values of them, of one row.
        by_kind: the mask is given for each kind of attention.
    """

    model: Any
    prefix: int
    cache: Any
    by_kind: bool

    def score(self, rows: Sequence[_Row]) -> list[list[tuple[float, bool]]]:
        """(log-likelihood, whether greedy) of each branch of each row."""
        inner, device = unwrapped(self.model), _device(self.model)
        width = max(map(len, rows))
        ids, part, places = (torch.zeros((len(rows), width), dtype=torch.int64) for _ in range(3))
        part.fill_(-1)  # of what fills a row up
        asked: list[tuple[int, int, int]] = []  # (row, predicting place, target) of every scored token
        sizes: list[list[int]] = []
        for number, row in enumerate(rows):
            trunk = len(row.trunk)
            whole = [*row.trunk, *(token for branch in row.branches for token in branch)]
            ids[number, : len(whole)] = torch.tensor(whole)
            part[number, :trunk] = 0
            places[number, :trunk] = torch.arange(trunk)
            start, counts = trunk, []
            for kind, (branch, skipped) in enumerate(zip(row.branches, row.skipped, strict=True), start=1):
                part[number, start : start + len(branch)] = kind
                places[number, start : start + len(branch)] = torch.arange(trunk, trunk + len(branch))
                asked += [
                    (number, start + place - 1 if place else trunk - 1, branch[place])
                    for place in range(skipped, len(branch))
                ]
                counts.append(len(branch) - skipped)
                start += len(branch)
            sizes.append(counts)
        places += self.prefix
        with evaluating(self.model):
            hidden = inner.get_decoder()(
                input_ids=ids.to(device),
                position_ids=places.to(device),
                attention_mask=self._masks(part, places, device),
                past_key_values=_repeated(self.cache, len(rows)),
                use_cache=True,
            ).last_hidden_state
            numbers, predicting, targets = (
                torch.tensor(column, device=hidden.device) for column in zip(*asked, strict=True)
            )
            nats, greedy = self._heads(hidden[numbers, predicting], targets)
        found: list[list[tuple[float, bool]]] = []
        start = 0
        for counts in sizes:
            found.append([])
            for count in counts:
                found[-1].append((float(nats[start : start + count].sum()), bool(greedy[start : start + count].all())))
                start += count
        return found

    def _heads(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """[tokens] log-probabilities in double and whether each target is the largest, on the CPU."""
        inner = unwrapped(self.model)
        head, cap = (
            inner.get_output_embeddings(),
            getattr(inner.config.get_text_config(), "final_logit_softcapping", None),
        )
        size = max(1, _LOGIT_BYTES // (4 * inner.get_input_embeddings().weight.shape[0]))
        nats, greedy = [], []
        for part, wanted in zip(torch.split(hidden, size), torch.split(targets, size), strict=True):
            logits = head(part).float()
            logits = torch.tanh(logits / cap) * cap if cap else logits
            wanted = wanted.to(logits.device)
            nats.append(torch.log_softmax(logits, -1).gather(1, wanted[:, None])[:, 0].double().cpu())
            greedy.append((logits.argmax(-1) == wanted).cpu())
        return torch.cat(nats), torch.cat(greedy)

    def _masks(self, part: Tensor, places: Tensor, device: torch.device) -> Any:
        """What is added to attention scores, [rows, 1, tokens, prefix + tokens]; by kind of attention where asked."""
        rows, width = part.shape
        here = torch.arange(width)
        seen = (here[None, :, None] >= here[None, None, :]) & (
            (part[:, None, :] == 0) | (part[:, None, :] == part[:, :, None])
        )
        seen &= part[:, None, :] >= 0
        seen |= torch.eye(width, dtype=torch.bool)[None]  # what fills up sees itself: no row of scores is empty
        seen = torch.cat([torch.ones((rows, width, self.prefix), dtype=torch.bool), seen], 2)
        config, dtype = unwrapped(self.model).config.get_text_config(), self._dtype()
        window = getattr(config, "sliding_window", None)
        near = seen
        if window and getattr(config, "use_sliding_window", True):
            keys = torch.cat([torch.arange(self.prefix).expand(rows, -1), places], 1)
            near = seen & (places[:, :, None] - keys[:, None, :] < window)

        def added(allowed: Tensor) -> Tensor:
            mask = torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, torch.finfo(dtype).min)
            return mask[:, None].to(device)

        if not self.by_kind:
            return added(near)
        return {"full_attention": added(seen), "sliding_attention": added(near)}

    def _dtype(self) -> torch.dtype:
        return compute_dtype(self.model)


def compute_dtype(model: Any) -> torch.dtype:
    """The type that a model computes in: that of its first weight which is no integer."""
    return next(
        (weight.dtype for weight in unwrapped(model).parameters() if weight.dtype.is_floating_point), torch.float32
    )


def _repeated(cache: Any, rows: int) -> Any:
    """A cache of its own with the keys and values of one row for several ones."""
    whole = DynamicCache()
    for number, layer in enumerate(cache.layers):
        whole.update(layer.keys.expand(rows, -1, -1, -1), layer.values.expand(rows, -1, -1, -1), number)
    return whole


def _shared_way(model: Any, rows: Sequence[Sequence[Scored]]) -> tuple[_Shared | None, Reason | None]:
    """The shared way where it computes what the model does, and why not."""
    trunks = [_trunk_length(row) for row in rows]
    if min(trunks) < 1:
        return None, Reason("選択肢の前に何もない問題があります", "a question has nothing before its choices")
    prefix = _common([row[0].ids for row in rows], min(trunks) - 1)
    probes = sorted({0, max(range(len(rows)), key=lambda place: max(len(item.ids) for item in rows[place]))})[:_PROBED]
    expected = [[_plain(model, item)[0] for item in rows[place]] for place in probes]
    tolerance = _TOLERANCE.get(compute_dtype(model), _TOLERANCE[torch.bfloat16])
    inner = unwrapped(model)
    reason = Reason("共有の計算方法を試せません", "the shared way cannot be tried")
    kinds = (True, False) if getattr(inner.config.get_text_config(), "layer_types", None) else (False,)
    for by_kind in kinds:
        try:
            with evaluating(model):
                cache: Any = DynamicCache()
                if prefix:
                    first = torch.tensor([rows[0][0].ids[:prefix]], device=_device(model))
                    inner.get_decoder()(input_ids=first, past_key_values=cache, use_cache=True)
            shared = _Shared(model, prefix, cache, by_kind)
            obtained = shared.score([_row(rows[place], prefix) for place in probes])
        except Exception as error:  # a way that a model does not take, however it says so
            if isinstance(error, torch.OutOfMemoryError | MemoryError):
                raise
            text = f"{type(error).__name__}: {str(error)[:100]}"
            reason = Reason(text, text)
            continue
        pairs = [
            (value, wanted)
            for row, values in zip(expected, obtained, strict=True)
            for wanted, (value, _) in zip(row, values, strict=True)
        ]
        apart = math.dist(*zip(*pairs, strict=True)) / max(1e-9, math.hypot(*(wanted for _, wanted in pairs)))
        if apart <= tolerance:
            return shared, None
        reason = Reason(f"対数尤度が {apart:.1%} 違います", f"its log-likelihoods differ by {apart:.1%}")
    return None, reason


Way = Literal["sum", "character", "token"]
WAYS: tuple[Way, ...] = ("sum", "character", "token")


def best_choice(scores: Sequence[Likelihood], per: Way) -> int:
    """The choice that a model finds most likely; the first of equal ones.

    Args:
        per: `character` for texts of different lengths, `sum` for letters and fixed labels.
    """
    sizes = {"sum": [1] * len(scores), "character": [s.characters for s in scores], "token": [s.tokens for s in scores]}
    values = [score.nats / max(1, size) for score, size in zip(scores, sizes[per], strict=True)]
    return max(range(len(values)), key=lambda place: (values[place], -place))
