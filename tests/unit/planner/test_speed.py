"""How long a run still takes, on a clock that the test moves."""

from __future__ import annotations

import json
import threading

import pytest

from ai_finetuning.engine.hooks import Control
from ai_finetuning.engine.train_state import TrainState
from ai_finetuning.errors import Reason
from ai_finetuning.execution.progress import QUIET_SECONDS, Heartbeat, Lines
from ai_finetuning.planner.speed import (
    LAST_RUN,
    STEPS_BEFORE,
    AnswerPace,
    Remaining,
    Speed,
    duration,
    last_speed,
    place_of,
    remember,
    speed_of,
)


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("seconds", "ja", "en"),
    [
        (0.2, "1 秒", "1 s"),
        (8.4, "8 秒", "8 s"),
        (43, "45 秒", "45 s"),
        (118, "120 秒", "120 s"),
        (150, "2 分 30 秒", "2 min 30 s"),
        (180, "3 分", "3 min"),
        (2000, "33 分", "33 min"),
        (4800, "1 時間 20 分", "1 h 20 min"),
        (72000, "20 時間", "20 h"),
        (3 * 86400 + 7200, "3 日 2 時間", "3 d 2 h"),
    ],
)
def test_a19_times_are_said_as_people_say_them(monkeypatch, seconds: float, ja: str, en: str):
    monkeypatch.setenv("AIFT_LANG", "ja")
    assert duration(seconds) == ja
    monkeypatch.setenv("AIFT_LANG", "en")
    assert duration(seconds) == en


def test_no_rounding_is_further_off_than_an_estimate_may_be(monkeypatch):
    """Read back as seconds, every text is within an eighth of what it stands for."""
    monkeypatch.setenv("AIFT_LANG", "en")
    units = {"s": 1, "min": 60, "h": 3600, "d": 86400}
    for seconds in [*range(5, 4000), *range(4000, 400_000, 37)]:
        words = duration(seconds).split()
        said = sum(int(number) * units[unit] for number, unit in zip(words[::2], words[1::2], strict=True))
        assert abs(said - seconds) <= max(2.5, seconds / 8), (seconds, words)


# Seconds of the steps of a run as they were logged: a slow first one, and then a steady pace with the spread of rows of
# several lengths.
LOGGED = [9.1, *(1.0 + 0.25 * ((7 * step) % 5 - 2) / 2 for step in range(1, 60))]


@pytest.mark.parametrize(("eval_every", "eval_seconds"), [(None, 0.0), (10, 4.0), (12, 6.5)])
def test_the_time_left_is_within_a_quarter_from_the_fifth_step_on(eval_every: float | None, eval_seconds: float):
    clock, told = Clock(), []
    remaining = Remaining(eval_every, clock)
    remaining.begin()
    if eval_every:
        clock.now += eval_seconds
        remaining.evaluated()
    for step, seconds in enumerate(LOGGED, start=1):
        clock.now += seconds
        remaining.step({"step": step, "total_steps": len(LOGGED)})
        told.append((clock.now, remaining.seconds()))
        if eval_every and (step % eval_every == 0 or step == len(LOGGED)):
            clock.now += eval_seconds
            remaining.evaluated()
    assert [left for _, left in told[: STEPS_BEFORE - 1]] == [None] * (STEPS_BEFORE - 1)
    for now, left in told[STEPS_BEFORE - 1 :]:
        expected = clock.now - now
        assert left == pytest.approx(expected, rel=0.25)


def run_of(lines: Lines, clock: Clock, steps: int, seconds: float, first: int = 1) -> None:
    """A run of steady steps, as the loop tells it."""
    state, control = TrainState(micro_batch_size=1), Control()
    state.step = first - 1
    lines.on_train_begin(state, control)
    for step in range(first, first + steps):
        clock.now += seconds
        row = {"step": step, "total_steps": 400, "loss": 2.0, "learning_rate": 1e-4, "tokens": 100 * step}
        lines.on_step_end(state, control, row | {"seconds": seconds * (step - first + 1)})
    lines.close()


def test_a_run_says_what_is_left_after_its_fifth_step_whatever_logging_steps(logged, monkeypatch):
    monkeypatch.setenv("AIFT_LANG", "ja")
    clock = Clock()
    run_of(Lines(1000, None, clock), clock, 5, 12.0)
    said = [line for line in logged().splitlines() if "/400" in line]
    assert len(said) == 2  # the third step was the first after half a minute
    assert "残り" not in said[0]
    assert said[1].endswith("残り 約 1 時間 20 分")
    assert "秒" not in said[1].split("残り")[1]


def test_a_log_never_rests_for_longer_than_half_a_minute(logged):
    clock = Clock()
    run_of(Lines(1000, None, clock), clock, 30, 11.0)
    steps = [int(line.split("/400")[0].split()[-1]) for line in logged().splitlines() if "/400" in line]
    assert max(after - before for before, after in zip(steps, steps[1:], strict=False)) * 11.0 <= QUIET_SECONDS + 11.0


def test_a_slow_step_is_named_while_it_lasts(logged):
    clock = Clock()
    beat = Heartbeat(Reason("ステップ 1 を計算しています", "working on step 1"), clock)
    beat.beat()
    assert "working" not in logged()
    clock.now += 31
    beat.beat()
    beat.beat()
    assert logged().count("working on step 1 (for 30 s)") >= 1
    clock.now += 150
    beat.beat()
    assert "working on step 1 (for 3 min)" in logged()


def test_the_watch_over_the_clock_is_a_thread_that_ends_with_the_run():
    def watching() -> bool:
        return any(thread.name == "aift-heartbeat" for thread in threading.enumerate())

    lines = Lines(10, None, Clock())
    lines.on_train_begin(TrainState(micro_batch_size=1), Control())
    assert watching()
    lines.close()
    assert not watching()


def rows(pairs: list[tuple[float, int]]) -> list[dict[str, float]]:
    """Rows of metrics of (seconds, tokens)."""
    return [{"loss": 1.0, "seconds": seconds, "tokens": tokens} for seconds, tokens in pairs]


def test_the_speed_of_a_run_is_that_of_its_last_process_without_the_first_step():
    assert speed_of([]) is None
    assert speed_of(rows([(9.0, 100)])) is None
    assert speed_of(rows([(9.0, 100), (10.0, 200), (11.0, 300)])) == 100
    assert speed_of(rows([(9.0, 100), (10.0, 200), (5.0, 300), (6.0, 350)])) == 50
    assert speed_of([{"eval_loss": 1.0, "step": 0}, *rows([(1.0, 10), (2.0, 30)])]) == 20


def test_the_time_of_evaluations_is_none_of_the_steps():
    one, two, three, four = rows([(1.0, 100), (2.0, 200), (33.0, 300), (34.0, 400)])
    assert speed_of([one, two, {"eval_loss": 1.0}, three, four]) == 100
    assert speed_of([one, {"eval_loss": 1.0}, two, {"eval_loss": 1.0}, three]) == pytest.approx(200 / 32)
    again = rows([(0.5, 500), (1.5, 550)])
    assert speed_of([one, two, {"eval_loss": 1.0}, *again]) == 50


def test_the_pace_of_answers_is_told_once_enough_tokens_were_written():
    clock = Clock()
    pace = AnswerPace(clock)
    for tokens in (10, 10):
        assert pace.seconds is None
        with pace.timed(lambda tokens=tokens: tokens):
            clock.now += 0.5
    assert pace.seconds == pytest.approx(0.05)


def test_a_speed_is_kept_by_model_method_and_place_and_read_back(tmp_path, monkeypatch):
    monkeypatch.setenv("AIFT_CACHE", str(tmp_path))
    place = place_of("cpu", None, "single", 1)
    assert last_speed("m", "lora", place) is None
    assert not list(tmp_path.iterdir())  # to ask writes nothing
    remember("m", "lora", place, 123.4)
    assert last_speed("m", "lora", place).seconds(1234) == pytest.approx(10)
    assert last_speed("m", "lora", place).token_seconds is None
    remember("m", "lora", place, 123.4, 0.02)
    assert last_speed("m", "lora", place).token_seconds == 0.02
    remember("m", "lora", place, 200.0)  # a run without answers says nothing of their pace
    assert last_speed("m", "lora", place) == Speed(200.0, LAST_RUN, 0.02)
    assert last_speed("m", "full", place) is None
    assert last_speed("n", "lora", place) is None
    assert last_speed("m", "lora", place_of("cpu", None, "ddp", 2)) is None
    file = next((tmp_path / "speed").glob("*.json"))
    for text in ("", "[]", json.dumps({"tokens_per_second": "fast"}), json.dumps({"tokens_per_second": 0})):
        file.write_text(text, encoding="utf-8")
        assert last_speed("m", "lora", place) is None
