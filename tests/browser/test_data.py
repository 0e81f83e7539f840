"""データ and モデル in a browser: what was read, findings, pages, tokens, hostile uploads, models that fit."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import random
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ai_finetuning.apps.web.uploads import MOST, RECORD
from tests.browser.conftest import Web
from tests.browser.test_gate import ask
from tests.support.patience import until

ROWS = 10_000
MARKUP = '<img src=x onerror="document.title=1">'
DROP = """([name, text]) => {
  const data = new DataTransfer();
  data.items.add(new File([Uint8Array.from(atob(text), (one) => one.charCodeAt(0))], name));
  const place = document.getElementById("drop");
  for (const kind of ["dragenter", "dragover", "drop"])
    place.dispatchEvent(new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true }));
}"""


def table(rows: list[list[str]], head: tuple[str, ...] = ("お問い合わせ", "ご回答", "店舗")) -> bytes:
    out = io.StringIO()
    csv.writer(out).writerows([head, *rows])
    return out.getvalue().encode("cp932")


def faq(count: int) -> list[list[str]]:
    """Rows of different words, so that none is near another one."""
    rng = random.Random(7)
    word = lambda: "".join(rng.choices("かきくけこさしすせそたちつてとなにぬねのはひふへほまみむめもらりるれろ", k=5))  # noqa: E731
    return [
        [f"{word()}の{word()}はどこですか。", f"{word()}の{word()}は{word()}にあります。", "本店"] for _ in range(count)
    ]


def drop(page: Any, name: str, content: bytes) -> None:
    """Drops a file where it says so."""
    page.locator("#drop").wait_for()
    page.locator("#drop-hint").filter(has_text="MB").wait_for()
    page.evaluate(DROP, [name, base64.b64encode(content).decode()])


def uploaded(page: Any) -> str:
    page.wait_for_url(re.compile(r"file=u-[0-9a-f]{12}$"), timeout=120_000)
    page.locator("#view").wait_for(timeout=120_000)
    return str(page.url).rpartition("=")[2]


def kept(web: Web) -> list[str]:
    folder = web.folder / "aift-data"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_a_table_in_cp932_with_ten_thousand_rows(web: Web, page: Any):
    """Behaviours 4, 6 and 10: from the drop to the last page."""
    from playwright.sync_api import expect

    rows = faq(ROWS)
    rows[1][1] = ""
    rows[3] = list(rows[2])
    rows[4][1] = f"{MARKUP}担当の携帯は 080-5512-3478 です。"
    web.open(page, "/data")
    drop(page, f"{MARKUP}.csv", table(rows))
    uploaded(page)
    expect(page.locator("h1")).to_have_text(f"{MARKUP}.csv")
    expect(page.locator("#card")).to_contain_text("CP932")
    expect(page.locator("#card")).to_contain_text("10,000")
    expect(page.get_by_label("質問の列")).to_have_value("お問い合わせ")
    expect(page.get_by_label("回答の列")).to_have_value("ご回答")
    lines = page.locator("#rows tbody tr")
    expect(lines).to_have_count(100)
    expect(lines.nth(4)).to_contain_text(MARKUP)
    assert page.locator("main img").count() == 0
    page.get_by_role("button", name="最後").click()
    expect(page.locator(".where")).to_have_text("9,901–10,000 行 / 10,000 行")
    expect(lines.last).to_contain_text(rows[-1][0])

    for name, count in {"空欄": 1, "重複": 1, "個人情報らしき": 1}.items():
        page.locator(".filter", has_text=name).click()
        expect(lines).to_have_count(count)
    expect(page.locator(".hit")).to_have_text("080-5512-3478")
    page.locator(".filter", has_text="すべての行").click()
    expect(lines).to_have_count(100)


def test_the_tokens_of_a_row_are_the_trainers_and_change_with_the_columns(web: Web, page: Any):
    """Behaviours 11 and 12: coloured tokens of a row, and what an exchange of the columns makes of them."""
    from playwright.sync_api import expect

    rows = faq(5)
    rows[1][1] = ""
    web.open(page, "/data")
    drop(page, "faq.csv", table(rows))
    id = uploaded(page)
    lines = page.locator("#rows tbody tr")
    lines.nth(2).locator("button").click()
    expect(page.locator(".token-row .tok.live").first).to_be_visible(timeout=120_000)
    assert page.locator(".token-row .tok.live").count() == live_labels(rows[2][0], rows[2][1])
    assert "ありま" in "".join(page.locator(".token-row .tok.live").all_inner_texts())
    command = page.locator("#command").inner_text()
    assert command.startswith("aift data show /")
    assert command.endswith("--row 2")  # a row that is not used stands before
    page.get_by_role("button", name="入れ替え").click()
    expect(page.get_by_label("質問の列")).to_have_value("ご回答", timeout=120_000)
    expect(lines.nth(2)).to_contain_text(rows[2][0])
    expect(page.locator("#tokens-title")).to_contain_text("4 行目", timeout=120_000)
    assert page.locator(".token-row .tok.live").count() == live_labels(rows[2][1], rows[2][0])
    assert "どこですか" in "".join(page.locator(".token-row .tok.live").all_inner_texts())
    record = json.loads((web.folder / "aift-data" / id / RECORD).read_text("utf-8"))
    assert record["columns"] == {"instruction": "ご回答", "output": "お問い合わせ"}


def live_labels(question: str, answer: str) -> int:
    """Label tokens of the trainer's own Example."""
    from ai_finetuning.config.data import DataConfig
    from ai_finetuning.data.prepare import load_examples
    from ai_finetuning.models.tokenizers import load_tokenizer

    rows = [{"instruction": question, "output": answer}]
    [example], *_ = load_examples(rows, load_tokenizer("embedded:kotoha-tiny"), DataConfig(cache=False))
    return int((example.labels != -100).sum())


def test_the_sheet_the_repair_and_the_division(web: Web, page: Any, tmp_path: Path):
    """Behaviour 5, and what the buttons make: through the doctor's repair and the command that divides."""
    import openpyxl
    from playwright.sync_api import expect

    book = openpyxl.Workbook()
    book.active.title = "表紙"
    book.active["A1"] = "社外秘"
    sheet = book.create_sheet("よくある質問")
    other = book.create_sheet("控え")
    for row in (["質問", "回答"], *[row[:2] for row in faq(40)], ["空です。", ""]):
        sheet.append(row)
    for row in (["質問", "回答"], ["首都はどこですか。", "東京です。"]):
        other.append(row)
    book.save(tmp_path / "faq.xlsx")
    web.open(page, "/data")
    drop(page, "問い合わせ.xlsx", (tmp_path / "faq.xlsx").read_bytes())
    first = uploaded(page)
    expect(page.get_by_label("シート")).to_have_value("よくある質問")
    expect(page.locator("#sheet option:checked")).to_have_text("よくある質問（41 行）")
    page.get_by_label("シート").select_option("控え")
    expect(page.locator("#rows")).to_contain_text("東京です。", timeout=120_000)
    page.get_by_label("シート").select_option("よくある質問")
    expect(page.locator("#rows tbody tr")).to_have_count(41, timeout=120_000)

    page.get_by_role("button", name="問題の行を除く").click()
    page.get_by_role("button", name="作る").click()
    page.wait_for_url(lambda url: first not in url, timeout=120_000)
    expect(page.locator("#notice")).to_contain_text("除いた行 1。残りは 40 行", timeout=120_000)
    expect(page.locator("#rows tbody tr")).to_have_count(40)
    page.get_by_label("評価用に 10 %").check()
    expect(page.locator("#findings")).to_contain_text("学習 36 行・評価 4 行", timeout=120_000)
    page.get_by_role("link", name="このデータで学習").click()
    expect(page.locator("#data")).to_contain_text("36 行 · 評価 4 行")
    expect(page.get_by_label("評価に使う割合")).to_have_attribute("placeholder", "データの画面で分けた 4 行")
    page.go_back()
    expect(page.locator("#rows tbody tr")).to_have_count(40)
    page.reload()
    expect(page.get_by_label("評価用に 10 %")).to_be_checked()
    expect(page.get_by_role("link", name="このデータで学習")).to_have_attribute("href", re.compile("/train\\?data=u-"))

    page.get_by_role("button", name="完全に削除").click()
    page.get_by_label("名前").fill("違う名前")
    page.locator("dialog").get_by_role("button", name="完全に削除").click()
    expect(page.locator("#notice")).to_contain_text("名前が違います")
    page.get_by_role("button", name="ごみ箱へ").click()
    page.locator("dialog").get_by_role("button", name="ごみ箱へ").click()
    expect(page.locator("#uploads tbody tr")).to_have_count(1)
    assert kept(web) == [".trash", first]


def test_what_no_repair_changes_makes_no_data(web: Web, page: Any):
    """Findings that a person must look at, in a row that has one of them twice."""
    from playwright.sync_api import expect

    rows = [["担当者を教えてください。", "田中（080-5512-3478、tanaka@example.co.jp）です。", "本店"], *faq(4)]
    web.open(page, "/data")
    drop(page, "faq.csv", table(rows))
    id = uploaded(page)
    expect(page.locator(".filter", has_text="個人情報らしきもの")).to_contain_text("1")
    expect(page.locator("#rows tbody tr").first.locator(".found li")).to_have_text(["個人情報らしきもの"])
    page.get_by_role("button", name="問題の行を除く").click()
    page.get_by_label("個人情報と秘密を伏せ字にする").uncheck()
    page.get_by_role("button", name="作る").click()
    expect(page.locator("#notice")).to_contain_text("新しいデータは作りませんでした", timeout=120_000)
    assert kept(web) == [id]


def test_columns_without_a_meaning_are_chosen_before_anything_else(web: Web, page: Any):
    """A table without headings says how it is mended; one column is not enough, and neither is trained on."""
    from playwright.sync_api import expect

    web.open(page, "/data")
    drop(page, "お知らせ.csv", "お知らせ\n本日は休業です。\n".encode("cp932"))
    uploaded(page)
    expect(page.locator("#card .notice")).to_contain_text("列が 1 つしかありません")
    expect(page.get_by_role("link", name="このデータで学習")).to_have_count(0)
    web.open(page, "/data")
    drop(page, "表.csv", "colA,colB\n定休日は？,水曜日です。\n".encode("cp932"))
    uploaded(page)
    expect(page.locator("#card .notice")).to_contain_text("1 行目を見出しとして読みました")
    expect(page.get_by_role("link", name="このデータで学習")).to_have_count(0)
    page.get_by_label("質問の列").select_option("colA")
    page.get_by_label("回答の列").select_option("colB")
    expect(page.get_by_role("link", name="このデータで学習")).to_be_visible(timeout=120_000)
    expect(page.locator("#card .notice")).to_have_count(0)


def test_pairs_stand_in_two_columns(web: Web, page: Any):
    from playwright.sync_api import expect

    rows = [
        {"prompt": "首都はどこですか。", "chosen": "東京です。", "rejected": "知りません。"},
        {"prompt": "県の数は？", "chosen": "47 です。", "rejected": "さあ。"},
    ]
    marks = [
        {"prompt": row["prompt"], "completion": row["chosen"], "label": index == 0} for index, row in enumerate(rows)
    ]
    web.open(page, "/data")
    drop(page, "pairs.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    uploaded(page)
    expect(page.locator("#rows thead th")).to_have_text(["行", "質問", "良い回答", "悪い回答", "見つかったこと"])
    expect(page.locator("#rows tbody tr").first.locator("td")).to_contain_text(
        ["1", "首都は", "東京です。", "知りません。", ""]
    )
    page.get_by_role("link", name="ほかのデータ").click()
    drop(page, "marks.jsonl", "".join(json.dumps(row) + "\n" for row in marks).encode())
    uploaded(page)
    expect(page.locator("#rows .badge.good")).to_have_text("良い")
    expect(page.locator("#rows .badge.bad")).to_have_text("悪い")


def zip_bomb() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("xl/worksheets/sheet1.xml", b"0" * (64 << 20))
    return out.getvalue()


def test_hostile_files_are_refused_in_words_and_the_page_goes_on(web: Web, page: Any):
    """Behaviours 7 and 8: names, kinds, sizes, bombs."""
    from playwright.sync_api import expect

    web.open(page, "/data")
    drop(page, "calc.exe", b"MZ")
    expect(page.locator("#notice")).to_contain_text("読めない種類です")
    drop(page, "bomb.xlsx", zip_bomb())
    expect(page.locator("#notice")).to_contain_text("bomb.xlsx は展開すると 64 MiB", timeout=120_000)
    drop(page, "picture.csv", bytes(range(128, 256)) * 40)
    expect(page.locator("#notice")).to_contain_text("picture.csv", timeout=120_000)
    assert kept(web) == []
    token = {"x_aift_token": web.token}
    large = {"content_type": "application/octet-stream", "x_aift_name": "a.csv", **token}
    status, said = announced(web, MOST + 1, large)
    assert status == 400
    assert "200 MB" in said["error"]["ja"]
    assert ask(web, "GET", "/api/data/..%2F..%2Fetc", **token)[0] in (400, 404)
    assert ask(web, "GET", "/api/data/u-000000000000", **token)[0] == 404

    drop(page, "../../x.csv", table(faq(2)))
    id = uploaded(page)
    expect(page.locator("#rows tbody tr")).to_have_count(2)
    assert kept(web) == [id]
    assert sorted(path.name for path in web.folder.rglob("*.csv")) == ["data.csv"]
    assert "Traceback" not in web.said()


def announced(web: Web, length: int, headers: dict[str, str]) -> tuple[int, Any]:
    """What is answered to the head of an upload of so many bytes, before any of them is sent."""
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", web.port, timeout=120)
    connection.putrequest("POST", "/api/data/upload", skip_host=True)
    for name, value in {"host": f"127.0.0.1:{web.port}", "content-length": str(length), **headers}.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders()
    response = connection.getresponse()
    found = response.status, json.loads(response.read())
    connection.close()
    return found


def test_what_is_stopped_half_way_leaves_no_file(web: Web, page: Any):
    """Behaviour 9: the button, and a connection that breaks."""
    import socket

    from playwright.sync_api import expect

    head = f"POST /api/data/upload HTTP/1.1\r\nhost: 127.0.0.1:{web.port}\r\nx-aift-token: {web.token}\r\nx-aift-name: a.csv\r\ncontent-length: 9000000\r\n\r\n"
    with socket.create_connection(("127.0.0.1", web.port)) as line:
        line.sendall(head.encode() + b"x" * 3_000_000)
        wait_for(lambda: any(name.startswith(".part-") for name in kept(web)))
    wait_for(lambda: kept(web) == [])

    web.open(page, "/data")
    session = page.context.new_cdp_session(page)
    session.send("Network.enable")
    slow = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 300_000}
    session.send("Network.emulateNetworkConditions", slow)
    page.locator("#drop-hint").filter(has_text="MB").wait_for()
    page.set_input_files("#file", {"name": "b.csv", "mimeType": "text/csv", "buffer": b"a,b\n" * 500_000})
    expect(page.locator("#work")).to_contain_text("b.csv を受け取っています")
    page.get_by_role("button", name="中止").click()
    expect(page.locator("#notice")).to_contain_text("中止しました")
    wait_for(lambda: kept(web) == [])
    expect(page.locator("#drop")).to_be_visible()


def wait_for(holds: Callable[[], bool]) -> None:
    until(holds, 20, "what is kept")


def test_a_model_card_says_what_fits_by_method(web: Web, page: Any):
    """Behaviour 13: colour, shape and words change with the way of training."""
    from playwright.sync_api import expect

    web.open(page, "/models")
    cards = page.locator(".model-card")
    expect(cards.first).to_contain_text("embedded:kotoha-tiny", timeout=120_000)
    expect(cards.first).to_contain_text("この PC にあります")
    expect(cards.first).to_contain_text("商用可")
    found = page.evaluate(
        """async () => (await fetch("/api/models", { headers: { "x-aift-token": localStorage.getItem("aift-token") } })).json()"""
    )
    room = found["room"]["gib"]
    fits = lambda gib: "good" if gib <= 0.8 * room else "warn" if gib <= room else "bad"  # noqa: E731
    differs = lambda need: fits(need["lora"]) != fits(need["full"])  # noqa: E731
    states = {"good": "余裕あり", "warn": "ぎりぎり", "bad": "足りない"}
    # What is free changes meanwhile: a model that is far from where one state becomes another.
    model = max(
        (one for one in found["models"] if one["need_gib"] and differs(one["need_gib"])),
        key=lambda one: min(
            abs(math.log(max(one["need_gib"][use], 1e-3) / edge))
            for use in ("lora", "full", "qlora")
            for edge in (0.8 * room, room)
        ),
    )
    page.get_by_label("名前で探す").fill(model["id"])
    card = page.locator(f".model-card[data-model='{model['key']}']")
    for use, name in (("lora", "LoRA"), ("full", "フル"), ("qlora", "QLoRA")):
        page.get_by_role("button", name=name, exact=True).click()
        how = fits(model["need_gib"][use])
        expect(card).to_have_class(re.compile(f"fit-{how}"), timeout=120_000)
        expect(card.locator("li.now")).to_contain_text(states[how])
        expect(page.locator("#command")).to_have_text(f"aift models {model['id'].lower()} --method {use}")
    card.get_by_role("button", name="持ち込み手順").click()
    expect(page.locator("dialog")).to_contain_text(f"aift bundle {model['id']} --out")
