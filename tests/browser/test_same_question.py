"""比較, 同じ質問をする in the browser: two runs over the embedded model answer in columns; stopping, a reload, axe."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.browser.conftest import Web
from tests.browser.talking import SYSTEM, make_run
from tests.browser.test_access import findings

MARKUP = "<img src=x onerror=\"document.title='x'\"> 長い話をしてください。"


def test_two_runs_answer_one_question_in_columns(start_web: Callable[..., Web], page: Any, tmp_path: Path) -> None:
    from playwright.sync_api import expect

    make_run(tmp_path / "outputs" / "first")
    make_run(tmp_path / "outputs" / "second", seed=2, system="短く答えます。")
    web = start_web()
    web.open(page, "/compare?ids=first,second")
    expect(page.locator("#ask-hint")).to_contain_text("1 組の重みを共有して")
    page.locator("#ask-more summary").click()
    expect(page.get_by_label("first のシステム指示")).to_have_value(SYSTEM)
    expect(page.get_by_label("second のシステム指示")).to_have_value("短く答えます。")
    expect(page.locator("#greedy")).to_be_checked()
    page.locator("#max_new_tokens").fill("16")
    page.locator("#ask-text").fill("日本の首都はどこですか。")
    page.locator("#ask-text").press("Enter")  # a new line
    expect(page.locator(".ask-turn")).to_have_count(0)
    page.locator("#ask-text").press("Control+Enter")
    expect(page.locator("#ask-state")).to_have_text("回答が終わりました。", timeout=120_000)
    columns = page.locator(".ask-turn").first.get_by_role("article")
    expect(columns.locator(".talk-name")).to_have_text(["first", "second"])
    expect(columns.locator(".talk-end")).to_have_text(["最大トークン数で終わりました"] * 2)
    texts = columns.locator(".talk-answer").all_text_contents()
    assert all(texts)
    assert texts[0] != texts[1]
    command = page.locator("#command").text_content()
    name = re.escape(str(tmp_path / "outputs" / "first"))
    assert re.match(rf"aift generate {name} '?日本の首都はどこですか。'? --max-new-tokens 16 --greedy && aift", command)

    # 停止 keeps what is there, in every column; a reload finds it again.
    page.locator("#max_new_tokens").fill("900")
    page.locator("#ask-text").fill(MARKUP)
    page.locator("#ask-send").click()
    newest = page.locator(".ask-turn").first
    for place in range(2):
        expect(newest.locator(".talk-answer").nth(place)).not_to_be_empty(timeout=120_000)
    page.locator("#ask-stop").click()
    expect(newest.locator(".talk-end")).to_have_text(["停止"] * 2)
    stopped = newest.locator(".talk-answer").all_text_contents()
    assert page.locator("#asked img").count() == 0
    page.reload()
    expect(page.locator(".ask-turn")).to_have_count(2)
    assert page.locator(".ask-turn").first.locator(".talk-answer").all_text_contents() == stopped
    assert page.locator(".ask-turn").nth(1).locator(".talk-answer").all_text_contents() == texts
    expect(page.locator(".ask-turn").first.locator(".talk-end")).to_have_text(["停止"] * 2)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert findings(page) == []
