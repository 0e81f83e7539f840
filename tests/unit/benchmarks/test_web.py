"""What the benchmark of the page says of its measurements."""

from __future__ import annotations

from benchmarks.web import LIMITS, of_clicks


def test_of_all_clicks_the_slowest_place_and_the_median_are_told():
    told = of_clicks(
        {"/ #copy": [9.0, 90.0, 8.0], "/train #more": [60.0, 50.0, 70.0], "/models button": [20.0, 10.0, 30.0]}
    )
    assert told == {"click_to_change_ms": 60.0, "click_to_change_median_ms": 20.0}
    assert set(told) & set(LIMITS) == {"click_to_change_ms"}
