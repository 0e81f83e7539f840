"""What rows mean: every column is used, or named, or the row is refused; none is trained as something else."""

from __future__ import annotations

import json
import random
import shlex
from pathlib import Path

import pytest
import yaml

from ai_finetuning.data.columns import map_columns, role_of
from ai_finetuning.data.files import READERS
from ai_finetuning.data.formats import FORMATS, find_format
from ai_finetuning.data.messages import Conversation, PlainText
from ai_finetuning.data.row_format import NO_VALUES
from ai_finetuning.data.sources import load_samples
from ai_finetuning.errors import DataError


def turns(row: object, **options: object) -> list[tuple[str, str]]:
    """(role, text) of the conversation that a row becomes; learnt answers in capitals."""
    (sample,), _ = load_samples([row], **options)  # type: ignore[arg-type]
    assert isinstance(sample, Conversation)
    return [
        (
            item.role.upper() if item.role == "assistant" and item.learn else item.role,
            item.content or str(item.tool_calls),
        )
        for item in sample.messages
    ]


def talk(*texts: str) -> list[tuple[str, str]]:
    return [("ASSISTANT" if index % 2 else "user", text) for index, text in enumerate(texts)]


Q, A = "首都は？", "東京です。"
USER, ANSWER = {"role": "user", "content": Q}, {"role": "assistant", "content": A}
TAUGHT = [
    ({"ID": "ichikara-003-001-1", "text": Q, "output": A}, talk(Q, A)),
    ({"input": Q, "output": A}, talk(Q, A)),
    ({"question": "1+1は?", "answer": 2}, talk("1+1は?", "2")),
    ({"instruction": "人口は？", "output": "多い。", "history": [[Q, A]]}, talk(Q, A, "人口は？", "多い。")),
    (
        {"instruction": "人口は？", "output": "多い。", "history": json.dumps([[Q, A]])},
        talk(Q, A, "人口は？", "多い。"),
    ),
    ({"conversation": [{"human": Q, "assistant": A}]}, talk(Q, A)),
    ({"conversation": [{"system": "役", "input": Q, "output": A}]}, [("system", "役"), *talk(Q, A)]),
    ({"messages": json.dumps([USER, ANSWER])}, talk(Q, A)),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": Q}]}, ANSWER]}, talk(Q, A)),
    ({"messages": [{"role": "user", "value": [{"type": "text", "value": Q}]}, ANSWER]}, talk(Q, A)),
    ({"messages": [{"role": "User", "content": Q}, {"role": "chatgpt", "content": A}]}, talk(Q, A)),
    ({"messages": [{"from": "prompter", "value": Q}, {"from": "gpt", "value": A}]}, talk(Q, A)),
    ({"messages": [{"role": "ユーザー", "content": Q}, {"role": "アシスタント", "content": A}]}, talk(Q, A)),
    ({"messages": [{"role": "developer", "content": "役"}, USER, ANSWER]}, [("system", "役"), *talk(Q, A)]),
    (
        {"system": "役", "conversations": [{"from": "human", "value": Q}, {"from": "gpt", "value": A}]},
        [("system", "役"), *talk(Q, A)],
    ),
    ({"prompt": [USER], "completion": [ANSWER]}, talk(Q, A)),
    (
        {"prompt": [USER, ANSWER, USER], "completion": [ANSWER]},
        [("user", Q), ("assistant", A), ("user", Q), ("ASSISTANT", A)],
    ),
    ({"messages": [USER, {**ANSWER, "weight": 0}, USER, ANSWER]}, [("user", Q), ("assistant", A), *talk(Q, A)]),
    ({"messages": [USER, {**ANSWER, "train": False}, USER, ANSWER]}, [("user", Q), ("assistant", A), *talk(Q, A)]),
    ({"messages": [USER, {**ANSWER, "loss": "false"}, USER, ANSWER]}, [("user", Q), ("assistant", A), *talk(Q, A)]),
    ({"messages": [USER, {**ANSWER, "loss_mask": 0}, USER, ANSWER]}, [("user", Q), ("assistant", A), *talk(Q, A)]),
    ({"messages": [USER, {**ANSWER, "trainable": False}, USER, ANSWER]}, [("user", Q), ("assistant", A), *talk(Q, A)]),
    ({"messages": [USER, {**ANSWER, "masked": True}, USER, ANSWER]}, [("user", Q), ("assistant", A), *talk(Q, A)]),
    (
        {
            "conversations": [
                {"from": "human", "value": "天気は？"},
                {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "東京"}}'},
                {"from": "observation", "value": "晴れ"},
                {"from": "gpt", "value": "晴れです。"},
            ]
        },
        [
            ("user", "天気は？"),
            ("ASSISTANT", "({'type': 'function', 'function': {'name': 'weather', 'arguments': {'city': '東京'}}},)"),
            ("tool", "晴れ"),
            ("ASSISTANT", "晴れです。"),
        ],
    ),
    ({"messages": None, "instruction": Q, "output": A}, talk(Q, A)),
]


@pytest.mark.parametrize(("row", "expected"), TAUGHT, ids=lambda value: str(value)[:50])
def test_rows_of_other_tools_are_what_they_mean(row: dict, expected: list):
    assert turns(row) == expected


HEADINGS = [
    ("問", "答"), ("ご質問", "ご回答"), ("お問い合わせ", "ご回答"), ("質問内容", "回答内容"), ("質問文", "回答文"),
    ("よくある質問", "回答"), ("設問", "解答"), ("FAQ質問", "FAQ回答"), ("質問（Q）", "回答（A）"), ("「質 問」", "「回 答」"),
    ("質 問", "回 答"), ("件名", "内容"), ("お客様の声", "市の考え方"), ("ユーザー", "アシスタント"), ("プロンプト", "応答"),
    ("question_ja", "answer_ja"), ("user_question", "answer"), ("problem", "solution"), ("QUESTION", " Answer "),
    ("ご質問内容", "ご回答内容"), ("【質問】", "【回答】"), ("Ｑ", "Ａ"), ("想定質問", "模範解答"), ("お問合せ内容", "対応内容"),
    ("ご意見・ご要望", "市の回答"), ("質問例", "回答例"), ("利用者の質問", "担当の回答"), ("質問１", "回答１"), ("顧客", "オペレーター"),
    ("ユーザーの発話", "システムの応答"), ("問題文", "解答例"), ("user_message", "assistant_message"), ("ご質問の内容", "回答の内容"),
    ("ご相談", "ご返答"), ("ご意見", "考え方"), ("prompt", "response"), ("質問事項", "回答事項"),
    ("①質問", "②回答"), ("1.質問", "2.回答"), ("Q：質問", "A：回答"), ("質問※必須", "回答*"), ("ご相談内容", "アドバイス"), ("質疑", "答弁"),
    ("問い", "応え"), ("user_query", "model_response"), ("question", "correct_answer"), ("Human", "AI"), ("お題", "回答"),
]  # fmt: skip


@pytest.mark.parametrize(("question", "answer"), HEADINGS)
def test_headings_that_people_write(question: str, answer: str):
    assert turns({"No": 1, question: Q, answer: A}) == talk(Q, A)
    _, report = load_samples([{question: Q, answer: A}])
    (line,) = (line for line in report.lines() if line.startswith("roles of columns"))
    assert f"{question} → instruction" in line
    assert f"{answer} → output" in line


def test_a_heading_that_names_a_speaker_gives_way_to_one_that_names_a_question():
    assert map_columns(["ユーザー", "質問", "回答"]) == {"instruction": "質問", "output": "回答"}
    for name in ("備考", "質問の種類", "回答者", "回答の有無", "質問/回答", "質問日", "回答者の名前"):
        assert role_of(name) is None, name
    with pytest.raises(DataError, match="回答1"):
        map_columns(["質問", "回答1", "回答2"])
    with pytest.raises(DataError, match="件名"):
        map_columns(["件名", "内容", "回答"])  # the question could be either


REFUSED = [
    ({"prompt": Q, "chosen": A, "rejected": "知りません。"}, "preference"),
    ({"chosen": [USER, ANSWER], "rejected": [USER, ANSWER]}, "preference"),
    ({"instruction": Q, "chosen_response": A, "rejected_response": "いいえ"}, "preference"),
    ({"prompt": Q, "completion": A, "label": False}, "good or bad"),
    ({"messages": [USER, ANSWER], "kto_tag": True}, "good or bad"),
    ({"question": Q, "answer": A, "label": 0}, "good or bad"),
    ({"question": Q, "answer": A, "feedback": "Bad"}, "good or bad"),
    ({"質問": Q, "回答": A, "評価": "×"}, "good or bad"),
    ({"message_id": "2", "parent_id": "1", "role": "assistant", "text": A}, "message tree"),
    ({"role": "user", "content": Q}, "one message a row"),
    ({"from": "gpt", "value": A}, "one message a row"),
    ({"speaker": "ユーザー", "text": Q, "conversation_id": 1}, "one message a row"),
    ({"question": Q, "answer": A, "is_correct": "いいえ"}, "good or bad"),
    ({"質問": Q, "回答": A, "採否": "否"}, "good or bad"),
    ({"messages": [USER, {**ANSWER, "feedback": "thumbs_down"}]}, "feedback calls a message a bad answer"),
    ({"messages": json.dumps([USER, {**ANSWER, "is_correct": False}])}, "is_correct calls a message"),
    ({"prompt": Q, "better": A, "worse": "知りません。"}, "preference"),
    ({"質問": Q, "良い回答例": A, "悪い回答例": "知りません。"}, "preference"),
    ({"prompt": Q, "response": A, "rejected_output": "知りません。"}, "preference"),
    ({"question": Q, "answer": A, "img": "a.png"}, "pictures"),
    ({"prompt": {"text": Q, "replies": [{"text": A}]}}, "message tree"),
    ({"image": "a.png", "question": Q, "answer": A}, "pictures"),
    ({"images": ["a.png"], "messages": [USER, ANSWER]}, "pictures"),
    ({"question": Q, "choices": ["大阪", "東京"], "answer": 1}, "choices"),
    ({"context": "日本", "question": Q, "answers": {"text": ["東京"], "answer_start": [0]}}, "SQuAD"),
    ({"prompt": Q, "responses": [A, "京都"], "scores": [1, 0]}, "several answers"),
    ({"query": "首都", "pos": ["東京"], "neg": ["大阪"]}, "retrieval"),
    ({"text": "良い店でした", "label": 1}, "classification"),
    ({"sentence1": "a", "sentence2": "b", "score": 0.5}, "classification"),
    ({"text": "長い記事", "summary": "要約"}, "summary"),
    ({"tokens": ["東京"], "ner_tags": [1]}, "tags"),
    ({"translation": {"en": "Hello", "ja": "こんにちは"}}, "translation"),
    ({"input_ids": [1, 2], "labels": [1, 2]}, "tokenized"),
    ({"instruction": Q, "output": [A, A]}, "a list"),
    ({"instruction": Q, "output": "#N/A"}, "#N/A"),
    ({"instruction": Q, "output": float("nan")}, "nan"),
    ({"instruction": Q, "output": True}, "a bool"),
    ({"text": Q, "output": ""}, "output is empty"),
    ({"text": Q, "output": None}, "output is empty"),
    ({"instruction": Q}, "make no training sample"),
    ({"text": "本文", "instruction": Q}, "make no training sample"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, ANSWER]}, "image_url"),
    ({"messages": [USER, {"role": "assistant", "content": A, "weight": 0.5}]}, '"0.5": weight must be 0 or 1'),
    ({"system": "役", "messages": [{"role": "system", "content": "別"}, USER, ANSWER]}, "differ"),
    ({"instruction": Q, "output": A, "history": ["あ"]}, "pairs"),
    ({"messages": "[{"}, "not valid JSON"),
    ({"messages": [{**USER, "images": ["x.png"]}, ANSWER]}, "no pictures"),
    ({"messages": [USER, {**ANSWER, "audio": {"id": "x"}}]}, "no pictures"),
    ({"messages": [USER, {**ANSWER, "train_detail": [{"train": False}]}]}, "train_detail"),
    ({"messages": [USER, {**ANSWER, "label_mask": 1}]}, "label_mask"),
    ({"messages": [{"role": "user", "content": None}, ANSWER]}, "no content"),
    ({"messages": [{"role": "function_call", "content": "{}"}, ANSWER]}, "function name"),
]


@pytest.mark.parametrize(("row", "reason"), REFUSED, ids=lambda value: str(value)[:50])
def test_rows_that_are_no_answers_are_refused_by_name_and_can_be_left_out(row: dict, reason: str):
    good = {"instruction": "人口は？", "output": "多い。"}
    with pytest.raises(DataError) as refusal:
        load_samples([row])
    assert reason in refusal.value.en, refusal.value.en
    samples, report = load_samples([good, row], skip_bad_rows=True)
    assert [item.messages[-1].content for item in samples] == ["多い。"]
    assert len(report.bad) == 1


def test_ratings_and_categories_beside_an_answer_are_named_and_not_refused():
    rows = [
        {"質問": Q, "回答": A, "評価": 4},
        {"instruction": Q, "output": "positive", "label": "positive", "score": 1},
    ]
    samples, report = load_samples(rows)
    assert len(samples) == 2
    assert dict(report.unused_columns) == {"評価": 1, "label": 1, "score": 1}


def test_what_the_user_says_of_the_columns_goes_before_the_formats():
    row = {"prompt": Q, "chosen": A, "rejected": "知りません。"}
    assert turns(row, columns={"instruction": "prompt", "output": "chosen"}) == talk(Q, A)
    samples, report = load_samples([{"text": "記事", "summary": "要約"}], columns={"text": "text"})
    assert samples == [PlainText("記事", "[1]")]
    assert "summary" in report.unused_columns


def test_what_is_not_used_is_named_with_its_rows():
    rows = [
        {"messages": [USER, {**ANSWER, "id": 7}], "instruction": "別", "カテゴリ": "地理", "空": ""},
        {"text": "文", "title": "題"},
        {"instruction": Q, "output": A, "text": "同じ行を別の形で"},
    ]
    _, report = load_samples(rows)
    assert dict(report.unused_columns) == {"instruction": 1, "カテゴリ": 1, "title": 1, "text": 1}
    assert dict(report.unused_keys) == {"id": 1}
    assert dict(report.formats) == {"messages": 1, "text": 1, "question and answer": 1}
    text = "\n".join(report.lines())
    for name in ("instruction", "カテゴリ", "title", "message keys not used: id", "formats of the rows"):
        assert name in text


@pytest.mark.parametrize(
    "names", [("件名: 詳細, 補足", "it's {x}"), ("true", "null"), ("1", "2"), ("見出", "内 訳"), ("a#b", "質問\n答")]
)
def test_the_example_of_a_refusal_is_one_that_a_shell_and_yaml_take(names: tuple[str, str]):
    row = dict(zip(names, ("あああ", "いいい"), strict=True))
    with pytest.raises(DataError) as refusal:
        load_samples([row])
    example = refusal.value.en.partition("for example ")[2].partition("; roles")[0]
    (argument,) = shlex.split(example)
    columns = yaml.safe_load(argument.removeprefix("data.columns="))
    assert columns == {"instruction": names[0], "output": names[1]}
    assert len(load_samples([row], columns=columns)[0]) == 1


def test_a_second_text_of_a_message_is_named():
    row = [{**USER, "text": "別の文"}, {**ANSWER, "value": A, "from": "human"}]
    samples, report = load_samples([{"messages": row}])
    assert [item.content for item in samples[0].messages] == [Q, A]
    assert dict(report.unused_keys) == {"text": 1, "from": 1}


def test_marks_of_questions_and_of_turns_that_are_not_learnt_refuse_nothing():
    marked = [{**USER, "label": False}, {**ANSWER, "weight": 0, "rating": "bad"}, USER, ANSWER]
    samples, _ = load_samples([{"messages": marked}])
    assert [item.learn for item in samples[0].messages if item.role == "assistant"] == [False, True]
    (text,), _ = load_samples([{"text": Q, "from": "gpt"}], columns={"text": "text"})
    assert text.text == Q


def test_keys_of_earlier_turns_are_named_as_those_of_messages():
    earlier = [{**USER, "rating": 3}, ANSWER]
    _, report = load_samples([{"instruction": Q, "output": A, "history": earlier}])
    assert dict(report.unused_keys) == {"rating": 1}


def test_data_that_says_of_every_row_not_to_learn_it_is_told_so():
    with pytest.raises(DataError, match="all 2 rows say not to learn them"):
        load_samples([{"instruction": Q, "output": A, "weight": 0}] * 2)


def test_a_row_that_says_not_to_learn_it_is_counted_and_left_out():
    rows = [{"instruction": Q, "output": A, "train": "false"}, {"messages": [USER, {**ANSWER, "weight": 0}]}]
    samples, report = load_samples([*rows, {"instruction": Q, "output": A, "weight": 1}])
    assert len(samples) == 1
    assert report.unlearnt == 2
    assert any("not to learn" in line for line in report.lines())
    assert not report.bad


@pytest.mark.parametrize("marker", sorted(NO_VALUES))
def test_marks_of_missing_values_are_no_answers(marker: str):
    with pytest.raises(DataError, match="marks an error"):
        load_samples([{"質問": Q, "回答": f" {marker}"}])


def test_every_format_of_the_table_recognises_its_own_example():
    for item in FORMATS:
        obtained, _ = find_format(json.loads(item.example))
        assert obtained is item, item.key
        assert item.ja
        assert item.en
        assert item.ja != item.en


WORDS = ["首都は？", "東京です。", "人口", "一千四百万人です。", "天気", "晴れ"]
KEYS = [
    "instruction", "input", "output", "text", "messages", "system", "history", "質問", "回答", "ID", "備考", "title", "score",
    "chosen", "rejected", "label", "image", "choices", "weight", "summary", "category", "context", "reasoning",
]  # fmt: skip


def made_row(rng: random.Random) -> dict:
    """A row of some columns and some values of many types."""
    row: dict = {}
    for key in rng.sample(KEYS, rng.randint(1, 5)):
        row[key] = rng.choice(
            [
                rng.choice(WORDS),
                rng.choice(WORDS) + str(rng.random()),
                rng.choice(["", None, 3, 2.5, True, [], {}, ["あ"], {"role": "user"}]),
                [{"role": "user", "content": rng.choice(WORDS)}, {"role": "assistant", "content": rng.choice(WORDS)}],
            ]
        )
    return row


def shown(samples: list) -> str:
    return "\n".join(
        item.text if isinstance(item, PlainText) else "\n".join(f"{m.content}\n{m.input}" for m in item.messages)
        for item in samples
    )


def test_every_column_of_a_made_row_is_used_or_named_or_refused():
    """Every value of a row that is accepted stands in its sample, or its column is named as not used."""
    rng = random.Random(17)
    accepted = 0
    for _ in range(2500):
        row = made_row(rng)
        try:
            samples, report = load_samples([row])
        except DataError:
            continue
        accepted += 1
        text = shown(samples)
        for key, value in row.items():
            if value in (None, "", [], {}) or key in ("weight",) or key in report.unused_columns:
                continue
            values = [part["content"] for part in value] if isinstance(value, list) else [str(value)]
            assert all(part in text for part in values), (row, key)
    assert accepted > 100


def written(row: dict, kind: str, folder: Path) -> Path | None:
    """A row as a file of some kind; None where the kind cannot hold it."""
    import pyarrow
    import pyarrow.parquet

    path = folder / f"a{kind}"
    texts = all(isinstance(value, str) for value in row.values())
    if kind in (".jsonl", ".ndjson"):
        path.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    elif kind == ".json":
        path.write_text(json.dumps([row], ensure_ascii=False), encoding="utf-8")
    elif kind in (".csv", ".tsv") and texts and len(row) > 1:
        mark = "," if kind == ".csv" else "\t"
        path.write_text(f"{mark.join(row)}\n{mark.join(row.values())}\n", encoding="utf-8")
    elif kind == ".xlsx" and texts and len(row) > 1:
        import openpyxl

        book = openpyxl.Workbook()
        book.active.append(list(row))
        book.active.append(list(row.values()))
        book.save(path)
    elif kind in (".parquet", ".arrow", ".feather") and texts:
        table = pyarrow.Table.from_pylist([row])
        if kind == ".parquet":
            pyarrow.parquet.write_table(table, path)
        else:
            with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
    else:
        return None
    return path


def test_a_row_means_the_same_in_every_kind_of_file(tmp_path: Path):
    """Generated rows of texts, written to every kind of file that can hold them: one meaning, or refused by all."""
    rng = random.Random(18)
    compared = 0
    for _ in range(40):
        row = {key: rng.choice(WORDS) for key in rng.sample(KEYS[:3] + KEYS[7:18], rng.randint(2, 4))}
        meanings = {}
        for kind in READERS:
            path = written(row, kind, tmp_path)
            if path is None:
                continue
            try:
                samples, report = load_samples(path)
                meanings[kind] = (shown(samples), tuple(sorted(report.unused_columns)))
            except DataError:
                meanings[kind] = ("refused", ())
        assert len(set(meanings.values())) == 1, (row, meanings)
        compared += len(meanings) > 5
    assert compared > 20


@pytest.mark.parametrize("value", [5, True, {"a": 1}, 1.5])
def test_lists_that_are_none_refuse_their_row(value: object):
    """Tool calls and earlier turns of a row from somewhere else may be anything."""
    from ai_finetuning.data.bad_rows import BadRow
    from ai_finetuning.data.conversations import history, parse_messages

    with pytest.raises(BadRow):
        history(value, "history")
    with pytest.raises(BadRow):
        parse_messages([{"role": "assistant", "content": "a", "tool_calls": value}], "messages")
