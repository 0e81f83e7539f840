"""Every screen for everybody: axe without a finding in light and dark, on a phone and enlarged; both languages whole."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from ai_finetuning.apps.web import words
from tests.browser.conftest import PATHS, Web
from tests.browser.test_runs import finished

PAGES = Path(words.__file__).resolve().parents[1]
# What is English in Japanese texts: names, and what people write in Latin letters.
ALLOWED = re.compile(
    r"aift|PC|CPU|GPU|CSV|Excel|YAML|JSONL?|TSV|TXT|XLSX|LoRA|QLoRA|DoRA|GGUF|API|Ctrl|Enter|English|OK|GB|MB|kB|TB|B|URL|ID|DPO|SFT|KTO|ORPO|"
    r"vLLM|Ollama|Hugging Face|token|UTF-(?:8|16)|Shift_JIS|CP932|bit|bf16|fp16|fp32|Apache-2\.0|MIT|Python|Markdown|HTML|"
    r"EUC-JP|temperature|top_[pk]|Shift|\d-gram|ROUGE-L|llm-jp-eval|char_f1|OpenAI|openai|curl|llama\.cpp"
)
JAPANESE = r"[\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fff]"
# What arrives later than the page, from a child of its server.
FILLED = {"/models": ".model-card", "/data?file=embedded-kotoha-qa": "#rows tbody tr"}
# A window of 1280 pixels enlarged to 200 % has 640 of its own.
VIEWS = {"light": ("light", 1280), "dark": ("dark", 1280), "phone": ("light", 400), "zoomed": ("dark", 640)}


def findings(page: Any) -> list[str]:
    """What axe finds by the rules of WCAG 2.1 A and AA; put in by the debugger, since the page lets no script in."""
    import axe_playwright_python

    session = page.context.new_cdp_session(page)
    if not page.evaluate("'axe' in window"):
        script = Path(axe_playwright_python.__file__).with_name("axe.min.js").read_text(encoding="utf-8")
        session.send("Runtime.evaluate", {"expression": script})
    asked = """axe.run(document, {runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"],
      resultTypes: ["violations"], preload: false}).then((found) => JSON.stringify(
      found.violations.map((one) => [one.id, one.nodes.map((node) => node.target.join(" ") + " " + node.failureSummary)])))"""
    told = session.send("Runtime.evaluate", {"expression": asked, "awaitPromise": True, "returnByValue": True})
    session.detach()
    return [f"{rule}: {node}" for rule, nodes in json.loads(told["result"]["value"]) for node in nodes]


class Quiet:
    """Knows when a page has what it asked for: `networkidle` would wait for half a second on each screen.

    Args:
        page: before it is opened.
    """

    def __init__(self, page: Any) -> None:
        self._page, self._open = page, 0
        page.on("request", lambda _: self._count(1))
        for name in ("requestfinished", "requestfailed"):
            page.on(name, lambda _: self._count(-1))

    def _count(self, more: int) -> None:
        self._open += more

    def wait(self) -> None:
        """Until nothing has been under way three times, 60 ms apart: what an answer leads to is asked at once."""
        quiet = 0
        while quiet < 3:
            self._page.wait_for_timeout(60)
            quiet = 0 if self._open else quiet + 1


def test_axe_finds_nothing_on_any_screen(web: Web, new_context: Any):
    """In light, dark, at 400 pixels and enlarged, where nothing is wider than the window either."""
    from playwright.sync_api import expect

    finished(web.folder / "outputs" / "faq", 30)
    page = new_context().new_page()
    quiet = Quiet(page)
    problems = []
    for path in (*PATHS, "/data?file=embedded-kotoha-qa"):
        web.open(page, path.replace("none", "faq"))
        quiet.wait()
        if path in FILLED:
            expect(page.locator(FILLED[path]).first).to_be_visible(timeout=120_000)
        for view, (scheme, width) in VIEWS.items():
            page.emulate_media(color_scheme=scheme)
            page.set_viewport_size({"width": width, "height": 800})
            problems += [f"{path} {view}: {problem}" for problem in findings(page)]
            wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            if wide > 0:
                problems.append(f"{path} {view}: {wide} pixels too wide")
    assert not problems, "\n".join(problems)


def tab_to(page: Any, name: str, most: int = 150) -> list[str]:
    """Presses Tab until something of that name has the focus, which has to be seen; the names on the way."""
    passed: list[str] = []
    for _ in range(most):
        page.keyboard.press("Tab")
        text, outline = page.evaluate(
            "[document.activeElement.textContent.trim(), getComputedStyle(document.activeElement).outlineStyle]"
        )
        assert outline != "none", text
        passed.append(text)
        if text == name:
            return passed
    raise AssertionError(f"{name} is not reached: {passed}")


def test_a_keyboard_alone_leads_from_home_to_a_training_that_has_started(web: Web, page: Any):
    """By the sample that ships; stopped by the keyboard as well."""
    from playwright.sync_api import expect

    web.open(page, "/")
    expect(page.locator("#pc dd").first).to_be_visible()
    passed = tab_to(page, "デモを試す")
    assert passed[0] == "本文へ"
    assert {"ホーム", "データ", "モデル", "学習", "会話", "一括回答", "比較", "書き出し", "新しく学習"} <= set(passed)
    page.keyboard.press("Enter")
    expect(page.get_by_role("link", name="このデータで学習")).to_be_visible()
    tab_to(page, "このデータで学習")
    page.keyboard.press("Enter")
    expect(page.locator("#start")).to_be_enabled()
    tab_to(page, page.locator("#start").text_content().strip())
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(r"/runs/[a-z0-9-]+$"))
    expect(page.get_by_role("button", name="すぐに止める")).to_be_visible()
    tab_to(page, "すぐに止める")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Enter")
    expect(page.locator("#state")).to_have_text("中断")


def test_japanese_texts_have_no_english_but_names():
    problems = []
    for screen, table in words.TABLE.items():
        for key, (ja, en) in (words.shell.WORDS | table).items():
            # Names of settings and files, and commands, are the same in both.
            plain = re.sub(
                r"\{\w+\}|`[^`]*`|aift( [\w.-]+)+|\.?\w+(\.\w+)+|\.\w+|\w+=\w+|--\w+|embedded:[\w-]+", "", ja
            )
            found = re.findall(r"[A-Za-z]{3,}", ALLOWED.sub("", plain))
            if found:
                problems.append(f"{screen}: {key}: {found} in {ja}")
            if re.search(JAPANESE, en) and key != "other_language":
                problems.append(f"{screen}: {key}: Japanese in {en}")
            if set(re.findall(r"\{\w+\}", ja)) != set(re.findall(r"\{\w+\}", en)):
                problems.append(f"{screen}: {key}: other values in {ja} and {en}")
    assert not problems, "\n".join(dict.fromkeys(problems))


def scripts_of(screen: str) -> str:
    """A screen's JavaScript, with the modules that it imports, directly or not."""
    seen: dict[str, str] = {}
    left = [f"{screen}.js", "shell.js"]
    while left:
        name = left.pop()
        if name not in seen:
            seen[name] = (PAGES / "static" / name).read_text(encoding="utf-8")
            left += re.findall(r'from "\./([\w-]+\.js)"', seen[name])
    return "\n".join(seen.values())


@pytest.mark.parametrize("screen", words.TABLE)
def test_every_text_is_in_the_table_of_words(screen: str):
    """No Japanese in pages and scripts, no text in pages, and each key that they name is there."""
    page = (PAGES / "pages" / "base.html").read_text(encoding="utf-8")
    page += (PAGES / "pages" / f"{screen}.html").read_text(encoding="utf-8")
    parts = re.findall(r'\{% include "([\w.]+)" %\}', page)
    page += "".join((PAGES / "pages" / part).read_text(encoding="utf-8") for part in parts)
    scripts = scripts_of(screen)
    code = re.sub(r"^\s*//.*$|\s// .*$", "", scripts, flags=re.MULTILINE)
    for text in (page, code):
        assert re.search(JAPANESE, text) is None
    bare = re.sub(r"\{%.*?%\}|\{\{.*?\}\}|<!doctype html>", "", page)
    texts = [text.strip() for text in re.findall(r">([^<]+)<", bare)]
    assert not [text for text in texts if re.search(r"[A-Za-z]{2,}", text) and text not in ("aift", "– aift", "YAML")]
    assert not re.findall(r'(?:aria-label|title|placeholder|alt)="[A-Za-z]', bare)
    around = set(re.findall(r"t\(['\"](\w+)", (PAGES / "pages" / "base.html").read_text(encoding="utf-8"))) - {"title"}
    assert not around & set(words.TABLE[screen])  # a screen's word would stand in the frame
    known = words.of("ja", screen)
    named = set(re.findall(r'\bt\(["\']([\w.]+)["\']\s*[,)]', page + code))
    assert not named - set(known), named - set(known)
    # Nor markup, nor code out of texts, nor what the content policy refuses.
    assert not re.findall(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|setAttribute\(\"style", code
    )
    assert "<style" not in page
    assert not re.findall(r"\son\w+=|\sstyle=", bare)


def test_vendored_files_are_those_of_the_release():
    """uPlot 1.6.32 of the npm registry, with its licence, and without a link to a source map, which browsers request."""
    import hashlib

    hashes = {
        "uPlot.iife.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
        "uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
        "LICENSE": "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd",
    }
    folder = PAGES / "static" / "vendor" / "uPlot"
    assert {file.name for file in folder.iterdir()} == set(hashes)
    for name, expected in hashes.items():
        content = (folder / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == expected, name
        assert b"sourceMappingURL" not in content
