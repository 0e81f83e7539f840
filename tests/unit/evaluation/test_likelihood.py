"""Likelihoods in the shared way against one forward pass a choice: families, adapters, leaks, boundaries."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from tests.support.models import build_model, build_tokenizer
from tests.support.parity import Case, model_of
from tests.sweep.families import build

from ai_finetuning.errors import ModelError
from ai_finetuning.evaluation import likelihood
from ai_finetuning.evaluation.likelihood import (
    Likelihood,
    Question,
    best_choice,
    encode_pairs,
    longest_question,
    score_questions,
    score_texts,
)
from ai_finetuning.models.adapters import add_lora, without_adapter

SHOTS = "質問に答えてください。\n質問：日本の首都は？\n回答：東京\n\n質問：りんごの色は？\n回答：赤\n\n"
QUESTIONS = [
    Question(f"{SHOTS}質問：{asked}\n回答：", choices)
    for asked, choices in (
        ("大阪は何地方？", ("関西", "関東", "九州地方です", "東北", "北海道")),
        ("電車は何時に出発しますか、駅で待つ人のために答えてください？", ("九時", "七時", "十時半")),
        ("天気は？", ("良い", "良い天気ですね")),
        ("Hello?", ("Hello", " hello", "こんにちは、どうぞよろしくお願いします")),
    )
]
DENSE = ("llama", "qwen2", "gpt_neox", "stablelm", "gpt2", "gemma2", "qwen3_tied")
# Sliding windows shorter than the questions among them.
OTHERS = ("mistral", "qwen3", "gemma3_text", "phi3", "falcon", "olmo2", "gpt_oss", "qwen3_moe")


def apart(model: torch.nn.Module, questions: list[Question] = QUESTIONS) -> float:
    tokenizer = build_tokenizer()
    shared, reason = score_questions(model, tokenizer, questions)
    assert reason is None, reason
    plain, _ = score_questions(model, tokenizer, questions, way="plain")
    assert [[s.greedy for s in row] for row in shared] == [[s.greedy for s in row] for row in plain]
    pairs = [pair for rows in zip(shared, plain, strict=True) for pair in zip(*rows, strict=True)]
    assert all(a.tokens == b.tokens and a.characters == b.characters for a, b in pairs)
    return max(abs(a.nats - b.nats) for a, b in pairs)


@pytest.mark.parametrize("kind", DENSE)
def test_the_shared_way_is_the_models_own(kind: str):
    assert apart(build_model(kind, vocab_size=len(build_tokenizer())).eval()) < 4e-5


@pytest.mark.parametrize("family", OTHERS)
def test_further_families(family: str):
    model = build(family, vocab_size=len(build_tokenizer())).eval()
    assert apart(model) < 1e-4


def test_a_model_without_keys_and_values_goes_the_plain_way_and_says_so():
    model, tokenizer = build("mamba", vocab_size=len(build_tokenizer())).eval(), build_tokenizer()
    scores, reason = score_questions(model, tokenizer, QUESTIONS[:2])
    assert reason is not None
    assert scores == score_questions(model, tokenizer, QUESTIONS[:2], way="plain")[0]


def test_a_shared_way_that_errs_is_not_used(monkeypatch: pytest.MonkeyPatch):
    """Choices that see each other: what the mask is for."""
    model, tokenizer = build_model(vocab_size=len(build_tokenizer())).eval(), build_tokenizer()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4)  # so that what is seen matters
    right, _ = score_questions(model, tokenizer, QUESTIONS)
    own = likelihood._Shared._masks

    def leaking(self: object, part: torch.Tensor, places: torch.Tensor, device: torch.device) -> object:
        return own(self, part.clamp(max=0), places, device)

    monkeypatch.setattr(likelihood._Shared, "_masks", leaking)
    obtained, reason = score_questions(model, tokenizer, QUESTIONS)
    assert reason is not None
    assert "differ by" in reason.en
    for row, expected in zip(obtained, right, strict=True):
        assert [s.nats for s in row] == pytest.approx([s.nats for s in expected], abs=1e-3)


def test_a_choice_never_moves_another_one():
    """To the bit, where the tensors have the same shapes."""
    model, tokenizer = build_model(vocab_size=len(build_tokenizer())).eval(), build_tokenizer()
    asked = dataclasses.replace(QUESTIONS[0], choices=("関西", "関東", "東北"))
    other = dataclasses.replace(QUESTIONS[0], choices=("七時", "関東", "東北"))
    sizes = {
        len(item.ids)
        for q in (asked, other)
        for item in encode_pairs(tokenizer, [(q.prompt, c) for c in q.choices[:1]])
    }
    assert len(sizes) == 1, "the two first choices have as many tokens"
    first, _ = score_questions(model, tokenizer, [asked, QUESTIONS[1]])
    second, _ = score_questions(model, tokenizer, [other, QUESTIONS[1]])
    assert first[0][0] != second[0][0]
    assert first[0][1:] == second[0][1:]
    assert first[1] == second[1]


@pytest.mark.parametrize("budget", [1, 64, 100_000])
def test_the_size_of_batches_changes_nothing(budget: int):
    model, tokenizer = build_model(vocab_size=len(build_tokenizer())).eval(), build_tokenizer()
    expected, _ = score_questions(model, tokenizer, QUESTIONS)
    obtained, _ = score_questions(model, tokenizer, QUESTIONS, budget=budget)
    for row, other in zip(expected, obtained, strict=True):
        assert [s.nats for s in row] == pytest.approx([s.nats for s in other], abs=1e-4)


def test_an_adapter_counts_while_it_is_on():
    tokenizer = build_tokenizer()
    base = build_model(vocab_size=len(tokenizer)).eval()
    expected, _ = score_questions(base, tokenizer, QUESTIONS)
    model = add_lora(base, r=4, alpha=8)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.2)
    assert apart(model.eval()) < 1e-4
    with without_adapter(model):
        off, _ = score_questions(model, tokenizer, QUESTIONS)
    on, _ = score_questions(model, tokenizer, QUESTIONS)
    assert off == expected
    assert on != off


def test_a_quantized_base_under_an_adapter():
    model = model_of(Case("llama", "qlora")).eval()
    assert apart(model) < 1e-3


def test_a_token_over_the_boundary_belongs_to_the_text():
    tokenizer = build_tokenizer()
    (item,) = encode_pairs(tokenizer, [("今日は良い天気", "ですね。")])
    whole = tokenizer("今日は良い天気ですね。").input_ids
    assert list(item.ids) == whole
    before = tokenizer.decode(item.ids[: item.first])
    assert "今日は良い天気".startswith(before.rstrip("\ufffd"))
    assert item.characters == 4
    (alone,) = encode_pairs(tokenizer, [("", "東京です。")])
    assert alone.first == 1
    assert 0 < alone.characters <= 5


def test_texts_cost_what_the_model_says():
    model, tokenizer = build_model(vocab_size=len(build_tokenizer())).eval(), build_tokenizer()
    text = "日本の首都は東京です。今日は良い天気ですね。"
    (obtained,) = score_texts(model, tokenizer, [text])
    ids = torch.tensor([tokenizer(text).input_ids])
    loss = model(input_ids=ids, labels=ids).loss
    assert obtained.nats == pytest.approx(-loss.item() * (ids.shape[1] - 1), rel=1e-5)
    assert obtained.bits_per_character == pytest.approx(-obtained.nats / math.log(2) / obtained.characters)


def test_a_text_longer_than_the_model_is_scored_in_parts_and_a_question_is_refused():
    model, tokenizer = build_model(vocab_size=len(build_tokenizer())).eval(), build_tokenizer()
    model.config.max_position_embeddings = 16
    (obtained,) = score_texts(model, tokenizer, ["大阪は関西にある都市です。" * 8])
    assert obtained.tokens > 16
    assert longest_question(tokenizer, QUESTIONS) > 16
    with pytest.raises(ModelError, match="takes 16") as refused:
        score_questions(model, tokenizer, QUESTIONS)
    assert refused.value.exit_code == 78


def test_the_best_choice_by_each_rule():
    scores = [Likelihood(-4, 1, 1, False), Likelihood(-6, 3, 2, False), Likelihood(-4, 1, 1, False)]
    assert best_choice(scores, "sum") == 0
    assert best_choice(scores, "character") == 1
    assert best_choice(scores, "token") == 1
