"""Pages: no link and no page name leads nowhere; the glossary holds each term once; the site has every page."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def links() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_links", ROOT / ".ci" / "check_links.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_nothing_leads_nowhere(links: ModuleType):
    assert links.problems(ROOT) == []


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("[a](missing.md)", "no such file"),
        ("[a](page.md#nowhere)", "no such heading"),
        ("![a](images/missing.png)", "no such file"),
        ("[a](https://)", "not an address"),
        ("[a](/etc/passwd)", "absolute path"),
        ("see docs/" + "missing.md", "no such page"),
        ("see docs/decisions/" + "0099", "no such page"),
        ("as " + "PLAN" + ".md says", "no such page"),
        ("promised in " + "issue" + " 6", "issues are not in the repository"),
    ],
)
def test_what_leads_nowhere_is_found(links: ModuleType, tmp_path: Path, line: str, reason: str):
    good = "# A page\n\n## Ｐart 二: `code` & more\n\n[x](#a-page) [y](page.md#ｐart-二-code--more) [z](https://example.org/a) `[n](m.md)`\n"
    decisions = tmp_path / "docs" / "decisions"
    decisions.mkdir(parents=True)
    (decisions / "0001-first.md").write_text("# 0001 First\n", encoding="utf-8")
    (decisions / "index.md").write_text(links.index_of(tmp_path), encoding="utf-8")
    page = tmp_path / "docs" / "page.md"
    page.write_text(good, encoding="utf-8")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    assert links.problems(tmp_path) == []
    page.write_text(f"{good}\n{line}\n", encoding="utf-8")
    links.anchors.cache_clear()
    (obtained,) = links.problems(tmp_path)
    assert obtained.startswith(f"{page.relative_to(tmp_path)}:7: ")
    assert reason in obtained
    (decisions / "0002-second.md").write_text("# 0002 Second\n", encoding="utf-8")
    assert any("index.md: not up to date" in item for item in links.problems(tmp_path))


def test_the_contract_is_word_for_word():
    """Behind its header it is what the toolkit was built to; corrections stand in docs/api.md."""
    _, text = (ROOT / "docs" / "contract.ja.md").read_text(encoding="utf-8").split("\n\n", 1)
    assert text.startswith("# API リファレンス\n")
    assert (
        hashlib.sha256(text.encode()).hexdigest() == "7cfc3f0d5cc91ac0d01e1e2eebe72c07789d27c2e54ef08140b4772d4d6216af"
    )


def terms() -> list[list[str]]:
    text = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [row for row in rows if row[0] != "English"]


def test_the_glossary_has_each_term_once_in_both_languages():
    rows = terms()
    assert len(rows) > 60
    assert all(len(row) == 4 and all(cell.strip() for cell in row) for row in rows)
    for column in (0, 1):
        words = [word for row in rows for word in re.split(r"[,、] ?", re.sub(r"（[^）]*）", "", row[column]))]
        assert sorted(words) == sorted(set(words))


def test_japanese_pages_use_the_glossary():
    """One word for one thing; the contract is quoted as it was given."""
    dropped = ("訓練", "装置", "機械の", "損失のかか", "詰め物", "活性", "最尤一致", "写し", "分かち方", "約束すること")
    for path in (ROOT / "README.ja.md", *(ROOT / "docs").glob("*.ja.md")):
        if path.name != "contract.ja.md":
            text = path.read_text(encoding="utf-8")
            assert [word for word in dropped if word in text] == [], path.name


class _Loader(yaml.SafeLoader):
    """mkdocs.yml names a Python function, which is not needed here."""


_Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)


def test_the_site_has_every_page():
    site = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader=_Loader)

    def pages(entry: object) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        return [name for part in (entry.values() if isinstance(entry, dict) else entry) for name in pages(part)]

    docs = ROOT / "docs"
    listed = pages(site["nav"])
    there = [str(path.relative_to(docs).as_posix()) for path in docs.rglob("*.md") if not path.name[0].isdigit()]
    assert sorted(listed) == sorted(there)


def code_lines(page: Path) -> set[str]:
    text = page.read_text(encoding="utf-8")
    fenced = "\n".join(re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S))
    indented = re.findall(r"^    +(?:aift|make|pip|python) .*$", text, flags=re.M)
    return {line.split("  #")[0].strip() for line in [*fenced.splitlines(), *indented]} - {""}


def test_japanese_pages_show_the_commands_of_the_english_ones():
    """Nothing is typed differently in the two languages."""
    pages = [path for path in (ROOT / "docs").glob("*.ja.md") if path.name != "contract.ja.md"]
    assert len(pages) >= 10
    for page in pages:
        english = page.with_name(page.name.replace(".ja.md", ".md"))
        known = code_lines(english) | set(english.read_text(encoding="utf-8").split("`"))
        assert {line for line in code_lines(page) if not any(line in item for item in known)} == set(), page.name
