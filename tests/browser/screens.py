"""Pictures of every screen in both languages for docs/images: `python -m tests.browser.screens --in FOLDER --run ID`.

FOLDER is one where `aift web` was used: its runs, models and data are what the pictures show. Without it, runs with made-up
numbers are shown.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from pathlib import Path

from PIL import Image

from tests.browser.conftest import ARGUMENTS, Web
from tests.browser.test_runs import finished

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"
# Pixels of a picture, its colours, and milliseconds until a screen has what it asks its server for.
SIZE, COLOURS, READY = {"width": 1120, "height": 760}, 64, 4000


def paths(run: str, other: str) -> dict[str, str]:
    """Where each screen is, with something to show."""
    return {
        "home": "/",
        "data": "/data?file=embedded-kotoha-qa",
        "models": "/models",
        "settings": "/train?data=embedded-kotoha-qa",
        "runs": f"/runs/{run}",
        "results": f"/runs/{run}/result",
        "chat": f"/chat?run={run}",
        "answers": "/answers",
        "compare": f"/compare?ids={run},{other}",
        "export": f"/export?run={run}",
    }


def main() -> None:
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser()
    parser.add_argument("--in", dest="folder", type=Path)
    parser.add_argument("--run", default="faq")
    parser.add_argument("--other", default="faq-2")
    parser.add_argument("--only", default="", help="names of screens, separated by commas")
    given = parser.parse_args()
    os.environ.setdefault("AIFT_CACHE", tempfile.mkdtemp(prefix="aift-cache-"))
    folder = given.folder or Path(tempfile.mkdtemp(prefix="aift-screens-"))
    if given.folder is None:
        for name in (given.run, given.other):
            finished(folder / "outputs" / name, 120)
    web = Web(folder.absolute())
    web.start()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(ARGUMENTS))
        for language, locale in (("ja", "ja-JP"), ("en", "en-US")):
            page = browser.new_context(locale=locale, viewport=SIZE).new_page()
            for name, path in paths(given.run, given.other).items():
                if given.only and name not in given.only.split(","):
                    continue
                web.open(page, path)
                page.wait_for_timeout(READY)
                file = IMAGES / f"web-{name}-{language}.png"
                page.screenshot(path=file)
                # Few colours: a screen has no more, and the file is a quarter.
                Image.open(file).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(file, optimize=True)
        browser.close()
    web.end()


if __name__ == "__main__":
    main()
