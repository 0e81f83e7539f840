"""Pairs of answers and marked ones as rows of tokens: forks and marks, cuts, what is said of them, stores and their digests."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.models import build_tokenizer

from ai_finetuning import DataConfig, TextDataset
from ai_finetuning.data import files
from ai_finetuning.data.bad_rows import BadRows
from ai_finetuning.data.encode_report import EncodeReport
from ai_finetuning.data.examples import Chosen, Joined, digest_of, forks_of, marks_of, names_of
from ai_finetuning.data.files import open_data
from ai_finetuning.data.forks import CHOSEN, REJECTED, side_of
from ai_finetuning.data.messages import Comparison, Conversation, Judged, Message
from ai_finetuning.data.pieces import PieceMaker, Reading
from ai_finetuning.data.prepare import SPLITS, load_examples, prepare
from ai_finetuning.data.store.documents import documents_of
from ai_finetuning.data.store.folder import prepare_folder
from ai_finetuning.data.store.mapped import open_store
from ai_finetuning.data.store.plain import from_plain, to_plain
from ai_finetuning.data.store.preparing import Preparation, lines_of, sources_of
from ai_finetuning.data.store.survey import survey
from ai_finetuning.data.store.wire import receive_answer, send_batch, serve
from ai_finetuning.data.tokenize import IGNORED, Example, encode
from ai_finetuning.errors import ConfigError, DataError
from ai_finetuning.japanese.templates import TEMPLATES

Q, GOOD, BAD = "首都は？", "東京です。", "東京ではありません。"


def talk(*turns: str) -> tuple[Message, ...]:
    roles = ["user", "assistant"] * len(turns)
    return tuple(Message(role, text) for role, text in zip(roles, turns, strict=False))


def pair(question: str, chosen: str, rejected: str, source: str = "") -> Comparison:
    return Comparison(
        (Message("user", question),), (Message("assistant", chosen),), (Message("assistant", rejected),), source
    )


def live(example: Example, tokenizer: Any) -> str:
    ids = [number for number, label in zip(example.input_ids, example.labels, strict=True) if label != IGNORED]
    return str(tokenizer.decode(ids))


PAIRS = [
    {"prompt": f"第{number}の町の名物は？", "chosen": f"{number}番のお菓子です。", "rejected": f"知りません{number}。"}
    for number in range(24)
]
MARKS = [
    {"prompt": f"第{number}の町の名物は？", "completion": f"{number}番のお菓子です。", "label": number % 3 > 0}
    for number in range(24)
]
BY_OBJECTIVE = {"preference": PAIRS, "kto": MARKS}


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_a_pair_is_one_row_whose_sides_are_the_conversations_tokenized_each_by_itself():
    tokenizer = build_tokenizer()
    (row,), report = encode([pair(Q, GOOD, BAD, "a.csv:1")], tokenizer, max_length=512)
    assert row.source == "a.csv:1"
    for side, answer in ((CHOSEN, GOOD), (REJECTED, BAD)):
        (alone,), _ = encode([Conversation(talk(Q, answer))], tokenizer, max_length=512)
        whole = side_of(row, side)
        assert whole.input_ids.tolist() == alone.input_ids.tolist()
        assert whole.labels.tolist() == alone.labels.tolist()
        assert live(whole, tokenizer) == f"{answer}</s>"
    assert row.characters == len(GOOD + BAD)
    assert (report.rows, report.pairs, report.split_conversations) == (1, 1, 0)


@pytest.mark.parametrize("template", sorted(TEMPLATES))
def test_every_template_scores_the_same_answers_on_both_sides(template: str):
    """Of several turns all answers behind the common ones are scored; the last alone where the template rewrites history."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template = TEMPLATES[template].jinja
    both = [tuple(talk(Q, text, "次は？", text + "二")[1:]) for text in (GOOD, BAD)]
    samples = [pair(Q, GOOD, BAD), Comparison((Message("user", Q),), *both)]
    one, several = encode(samples, tokenizer, max_length=1024)[0]
    for side, answer in ((CHOSEN, GOOD), (REJECTED, BAD)):
        assert live(side_of(one, side), tokenizer).count(answer) == 1
        said = live(side_of(several, side), tokenizer)
        assert said.count(answer + "二" if answer == GOOD else answer) >= 1
        assert "次は" not in said
        assert "首都" not in said
    counts = [live(side_of(several, side), tokenizer).count("東京") for side in (CHOSEN, REJECTED)]
    assert counts[0] == counts[1] in (1, 2)


def test_the_prompts_answers_are_not_learnt_and_of_a_marked_row_the_last_answer_alone():
    tokenizer = build_tokenizer()
    prompt = talk("前", "答", Q)
    silent = tuple(replace(item, learn=False) for item in prompt)
    compared = Comparison(silent, (Message("assistant", GOOD),), (Message("assistant", BAD),))
    (row,), _ = encode([compared], tokenizer, max_length=512)
    assert live(side_of(row, CHOSEN), tokenizer) == f"{GOOD}</s>"
    judged = [Judged(Conversation((*silent, Message("assistant", GOOD))), good) for good in (True, False)]
    rows, report = encode(judged, tokenizer, max_length=512)
    assert [item.mark for item in rows] == [1, -1]
    assert [live(item, tokenizer) for item in rows] == [f"{GOOD}</s>"] * 2
    assert (report.good, report.bad) == (1, 1)
    assert "good answers 1, bad ones 1" in report.lines()


def test_a_pair_that_is_too_long_is_cut_where_the_answers_still_differ():
    tokenizer = build_tokenizer()
    short, late = pair(Q, GOOD, BAD, "a:1"), pair(Q, GOOD * 9 + "一", GOOD * 9 + "二", "a:2")
    (one,), _ = encode([short], tokenizer, max_length=512)
    most = max(len(side_of(one, side)) for side in (CHOSEN, REJECTED))
    rows, report = encode([short, late], tokenizer, max_length=most)
    assert [row.source for row in rows] == ["a:1"]
    assert (report.cut_pairs, report.over_long, report.dropped) == (1, 1, 0)
    assert any("cut before they differ: 1" in line for line in report.lines())
    with pytest.raises(DataError, match="cut before they differ"):
        encode([late], tokenizer, max_length=most)
    rows, report = encode([short, pair(Q, GOOD * 9, BAD * 9)], tokenizer, max_length=512, on_long="drop")
    assert len(rows) == 2
    rows, report = encode([short, late], tokenizer, max_length=most, on_long="drop")
    assert (len(rows), report.dropped, report.cut_pairs) == (1, 1, 0)
    with pytest.raises(DataError, match=f"a:2: .* more than max_length {most}"):
        encode([short, late], tokenizer, max_length=most, on_long="error")
    with pytest.raises(DataError, match="cannot divide"):
        encode([late], tokenizer, max_length=most, on_long="split")
    with pytest.raises(DataError, match="the prompt fills max_length 8"):
        encode([short], tokenizer, max_length=8)
    long = pair(Q, GOOD * 12, BAD)
    (whole,), _ = encode([long], tokenizer, max_length=512)
    most = len(side_of(whole, CHOSEN)) - 2
    (cut, _), report = encode([long, short], tokenizer, max_length=most)
    assert len(side_of(cut, CHOSEN)) == most
    assert side_of(cut, REJECTED).input_ids.tolist() == side_of(whole, REJECTED).input_ids.tolist()
    assert (report.without_end, report.lost_label_tokens, report.over_long) == (1, 2, 1)


def test_answers_of_the_same_tokens_are_no_pair():
    tokenizer = build_tokenizer()
    with pytest.raises(DataError, match="a:1: no difference between the two answers: their tokens") as refusal:
        encode([pair(Q, "あ\u200bい", "あ\u200bい", "a:1")], tokenizer, max_length=512)
    assert "違いがありません" in refusal.value.ja


def test_length_is_noticed_where_most_chosen_answers_are_much_longer():
    tokenizer = build_tokenizer()
    _, report = encode([pair(Q, GOOD * 4, "はい。"), pair("別は？", GOOD * 4, "いえ。")], tokenizer, max_length=512)
    assert report.length_ratio > 2
    assert any("would learn length" in line for line in report.lines())
    _, report = encode([pair(Q, "はい。", GOOD * 4), pair("別は？", GOOD, "多い。")], tokenizer, max_length=512)
    assert not any("would learn length" in line for line in report.lines())


@pytest.mark.parametrize(
    ("good", "bad", "name", "low", "high"),
    [(10, 60, "desirable_weight", 6, 8), (60, 10, "undesirable_weight", 4.5, 6), (10, 15, "", 0, 0)],
)
def test_classes_that_are_far_from_balanced_are_named_with_the_weights_of_the_paper(
    good: int, bad: int, name: str, low: float, high: float
):
    """(weight of good x number of good) / (weight of bad x number of bad) from 1 to 4/3."""
    (line,) = [line for line in EncodeReport(good=good, bad=bad).lines() if "preference." in line] or [""]
    assert (f"preference.{name} of {low:g} to {high:g}" in line) is bool(name)
    assert bool(line) is bool(name)


@pytest.mark.parametrize("objective", ["preference", "kto"])
def test_contradictions_are_counted_and_named_in_memory_and_in_a_store(objective: str, tmp_path: Path):
    rows: list[dict[str, Any]] = list(BY_OBJECTIVE[objective])
    if objective == "preference":
        rows += [{**rows[3], "chosen": rows[3]["rejected"], "rejected": rows[3]["chosen"]}]
        rows += [{**rows[5], "chosen": rows[5]["rejected"], "rejected": "分かりません。"}]
        expected = (2, [4, 25], 2, [6, 26])
    else:
        rows += [{**rows[3], "label": not rows[3]["label"]}]
        expected = (0, [], 2, [4, 25])
    path = write(tmp_path / "a.jsonl", rows)
    tokenizer, config = build_tokenizer(), DataConfig(cache=False)
    asked = Preparation((path,), config, tokenizer, sources_of([path]), objective)  # type: ignore[arg-type]
    _, manifest = prepare_folder(asked, tmp_path / "out")
    _, memory, lines = load_examples(path, tokenizer, config, objective=objective)  # type: ignore[arg-type]
    assert manifest.report == memory
    assert lines_of(manifest, None) == lines
    swapped, first, others, places = expected
    assert (memory.swapped, memory.swapped_rows) == (swapped, [f"{path}:{line}" for line in first])
    assert (memory.contradicting, memory.contradicting_rows) == (others, [f"{path}:{line}" for line in places])
    assert any(f"the other way: {others} ({path}:{places[0]}" in line for line in lines)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five rows at a time, so that small files have many batches."""
    monkeypatch.setattr(files, "_TOGETHER", 5)


def same(one: Any, other: Any) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.input_ids.tolist() == b.input_ids.tolist()
        assert a.labels.tolist() == b.labels.tolist()
        assert (a.characters, a.source, a.question, a.fork, a.mark) == (
            b.characters,
            b.source,
            b.question,
            b.fork,
            b.mark,
        )


@pytest.mark.parametrize("objective", ["preference", "kto"])
def test_a_store_keeps_forks_and_marks_and_has_the_digest_of_memory(few, objective: Any, tmp_path: Path):
    path = write(tmp_path / "a.jsonl", BY_OBJECTIVE[objective])
    tokenizer, config = build_tokenizer(), DataConfig(cache=False)
    examples, _, _ = load_examples(path, tokenizer, config, objective=objective)
    asked = Preparation((path,), config, tokenizer, sources_of([path]), objective)
    stored, manifest = prepare_folder(asked, tmp_path / "out")
    same(examples, stored)
    assert digest_of(stored) == digest_of(examples)
    assert list(names_of(stored)) == list(names_of(examples))
    assert forks_of(stored).tolist() == forks_of(examples).tolist()
    assert marks_of(stored).tolist() == marks_of(examples).tolist()
    assert forks_of(Joined(Chosen(stored, [3, 1]), examples[:1])).shape == (3, 3)
    assert marks_of(Joined(Chosen(stored, [1, 0]))).tolist() == marks_of(examples)[[1, 0]].tolist()
    assert manifest.version == 2  # a version that knows of no forks reads none of it
    assert survey(asked).encoded > 0
    # Another fork, or mark, is other data; without either the digest is what it always was.
    field = "fork" if objective == "preference" else "mark"
    plain = [replace(item, **{field: () if field == "fork" else 0}) for item in examples]  # type: ignore[arg-type]
    assert digest_of(plain) != digest_of(examples)
    # The prepared folder is a run's data under the same objective only.
    obtained, _, _ = load_examples(str(tmp_path / "out"), tokenizer, config, objective=objective)
    same(obtained, examples)
    with pytest.raises(ConfigError, match=f"prepared with objective: {objective}"):
        load_examples(str(tmp_path / "out"), tokenizer, config)
    # A run holds them out as they are, and a share of the store is that of the list.
    for split in SPLITS.values():
        for part, other in zip(split(stored, 0.25, 1), split(examples, 0.25, 1), strict=True):
            same(part, other)


def test_plain_data_has_the_digest_and_the_arrays_of_before(tmp_path: Path):
    rows = [{"instruction": f"第{number}の町は？", "output": f"{number}です。"} for number in range(6)]
    path = write(tmp_path / "a.jsonl", rows)
    tokenizer, config = build_tokenizer(), DataConfig(cache=False)
    asked = Preparation((path,), config, tokenizer, sources_of([path]))
    stored, manifest = prepare_folder(asked, tmp_path / "out")
    assert manifest.version == 1
    assert not {"forks", "sides", "marks"} & manifest.arrays.keys()
    assert "objective" not in manifest.settings
    import hashlib

    digest = hashlib.sha256()
    for item in stored:
        digest.update(len(item).to_bytes(8, "little") + item.input_ids.tobytes() + item.labels.tobytes())
    assert digest_of(stored) == digest.hexdigest()
    with pytest.raises(ConfigError, match="prepared with objective: sft"):
        load_examples(str(tmp_path / "out"), tokenizer, config, objective="kto")
    # A manifest of before, without what reports say of pairs, is read.
    text = (tmp_path / "out" / "tokens.json").read_text(encoding="utf-8")
    assert '"length_ratios"' in text
    content = json.loads(text)
    for name in ("pairs", "cut_pairs", "length_ratios", "good", "bad", "swapped", "swapped_rows"):
        del content["report"][name]
    assert from_plain(EncodeReport, content["report"]) == manifest.report


@pytest.mark.parametrize("objective", ["preference", "kto"])
def test_an_interrupted_store_goes_on_and_workers_answer_the_same(few, objective: Any, tmp_path: Path):
    path = write(tmp_path / "a.jsonl", BY_OBJECTIVE[objective])
    tokenizer, config = build_tokenizer(), DataConfig(cache=False)
    asked = Preparation((path,), config, tokenizer, sources_of([path]), objective)
    whole, _ = prepare_folder(asked, tmp_path / "whole")
    seen = []

    def stop(done: int) -> None:
        seen.append(done)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ai_finetuning.data.store.preparing._COMMIT", 1)
        with pytest.raises(KeyboardInterrupt):
            prepare_folder(asked, tmp_path / "out", on_bytes=stop)
        again, _ = prepare_folder(asked, tmp_path / "out")
    same(whole, again)
    assert again.digest == whole.digest
    reading = Reading.of(config, (), objective)
    assert from_plain(Reading, json.loads(json.dumps(to_plain(reading)))) == reading
    maker = PieceMaker(tokenizer, reading)
    for batch in open_data(path, BadRows())[1]:
        there, back = io.BytesIO(), io.BytesIO()
        send_batch(there, batch, None)
        there.seek(0)
        serve(maker, there, back)
        back.seek(0)
        answer = receive_answer(back)
        assert answer is not None
        documents = documents_of(maker.make(batch, None)[0])
        assert [name for name, _ in answer[0].arrays] == [name for name, _ in documents.arrays]
        for (name, one), (_, other) in zip(answer[0].arrays, documents.arrays, strict=True):
            assert np.array_equal(one, other), name


def test_the_cache_tells_objectives_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AIFT_CACHE", str(tmp_path / "cache"))
    both = [{**PAIRS[0], **MARKS[0]}, {**PAIRS[1], **MARKS[1], "label": False}]
    path = write(tmp_path / "a.jsonl", both)
    tokenizer = build_tokenizer()
    for _ in range(2):
        compared, _, _ = load_examples(path, tokenizer, DataConfig(), objective="preference")
        assert all(item.fork for item in compared)
        with pytest.raises(DataError, match="objective: preference"):
            load_examples(path, tokenizer, DataConfig(), objective="kto")


@pytest.mark.parametrize("cache", [True, False])
def test_a_runs_data_is_prepared_with_its_objective(cache: bool, tmp_path: Path):
    tokenizer, config = build_tokenizer(), DataConfig(cache=cache)
    for objective, rows in BY_OBJECTIVE.items():
        path = write(tmp_path / f"{objective}.jsonl", rows)
        data = prepare(path, 0.25, tokenizer, config, seed=3, objective=objective)  # type: ignore[arg-type]
        assert (data.objective, len(data.train), len(data.eval_data)) == (objective, 18, 6)
        assert data.longest == max(map(len, data.every))
        marks = marks_of(data.every)
        assert (set(marks.tolist()) == {1, -1}) is (objective == "kto")
        assert bool(forks_of(data.every).any()) is (objective == "preference")
        with pytest.raises(DataError, match=f"objective: {objective}"):
            prepare(path, None, tokenizer, config, seed=3)
    only = write(tmp_path / "good.jsonl", [row for row in MARKS if row["label"]])
    with pytest.raises(DataError, match="none of the 16 training rows has a bad answer") as refusal:
        prepare(only, None, tokenizer, config, seed=3, objective="kto")
    assert "悪い回答がありません" in refusal.value.ja
    assert "use objective: sft" in refusal.value.en  # where the good ones are all there is


@pytest.mark.parametrize(("name", "value"), [("loss_on", "all"), ("on_long", "split")])
def test_settings_under_which_answers_cannot_be_compared_are_refused(name: str, value: Any):
    tokenizer = build_tokenizer()
    config = DataConfig(**{name: value})
    with pytest.raises(ConfigError, match=f"data.{name} is {value}.*objective: preference") as refusal:
        load_examples(PAIRS, tokenizer, config, objective="preference")
    assert "objective: preference では使えません" in refusal.value.ja
    with pytest.raises(ConfigError, match=f"data.{name}"):
        Reading.of(config, (), "kto")


def test_plain_texts_made_into_a_data_set_are_refused():
    tokenizer = build_tokenizer()
    with pytest.raises(DataError, match="TextDataset holds plain texts"):
        load_examples(TextDataset(["東京"], tokenizer, 8), tokenizer, DataConfig(), objective="preference")


def test_a_store_of_pairs_whose_fork_is_damaged_is_refused(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", PAIRS)
    asked = Preparation((path,), DataConfig(), build_tokenizer(), sources_of([path]), "preference")
    prepare_folder(asked, tmp_path / "out")
    file = tmp_path / "out" / "forks.bin"
    raw = bytearray(file.read_bytes())
    raw[5] ^= 1
    file.write_bytes(bytes(raw))
    with pytest.raises(DataError, match=r"forks\.bin"):
        open_store(tmp_path / "out")
