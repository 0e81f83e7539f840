"""`aift web --demo`: a newcomer comes from a table to a verdict in five clicks, with what ships."""

from __future__ import annotations

import re
from typing import Any

import pytest


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_five_clicks_lead_from_the_table_to_the_verdict(start_web: Any, new_context: Any, kotoha: str):
    from playwright.sync_api import expect

    web = start_web("--demo")
    page = new_context().new_page()
    web.open(page, "/")
    guide = page.locator(".guide")
    expect(guide).to_contain_text("デモ 1 / 5")
    page.locator("#demo").click()
    expect(guide).to_contain_text("デモ 2 / 5")
    expect(page.locator("#rows tbody tr").first).to_be_visible()
    page.get_by_role("link", name="このデータで学習").click()
    expect(guide).to_contain_text("デモ 3 / 5")
    page.get_by_role("button", name=re.compile("^速い")).click()
    expect(page.locator("#start")).to_be_enabled()
    page.locator("#start").click()
    page.wait_for_url(re.compile(r"/runs/[a-z0-9-]+$"))
    expect(guide).to_contain_text("デモ 4 / 5")
    page.get_by_role("link", name="結果を見る").click(timeout=3_000_000)
    expect(guide).to_contain_text("デモ 5 / 5")
    expect(page.locator("#verdict")).to_contain_text(re.compile("判定: (採用|保留|不採用)"), timeout=600_000)
    expect(page.locator("#verdict")).to_contain_text(re.compile("改善しました|変わりません|悪化しました"))
