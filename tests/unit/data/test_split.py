"""Rows in two: what belongs together stays together, by share and by time."""

from __future__ import annotations

import pytest

from ai_finetuning.data.doctor.duplicates import Pair
from ai_finetuning.data.rows import Row
from ai_finetuning.data.split import by_share, by_time, times_of, together
from ai_finetuning.errors import DataError

SENTENCE = "この町には古い橋と静かな川があり、多くの人が毎年そこを訪れて写真を撮っています。番号は{}番です。"
PAIRS = [Pair(f"{number}番の町について教えてください。", "", SENTENCE.format(number)) for number in range(100)]


def test_a_share_is_drawn_in_whole_groups():
    pairs = [
        *PAIRS,
        Pair("１番の町について、教えてください", "", "別の答えです。"),
        Pair(PAIRS[2].question, "", PAIRS[2].answer + "ね。"),
    ]
    root = together(pairs)
    assert (root[100], root[101]) == (1, 2)
    for seed in range(8):
        divided = by_share(root, 0.2, seed, "a.jsonl")
        assert len(divided.evaluated) in (19, 20)
        assert sorted(divided.train + divided.evaluated) == list(range(102))
        sides = [index in set(divided.evaluated) for index in range(102)]
        assert sides[1] == sides[100]
        assert sides[2] == sides[101]
        assert by_share(root, 0.2, seed, "a.jsonl") == divided
    assert by_share(root, 0.2, 0, "a.jsonl") != by_share(root, 0.2, 1, "a.jsonl")


def test_a_column_keeps_rows_together_and_empty_values_do_not():
    root = together(PAIRS[:6], ["a", "b", "a", "", "", None])
    assert root == [0, 1, 0, 3, 4, 5]


def test_plain_texts_that_are_equal_are_on_one_side():
    assert together([Pair("", "", "同じ文です。"), Pair("", "", "別の文です。"), Pair("", "", "同じ文です")]) == [
        0,
        1,
        0,
    ]


def test_the_latest_rows_are_for_evaluation_but_not_those_that_repeat_older_ones():
    rows = [Row({"日時": f"2024-{month:02d}-01"}, f"a:{month}") for month in range(1, 11)]
    times = times_of(rows, "日時")
    divided = by_time(list(range(10)), times, 0.3, "a")
    assert divided.evaluated == [7, 8, 9]
    root = [0, 1, 2, 3, 4, 5, 6, 7, 2, 9]
    divided = by_time(root, times, 0.3, "a")
    assert divided.evaluated == [7, 9]
    assert divided.kept_back == 1


def test_rows_of_one_moment_stay_together():
    assert by_time(list(range(6)), [1, 2, 3, 3, 3, 4], 0.34, "a").evaluated == [2, 3, 4, 5]
    with pytest.raises(DataError, match="cannot be divided"):
        by_time(list(range(4)), [1, 1, 1, 1], 0.5, "a")


@pytest.mark.parametrize(
    "values",
    [
        ["2024-04-01", "2024-04-02", "2024-12-01"],
        ["2024/4/1 9:00", "2024/4/1 10:00", "2024/4/2"],
        ["2024年4月1日", "2024年4月11日 8:30", "2024年5月1日"],
        ["2024年4月", "2024年5月", "2025年1月"],
        ["2024-04-01T00:00:00Z", "2024-04-01T10:00:00+09:00", "2024-04-01T02:00:00"],
        [3, "4", 10.5],
    ],
)
def test_times_are_in_order(values: list[object]):
    times = times_of([Row({"t": value}, "a:1") for value in values], "t")
    assert times == sorted(times)
    assert len(set(times)) == 3


@pytest.mark.parametrize("value", ["きのう", "", None, "2024-13-01", "令和6年4月1日", True])
def test_what_is_no_time_is_refused_with_its_row(value: object):
    with pytest.raises(DataError, match="a:7"):
        times_of([Row({"t": 1}, "a:6"), Row({"t": value}, "a:7")], "t")


def test_refusals():
    with pytest.raises(DataError, match="there is no column t; columns: u"):
        times_of([Row({"u": 1}, "a:1")], "t")
    with pytest.raises(DataError, match="change the share"):
        by_share([0, 1, 2], 0.1, 0, "a")
    with pytest.raises(DataError, match="cannot be divided"):
        by_share([0, 0, 0, 0], 0.5, 0, "a")
