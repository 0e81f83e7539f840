"""一括回答 and 書き出し in the browser, with the embedded model: a reload, a server that is killed, what is saved."""

from __future__ import annotations

import csv
import io
import json
import re
import signal
from pathlib import Path
from typing import Any

from tests.browser.conftest import Web
from tests.support.systems import needs_sigkill

ROWS = [
    ["番号", "お問い合わせ", "正解", "備考"],
    *([str(number), f"{number}の次の数は何ですか。", str(number + 1), "=1+1"] for number in range(1, 25)),
    ["25", "", "", "-5"],
    ["26", "<img src=x onerror=\"document.title='x'\">", "ない", "＠株式会社"],
]


def _upload(web: Web, page: Any) -> str:
    """Puts a CP932 file among the uploads, as the screen データ does; returns its id."""
    stream = io.StringIO(newline="")
    csv.writer(stream, lineterminator="\r\n").writerows(ROWS)
    answer = page.request.post(
        f"{web.url}/api/data/upload",
        data=stream.getvalue().encode("cp932"),
        headers={"x-aift-token": web.token, "x-aift-name": "faq.csv"},
    )
    return str(answer.json()["id"])


def _read(path: Path) -> list[list[str]]:
    with path.open(encoding="cp932", newline="") as file:
        return list(csv.reader(file))


@needs_sigkill
def test_answers_go_on_through_a_reload_and_a_killed_server(web: Web, page: Any, tmp_path: Path) -> None:
    from playwright.sync_api import expect

    file = _upload(web, page)
    web.open(page, f"/answers?file={file}&model=embedded-kotoha-tiny")
    expect(page.locator("#column_hint")).to_contain_text("正解")
    expect(page.locator("#column")).to_have_value("お問い合わせ")
    page.locator("#more summary").click()
    page.locator("#max_new_tokens").fill("120")
    expect(page.locator("#command")).to_contain_text("aift answer embedded:kotoha-tiny faq.csv --out answers.csv")
    page.locator("#start").dblclick()
    expect(page.locator(".batch-count")).to_contain_text("/25 件")
    page.reload()
    expect(page.locator("#job h2")).to_have_text("faq.csv ・ kotoha-tiny")
    expect(page.locator(".batch-count")).to_have_text(_some_of(25), timeout=120_000)
    # The head of every screen counts it, with a link to where it is shown.
    other = page.context.new_page()
    web.open(other, "/models")
    at_work = other.locator("#machine").get_by_role("link", name="一括回答 1")
    expect(at_work).to_have_attribute("href", "/answers")
    other.locator("#language").click()
    expect(other.locator("#machine")).to_contain_text("Batch answers 1")
    other.locator("#language").click()
    expect(at_work).to_be_visible()
    other.close()

    assert web.process is not None
    web.process.send_signal(signal.SIGKILL)
    web.process.wait()
    web.start()
    job = page.url.removeprefix(web.url)
    page.goto("about:blank")
    web.open(page, job)
    save = page.get_by_role("button", name="回答を付けて保存")
    expect(save).to_be_visible(timeout=120_000)
    expect(page.locator(".batch-count")).to_have_text("25/25 件")
    expect(page.locator(".batch-score")).to_contain_text("/ 25 件が一致")
    assert len(list((tmp_path / "aift-data" / ".jobs").iterdir())) == 1  # a double click is one job

    # The table, filtered; what looks like markup is text.
    expect(page.locator("#job tbody tr")).to_have_count(26)
    assert page.locator("#job tbody img").count() == 0
    page.locator("#show").select_option("without")
    expect(page.locator("#job tbody tr")).to_have_count(1)
    page.locator("#show").select_option("all")
    page.locator("#find").fill("<img")
    expect(page.locator("#job tbody tr")).to_have_count(1)

    # For a spreadsheet program nothing begins a formula; without that the other columns are as they were.
    with page.expect_download() as safe:
        save.click()
    assert safe.value.suggested_filename == "faq-回答.csv"
    safe.value.save_as(tmp_path / "safe.csv")
    page.locator("#spreadsheet").uncheck()
    with page.expect_download() as plain:
        save.click()
    plain.value.save_as(tmp_path / "plain.csv")
    rows, kept = _read(tmp_path / "safe.csv"), _read(tmp_path / "plain.csv")
    assert [row[:4] for row in kept] == ROWS
    assert [row[4] for row in rows] == [row[4] for row in kept]
    assert (kept[0][4], kept[25][4]) == ("回答", "")
    assert all(row[4] for row in kept[1:25])
    assert {row[3] for row in rows[1:25]} == {"'=1+1"}
    assert [row[3] for row in rows[25:]] == ["-5", "'＠株式会社"]


def test_what_a_stopped_batch_has_answered_is_saved(web: Web, page: Any, tmp_path: Path) -> None:
    from playwright.sync_api import expect

    file = _upload(web, page)
    web.open(page, f"/answers?file={file}&model=embedded-kotoha-tiny")
    page.locator("#more summary").click()
    page.locator("#max_new_tokens").fill("400")
    page.locator("#start").click()
    expect(page.locator(".batch-count")).to_have_text(_some_of(25), timeout=120_000)
    page.get_by_role("button", name="ここまでで止める").click()
    save = page.get_by_role("button", name="答えた分を保存")
    expect(save).to_be_visible(timeout=60_000)
    with page.expect_download() as partial:
        save.click()
    name = re.fullmatch(r"faq-回答-途中（25件中(\d+)件）\.csv", partial.value.suggested_filename)
    assert name is not None
    partial.value.save_as(tmp_path / "partial.csv")
    rows = _read(tmp_path / "partial.csv")
    assert len(rows) == len(ROWS)
    assert 0 < sum(bool(row[4]) for row in rows[1:]) <= int(name[1]) < 25  # an answer may be empty
    expect(page.get_by_role("button", name="続きから")).to_be_visible()


def _some_of(total: int) -> Any:
    """A count of some that are answered, and of all."""
    return re.compile(rf"^[1-9]\d*/{total} 件$")


def test_an_export_is_written_into_the_folder_of_models(web: Web, page: Any, tmp_path: Path) -> None:
    from playwright.sync_api import expect

    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    web.open(page, "/export?model=embedded-kotoha-tiny")
    expect(page.locator("#folder")).to_contain_text(str(tmp_path / "models"))
    expect(page.locator("[data-kind=merge] button")).to_be_disabled()
    expect(page.locator("[data-kind=merge]")).to_contain_text("統合は要りません")
    page.locator("[data-kind=bundle] button").click()
    made = page.get_by_role("article", name="持ち運び kotoha-tiny")
    expect(made).to_contain_text("完了", timeout=120_000)
    made.get_by_role("button", name="保存先をコピー").click()
    out = tmp_path / "models" / "kotoha-tiny-bundle"
    assert page.evaluate("navigator.clipboard.readText()") == str(out)
    assert json.loads((out / "bundle.json").read_text(encoding="utf-8"))["model"] == "embedded:kotoha-tiny"

    # Ids only: no path of a client's is read or written.
    for values in ({"kind": "merge", "run": "../x"}, {"kind": "bundle", "model": "/etc"}, {"kind": "rm", "model": "x"}):
        refused = page.request.post(f"{web.url}/api/export", data=values, headers={"x-aift-token": web.token})
        assert 400 <= refused.status < 500
