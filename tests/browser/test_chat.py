"""会話 in the browser, with the embedded model and an adapter on it: both columns, the input method, stopping, what is kept
as training data, and the model's process.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from ai_finetuning.config.data import DataConfig
from tests.browser.conftest import Web
from tests.browser.talking import SYSTEM, make_run
from tests.support.patience import until

QUESTION = "日本の首都はどこですか。"
# What looks like markup is text, as a question and in an answer.
LONG = "<img src=x onerror=\"document.title='x'\"> 長い話をしてください。"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, made once."""
    return make_run(tmp_path_factory.mktemp("made") / "faq")


def _talkers(web: Web) -> list[psutil.Process]:
    assert web.process is not None
    children = psutil.Process(web.process.pid).children()
    return [child for child in children if "ai_finetuning.apps.web.talker" in child.cmdline()]


def _ime_enter(page: Any) -> None:
    """Enter that ends a conversion, as an input method sends it."""
    session = page.context.new_cdp_session(page)
    session.send("Input.imeSetComposition", {"text": "にほん", "selectionStart": 3, "selectionEnd": 3})
    key = {"windowsVirtualKeyCode": 229, "key": "Enter", "code": "Enter"}
    session.send("Input.dispatchKeyEvent", {"type": "rawKeyDown", **key})
    session.send("Input.insertText", {"text": "日本"})


def _rows(web: Web, shown: str) -> tuple[Path, list[dict[str, Any]]]:
    """The upload that is called so: its file, and its rows."""
    for record in (web.folder / "aift-data").glob("u-*/upload.json"):
        if json.loads(record.read_text(encoding="utf-8"))["shown"] == shown:
            lines = (record.parent / "data.jsonl").read_text(encoding="utf-8").splitlines()
            return record.parent / "data.jsonl", [json.loads(line) for line in lines]
    raise AssertionError(shown)


def _learnt(file: Path, objective: str) -> int:
    """Rows that training reads of a file, through its own reader."""
    from ai_finetuning.data.prepare import load_examples
    from ai_finetuning.models.tokenizers import load_tokenizer

    config = DataConfig(train=str(file), max_length=512)
    examples, _, _ = load_examples(str(file), load_tokenizer("embedded:kotoha-tiny"), config, objective=objective)
    return len(examples)


def test_both_columns_answer_and_are_kept(start_web: Callable[..., Web], page: Any, run: Path, tmp_path: Path) -> None:
    from playwright.sync_api import expect

    (tmp_path / "outputs").mkdir()
    run_folder = tmp_path / "outputs" / "faq"
    shutil.copytree(run, run_folder)
    web = start_web()
    web.open(page, "/chat?run=faq")
    expect(page.locator("#system")).to_have_value(SYSTEM)
    expect(page.locator("#command")).to_have_text(f"aift chat {run_folder} --compare")
    page.locator("#settings summary").click()
    page.locator("#max_new_tokens").fill("16")
    page.locator("#enter").check()  # Enter sends; but not the one that ends a conversion
    page.locator("#question").focus()
    _ime_enter(page)
    expect(page.locator("#question")).to_have_value("日本")
    expect(page.locator(".talk-turn")).to_have_count(0)
    page.locator("#question").fill(QUESTION)
    page.locator("#question").press("Shift+Enter")
    expect(page.locator(".talk-turn")).to_have_count(0)
    page.locator("#question").fill(QUESTION)
    page.locator("#question").press("Enter")
    expect(page.locator(".talk-column.base .talk-answer")).not_to_be_empty(timeout=120_000)
    expect(page.locator("#state")).to_have_text("回答が終わりました。", timeout=120_000)
    tuned = page.locator(".talk-column.tuned .talk-answer").text_content()
    assert tuned != page.locator(".talk-column.base .talk-answer").text_content()
    expect(page.locator("#room")).to_contain_text("/ 1,024 トークン")

    # What is kept is what the answer was made of, whatever the field says by now.
    page.locator("#system").fill("別の指示です。")
    page.get_by_role("button", name="よい", exact=True).click()
    expect(page.get_by_role("button", name="よい", exact=True)).to_have_attribute("aria-pressed", "true")
    page.get_by_role("button", name="よくない").click()  # whoever changes their mind has said one thing
    expect(page.get_by_role("button", name="よくない")).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_role("link", name="会話の評価.jsonl")).to_be_visible()
    page.get_by_role("button", name="回答を直す").click()
    page.get_by_label("直した回答").fill("東京です。")
    page.get_by_role("dialog").get_by_role("button", name="保存").click()
    expect(page.get_by_role("link", name="会話で直した回答.jsonl")).to_be_visible()
    page.get_by_role("button", name="この回答を学習データに追加").click()
    expect(page.get_by_role("link", name="会話から追加した回答.jsonl")).to_be_visible()
    prompt = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}]
    rated, marks = _rows(web, "会話の評価.jsonl")
    assert marks == [{"prompt": prompt, "completion": [{"role": "assistant", "content": tuned}], "label": False}]
    pairs, compared = _rows(web, "会話で直した回答.jsonl")
    assert compared == [{"prompt": prompt, "chosen": "東京です。", "rejected": tuned}]
    kept, rows = _rows(web, "会話から追加した回答.jsonl")
    assert rows == [{"messages": [*prompt, {"role": "assistant", "content": tuned}]}]
    assert [_learnt(pairs, "preference"), _learnt(kept, "sft"), _learnt(rated, "kto")] == [1, 1, 1]

    # A reload loses nothing, and the conversation goes on with the same process.
    page.reload()
    expect(page.locator(".talk-column.tuned .talk-answer")).to_have_text(str(tuned))
    expect(page.locator("#system")).to_have_value("別の指示です。")
    page.get_by_role("button", name="この回答を学習データに追加").click()
    expect(page.get_by_role("link", name="会話から追加した回答.jsonl")).to_be_visible()
    assert _rows(web, "会話から追加した回答.jsonl") == (kept, rows)

    # Training on what was said of its answers goes on from the run that gave them.
    aside = page.context.new_page()
    web.open(aside, str(page.get_by_role("link", name="会話から追加した回答.jsonl").get_attribute("href")))
    aside.get_by_role("link", name="ほかのデータ").click()
    aside.get_by_role("link", name="会話の評価.jsonl").click()
    aside.get_by_role("link", name="このデータで続ける").click(timeout=120_000)
    expect(aside.locator("#model")).to_contain_text("faq の学習後の重みから続けます")
    expect(aside.locator("#command")).to_contain_text(f"aift train --from {run_folder}")
    aside.get_by_role("link", name="続けずに、元のモデルから学習する").click()
    expect(aside.locator("#command")).to_contain_text("model.name=embedded:kotoha-tiny")
    aside.close()
    before = _talkers(web)
    assert len(before) == 1

    # Another model, or a reload, in the middle of an answer keeps what there is of it; a tab that is closed ends its answer.
    other = page.context.new_page()
    web.open(other, "/chat?run=faq")
    other.locator("#settings summary").click()
    other.locator("#max_new_tokens").fill("900")
    other.locator("#question").fill(LONG)
    other.locator("#send").click()
    answer = other.locator(".talk-column.tuned .talk-answer")
    expect(answer).not_to_be_empty(timeout=120_000)
    part = str(answer.text_content())
    other.locator("#model").select_option("model=embedded-kotoha-tiny")
    expect(other.locator(".talk-turn")).to_have_count(0)
    other.locator("#model").select_option("run=faq")
    for place in range(2):
        expect(other.locator(".talk-column.tuned .talk-end").nth(place)).to_have_text("停止")
        assert str(answer.nth(place).text_content()).startswith(part)
        other.locator("#question").fill(LONG)
        other.locator("#send").click()
        expect(answer.nth(place + 1)).not_to_be_empty(timeout=120_000)
        part = str(answer.nth(place + 1).text_content())
        if place == 0:
            other.reload()
    other.close()
    until(lambda: not _computes(before[0]), 20, "the answer ends with its tab")

    # 停止 keeps what is there; 書き直す takes the question back.
    page.locator("#settings summary").click()
    page.locator("#max_new_tokens").fill("900")
    page.locator("#question").fill(LONG)
    page.locator("#send").click()
    second = page.locator(".talk-turn").nth(1)
    expect(second.locator(".talk-column.tuned .talk-answer")).not_to_be_empty(timeout=120_000)
    page.locator("#stop").click()
    expect(page.locator("#state")).to_contain_text("停止しました")
    stopped = second.locator(".talk-column.tuned .talk-answer").text_content()
    page.wait_for_timeout(600)
    assert second.locator(".talk-column.tuned .talk-answer").text_content() == stopped != ""
    expect(second.locator(".talk-question")).to_contain_text("<img src=x")
    assert page.locator("#turns img").count() == 0
    page.locator("#again").click()
    expect(page.locator("#question")).to_have_value(LONG)
    expect(page.locator(".talk-turn")).to_have_count(1)

    # A training takes the device: the model goes at once, and the page says so.
    with _training(web):
        expect(page.locator("#state")).to_contain_text("学習や作業が始まったため", timeout=120_000)
        assert _talkers(web) == []
        page.locator("#send").click()
        expect(page.locator("#notice")).to_contain_text("計算中のため")
        expect(page.locator("#question")).to_have_value(LONG)
    assert before[0].pid not in psutil.pids()


def _computes(process: psutil.Process) -> bool:
    """Whether a process takes more than a fifth of a core, over 0.3 s of its own time."""
    return process.cpu_percent(interval=0.3) > 20


@contextlib.contextmanager
def _training(web: Web) -> Iterator[None]:
    """A process that says of itself what a training does, that it computes on the devices of this PC."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER], env=web.environment, cwd=web.folder, stdin=subprocess.PIPE, text=True
    )
    try:
        yield
    finally:
        holder.communicate("")


HOLDER = """
from pathlib import Path
from ai_finetuning.runs.devices import Place, visible_devices
place = Place(visible_devices(), Path("outputs/next"))
place.take()
try:
    input()
except EOFError:
    pass
place.leave()
"""
