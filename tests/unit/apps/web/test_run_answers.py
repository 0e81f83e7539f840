"""Answers of a run before and after, as its files have them: whoever wrote the files."""

from __future__ import annotations

import json
from pathlib import Path

from ai_finetuning.apps.web.run_answers import answers_of, last_answers, pieces, shown


def write(file: Path, rows: list[object]) -> None:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def side(name: str, item: str, answer: str, score: float, **more: object) -> dict[str, object]:
    return {
        "side": name,
        "task": "data",
        "item": item,
        "score": score,
        "answer": answer,
        "question": f"質問 {item}",
        "accepted": ["正解です。"],
        "faults": [],
    } | more


def test_what_got_worse_comes_first_then_failures_then_the_rest(tmp_path: Path):
    write(
        tmp_path / "eval.jsonl",
        [
            {"format": 1, "made_by": {}},
            side("before", "a", "いいえ", 0.0),
            side("after", "a", "正解です。", 1.0),
            side("before", "b", "正解です。", 1.0),
            side("after", "b", "ああああ", 0.0, faults=["loop", "unknown"]),
            side("after", "c", "違います", 0.2),
            {"side": "after", "task": "prose", "item": "p", "score": 3.2},
        ],
    )
    found = answers_of(tmp_path)
    assert [one.item for one in found] == ["b", "c", "a"]
    assert [one.failed for one in found] == [True, True, False]
    assert found[0].lost
    assert found[0].faults == ("loop",)
    told = shown(found[0])
    assert told["faults"] == [{"ja": "同じ言葉の繰り返し", "en": "repeats itself"}]
    assert told["before"] == "正解です。"
    assert found[1].before is None
    assert last_answers(tmp_path)["質問 a"] == "正解です。"


def test_an_empty_answer_is_an_answer(tmp_path: Path):
    """A model that says nothing has answered, wrongly."""
    rows = [side("before", "a", "いいえ", 0.0), side("after", "a", "", 0.0, faults=["empty"])]
    write(tmp_path / "eval.jsonl", rows)
    [found] = answers_of(tmp_path)
    assert found.after == ""
    assert found.failed
    assert shown(found)["faults"]


def test_without_a_verdict_the_fixed_questions_are_shown(tmp_path: Path):
    write(
        tmp_path / "samples.jsonl",
        [
            {"step": step, "question": "首都は？<|assistant|>東京</s><|user|>では", "expected": "東京", "answer": text}
            for step, text in ((0, "は"), (10, "大阪"), (20, "東京"))
        ],
    )
    (found,) = answers_of(tmp_path)
    assert (found.before, found.after, found.scores) == ("は", "東京", (None, None))
    assert found.question == "首都は？\n東京\nでは"  # marks of a template are line breaks
    assert not found.failed


def test_lines_of_a_stranger_are_left_out(tmp_path: Path):
    write(
        tmp_path / "eval.jsonl",
        [[1], "x", {"side": "after", "task": "data", "item": 3, "answer": "x"}, side("after", "n", "x", float("1e9"))],
    )
    (found,) = answers_of(tmp_path)
    assert found.scores == (None, None)
    secret = tmp_path / "secret"
    write(secret, [side("after", "a", "秘密", 1.0)])
    (tmp_path / "eval.jsonl").unlink()
    (tmp_path / "eval.jsonl").symlink_to(secret)
    assert answers_of(tmp_path) == []


def test_pieces_say_what_differs_from_the_expected_answer():
    assert pieces("東京です。", "東京です。") == [("東京です。", True)]
    assert pieces("大阪です。", "東京です。") == [("大阪", False), ("です。", True)]
    assert "".join(text for text, _ in pieces("あいうえお", "いえ")) == "あいうえお"
    assert pieces("x" * 601, "y") == [("x" * 601, True)]
    assert pieces("何でも", "") == [("何でも", True)]
