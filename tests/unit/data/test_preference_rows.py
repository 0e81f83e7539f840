"""Rows with two answers or a marked one: every shape is read as what it means, and refused by name under another objective."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.models import build_tokenizer

from ai_finetuning import DataConfig
from ai_finetuning.data.bad_rows import BadRows
from ai_finetuning.data.messages import Comparison, Judged
from ai_finetuning.data.prepare import load_examples, read_samples
from ai_finetuning.data.sources import load_samples
from ai_finetuning.errors import ConfigError, DataError

Q, GOOD, BAD = "首都は？", "東京です。", "知りません。"


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def read(row: Any, objective: str = "preference", **settings: Any) -> tuple[list[Any], list[str]]:
    rows = row if isinstance(row, list | str) else [row]
    bad = BadRows(settings.get("skip_bad_rows", False))
    samples, lines = read_samples(rows, DataConfig(**settings), bad, objective)  # type: ignore[arg-type]
    bad.refuse()
    return samples, lines


def said(row: Any, **settings: Any) -> tuple[list[tuple[str, str]], list[tuple[str, str]], list[tuple[str, str]]]:
    """(prompt, chosen, rejected) as (role, text)."""
    (sample,), _ = read(row, **settings)
    assert isinstance(sample, Comparison)
    assert not any(item.learn for item in sample.prompt if item.role == "assistant")
    assert all(item.learn for side in (sample.chosen, sample.rejected) for item in side)
    parts = ([(item.role, item.content) for item in part] for part in (sample.prompt, sample.chosen, sample.rejected))
    prompt, chosen, rejected = parts
    return prompt, chosen, rejected


BOTH = {"chosen": GOOD, "rejected": BAD}
ONE = ([("user", Q)], [("assistant", GOOD)], [("assistant", BAD)])
LATER = (
    [("user", "前"), ("assistant", "答"), ("user", Q)],
    [("assistant", GOOD)],
    [("assistant", BAD)],
)
BEFORE = [user("前"), assistant("答"), user(Q)]
HH = "\n\nHuman: 前\n\nAssistant: 答\n\nHuman: 首都は？\n\nAssistant: "
SHAPES: dict[str, tuple[dict[str, Any], Any]] = {
    "strings": ({"prompt": Q, "chosen": GOOD, "rejected": BAD, "judge": "A", "chosen_model": "x"}, ONE),
    "prompt a string, answers messages": (
        {"prompt": Q, "chosen": [assistant(GOOD)], "rejected": [assistant(BAD)]},
        ONE,
    ),
    "prompt a string, answers whole conversations": (
        {"prompt": Q, "chosen": [user(Q), assistant(GOOD)], "rejected": [user(Q), assistant(BAD)], "chosen_score": 8},
        ONE,
    ),
    "prompt messages, answers strings": ({"prompt": BEFORE, "chosen": GOOD, "rejected": BAD}, LATER),
    "prompt messages as JSON": ({"prompt": json.dumps(BEFORE), "chosen": GOOD, "rejected": BAD}, LATER),
    "prompt messages, answers whole conversations": (
        {"prompt": BEFORE, "chosen": [*BEFORE, assistant(GOOD)], "rejected": [*BEFORE, assistant(BAD)]},
        LATER,
    ),
    "one answer whole, one a string": ({"prompt": Q, "chosen": [user(Q), assistant(GOOD)], "rejected": BAD}, ONE),
    "no prompt, whole conversations": (
        {"chosen": [*BEFORE, assistant(GOOD)], "rejected": [*BEFORE, assistant(BAD)]},
        LATER,
    ),
    "no prompt, texts of whole conversations": ({"chosen": HH + GOOD, "rejected": HH + BAD}, LATER),
    "texts of conversations in lines": (
        {"chosen": f"Human: {Q}\nAssistant: {GOOD}", "rejected": f"Human: {Q}\nAssistant: {BAD}"},
        ONE,
    ),
    "a prompt as text of a conversation": ({"prompt": HH, "chosen": GOOD, "rejected": BAD}, LATER),
    "instruction with input": (
        {"instruction": "要約して", "input": "長い文", "chosen": GOOD, "rejected": BAD},
        ([("user", "要約して")], *ONE[1:]),
    ),
    "conversations, one message a side": (
        {
            "conversations": [{"from": "human", "value": Q}],
            "chosen": {"from": "gpt", "value": GOOD},
            "rejected": {"from": "gpt", "value": BAD},
        },
        ONE,
    ),
    "of OpenAI": (
        {
            "input": {"messages": [user(Q)], "tools": []},
            "preferred_output": [assistant(GOOD)],
            "non_preferred_output": [assistant(BAD)],
        },
        ONE,
    ),
    "system and history": (
        {"system": "役", "history": [["前", "答"]], "instruction": Q, "chosen": GOOD, "rejected": BAD},
        ([("system", "役"), *LATER[0]], *LATER[1:]),
    ),
    "response1, response2 and the better one by name": (
        {"instruction": Q, "response1": BAD, "response2": GOOD, "preference": "response2"},
        ONE,
    ),
    "messages that end with an answer, and instruction": (
        {
            "messages": [*BEFORE, assistant(BAD)],
            "instruction": Q,
            "response1": GOOD,
            "response2": BAD,
            "preference": "response1",
        },
        LATER,
    ),
    "an arena": (
        {
            "conversation_a": [user(Q), assistant(BAD)],
            "conversation_b": [user(Q), assistant(GOOD)],
            "winner": "model_b",
            "judge": "x",
        },
        ONE,
    ),
    "an arena as JSON in cells": (
        {
            "conversation_a": json.dumps([user(Q), assistant(GOOD)]),
            "conversation_b": json.dumps([user(Q), assistant(BAD)]),
            "winner": "model_a",
        },
        ONE,
    ),
    "a number as the name of an answer": (
        {"prompt": Q, "response_0": BAD, "response_1": GOOD, "better_response_id": 1},
        ONE,
    ),
    "Japanese headings": ({"質問": Q, "良い回答": GOOD, "悪い回答": BAD}, ONE),
    "Japanese headings, polite": ({"ご質問": Q, "好ましい応答": GOOD, "好ましくない応答": BAD}, ONE),
    "採用 and 不採用": ({"質問": Q, "採用": GOOD, "不採用": BAD}, ONE),
    "two answers and 優劣": ({"質問": Q, "回答1": BAD, "回答2": GOOD, "優劣": "回答2"}, ONE),
    "preferred and dispreferred": ({"question": Q, "preferred": GOOD, "dispreferred": BAD}, ONE),
    "winner_response": ({"question": Q, "winner_response": GOOD, "loser_response": BAD}, ONE),
    "texts with names of speakers beside their question": (
        {
            "prompt": f"\n\nHuman: {Q}\n\nAssistant:",
            **{side: f"\n\nHuman: {Q}\n\nAssistant: {text}" for side, text in BOTH.items()},
        },
        ONE,
    ),
    "the same beside the bare question": (
        {"prompt": Q, "chosen": f"Human: {Q}\n\nAssistant: {GOOD}", "rejected": BAD},
        ONE,
    ),
    "a dialogue as the answer": (
        {"prompt": "対話を書いて。", "chosen": "Human: やあ\nAssistant: はい", "rejected": BAD},
        ([("user", "対話を書いて。")], [("assistant", "Human: やあ\nAssistant: はい")], ONE[2]),
    ),
    "another column that is an answer": ({"prompt": Q, "chosen": GOOD, "rejected": BAD, "answer": "別"}, ONE),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_a_prompt_with_a_better_and_a_worse_answer(shape: str):
    row, expected = SHAPES[shape]
    assert said(row) == expected


@pytest.mark.parametrize("shape", SHAPES)
def test_supervised_training_refuses_every_shape_by_name_with_the_way_out(shape: str):
    row, _ = SHAPES[shape]
    with pytest.raises(DataError, match="objective: preference") as refusal:
        load_samples([row])
    assert "preference data" in refusal.value.en
    assert "objective: preference" in refusal.value.ja


def test_all_turns_of_several_are_learnt_and_the_users_have_to_be_the_same():
    first, second = ([user(Q), assistant(text), user("次は？"), assistant(text * 2)] for text in (GOOD, BAD))
    (sample,), _ = read({"conversation_a": first, "conversation_b": second, "winner": "a"})
    assert [item.content for item in sample.prompt] == [Q]
    assert [item.role for item in sample.chosen] == ["assistant", "user", "assistant"]


def test_a_column_that_is_not_used_is_named_and_a_system_prompt_goes_first():
    (sample,), lines = read(SHAPES["another column that is an answer"][0], system_prompt="短く。")
    assert any("answer" in line and "not used" in line for line in lines)
    assert [(item.role, item.content) for item in sample.prompt] == [("system", "短く。"), ("user", Q)]
    (sample,), _ = read({"prompt": Q, "chosen": GOOD, "rejected": BAD, "tools": [{"name": "f"}]})
    assert sample.tools == ({"name": "f"},)


def test_the_user_names_the_columns():
    columns = {"instruction": "本", "chosen": "甲", "rejected": "乙"}
    assert said({"本": Q, "甲": GOOD, "乙": BAD}, columns=columns) == ONE
    with pytest.raises(DataError, match="objective: preference"):
        load_samples([{"本": Q, "甲": GOOD, "乙": BAD}], columns=columns)
    with pytest.raises(ConfigError, match="chosen, rejected, label, preference"):
        read({"本": Q}, columns={"better": "本"})
    # One column of a pair is learnt where the user says so.
    (sample,), _ = load_samples(
        [{"prompt": Q, "chosen": GOOD, "rejected": BAD}], columns={"instruction": "prompt", "output": "chosen"}
    )
    assert sample.messages[-1].content == GOOD  # type: ignore[union-attr]


@pytest.mark.parametrize("names", [("chosen_score", "rejected_score"), ("score_chosen", "score_rejected")])
def test_a_choice_against_its_scores_is_said(names: tuple[str, str]):
    row = {"prompt": Q, "chosen": GOOD, "rejected": BAD}
    fits, against, none = (row | dict(zip(names, pair, strict=True)) for pair in ((9, "3.5"), ("2", 7.0), ("高い", 1)))
    samples, lines = read([fits, against, none, row])
    assert len(samples) == 4
    (line,) = [line for line in lines if "lower score" in line]
    assert ": 1" in line
    assert "2" in line
    assert not [line for line in read([fits, none])[1] if "lower score" in line]


def test_a_number_tells_only_where_the_user_says_for_whom_it_speaks():
    row = {"instruction": Q, "response1": BAD, "response2": GOOD, "preference": 2}
    with pytest.raises(DataError) as refusal:
        read(row)
    assert "data.columns={chosen: response2, rejected: response1, preference: preference}" in refusal.value.en
    assert "data.columns={chosen: response2, rejected: response1, preference: preference}" in refusal.value.ja
    columns = {"chosen": "response2", "rejected": "response1", "preference": "preference"}
    assert said(row, columns=columns) == ONE
    assert said({**row, "preference": "-3"}, columns=columns) == (ONE[0], ONE[2], ONE[1])
    _, lines = read([row, {**row, "preference": -1.0}, {**row, "preference": 0}], columns=columns)
    assert "columns of the better answers: response2 1, response1 1" in lines
    assert "ties between two answers, left out: 1" in lines
    _, lines = read([row, row], columns=columns)
    assert any("the same column is the better one in every row" in line for line in lines)
    # Named without their verdicts, the two columns are still no chosen and rejected one.
    assert said({**row, "preference": -2}, columns={"chosen": "response2", "rejected": "response1"})[1] == ONE[2]


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"prompt": Q, "chosen": GOOD, "rejected": f" {GOOD} "}, "no difference", "違いがありません"),
    ({"prompt": Q, "chosen": GOOD, "rejected": ""}, "rejected is empty", "rejected が空です"),
    ({"prompt": Q, "chosen": " ", "rejected": BAD}, "chosen is empty", "chosen が空です"),
    ({"prompt": Q, "chosen": [assistant("")], "rejected": BAD}, "message of assistant is empty", "発言が空です"),
    (
        {"prompt": Q, "chosen": [user(Q), assistant(GOOD), user("次")], "rejected": BAD},
        "does not end",
        "終わっていません",
    ),
    (
        {"chosen": [user(Q), assistant(GOOD), user("次")], "rejected": [user(Q), assistant(BAD)]},
        "does not end with the assistant",
        "assistant で終わっていません",
    ),
    (
        {"chosen": [user(Q), assistant(GOOD)], "rejected": [user("別"), assistant(BAD)]},
        "prompts differ",
        "質問が違います",
    ),
    (
        {"prompt": "別", "chosen": [user(Q), assistant(GOOD)], "rejected": [user(Q), assistant(BAD)]},
        "prompts differ",
        "質問が違います",
    ),
    (
        {"messages": [user(Q)], "instruction": "別", "response1": GOOD, "response2": BAD, "preference": "response1"},
        "prompts differ",
        "質問が違います",
    ),
    (
        {
            "prompt": [user("一"), assistant("別"), user(Q)],
            **{side: [user("一"), assistant("二"), user(Q), assistant(text)] for side, text in BOTH.items()},
        },
        "prompts differ",
        "質問が違います",
    ),
    (
        {"prompt": [user(Q), assistant("別")], "chosen": GOOD, "rejected": BAD},
        "neither of the two",
        "どちらでもありません",
    ),
    ({"chosen": GOOD, "rejected": BAD}, "there is no question", "質問がありません"),
    ({"chosen": [assistant(GOOD)], "rejected": [assistant(BAD)]}, "there is no question", "質問がありません"),
    ({"prompt": Q, "rejected": BAD}, "no two answers", "2 つありません"),
    ({"prompt": Q, "chosen": GOOD, "preferred": GOOD, "rejected": BAD}, "could all be the answer", "決められません"),
    ({"prompt": Q, "response_a": GOOD, "response_b": BAD, "winner": "c"}, "not known", "分かりません"),
    ({"prompt": Q, "response_a": GOOD, "response_b": BAD, "winner": ""}, "is empty", "空です"),
    # Numbered from 0, it is no tie: the first one is the better.
    ({"prompt": Q, "response_1": GOOD, "response_2": BAD, "winner": 0}, "not known", "分かりません"),
    ({"prompt": Q, "response_a": GOOD, "response_b": BAD, "preference": True}, "not known", "分かりません"),
    (
        {"prompt": Q, "chosen": [{**assistant(GOOD), "weight": 0}], "rejected": BAD},
        "nothing of chosen is to be learnt",
        "学習する発言がありません",
    ),
    (
        {"system": "役", "chosen": [{"role": "system", "content": "別"}, user(Q), assistant(GOOD)], "rejected": BAD},
        "differ",
        "違います",
    ),
    ({"instruction": Q, "output": GOOD}, "plain data (question and answer)", "ふつうの学習データ"),
    ({"messages": [user(Q), assistant(GOOD)]}, "plain data (messages)", "ふつうの学習データ"),
    ({"text": "本文"}, "plain data (text)", "ふつうの学習データ"),
    ({"prompt": Q, "completion": BAD, "label": False}, "objective: kto", "objective: kto"),
    ({"image": "a.png", "prompt": Q, "chosen": GOOD, "rejected": BAD}, "pictures", "画像"),
    ({"memo": "x"}, "needs pairs of a better and a worse answer", "組"),
]


@pytest.mark.parametrize(("row", "en", "ja"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_is_no_pair_is_refused_by_its_place_and_can_be_left_out(
    row: dict[str, Any], en: str, ja: str, tmp_path: Path
):
    path = tmp_path / "a.jsonl"
    good = {"prompt": "人口は？", "chosen": "多い。", "rejected": "少ない。"}
    rows = [row] if "memo" in row else [good, row]
    path.write_text("".join(json.dumps(item) + "\n" for item in rows), encoding="utf-8")
    with pytest.raises(DataError) as refusal:
        read(str(path))
    assert en in refusal.value.en
    assert ja in refusal.value.ja
    if "memo" not in row:
        assert f"{path}:2" in refusal.value.en
        bad = BadRows(True)
        samples, _ = read_samples(str(path), DataConfig(), bad, "preference")
        assert len(samples) == len(bad) == 1


@pytest.mark.parametrize("winner", ["tie", "tie (bothbad)", "both_bad", "引き分け", "draw"])
def test_ties_are_left_out_and_counted_and_refused_where_there_is_nothing_else(winner: str):
    tie = {"prompt": Q, "response_a": GOOD, "response_b": BAD, "winner": winner}
    samples, lines = read([tie, {**tie, "winner": "model_a"}])
    assert len(samples) == 1
    assert not any("not used" in line for line in lines)
    assert "ties between two answers, left out: 1" in lines
    with pytest.raises(DataError, match="all 2 pairs of answers are ties") as refusal:
        read([tie, tie])
    assert "引き分け" in refusal.value.ja


MARKED: list[tuple[dict[str, Any], bool]] = [
    ({"prompt": Q, "completion": BAD, "label": False}, False),
    ({"prompt": Q, "completion": GOOD, "label": True}, True),
    ({"prompt": [user(Q)], "completion": [assistant(GOOD)], "label": True}, True),
    ({"prompt": Q, "completion": BAD, "label": 0}, False),
    ({"prompt": Q, "completion": GOOD, "label": "1"}, True),
    ({"prompt": Q, "completion": GOOD, "label": 1.0}, True),
    ({"prompt": Q, "completion": GOOD, "label": "👍"}, True),
    ({"prompt": Q, "completion": BAD, "label": "👎"}, False),
    ({"prompt": Q, "completion": [assistant(GOOD)], "label": True}, True),
    ({"prompt": [user(Q)], "completion": BAD, "label": False}, False),
    ({"prompt": json.dumps([user(Q)]), "completion": BAD, "label": False}, False),
    ({"prompt": json.dumps([user(Q)]), "completion": json.dumps([assistant(GOOD)]), "label": True}, True),
    ({"prompt": [user(Q)], "completion": [user(Q), assistant(GOOD)], "label": True}, True),
    ({"messages": [*BEFORE, assistant(GOOD)], "kto_tag": True}, True),
    ({"instruction": Q, "input": "", "output": BAD, "kto_tag": "false"}, False),
    ({"質問": Q, "回答": BAD, "評価": "×"}, False),
    ({"質問": Q, "回答": BAD, "評価": "✕"}, False),
    ({"質問": Q, "回答": GOOD, "評価": "〇"}, True),
    ({"質問": Q, "回答": BAD, "評価": "わるい"}, False),
    ({"質問": Q, "回答": GOOD, "評価": "\U0001f44d\U0001f3fb"}, True),  # with a colour of skin
    ({"質問": Q, "回答": BAD, "評価": "\U0001f44e\ufe0f"}, False),
    ({"質問": Q, "回答": GOOD, "良し悪し": "良い"}, True),
    ({"question": Q, "answer": GOOD, "feedback": "thumbs_up"}, True),
]


@pytest.mark.parametrize(("row", "good"), MARKED, ids=lambda value: str(value)[:60])
def test_a_marked_answer_is_judged_and_nothing_else_of_its_row_is_learnt(row: dict[str, Any], good: bool):
    (sample,), _ = read(row, "kto")
    assert isinstance(sample, Judged)
    assert sample.good is good
    learnt = [item.content for item in sample.conversation.messages if item.role == "assistant" and item.learn]
    assert learnt == [GOOD if good else BAD]
    assert sum(item.content == Q for item in sample.conversation.messages) == 1
    with pytest.raises(DataError, match="objective: kto") as refusal:
        load_samples([row])
    assert "good or bad" in refusal.value.en
    assert "objective: kto" in refusal.value.ja


def test_the_column_of_marks_can_be_named():
    row = {"質問": Q, "回答": BAD, "判": "0", "label": True}
    (sample,), _ = read(row, "kto", columns={"label": "判"})
    assert sample.good is False
    with pytest.raises(DataError, match="good or bad"):
        load_samples([{"質問": Q, "回答": BAD, "判": "0"}], columns={"label": "判"})


@pytest.mark.parametrize(
    ("row", "en", "ja"),
    [
        ({"prompt": Q, "completion": GOOD, "label": 3}, "label is no yes or no", "良し悪しではありません"),
        ({"prompt": Q, "completion": GOOD, "label": None}, "label is empty", "label が空です"),
        ({"prompt": Q, "completion": GOOD, "評価": "5"}, "評価 is no yes or no", "良し悪しではありません"),
        ({"prompt": Q, "completion": GOOD, "label": True, "評価": "悪い"}, "disagree", "食い違っています"),
        ({"prompt": Q, "completion": GOOD}, "plain data (question and answer)", "ふつうの学習データ"),
        ({"text": "本文", "label": 1}, "classification", "分類"),
        ({"text": "本文"}, "plain data (text)", "ふつうの学習データ"),
        ({"prompt": Q, "chosen": GOOD, "rejected": BAD}, "objective: preference", "objective: preference"),
        ({"prompt": Q, "completion": "", "label": True}, "completion is empty", "completion が空です"),
        (
            {"prompt": [user(Q)], "completion": [user("別"), assistant(GOOD)], "label": True},
            "completion begins with another question",
            "別の質問から始まっています",
        ),
        ({"image": "a.png", "prompt": Q, "completion": GOOD, "label": True}, "pictures", "画像"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_not_marked_is_refused_under_kto(row: dict[str, Any], en: str, ja: str):
    with pytest.raises(DataError) as refusal:
        read([{"prompt": "人口は？", "completion": "多い。", "label": True}, row], "kto")
    assert en in refusal.value.en
    assert ja in refusal.value.ja
    assert "[2]" in refusal.value.en


def test_ready_made_samples_are_taken_under_their_own_objective_only():
    (pair,), _ = read(SHAPES["strings"][0])
    assert read([pair])[0] == [pair]
    for objective in ("sft", "kto"):
        with pytest.raises(DataError, match="data for objective: preference"):
            read([pair], objective)


def test_a_pair_with_an_empty_side_is_still_no_plain_answer():
    with pytest.raises(DataError, match="objective: preference"):
        load_samples([{"prompt": Q, "chosen": GOOD, "rejected": "", "answer": "別"}])


def test_a_sentiment_beside_an_answer_is_still_a_class():
    (sample,), _ = load_samples([{"question": Q, "answer": GOOD, "label": "positive"}])
    assert sample.messages[-1].content == GOOD  # type: ignore[union-attr]


@pytest.mark.parametrize("mark", ["△", "", None])
@pytest.mark.parametrize("cached", [True, False])
def test_rows_between_marked_ones_are_not_trained_as_plain_answers(
    mark: str | None, cached: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Where bad rows are left out: the mark that is not known may mean anything."""
    monkeypatch.setenv("AIFT_CACHE", str(tmp_path / "cache"))
    rows: list[dict[str, Any]] = [{"質問": f"{n}？", "回答": "はい。", "評価": "○×"[n % 2]} for n in range(4)]
    rows.append({"質問": "5？", "回答": "たぶん。", "評価": mark})
    path = tmp_path / "a.jsonl"

    def load(some: list[dict[str, Any]], **settings: Any) -> int:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in some), encoding="utf-8")
        config = DataConfig(max_length=64, skip_bad_rows=True, cache=cached, **settings)
        return len(load_examples(str(path), build_tokenizer(), config)[0])

    with pytest.raises(DataError) as refusal:
        load(rows)
    assert f"{path}: the answers of 4 rows are marked as good or bad, and 1 rows have nothing" in refusal.value.en
    assert "objective: kto" in refusal.value.ja
    assert load([{"質問": "6？", "回答": "はい。"}, *rows[:4]]) == 1  # a row without the column is a plain one
    assert load(rows, columns={"instruction": "質問", "output": "回答"}) == 5  # as it was asked for


def test_a_file_without_its_other_answers_is_not_told_to_learn_one_of_them():
    for row in (
        {"prompt": Q, "chosen": GOOD, "rejectd": BAD},
        {"question": Q, "conversation_a": GOOD, "conversation_b": BAD},
    ):
        with pytest.raises(DataError) as refusal:
            read([row], "sft")
        first = list(row)[1]
        assert first in refusal.value.en.partition("seem to be")[0]
        assert "data.columns={instruction: QUESTION, chosen: BETTER, rejected: WORSE}" in refusal.value.en
        assert "data.columns={instruction: QUESTION, chosen: BETTER, rejected: WORSE}" in refusal.value.ja
        assert f"output: {first}" not in refusal.value.en
