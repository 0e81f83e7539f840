"""実行中: a run as its files tell it, in any number of tabs, whoever started it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ai_finetuning.apps.web.screens.runs import MOST_POINTS, thinned
from ai_finetuning.runs.phase import change_run
from ai_finetuning.runs.process import identity
from tests.browser.conftest import Web
from tests.support.fake_run import begin, rows_to
from tests.support.patience import patience

Started = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def train(web: Web) -> Iterator[Started]:
    """A function: a training at a pace, in `outputs/NAME`, as a process of its own."""
    started: list[subprocess.Popen[bytes]] = []

    def start(name: str, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.support.fake_run", str(web.folder / "outputs" / name), *arguments]
        started.append(subprocess.Popen(command, env=web.environment, cwd=web.folder))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def finished(folder: Path, steps: int) -> None:
    """A run that has ended, with so many steps."""
    begin(folder, steps)
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows_to(steps, steps)))
    change_run(folder, status="completed", result={"steps": steps, "verdict": {"kind": "better"}})


def numbers(page: Any) -> list[list[str]]:
    """The table behind the curve, once it is open."""
    rows = page.locator("#curve .numbers tbody tr").all_text_contents()
    return [re.split(r"(?<=\d)\s+|\t", row) for row in rows]


def open_numbers(page: Any) -> None:
    page.locator("#curve .numbers summary").click()


def test_a_curve_grows_in_two_tabs_alike_and_a_tab_that_was_closed_has_no_gap(
    web: Web, new_context: Any, train: Started
):
    """The tab is closed for the rows of 35 seconds, which the trainer writes faster than that: what it finds when it is
    opened again are more rows than it has asked for, by their steps and times, and not the time that has passed.
    """
    from playwright.sync_api import expect

    steps = 60
    trainer = train("faq", "--steps", f"{steps}", "--pace", "0.02", "--hold", "25", "--step-seconds", "1")
    context = new_context()
    pages = [context.new_page() for _ in range(2)]
    for page in pages:
        web.open(page, "/runs/faq")
        expect(page.locator("#state")).to_have_text("学習中")
        expect(page.locator("#phase")).to_contain_text(re.compile(r"学習中 \d+ %"))
        expect(page.locator("#left")).to_contain_text("残り 約")
        open_numbers(page)
    expect(pages[0].locator("#curve canvas")).to_be_visible()
    pages[0].close()
    (web.folder / "outputs" / "faq" / "go").touch()
    assert trainer.wait(patience(60)) == 0
    again = context.new_page()
    web.open(again, "/runs/faq")
    open_numbers(again)
    for page in (pages[1], again):
        expect(page.locator("#state")).to_have_text("完了")
        expect(page.locator("#curve .numbers tbody tr")).to_have_count(steps)
        expect(page.locator("#best")).to_contain_text(f"最良 ステップ {steps}")
        expect(page.get_by_role("link", name="結果を見る")).to_be_visible()
    assert numbers(pages[1]) == numbers(again)
    # A question and its answer are texts, whatever stands in them.
    expect(again.locator("#samples tbody th").first).to_have_text("<img src=x onerror=alert(1)>")
    assert again.locator("#samples img").count() == 0
    again.locator("#samples-at").select_option("10")
    expect(again.locator("#samples tbody td").last).to_have_text("<img src=x onerror=alert(1)> 10")


def test_eight_tabs_of_one_run_follow_it(web: Web, new_context: Any, train: Started):
    from playwright.sync_api import expect

    train("faq", "--steps", "4000", "--pace", "0.05")
    context = new_context()
    pages = [context.new_page() for _ in range(8)]
    for page in pages:
        web.open(page, "/runs/faq")
    for page in pages:
        page.bring_to_front()
        expect(page.locator("#left")).to_contain_text(re.compile(r"ステップ [\d,]+ / 4,000"))


def test_stop_saves_and_resume_is_offered(web: Web, page: Any, train: Started):
    from playwright.sync_api import expect

    train("faq", "--steps", "2000", "--pace", "0.05")
    web.open(page, "/runs/faq")
    expect(page.locator("#phase")).to_contain_text("学習中")
    page.get_by_role("button", name="ここまでで止めて保存").click()
    expect(page.locator("#state")).to_have_text("中断")
    expect(page.locator("#notice")).to_be_empty()  # it no longer says that it will stop
    expect(page.get_by_role("button", name="続きから")).to_be_visible()
    expect(page.locator("#command")).to_have_text("aift runs stop faq")


def test_sample_questions_are_awaited_while_it_works_and_missed_when_it_has_ended(web: Web, page: Any):
    from playwright.sync_api import expect

    folder = web.folder / "outputs" / "faq"
    folder.mkdir(parents=True)
    change_run(folder, status="running", **identity())
    web.open(page, "/runs/faq")
    expect(page.locator("#samples")).to_have_text(re.compile("評価のたびに"))
    expect(page.locator("#no-points")).to_have_text("最初のステップを待っています。")
    change_run(folder, status="completed")
    expect(page.locator("#no-points")).to_have_text("1 ステップも記録されていません。")
    expect(page.locator("#samples")).to_have_text(re.compile("^お試しの質問はありません"))


@pytest.mark.parametrize(
    ("how", "reason"), [("--crash", "メモリーが足りません"), ("--kill", "プロセスがなくなっています（強制終了")]
)
def test_a_trainer_that_dies_is_told_with_its_reason(web: Web, page: Any, train: Started, how: str, reason: str):
    """Out of memory as the trainer tells it, and a process that is killed without a word; it can go on from there."""
    from playwright.sync_api import expect

    web.open(page, "/runs/faq")
    train("faq", "--steps", "500", "--pace", "0.05", how, "20")
    expect(page.locator("#state")).to_have_text("失敗")
    expect(page.locator("#told")).to_contain_text(reason)
    expect(page.locator("#told")).not_to_contain_text("OutOfMemoryError")  # its text says it
    expect(page.get_by_role("button", name="続きから")).to_be_visible()
    web.open(page, "/")
    expect(page.locator("#last-list")).to_contain_text("失敗")
    expect(page.get_by_role("button", name="続きから")).to_be_visible()
    web.open(page, "/compare")
    expect(page.locator("#runs")).to_contain_text("失敗")


def test_what_a_run_says_is_text_without_colours_and_secrets(web: Web, page: Any):
    from playwright.sync_api import expect

    folder = web.folder / "outputs" / "faq"
    finished(folder, 5)
    change_run(folder, child={"reason": "DataError: <b>rows</b>"})  # a training that was to go on from here
    said = (
        "\x1b[31m赤\x1b[0m <img src=x onerror=alert(1)>\n10%\r50%\r100%\nhttps://me:geheim@example.com hf_" + "a" * 30
    )
    (folder / "console.log").write_text(f"{said}\n", encoding="utf-8")
    web.open(page, "/runs/faq")
    page.locator("#log summary").click()
    expect(page.locator("#log-text")).to_contain_text(
        "赤 <img src=x onerror=alert(1)>\n100%\nhttps://***@example.com ***"
    )
    assert page.locator("#log img").count() == 0
    expect(page.locator("#state")).to_have_text("完了")
    expect(page.locator("#told .bad")).to_have_text("続きからの学習は始まる前に失敗しました: <b>rows</b>")


def test_home_shows_what_is_going_on_and_what_has_been(web: Web, page: Any, train: Started):
    from playwright.sync_api import expect

    web.open(page, "/")
    expect(page.get_by_role("heading", name="はじめての学習")).to_be_visible()
    expect(page.locator("#pc")).to_contain_text("空き")
    for number in range(6):
        finished(web.folder / "outputs" / f"old-{number}", 5)
    train("faq", "--steps", "2000", "--pace", "0.1")
    expect(page.locator("#at-work-list a")).to_have_text("faq")
    expect(page.locator("#at-work-list")).to_contain_text(re.compile(r"ステップ [\d,]+ / 2,000.*残り 約"))
    expect(page.locator("#last-list tbody tr")).to_have_count(5)
    expect(page.locator("#last-list tbody tr").first).to_contain_text("改善")
    expect(page.locator("#machine")).to_contain_text("実行中 1")
    page.locator("#at-work-list a").click()
    expect(page.locator("h1")).to_have_text("faq")


def test_a_run_that_waits_names_what_it_waits_for(web: Web, page: Any, monkeypatch: pytest.MonkeyPatch):
    """By the queue of the devices, in which an API and two runs of this process stand."""
    from playwright.sync_api import expect

    from ai_finetuning.runs.devices import Place
    from ai_finetuning.runs.phase import phase

    monkeypatch.setenv("AIFT_STATE", web.environment["AIFT_STATE"])
    folders = [web.folder / "outputs" / name for name in ("first", "second")]
    for folder in folders:
        begin(folder, 10)
    change_run(folders[1], child={**_identity(), "phase": phase("waiting")})
    api = web.folder / "aift-data" / ".jobs" / "serve-20260101-000000-abcdef"
    places = [Place(("cpu",), folder) for folder in (api, *folders)]
    places[0].take()
    places[1].take()
    places[2]._lock.acquire()
    places[2]._write(waits=True)
    try:
        web.open(page, "/runs/second")
        expect(page.locator("#state")).to_have_text("順番待ち")
        expect(page.locator("#told a")).to_have_text(["API（書き出しの画面で止められます）", "first"])
        expect(page.get_by_role("button", name="やめる")).to_be_visible()
    finally:
        for place in places:
            place.leave()


def _identity() -> dict[str, Any]:
    from ai_finetuning.runs.process import identity

    return identity()


def test_a_browser_that_refuses_to_copy_is_no_error(web: Web, page: Any):
    """As it does of a page that comes unencrypted from another PC: there it has no clipboard at all."""
    from playwright.sync_api import expect

    page.add_init_script("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    web.open(page, "/")
    page.get_by_role("button", name="コピー").click()
    expect(page.locator("#notice")).to_contain_text("コピーを許可していません")


def test_english_and_back(web: Web, page: Any):
    from playwright.sync_api import expect

    finished(web.folder / "outputs" / "faq", 5)
    web.open(page, "/runs/faq")
    page.locator("#language").click()
    expect(page.locator("#state")).to_have_text("Done")
    expect(page.get_by_role("link", name="See the result")).to_be_visible()
    page.locator("#language").click()
    expect(page.locator("#state")).to_have_text("完了")


def test_many_points_keep_their_peaks(web: Web, page: Any):
    """Ten thousand steps arrive as parts with their lowest and highest points, soon."""
    from playwright.sync_api import expect

    points = [(step, float(step % 7)) for step in range(1, 10_001)]
    points[5_000] = (5_001, 99.0)
    few = thinned(points)
    assert len(few) <= MOST_POINTS
    assert (5_001, 99.0) in few
    assert few == sorted(few)
    assert thinned(points[:2000]) == points[:2000]
    finished(web.folder / "outputs" / "faq", 10_000)
    web.open(page, "/runs/faq")
    expect(page.locator("#left")).to_contain_text("ステップ 10,000 / 10,000")
    expect(page.locator("#curve canvas")).to_be_visible()
