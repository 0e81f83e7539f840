"""The arithmetic of benchmarks/scaling.py: what is divided by what, and that a table says it."""

from __future__ import annotations

import pytest
from benchmarks import ratios, scaling


def turn(seconds: float, *, cpu: float | None = None, tokens: int = 1000, sent: int = 0, steps: int = 1) -> dict:
    used = seconds if cpu is None else cpu
    return {"wall": seconds, "cpu": used, "tokens": tokens, "sent": sent, "steps": steps, "machine_busy": used}


def result() -> dict:
    """Two rounds, the second twice as slow for everybody: the machine was disturbed, no ratio is."""
    seconds = {
        "one": 2.0,
        "control-1": 1.1,
        "ddp-1": 1.375,
        "control-4": 1.0,
        "ddp-4": 1.25,
        "fsdp-4": 2.0,
        "pipeline": 1.25,
    }
    obtained = {name: [turn(factor * value, cpu=2 * value) for factor in (1, 2)] for name, value in seconds.items()}
    obtained["ddp-1"] = [turn(step["wall"], sent=400, steps=4) for step in obtained["ddp-1"]]
    summary = scaling.summarise(obtained, processes=2, cores=2)
    return {
        "model": "deep",
        "processes": 2,
        "kernels": "portable",
        "hardware": {"cpu": "C", "cores": 2},
        "micro_batch_tokens": 8,
        "micro_batches": 4,
        "rounds": 2,
        "versions": {"torch": "2"},
        "date": "2026-11-25T",
        "commit": "abc",
        "summary": {"full": summary},
    }


def test_quartiles():
    assert ratios.quartiles([1, 2, 3, 4, 5]) == {"q1": 2, "median": 3, "q3": 4}
    assert ratios.quartiles([7]) == {"q1": 7, "median": 7, "q3": 7}


def test_the_bubble_formula():
    """docs/design/distributed.md: 1.78, 1.88 and 1.94 times one process for 8, 16 and 32 micro-batches."""
    assert [round(scaling.bubble_speedup(2, count), 2) for count in (8, 16, 32)] == [1.78, 1.88, 1.94]


def test_variants_are_compared_round_by_round_with_their_own_control():
    rows = result()["summary"]["full"]
    assert rows["control-4"]["times_one_wall"] == {"q1": 2.0, "median": 2.0, "q3": 2.0}
    assert rows["ddp-1"]["share_of_control_wall"]["median"] == pytest.approx(0.8)
    assert rows["ddp-4"]["share_of_control_wall"]["median"] == pytest.approx(0.8)
    assert "share_of_control_wall" not in rows["control-1"]
    assert rows["ddp-1"]["sent_bytes_per_step"] == 100
    # 8 micro-batches through two stages: 1.6 of 1.78 times one process, and 0.8 of the control's 8/9.
    assert rows["pipeline"]["share_of_formula"]["median"] == pytest.approx(1.6 * 9 / 16)
    assert rows["pipeline"]["share_of_formula_by_control"]["median"] == pytest.approx(0.8 * 9 / 8)


def test_the_table_and_the_picture(tmp_path):
    page = tmp_path / "performance.md"
    page.write_text(
        "<!-- bench scaling-deep-cpu-portable -->\n<!-- end scaling-deep-cpu-portable -->\n", encoding="utf-8"
    )
    image, _ = scaling.publish(result() | {"device": "cpu"}, page)
    assert image.stat().st_size > 0
    text = page.read_text(encoding="utf-8")
    assert "| ddp, accumulation 4 | 600 | 1.60x (1.60 - 1.60) | 80.0% (80.0% - 80.0%) |" in text
    assert "bubble formula: 1.78x; reached 90.0%" in text
    assert "not a quiet measurement" not in text
