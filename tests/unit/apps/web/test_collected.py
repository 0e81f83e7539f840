"""Answers that people rate, correct or keep, as rows of training data among the uploads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ai_finetuning.apps.web import collected, uploads
from ai_finetuning.apps.web.site import Site
from ai_finetuning.errors import UsageError

ASKED = [{"role": "system", "content": "短く。"}, {"role": "user", "content": "首都は？"}]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A server over an empty folder."""
    return Site(tmp_path / "outputs", (tmp_path,), tmp_path / "models", tmp_path / "data")


def _rate(site: Site, answer: str, good: bool) -> uploads.Upload:
    row = collected.row_of("rating", ASKED, {"answer": answer, "good": good})
    return collected.add(site, "rating", row, "ja")


def _lines(upload: uploads.Upload) -> list[dict[str, object]]:
    return [json.loads(line) for line in upload.file.read_text(encoding="utf-8").splitlines()]


def test_ratings_grow_in_one_upload_and_the_last_word_on_an_answer_counts(site: Site) -> None:
    first = _rate(site, "大阪です。", True)
    table = first.table
    table.mkdir()  # the pages of an earlier state
    assert _rate(site, "東京です。", True).id == first.id
    last = _rate(site, "大阪です。", False)
    assert [(row["completion"][0]["content"], row["label"]) for row in _lines(last)] == [
        ("東京です。", True),
        ("大阪です。", False),
    ]
    assert not table.exists()
    assert last.size == last.file.stat().st_size
    assert [upload.shown for upload in uploads.list_uploads(site)] == ["会話の評価.jsonl"]

    uploads.trash(site, last)  # whoever has put it away begins another one
    assert _rate(site, "東京です。", True).id != first.id


def test_a_division_that_a_run_may_read_stays_as_it_is(site: Site) -> None:
    first = _rate(site, "東京です。", True)
    sides = uploads.divided_folder(first, 0.1)
    sides.mkdir()
    for name in (uploads.TRAIN, uploads.EVAL):
        (sides / name).write_text("{}\n", encoding="utf-8")
    uploads.change(first, share=0.1)
    assert uploads.find(site, first.id).path == sides / uploads.TRAIN

    grown = _rate(site, "大阪です。", False)
    assert (grown.path, grown.evaluated, grown.share) == (grown.file, None, None)
    assert (sides / uploads.TRAIN).read_text(encoding="utf-8") == "{}\n"
    assert uploads.divided_folder(grown, 0.1) != sides  # and the next division does not replace it


def test_each_kind_has_the_columns_that_its_objective_reads() -> None:
    answer = {"answer": "大阪です。"}
    assert collected.row_of("pair", ASKED, answer | {"edited": " 東京です。"}) == {
        "prompt": ASKED,
        "chosen": "東京です。",
        "rejected": "大阪です。",
    }
    assert collected.row_of("row", ASKED, answer) == {
        "messages": [*ASKED, {"role": "assistant", "content": "大阪です。"}]
    }


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("pair", {"answer": "東京です。", "edited": "東京です。 "}),
        ("pair", {"answer": "東京です。"}),
        ("rating", {"answer": "東京です。", "good": "yes"}),
        ("rating", {"answer": " ", "good": True}),
        ("other", {"answer": "東京です。"}),
    ],
)
def test_what_says_nothing_is_no_row(kind: str, values: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        collected.row_of(kind, ASKED, values)
