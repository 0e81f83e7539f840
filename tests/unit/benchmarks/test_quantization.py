"""docs/quantization.md says what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks import quantization

RESULTS = sorted((Path(quantization.__file__).parent / "results").glob("*_quantization-*.json"))


def test_the_page_shows_a_result_that_is_kept():
    page = quantization.PAGE.read_text(encoding="utf-8")
    shown = [path for path in RESULTS if quantization.table(json.loads(path.read_text(encoding="utf-8"))) in page]
    assert shown


def test_a_result_is_published_between_its_marks(tmp_path: Path):
    result = json.loads(RESULTS[-1].read_text(encoding="utf-8"))
    key = f"{result['model']}-{result['device'].split(':')[0]}"
    page = tmp_path / "page.md"
    page.write_text(f"before\n<!-- bench {key} -->\nold\n<!-- end {key} -->\nafter\n", encoding="utf-8")
    image, _ = quantization.publish(result, page)
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert all(f"| {label} |" in text for label in result["results"])
    assert f"images/{image.name}" in text
    assert image.read_bytes().startswith(b"\x89PNG")
    for label in result["results"]:
        side = result["results"][label]["quantized"]
        assert f"{side['bits_per_character']:.4f}" in text
    page.write_text("no marks", encoding="utf-8")
    with pytest.raises(SystemExit, match="add the lines"):
        quantization.publish(result, page)
