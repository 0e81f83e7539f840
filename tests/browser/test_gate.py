"""The gate: without the token there is nothing but empty pages; every screen opens, and obeys the policy."""

from __future__ import annotations

from typing import Any

import pytest
from tests.browser.conftest import Web

# Every screen, with a run that need not be there.
PATHS = (
    *("/", "/data", "/models", "/train", "/chat", "/answers", "/compare", "/export"),
    *("/runs/none", "/runs/none/result"),
)


def test_every_screen_opens(web: Web, page: Any):
    from playwright.sync_api import expect

    for path in PATHS:
        web.open(page, path)
        expect(page.locator("h1")).not_to_be_empty()
        expect(page.locator("#machine")).to_contain_text("空き")
        expect(page.locator("#command")).to_contain_text("aift")


@pytest.mark.parametrize("locale", ["ja-JP", "en-US"])
def test_without_the_token_a_page_has_labels_only(web: Web, new_context: Any, locale: str):
    from playwright.sync_api import expect

    page = new_context(locale=locale).new_page()
    loads: list[str] = []
    page.on("framenavigated", lambda frame: loads.append(frame.url))
    page.goto(web.url)
    told = {"ja-JP": "このページを開く許可がありません", "en-US": "This page may not be opened"}[locale]
    expect(page.locator("#notice")).to_contain_text(told)
    page.wait_for_timeout(1000)
    assert len(loads) == 1  # no page that loads itself again and again
