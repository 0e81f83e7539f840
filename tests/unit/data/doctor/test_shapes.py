"""Rows of every shape that the doctor reads: what each text is, and that repairs and their way back reach all of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ai_finetuning.data.doctor.examination import hits_of, read_samples
from ai_finetuning.data.doctor.passages import sample_of
from ai_finetuning.data.doctor.repair import JOURNAL, Wanted, repair, undo, write
from ai_finetuning.data.rows import Row


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "系"}
ONE = [("question", "問"), ("answer", "良")]
PAIR = [*ONE, ("rejected", "悪")]
TALK = [("system", "系"), ("question", "前"), ("answer", "答"), ("question", "問"), ("answer", "良")]
SHAPES: dict[str, tuple[dict[str, Any], list[tuple[str, str]]]] = {
    "columns": ({"instruction": "問", "input": "材", "output": "良"}, [("question", "問"), ("material", "材"), ("answer", "良")]),
    "messages": ({"messages": [SYSTEM, user("前"), assistant("答"), user("問"), assistant("良")]}, TALK),
    "sharegpt": (
        {"conversations": [{"from": "system", "value": "系"}, {"from": "human", "value": "前"}, {"from": "gpt", "value": "答"}, {"from": "human", "value": "問"}, {"from": "gpt", "value": "良"}]},
        TALK,
    ),
    "history": (
        {"system": "系", "history": [["前", "答"]], "instruction": "問", "output": "良"},
        TALK,
    ),
    "parts": ({"messages": [{"role": "user", "content": [{"type": "text", "text": "問"}]}, assistant("良")]}, ONE),
    "tool": ({"messages": [user("問"), {"role": "tool", "content": "道"}, assistant("良")]}, [("question", "問"), ("tool", "道"), ("answer", "良")]),
    "in a cell": ({"messages": json.dumps([user("問"), assistant("良")], ensure_ascii=False)}, ONE),
    "pair": ({"prompt": "問", "chosen": "良", "rejected": "悪"}, PAIR),
    "pair, explicit": ({"prompt": [user("問")], "chosen": [assistant("良")], "rejected": [assistant("悪")]}, PAIR),
    "pair, explicit, several turns": (
        {"prompt": [SYSTEM, user("前"), assistant("答"), user("問")], "chosen": [assistant("良")], "rejected": [assistant("悪")]},
        [*TALK, ("rejected", "悪")],
    ),
    "pair, implicit": (
        {"chosen": [user("問"), assistant("良")], "rejected": [user("問"), assistant("悪")]},
        [*ONE, ("text", "問"), ("rejected", "悪")],
    ),
    "pair, implicit, several turns": (
        {
            "chosen": [SYSTEM, user("前"), assistant("答"), user("問"), assistant("良")],
            "rejected": [SYSTEM, user("前"), assistant("答"), user("問"), assistant("悪")],
        },
        [*TALK, ("text", "系"), ("text", "前"), ("rejected", "答"), ("text", "問"), ("rejected", "悪")],
    ),
    "pair, a message each": (
        {"conversations": [{"from": "human", "value": "問"}], "chosen": {"from": "gpt", "value": "良"}, "rejected": {"from": "gpt", "value": "悪"}},
        PAIR,
    ),
    "pair, only input": ({"input": "問", "accepted": "良", "rejected": "悪"}, PAIR),
    "pair, with material": ({"instruction": "問", "input": "材", "chosen": "良", "rejected": "悪"}, [("question", "問"), ("material", "材"), ("answer", "良"), ("rejected", "悪")]),
    "marked good": ({"prompt": "問", "completion": "良", "label": True}, ONE),
    "marked bad": ({"prompt": "問", "completion": "悪", "label": False}, [("question", "問"), ("rejected", "悪")]),
    "marked, messages": ({"messages": [user("前"), assistant("答"), user("問"), assistant("悪")], "label": "false"}, [("question", "前"), ("answer", "答"), ("question", "問"), ("rejected", "悪")]),
    "marked, explicit": ({"prompt": [SYSTEM, user("前"), assistant("答"), user("問")], "completion": [assistant("良")], "label": True}, TALK),
    "text": ({"text": "文"}, [("text", "文")]),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_what_each_text_is(name: str):
    values, expected = SHAPES[name]
    sample = sample_of(Row(values, "a.jsonl:1"), 1)
    assert sample.learnt
    assert [(item.role, item.text) for item in sample.passages] == expected
    asked = [(item.text, item.question) for item in sample.passages if item.role == "answer"]
    assert all(question == ("前" if text == "答" else "問") for text, question in asked)


def _with(value: Any, texts: dict[str, str]) -> Any:
    if isinstance(value, str):
        if value.startswith("["):
            return json.dumps(_with(json.loads(value), texts), ensure_ascii=False)
        return texts.get(value, value)
    if isinstance(value, dict):
        return {key: _with(item, texts) for key, item in value.items()}
    return [_with(item, texts) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", SHAPES)
def test_every_text_is_masked_repaired_and_given_back(name: str, tmp_path: Path):
    values, expected = SHAPES[name]
    texts = {text: f"{text}は{text}』090-1234-5678です。" for _, text in expected}
    row = _with(values, texts)
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    samples = read_samples(file).samples
    assert len(hits_of(samples)["mobile"]) == len(expected)
    done = repair(samples, Wanted("safe", True))
    (kept,) = done.rows
    assert "1234" not in json.dumps(kept.values, ensure_ascii=False)
    assert [item.text for item in kept.passages] == [f"『{text}は{text}』090-0000-0000です。" for _, text in expected]
    out = tmp_path / "b" / "clean.jsonl"
    out.parent.mkdir()
    journal = write(done, samples, out)
    assert journal.name == JOURNAL
    written = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert undo(written, journal) == [row]


@pytest.mark.parametrize("name", [name for name in SHAPES if name != "text"])
def test_loops_are_looked_for_in_answers_that_are_to_be_learnt(name: str):
    values, expected = SHAPES[name]
    row = _with(values, {text: text * 80 for _, text in expected})
    found = hits_of([sample_of(Row(row, "a.jsonl:1"), 1)]).get("loop", [])
    assert len(found) == sum(role == "answer" for role, _ in expected)
