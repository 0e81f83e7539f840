"""The loss curve: what is drawn, in which language, and that a picture has no boxes in place of characters."""

from __future__ import annotations

import math
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from ai_finetuning.evaluation import curves
from ai_finetuning.evaluation.curves import MOST_POINTS, curve_of, draw_curve, japanese_font, legend, svg

HISTORY = [
    {"step": 0, "eval_loss": 4.0},
    {"step": 1, "loss": 4.0, "label_tokens": 10},
    {"step": 2, "loss": 3.0, "label_tokens": 10},
    {"step": 2, "eval_loss": 3.1},
    {"step": 3, "loss": math.nan, "label_tokens": 10},
    {"step": 4, "loss": 2.0, "label_tokens": 10},
    {"step": 4, "eval_loss": 3.4},
]


def test_a_curve_has_the_numbers_and_the_best_evaluation():
    curve = curve_of(HISTORY)
    assert [(point.step, point.loss) for point in curve.raw] == [(1, 4.0), (2, 3.0), (4, 2.0)]
    assert [point.step for point in curve.evaluations] == [0, 2, 4]
    assert curve.best is not None
    assert (curve.best.step, curve.best.loss) == (2, 3.1)


def test_a_short_last_step_of_an_epoch_does_not_pull_the_smooth_line():
    """One label token of loss 50 among steps of 1,000 tokens of loss 2."""
    history = [{"step": step, "loss": 2.0, "label_tokens": 1000} for step in range(1, 200)]
    history.append({"step": 200, "loss": 50.0, "label_tokens": 1})
    assert curve_of(history).smooth[-1].loss < 2.1


def test_a_short_run_is_hardly_smoothed():
    history = [{"step": step, "loss": 10.0 - step, "label_tokens": 1} for step in range(1, 10)]
    assert curve_of(history).smooth[-1].loss == pytest.approx(1.0)


def test_a_long_run_is_thinned_and_keeps_its_end():
    history = [{"step": step, "loss": 1 / step, "label_tokens": 1} for step in range(1, 100_001)]
    curve = curve_of(history)
    assert len(curve.raw) <= MOST_POINTS + 1
    assert curve.raw[-1].step == curve.smooth[-1].step == 100_000
    assert len(svg(curve, 100_000)) < 40_000


@pytest.mark.parametrize(
    ("language", "words"), [("ja", ["ステップ", "損失"]), ("en", ["optimizer step", "loss (nats per token)"])]
)
def test_the_drawing_is_well_formed_inside_its_frame_and_in_the_language(
    monkeypatch: pytest.MonkeyPatch, language: str, words: list[str]
):
    monkeypatch.setenv("AIFT_LANG", language)
    drawing = svg(curve_of(HISTORY), 10)
    root = ElementTree.fromstring(drawing)
    assert all(any(word in (element.text or "") for element in root.iter()) for word in words)
    assert "3.10" in drawing  # the best evaluation is named
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    numbers = [tuple(map(float, pair.split(","))) for pair in re.findall(r"[-\d.]+,[-\d.]+", drawing)]
    assert all(0 <= x <= width and 0 <= y <= height for x, y in numbers)
    assert [name for _, name in legend()] == list(dict.fromkeys(name for _, name in legend()))


@pytest.mark.parametrize(
    "history",
    [
        [],
        [{"step": 0, "eval_loss": 2.0}],
        [{"step": 1, "loss": 0.0, "label_tokens": 0}],
        [{"step": 1, "loss": None}, {"step": 1, "eval_loss": math.inf}],
        [{"step": 1, "loss": 1e30, "label_tokens": 1}, {"step": 2, "loss": -1e-30, "label_tokens": 1}],
    ],
)
def test_odd_numbers_are_drawn_or_left_out(history: list[dict[str, float]], tmp_path: Path):
    drawing = svg(curve_of(history), 1)
    assert drawing == "" or ElementTree.fromstring(drawing) is not None
    assert "nan" not in drawing
    assert "inf" not in drawing.replace('id="inside"', "").replace("url(#inside)", "")
    draw_curve(history, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_picture_is_english_where_no_japanese_font_is_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, recwarn: pytest.WarningsRecorder
):
    """matplotlib warns of every character that a font lacks and draws a box: in neither case may it have to."""
    monkeypatch.setenv("AIFT_LANG", "ja")
    draw_curve(HISTORY, tmp_path / "as-installed.png")
    monkeypatch.setattr(curves, "_JAPANESE", ())
    draw_curve(HISTORY, tmp_path / "without.png")
    monkeypatch.setenv("AIFT_LANG", "en")
    draw_curve(HISTORY, tmp_path / "english.png")
    assert (tmp_path / "without.png").read_bytes() == (tmp_path / "english.png").read_bytes()
    assert not [item for item in recwarn if "lyph" in str(item.message)]


def test_a_font_without_the_characters_is_not_taken(monkeypatch: pytest.MonkeyPatch):
    """DejaVu Sans, which matplotlib brings, has no kanji, whatever it is called."""
    monkeypatch.setattr(curves, "_JAPANESE", ("DejaVu Sans",))
    assert japanese_font("損失") is None
    assert japanese_font("loss") is not None
