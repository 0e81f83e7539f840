"""Both sides of a conversation answer as each does alone, in turns over one set of weights."""

from __future__ import annotations

import threading

import pytest
from tests.support.adapters import with_changing_adapter

from ai_finetuning.inference.session import OpenModel, open_model
from ai_finetuning.inference.side_by_side import Asked, Side, answer_side_by_side
from ai_finetuning.models.generation import generate_answers

QUESTION = "日本の首都はどこですか。"
HISTORY = [{"role": "user", "content": "こんにちは。"}, {"role": "assistant", "content": "こんにちは。"}]
LONG = {"max_new_tokens": 24, "min_new_tokens": 24}


@pytest.fixture(scope="module")
def opened() -> OpenModel:
    """The embedded model with an adapter that changes its answers, biases among what it changes."""
    found = open_model("embedded:kotoha-tiny", dtype="float32")
    model = with_changing_adapter(found.model, alpha=32, spread=0.05, seed=3)
    return OpenModel(model.eval(), found.tokenizer, found.base_name, has_adapter=True)


def _alone(opened: OpenModel, asked: Asked, *, adapter: bool, seed: int | None, options: dict[str, object]) -> str:
    conversation = [*asked.history, {"role": "user", "content": asked.question}]
    with opened.adapter(adapter):
        seeds = None if seed is None else [seed]
        return generate_answers(opened.model, opened.tokenizer, [conversation], seed=seeds, **options)[0].text


@pytest.mark.parametrize("seconds", [0.0, 60.0], ids=["token by token", "one after the other"])
@pytest.mark.parametrize(
    ("seed", "options"),
    [(None, LONG | {"do_sample": False}), (7, LONG | {"do_sample": True, "temperature": 1.2, "top_p": 1.0})],
    ids=["greedy", "sampled"],
)
def test_each_side_answers_as_it_does_alone(
    opened: OpenModel, seconds: float, seed: int | None, options: dict[str, object]
) -> None:
    base, tuned = Asked([], QUESTION), Asked(HISTORY, QUESTION)
    said: dict[str, str] = {"base": "", "tuned": ""}
    order: list[str] = []

    def say(side: str, piece: str) -> None:
        said[side] += piece
        order.append(side)

    told = answer_side_by_side(
        [(Side("base", opened, adapter=False), base), (Side("tuned", opened), tuned)],
        say,
        threading.Event(),
        seed=seed,
        options=options,
        turn_seconds=seconds,
    )
    assert said["base"] == _alone(opened, base, adapter=False, seed=seed, options=options)
    assert said["tuned"] == _alone(opened, tuned, adapter=True, seed=seed, options=options)
    assert said["base"] != said["tuned"]
    assert [(item.side, item.end, item.refused) for item in told] == [
        ("base", "length", None),
        ("tuned", "length", None),
    ]
    assert all(item.tokens and item.tokens > 24 for item in told)
    if seconds == 0.0:  # both columns grow at the same time
        changes = sum(first != second for first, second in zip(order, order[1:], strict=False))
        assert changes > 3


def test_giving_up_ends_both_and_keeps_what_was_said(opened: OpenModel) -> None:
    given_up, said = threading.Event(), {"base": "", "tuned": ""}

    def say(side: str, piece: str) -> None:
        said[side] += piece
        if all(said.values()):
            given_up.set()

    told = answer_side_by_side(
        [(Side("base", opened, adapter=False), Asked([], QUESTION)), (Side("tuned", opened), Asked([], QUESTION))],
        say,
        given_up,
        options={"max_new_tokens": 400, "min_new_tokens": 400, "do_sample": False},
        turn_seconds=0.0,
    )
    assert [item.end for item in told] == [None, None]
    assert all(said.values())


def test_a_side_that_cannot_be_asked_does_not_keep_the_other(opened: OpenModel) -> None:
    said: list[str] = []
    told = answer_side_by_side(
        [
            (Side("base", opened, adapter=False), Asked([], "長い" * 4000)),
            (Side("tuned", opened), Asked([], QUESTION, system="短く答えます。")),
        ],
        lambda side, piece: said.append(side),
        threading.Event(),
        options={"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False},
    )
    assert set(said) == {"tuned"}
    assert "トークン" in told[0].refused.ja
    assert told[1].end == "length"
