"""書き出し, API を開始 in the browser: from the button to an answer, through a reload and a killed server, to 止める."""

from __future__ import annotations

import json
import shlex
import signal
import urllib.error
import urllib.request
from typing import Any

import pytest

from ai_finetuning.inference.session import open_model
from ai_finetuning.models.generation import generate_answers
from tests.browser.conftest import Web
from tests.browser.test_access import findings
from tests.support.servers import needs_server
from tests.support.systems import needs_sigkill

KOTOHA = "embedded:kotoha-tiny"


def _asked(words: list[str], key: str, **more: Any) -> str:
    """What the address of the curl command answers to its question, with a key."""
    headers = dict(word.split(": ", 1) for word in words if ": " in word and word[0] != "{")
    body = json.dumps(json.loads(words[-1]) | more).encode()
    request = urllib.request.Request(words[1], body, headers | {"Authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return str(json.load(answer)["choices"][0]["message"]["content"])


@needs_server
@needs_sigkill
def test_an_api_starts_by_a_button_outlives_its_page_and_is_stopped(web: Web, page: Any) -> None:
    from playwright.sync_api import expect

    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    web.open(page, "/export?model=embedded-kotoha-tiny")
    page.locator("#serve").dblclick()
    card = page.get_by_role("article", name="API を開始 kotoha-tiny")
    expect(card).to_be_visible()
    expect(page.locator("#serve")).to_be_disabled()
    expect(page.locator("#serve_reason")).to_contain_text("下にあります")
    assert web.process is not None
    web.process.send_signal(signal.SIGKILL)
    web.process.wait()
    web.start()
    page.goto("about:blank")
    web.open(page, "/export?model=embedded-kotoha-tiny")
    expect(card).to_contain_text("使えます", timeout=120_000)
    expect(card).to_have_count(1)
    assert len(list((web.folder / "aift-data" / ".jobs").iterdir())) == 1

    card.get_by_text("curl での使い方").click()
    card.locator("[data-of$=api_curl] button").click()
    words = shlex.split(page.evaluate("navigator.clipboard.readText()"))
    key = str(card.locator("dd").nth(2).locator("code").text_content())
    assert words[0] == "curl"
    assert f"Authorization: Bearer {key}" in words
    opened = open_model(KOTOHA)
    conversation = json.loads(words[-1])["messages"]
    (alone,) = generate_answers(opened.model, opened.tokenizer, [conversation], max_new_tokens=8, do_sample=False)
    assert _asked(words, key, max_tokens=8, temperature=0.0) == alone.text
    with pytest.raises(urllib.error.HTTPError, match="401"):
        _asked(words, "another")
    card.get_by_text("Python（openai）での使い方").click()
    example = str(card.locator("[data-of$=api_python] pre").text_content())
    compile(example, "example", "exec")
    assert repr(key).replace("'", '"') in example
    assert findings(page) == []

    refused = page.request.post(
        f"{web.url}/api/chat/answer",
        data={"model": "embedded-kotoha-tiny", "question": "？"},
        headers={"x-aift-token": web.token},
    )
    assert "API が動いているか" in refused.text()
    card.get_by_role("button", name="止める").click()
    expect(card).to_have_count(0)
    expect(page.locator("#serve")).to_be_enabled()
    with pytest.raises(urllib.error.URLError, match="refused"):
        _asked(words, key)
