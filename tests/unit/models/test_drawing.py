"""Answers with random numbers of their own: drawn as the probabilities say, and the same beside any other answers."""

from __future__ import annotations

import pytest
import torch
from tests.support.models import build_model, build_tokenizer

from ai_finetuning.models.drawing import drawing, seed_of
from ai_finetuning.models.generation import generate_answers

OPTIONS = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
QUESTIONS = [[{"role": "user", "content": text}] for text in ("首都は？", "今日は良い天気ですね。", "りんごが三つ？")]


def drawn(scores: torch.Tensor, count: int, min_p: float | None = None, **options: float) -> torch.Tensor:
    """How often each token is drawn [vocabulary], of one row of scores, by so many seeds."""
    arguments = drawing(OPTIONS | options, [seed_of(0, place) for place in range(count)], min_p)
    rows = scores.repeat(count, 1)
    chosen = arguments["logits_processor"](torch.zeros(count, 1, dtype=torch.int64), rows)
    assert (torch.isfinite(chosen).sum(dim=-1) == 1).all()
    return torch.bincount(chosen.argmax(dim=-1), minlength=len(scores))


def test_tokens_are_drawn_as_often_as_their_probability_says():
    probabilities = torch.tensor([0.5, 0.25, 0.0, 0.15, 0.1])
    count = 4000
    found = drawn(probabilities.log(), count) / count
    assert found[2] == 0
    # Five standard errors of a share: sqrt(p (1 - p) / n) is below .008.
    assert (found - probabilities).abs().max() < 0.04


@pytest.mark.parametrize(
    ("options", "kept"),
    [({"top_k": 2}, {0, 1}), ({"top_p": 0.7}, {0, 1}), ({"temperature": 0.05}, {0}), ({"min_p": 0.4}, {0, 1})],
)
def test_the_filters_leave_the_likely_tokens(options: dict[str, float], kept: set[int]):
    scores = torch.tensor([0.5, 0.25, 0.05, 0.12, 0.08]).log()
    assert set(drawn(scores, 300, **options).nonzero().flatten().tolist()) == kept


def test_an_answer_is_the_same_beside_any_others_and_leaves_the_global_generator_alone():
    model, tokenizer = build_model(seed=3), build_tokenizer()
    options = {"max_new_tokens": 12, "top_k": 0, "top_p": 1.0, "temperature": 1.0}
    asked = [question for question in QUESTIONS for _ in range(3)]
    seeds = [seed_of(7, place, sample) for place in range(len(QUESTIONS)) for sample in range(3)]
    torch.manual_seed(1)
    before = torch.get_rng_state()
    whole = generate_answers(model, tokenizer, asked, seed=seeds, batch_size=9, **options)
    assert torch.equal(torch.get_rng_state(), before)
    alone = [
        generate_answers(model, tokenizer, [question], seed=[seed], **options)[0]
        for question, seed in zip(asked, seeds, strict=True)
    ]
    assert whole == alone
    assert len({item.text for item in whole[:3]}) > 1  # answers to one question differ
    other = generate_answers(model, tokenizer, asked, seed=[seed + 1 for seed in seeds], batch_size=9, **options)
    assert other != whole


def test_greedy_answers_take_no_seed():
    model, tokenizer = build_model(seed=3), build_tokenizer()
    greedy = generate_answers(model, tokenizer, QUESTIONS, do_sample=False, max_new_tokens=6)
    assert generate_answers(model, tokenizer, QUESTIONS, seed=[1, 2, 3], do_sample=False, max_new_tokens=6) == greedy


def test_every_answer_of_a_command_has_another_seed():
    assert (
        len({seed_of(seed, place, sample) for seed in range(3) for place in range(30) for sample in range(10)}) == 900
    )
