"""report.html as a page that somebody else reads: whole, offline, escaped, on a phone as on a screen."""

from __future__ import annotations

import dataclasses
import re
from datetime import datetime
from pathlib import Path

import pytest
from tests.support.pages import Page, browser

from ai_finetuning.config.plain import plain_run
from ai_finetuning.config.run import RunConfig
from ai_finetuning.errors import Reason
from ai_finetuning.evaluation.report import DataSummary, Report, render_report
from ai_finetuning.evaluation.samples import Sample
from ai_finetuning.execution.reporting import flat

HOSTILE = "<script>alert(1)</script>\"'&<img src=x onerror=alert(1)></style></details>\u202e\x1b[31m\ud800"
HISTORY = [
    {"step": 0, "eval_loss": 4.743, "eval_perplexity": 57.06724393416113, "eval_bits_per_character": 5.389012149276572},
    *({"step": step, "loss": 4.8 / step, "label_tokens": 40} for step in range(1, 41)),
    {"step": 40, "eval_loss": 4.031, "eval_perplexity": 56.3, "eval_bits_per_character": None},
]


def report(**changes: object) -> Report:
    base = Report(
        model="llm-jp/llm-jp-3-1.8b",
        method="lora",
        when=datetime(2026, 11, 29, 14, 5),
        state="completed",
        step=40,
        total_steps=40,
        history=HISTORY,
        data=DataSummary(
            train=["faq.csv"],
            evaluation=["test.csv"],
            rows=18,
            eval_rows=4,
            tokens=12345,
            label_tokens=6272,
            left_out=[(Reason("空の回答があります", "an answer is empty"), 3)],
        ),
        samples=[Sample("有給の申請方法は？", "勤怠システムからです。", "はい。", "勤怠システムからです。")],
        facts=[(Reason("時間", "time"), "12 秒")],
        notes=[Reason("行が少なすぎます", "too few rows")],
        environment=[(Reason("デバイス", "device"), "NVIDIA H200 (cuda:0)")],
        commands=[(Reason("同じ学習をもう一度行う", "again"), "aift train 'out puts/config.yaml'")],
        settings=flat(plain_run(RunConfig())),
    )
    return dataclasses.replace(base, **changes)


@pytest.fixture(autouse=True)
def japanese(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIFT_LANG", "ja")


def test_the_page_says_what_a_reader_asks():
    page = Page(render_report(report()))
    for text in (
        "学習レポート: llm-jp/llm-jp-3-1.8b",
        "2026-11-29 14:05",
        "完了: 40 ステップ",
        "改善しました。評価損失は 4.74 → 4.03",
        "最良のステップ: 40（評価損失 4.03）",
        "行が少なすぎます",
        "faq.csv",
        "学習 18、評価 4",
        "学習対象トークン",
        "6,272",
        "空の回答があります: 3",
        "有給の申請方法は？",
        "学習前",
        "NVIDIA H200",
        "aift train 'out puts/config.yaml'",
        "57.1",
    ):
        assert text in page.text, text
    assert len(page.find("svg", class_="curve")) == 1
    assert page.find("meta", name="viewport")
    assert not re.search(r"\d\.\d{4,}", page.text.partition("すべての設定")[0]), "figures are rounded"
    assert "None" not in page.text
    assert "held_out" not in page.text


def test_nothing_is_loaded_from_anywhere_and_nothing_runs():
    source = render_report(report())
    page = Page(source)
    assert page.loads == []
    assert not re.search(r"https?://|url\(\s*['\"]?(?!#)", source)
    policy = page.find("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_whatever_a_text_holds_is_text():
    """In names, samples, reasons, commands and values: no element more than the same page has with plain words."""

    def page(word: str) -> Page:
        data = DataSummary([word], [word], 1, 1, 1, 1, [(Reason(word, word), 1)])
        pair = [(Reason(word, word), word)]
        settings = flat(plain_run(RunConfig())) | {"model.name": word, "data.system_prompt": word}
        changed = report(
            model=word,
            method=word,
            data=data,
            samples=[Sample(word, word, word, word)],
            facts=pair,
            environment=pair,
            commands=pair,
            settings=settings,
            notes=[Reason(word, word)],
        )
        source = render_report(changed)
        source.encode("utf-8")  # half a character too
        return Page(source)

    hostile, plain = page(HOSTILE), page("言葉")
    assert [tag for tag, _ in hostile.elements] == [tag for tag, _ in plain.elements]
    assert hostile.loads == []
    assert hostile.text.count("<script>alert(1)</script>") == plain.text.count("言葉")
    assert "\x1b" not in hostile.text
    assert "\u202e" not in hostile.text


def test_settings_are_folded_and_have_names_for_people():
    page = Page(render_report(report()))
    (folded,) = page.find("details", class_="settings")
    assert "open" not in folded
    assert "学習率の最大値" in page.text
    assert "learning_rate" in page.text
    assert "指定なし" in page.text


def test_a_run_at_work_says_how_far_it_is():
    page = Page(render_report(report(state="running", step=40, total_steps=120)))
    assert "学習中: 40/120 ステップ" in page.text
    assert "（ここまで）" in page.text
    assert "120" in page.text[page.text.index("損失の曲線") :]  # the curve has room for what is to come
    stopped = Page(render_report(report(state="stopped", step=40, total_steps=120)))
    assert "中断: 40/120 ステップ" in stopped.text


def test_a_page_without_anything_yet_is_a_page():
    samples = Reason("評価データがないため、ありません。", "None.")
    empty = report(history=[], samples=samples, facts=(), environment=(), commands=(), settings={}, step=0)
    page = Page(render_report(empty))
    assert "判定できません" in page.text
    assert "評価データがないため" in page.text
    assert not page.find("svg", class_="curve")


def test_answers_that_are_missing_or_empty_or_long_are_said_so():
    samples = [Sample("質問", "", None, None), Sample("質問", "答え", "", "長" * 5000)]
    page = Page(render_report(report(samples=samples)))
    assert "（まだありません）" in page.text
    assert "（空の回答）" in page.text
    assert page.text.count("長") < 1000


def test_english_for_an_english_reader(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AIFT_LANG", "en")
    changed = report(samples=Reason("なし", "None."), facts=[], commands=[], environment=[], settings={})
    page = Page(render_report(changed))
    assert page.find("html", lang="en")
    assert "completed: 40 steps" in page.text
    assert not re.search("[\u3040-\u30ff\u4e00-\u9fff]", page.text)


WIDE = """({page: document.documentElement.scrollWidth, window: innerWidth,
 out: [...document.querySelectorAll('main *')].filter(item => !item.closest('.box, pre, svg') &&
   item.getBoundingClientRect().right > innerWidth + 1).map(item => item.tagName),
 back: getComputedStyle(document.body).backgroundColor, text: getComputedStyle(document.body).color})"""


def test_a_browser_shows_it_without_scrolling_sideways(tmp_path: Path):
    """At the width of a phone and of a screen, by day and by night, with long words in every place."""
    long = "とても長い言葉" * 40 + "x" * 300
    changed = report(
        model=long,
        samples=[Sample(long, long, long, long)],
        environment=[(Reason("デバイス", "device"), long)],
        commands=[(Reason("もう一度", "again"), "aift train " + "a" * 300)],
    )
    file = tmp_path / "report.html"
    file.write_text(render_report(changed).replace("<details", "<details open"), encoding="utf-8")
    with browser() as shown:
        colours = {}
        for width in (400, 1200):
            for dark in (False, True):
                seen = shown.measure(file, width, WIDE, dark=dark)
                assert seen["window"] == width
                assert seen["page"] <= width, seen
                assert seen["out"] == []
                colours[dark] = (seen["back"], seen["text"])
        assert colours[True][0] != colours[False][0]
        assert colours[True][1] != colours[False][1]
        assert all(address.startswith(("file:", "about:")) for address in shown.requests())
        assert shown.complaints() == []
