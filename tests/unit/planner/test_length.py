"""How long a run takes, part by part."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from ai_finetuning import embedded
from ai_finetuning.errors import Reason
from ai_finetuning.evaluation.samples import GENERAL_QUESTIONS
from ai_finetuning.evaluation.tasks import PROSE
from ai_finetuning.planner.length import (
    CARD_QUESTIONS,
    PROSE_CHARACTERS,
    Beside,
    parts,
    time_limit,
    token_seconds,
)
from ai_finetuning.planner.presets import PRESETS
from ai_finetuning.planner.speed import Speed

SPEED = Speed(1000.0, Reason("", ""))
# kotoha-tiny on 180 rows of kotoha-qa for three epochs, ten fixed questions: one core, seconds of the CPU.
MEASURED = {"steps": 11.0, "evaluations": 1.6, "at_evaluations": 34.0, "verdict": 12.7}
RUN = Beside(
    10, 620, questions=10, samples=3, answer_tokens=6, judged=20, token_seconds=token_seconds(9e6, 6, gpu=False)
)


def test_a_verdict_takes_a_tenth_of_the_training_or_two_minutes_at_most():
    assert time_limit(0) == 120
    assert time_limit(1200) == 120
    assert time_limit(7200) == 720
    slow = parts(replace(RUN, judged=2000, token_seconds=10.0), 0, SPEED)
    assert slow.verdict == 120


def test_the_parts_of_a_run_are_near_what_it_took():
    found = parts(RUN, 13_920, replace(SPEED, tokens_per_second=1265))
    for name, seconds in MEASURED.items():
        assert seconds / 1.6 < getattr(found, name) < seconds * 1.6, name
    assert 67 / 1.3 < found.total < 67 * 1.3


def test_answers_are_counted_by_evaluations_questions_and_tokens():
    quick, full = parts(replace(RUN, questions=0), 10_000, SPEED), parts(RUN, 10_000, SPEED)
    assert (quick.steps, quick.evaluations, quick.verdict) == (full.steps, full.evaluations, full.verdict)
    assert full.answers - quick.answers == pytest.approx(full.at_evaluations)
    assert full.at_evaluations > 20
    assert quick.at_evaluations == 0
    assert parts(replace(RUN, answer_tokens=60), 10_000, SPEED).answers > full.answers
    assert parts(replace(RUN, evaluations=0, questions=10, samples=0), 10_000, SPEED).answers == 0
    slow = parts(replace(RUN, token_seconds=1.0, samples=0), 10_000, SPEED)
    assert slow.at_evaluations == 11 * 20  # of each moment no more than the answers may take


def test_a_measured_token_counts_before_the_formula():
    measured = parts(RUN, 10_000, replace(SPEED, token_seconds=RUN.token_seconds / 2))
    assert measured.at_evaluations == pytest.approx(parts(RUN, 10_000, SPEED).at_evaluations / 2)


def test_a_large_part_is_named():
    told = parts(RUN, 10_000, SPEED).large()
    assert told is not None
    assert "回答の例" in told.ja
    assert "評価" not in told.ja
    assert parts(RUN, 10_000_000, SPEED).large() is None


def test_a_preset_has_its_own_evaluations_and_questions():
    quick = RUN.under(PRESETS["quick"], 2, 30, by_steps=True)
    assert (quick.questions, quick.evaluations) == (0, 10)
    assert RUN.under(PRESETS["careful"], 6, 300, by_steps=True).evaluations == 6
    assert RUN.under(PRESETS["standard"], 1, 4, by_steps=False).evaluations == 4
    none = replace(RUN, evaluations=0)
    assert none.under(PRESETS["standard"], 1, 60, by_steps=True) == none


def test_larger_models_and_slower_memory_take_longer():
    small, large = (token_seconds(n, 32, gpu=True) for n in (10**9, 10**10))
    assert small < large
    assert token_seconds(10**10, 32, gpu=True, bits=4) < large < token_seconds(10**10, 32, gpu=False)


def test_what_is_known_of_other_rooms_is_so():
    assert len(GENERAL_QUESTIONS) == CARD_QUESTIONS
    with embedded.data_file(PROSE).open(encoding="utf-8") as file:
        assert sum(len(json.loads(line)["text"]) for line in file) == PROSE_CHARACTERS
