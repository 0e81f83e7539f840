"""Public sets in both forms, the user's own file, and how they become prompts."""

from __future__ import annotations

import csv
import gzip
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.support.models import build_tokenizer

from ai_finetuning.errors import ConfigError, DataError, InputNotFoundError
from ai_finetuning.evaluation.public_sets import SETS, read_set
from ai_finetuning.evaluation.tasks import Asked, find_tasks, own_data, prose, public_task, sample

ROOT = Path(__file__).resolve().parents[3]
FIXTURES = ROOT / "tests" / "fixtures" / "eval"
SHARED = Path(os.environ.get("AIFT_SHARED", ROOT.parent / "shared")) / "data" / "eval"


@pytest.mark.parametrize("name", SETS)
def test_both_forms_hold_the_same_rows(name: str):
    published, one = (read_set(name, FIXTURES / form) for form in ("published", "one_a_line"))
    assert published == one
    assert len(published) >= 3


def test_what_the_rows_say():
    by_name = {name: read_set(name, FIXTURES / "published") for name in SETS}
    assert by_name["jcommonsenseqa"][1].choices[by_name["jcommonsenseqa"][1].right] == "トースター"
    assert [row.label for row in by_name["jnli"]] == ["entailment", "contradiction", "neutral", "entailment"]
    assert by_name["jsquad"][0].answers == ("1990年", "1990")
    assert by_name["jsquad"][0].context.startswith("青空駅は")
    assert by_name["niilc"][1].answers == ("七色", "7色")
    assert by_name["jmmlu"][2].choices[by_name["jmmlu"][2].right] == "H2O"


def test_packed_files_and_a_folder_that_is_the_set_itself(tmp_path: Path):
    with gzip.open(tmp_path / "jnli_valid.jsonl.gz", "wb") as file:
        file.write((FIXTURES / "one_a_line" / "jnli_valid.jsonl").read_bytes())
    assert read_set("jnli", tmp_path) == read_set("jnli", FIXTURES / "published")
    assert len(read_set("jcommonsenseqa", FIXTURES / "published" / "jcommonsenseqa-v1.3")) == 3


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("jcommonsenseqa_valid.jsonl", '{"id": 1, "question": "?", "choices": ["a", "b"], "label": 2}\n', "label 2"),
        ("jcommonsenseqa_valid.jsonl", "[1]\n", "no object"),
        (
            "jcommonsenseqa_valid.jsonl",
            '{"id": 1, "question": "?", "choices": ["a", "b"], "label": true}\n',
            "label True",
        ),
        ("jcommonsenseqa_valid.jsonl", '{"id": 1, "question": "?", "choices": "ab", "label": 0}\n', "too few"),
        ("jcommonsenseqa_valid.jsonl", '{"id": 1, "question": "?", "choices": ["a", ""], "label": 0}\n', "empty"),
        ("jnli_valid.jsonl", '{"id": 1, "premise": "a", "hypothesis": "b", "label": "yes"}\n', "label yes"),
        ("niilc_dev.xml", '<!DOCTYPE a [<!ENTITY b "c">]><questions/>', "DOCTYPE"),
        ("niilc_dev.xml", "<questions>", "niilc"),
        ("jmmlu.csv", "q,a,b,c,d,A\nq,a,b,c,d,E\n", "answer 'E'"),
        ("jmmlu.csv", "q,a,,c,d,A\n", "empty"),
        (
            "niilc_dev.xml",
            "<questions><question id='1'><answers><answer>a</answer></answers></question></questions>",
            "empty",
        ),
        ("jsquad_valid.json", '{"data": [{"paragraphs": [{"qas": []}]}]}', "context"),
        ("jsquad_valid.json", "[" * 100_000, "jsquad"),
    ],
)
def test_a_damaged_set_is_refused_by_name(file: str, content: str, said: str, tmp_path: Path):
    (tmp_path / file).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=file) as refused:
        read_set(file.split("_")[0].split(".")[0], tmp_path)
    assert said in str(refused.value.en)


def test_a_field_that_is_too_long_for_a_table_is_refused(tmp_path: Path):
    (tmp_path / "jmmlu.csv").write_text("q,a,b,c,d,A\n" + "q" * 200_000 + ",a,b,c,d,A\n", encoding="utf-8")
    limit = csv.field_size_limit(131_072)  # readers of data may have raised it in this process
    try:
        with pytest.raises(DataError, match="field larger"):
            read_set("jmmlu", tmp_path)
    finally:
        csv.field_size_limit(limit)


def test_of_several_versions_the_newest_is_read(tmp_path: Path):
    for version, question in (("v1.1", "古い？"), ("v1.3", "新しい？")):
        folder = tmp_path / f"jnli-{version}"
        folder.mkdir()
        row = {"sentence_pair_id": "0", "sentence1": "文", "sentence2": question, "label": "neutral"}
        (folder / f"valid-{version}.json").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert [row.question for row in read_set("jnli", tmp_path)] == ["新しい？"]


def test_what_is_not_there(tmp_path: Path):
    with pytest.raises(InputNotFoundError, match="has no jnli"):
        read_set("jnli", tmp_path)
    with pytest.raises(InputNotFoundError, match="does not exist"):
        read_set("jnli", tmp_path / "no")
    with pytest.raises(ConfigError, match="jcommonsense;") as refused:
        find_tasks(Asked(tasks=("jcommonsense",)))
    assert "jcommonsenseqa" in str(refused.value.en)
    with pytest.raises(InputNotFoundError):
        find_tasks(Asked(tasks=("jnli",), folder=tmp_path))


def test_auto_measures_what_is_there_and_says_what_is_not(tmp_path: Path):
    shutil.copytree(FIXTURES / "published" / "jnli-v1.3", tmp_path / "jnli-v1.3")
    tasks, left = find_tasks(Asked(folder=tmp_path))
    assert [task.name for task in tasks] == ["prose", "instructions", "jnli"]
    assert set(left) == {"jcommonsenseqa", "jmmlu", "niilc", "jsquad"}
    file = tmp_path / "own.csv"
    file.write_text("質問,回答\n首都は？,東京\n", encoding="utf-8")
    tasks, left = find_tasks(Asked(data=str(file)))
    assert [task.name for task in tasks] == ["data", "prose"]
    assert left == {}


def test_the_prompt_of_a_choice():
    task = public_task("jcommonsenseqa", FIXTURES / "published", "stability")
    assert len(task.shots) == 3
    assert len(task.items) == 3
    question = task.questions(build_tokenizer())[0]
    assert question.prompt.startswith(
        "与えられた選択肢の中から、最適な答えを選んでください。\n\n質問：魚が住むのはどこ？\n選択肢：\n- 水\n"
    )
    assert question.prompt.endswith("- 夜\n回答：")
    assert question.choices == ("雨", "晴れ", "曇り", "霧", "夜")
    (other, *_) = public_task("jcommonsenseqa", FIXTURES / "published", "llm-jp").questions(build_tokenizer())
    assert other.prompt.startswith("以下は、タスクを説明する指示と")
    assert other.prompt.endswith("\n\n### 応答:\n")
    (chat, *_) = public_task("jcommonsenseqa", FIXTURES / "published", "chat").questions(build_tokenizer())
    assert chat.prompt.startswith("<|user|>")
    assert "魚" not in chat.prompt


def test_examples_are_never_asked_where_no_training_file_is():
    task = public_task("jnli", FIXTURES / "published", "stability")
    assert len(task.shots) == 3
    assert {item.choices[item.right] for item in task.shots} == {"含意", "矛盾", "中立"}
    assert not {item.name for item in task.shots} & {item.name for item in task.items}
    assert task.chance == 1.0  # the one that is left always has the same label
    jmmlu = public_task("jmmlu", FIXTURES / "published", "stability")
    assert len(jmmlu.shots) == 5
    assert jmmlu.per == "sum"
    assert jmmlu.items[0].choices == ("A", "B", "C", "D")


@pytest.mark.parametrize("name", ["jcommonsenseqa", "jnli", "jmmlu"])
def test_a_set_of_few_rows_is_asked_with_fewer_examples(name: str, tmp_path: Path):
    rows = {
        "jcommonsenseqa": [{"id": n, "question": f"{n}？", "choices": ["a", "b"], "label": 0} for n in range(2)],
        "jnli": [{"id": n, "premise": "文", "hypothesis": f"{n}", "label": "neutral"} for n in range(2)],
        "jmmlu": [{"id": n, "question": f"{n}？", "choices": ["a", "b", "c", "d"], "label": 0} for n in range(2)],
    }[name]
    file = tmp_path / f"{name}_valid.jsonl"
    for count, shots in ((2, 1), (1, 0)):
        file.write_text("".join(json.dumps(row) + "\n" for row in rows[:count]), encoding="utf-8")
        task = public_task(name, tmp_path, "stability")
        assert (len(task.shots), len(task.items)) == (shots, 1)
    file.write_text((json.dumps(rows[0]) + "\n") * 3, encoding="utf-8")
    with pytest.raises(DataError, match="nothing to ask"):
        public_task(name, tmp_path, "stability")


def test_own_questions_and_their_metric(tmp_path: Path):
    file = tmp_path / "test.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": "首都は？"}, {"role": "assistant", "content": "東京"}]},
        {
            "messages": [
                {"role": "user", "content": "こんにちは"},
                {"role": "assistant", "content": "はい"},
                {"role": "user", "content": "では？"},
                {"role": "assistant", "content": "では。"},
            ]
        },
    ]
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    task = own_data(str(file))
    assert task.primary_metric == "exact"
    assert task.is_share
    assert [len(item.messages) for item in task.items] == [1, 3]
    assert task.items[1].accepted == ("では。",)
    file.write_text('{"text": "ただの文章です。"}\n', encoding="utf-8")
    with pytest.raises(DataError, match="no answer"):
        own_data(str(file))


def test_pairs_that_cannot_be_measured_are_refused_for_what_is_wrong_with_them(tmp_path: Path):
    def told(*rows: dict[str, Any]) -> str:
        file = tmp_path / "pairs.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        with pytest.raises(DataError) as refusal:
            own_data(str(file))
        return refusal.value.en

    pair = {"prompt": "q", "chosen": "a", "rejected": "b"}
    turns = [{"role": "assistant", "content": "a"}, {"role": "user", "content": "r"}]
    assert "no difference" in told({**pair, "rejected": "a"})
    assert "objective: preference needs pairs" in told(pair, {"prompt": "q", "completion": "a"})
    several = {side: [*turns, {"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    several["rejected"][0] = {"role": "assistant", "content": "b"}
    assert "answers of several messages" in told(pair | several)
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    assert "tool calls" in told(pair | {"chosen": [call]})
    thinking = {side: [{"role": "assistant", "content": "a", "thinking": side}] for side in ("chosen", "rejected")}
    assert "the same text twice" in told(pair | thinking)


def test_prose_comes_by_works():
    task = prose()
    assert len(task.items) == 48
    assert task.lower
    assert len({item.group for item in task.items}) == 35


def test_a_sample_is_the_same_each_time_and_in_order():
    assert sample(range(100), 5) == sample(range(100), 5) == sorted(sample(range(100), 5))
    assert sample([3, 1], 5) == [3, 1]
    assert sample([3, 1], None) == [3, 1]


@pytest.mark.slow
def test_the_real_sets():
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not there (AIFT_SHARED)")
    tasks, left = find_tasks(Asked(folder=SHARED))
    assert not left
    sizes = {task.name: len(task.items) for task in tasks}
    assert sizes == {
        "prose": 48,
        "instructions": sizes["instructions"],
        "jcommonsenseqa": 1119,
        "jnli": 2431,
        "jmmlu": 1000,
        "niilc": 800,
        "jsquad": 1000,
    }
