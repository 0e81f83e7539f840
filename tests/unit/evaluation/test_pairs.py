"""Pairs of answers as a task: what is scored of them, which side wins, and what a verdict over them says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.support.models import build_model, build_tokenizer

from ai_finetuning.data.example import Example
from ai_finetuning.data.forks import forked
from ai_finetuning.errors import DataError
from ai_finetuning.evaluation.before_after import Loaded, Side
from ai_finetuning.evaluation.likelihood import Likelihood, score_scored
from ai_finetuning.evaluation.pairs import ANSWERS, row_of, scored_item, scored_row
from ai_finetuning.evaluation.results import Results
from ai_finetuning.evaluation.run_verdict import Clock, measure_within, outcome_of, run_tasks
from ai_finetuning.evaluation.samples import choose
from ai_finetuning.evaluation.tasks import Asked, Item, Task, find_tasks, pairs_task, prose
from ai_finetuning.inference.session import OpenModel

SIDES = (Side("before", "base", "base", adapter=False), Side("after", "base", "base"))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer()


def side(tokenizer: Any, asked: str, answer: str) -> Example:
    ids = tokenizer.encode(f"<|user|>\n{asked}\n<|assistant|>\n", add_special_tokens=False)
    given = tokenizer.encode(answer, add_special_tokens=False)
    labels = [*[-100] * len(ids), *given]
    return Example(np.asarray([*ids, *given], dtype=np.int32), np.asarray(labels, dtype=np.int32))


def pair(tokenizer: Any, asked: str, good: str, bad: str) -> Example:
    return forked(side(tokenizer, asked, good), side(tokenizer, asked, bad))


def test_both_answers_are_scored_whole_behind_their_question(tokenizer: Any):
    model = build_model().eval()
    good, bad = side(tokenizer, "首都は？", "東京です。"), side(tokenizer, "首都は？", "東京ではありません。")
    chosen, rejected = scored_row(forked(good, bad))
    for whole, scored in ((good, chosen), (bad, rejected)):
        assert scored.ids == tuple(whole.input_ids.tolist())
        ids = torch.tensor([scored.ids])
        logits = torch.log_softmax(model(ids).logits[0].detach().float(), -1)
        learnt = [place for place, label in enumerate(whole.labels.tolist()) if label != -100]
        expected = sum(float(logits[place - 1, scored.ids[place]]) for place in learnt)
        (found,) = score_scored(model, [scored])
        assert found.nats == pytest.approx(expected, rel=1e-5)
        assert found.tokens == len(learnt)
    nothing = Example(np.asarray([1, 2], dtype=np.int32), np.asarray([-100, -100], dtype=np.int32))
    assert scored_row(forked(nothing, good)) == ()


def test_the_likelier_answer_wins_a_token_on_average():
    def of(nats: float, tokens: int) -> Likelihood:
        return Likelihood(nats, tokens, 0, False)

    item = Item("data-1", "")
    assert row_of(item, [of(-10.0, 10), of(-6.0, 2)])["scores"] == {"accuracy": 1, "accuracy, whole answers": 0}
    assert row_of(item, [of(-4.0, 2), of(-4.0, 2)])["score"] == 0


def test_answers_given_as_text_are_read_by_the_model_s_own_template(tokenizer: Any):
    item = Item("data-1", "首都は？", choices=("東京です。", "知りません。"))
    chosen, rejected = scored_item(item, tokenizer, [{"role": "user", "content": "首都は？"}])
    assert chosen.ids[: chosen.first] == rejected.ids[: rejected.first]
    assert tokenizer.decode(chosen.ids[chosen.first :]) == "東京です。"


def test_a_run_of_pairs_is_asked_its_pairs_its_questions_and_prose(tokenizer: Any):
    rows = [pair(tokenizer, f"{n}の次は？", f"{n + 1}です。", "わかりません、すみません。") for n in range(4)]
    (data, answers, general), count = run_tasks(rows, tokenizer, build_model().config)
    assert (data.kind, answers.kind, general.kind, count) == ("pairs", "answers", "prose", 4)
    assert {item.accepted for item in answers.items} == {(f"{n + 1}です。",) for n in range(4)}
    asked = choose(rows, tokenizer, build_model().config, 1)
    assert "です。" in asked[0].expected
    assert "わかりません" not in asked[0].expected


def test_pairs_are_measured_within_a_verdict(tokenizer: Any):
    model = build_model().eval()
    rows = [pair(tokenizer, f"{n}の次は？", f"{n + 1}です。", "わかりません。") for n in range(3)]
    data = run_tasks(rows, tokenizer, model.config)[0][0]
    results = Results(None)
    measure_within(
        SIDES[1:], (data,), results, Loaded(SIDES[1], OpenModel(model, tokenizer, "base", False)), Clock.of(60)
    )
    rows_of = results.complete("after", data)
    assert len(rows_of) == 3
    assert all(len(row["nats"]) == 2 for row in rows_of.values())


def test_more_pairs_the_right_way_round_and_prose_kept_is_adopted():
    items = [Item(f"data-{n}", "") for n in range(40)]
    task, results, general = pairs_task("data.eval", items), Results(None), prose()
    for name, right in (("before", 20), ("after", 38)):
        for place, item in enumerate(items):
            score = int(place < right)
            scores = {"accuracy": score, "accuracy, whole answers": score}
            results.add([{"side": name, "task": "data", "item": item.name, "score": score, "scores": scores}])
        results.add({"side": name, "task": "prose", "item": item.name, "score": 1.5} for item in general.items)
    asked = Item("data-1", "")
    for name in ("before", "after"):
        answer = {"answer": "はい。", "faults": [], "score": 0, "scores": {"exact": 0}}
        results.add([{"side": name, "task": ANSWERS, "item": "data-1", **answer}])
    answers = Task(ANSWERS, ANSWERS, "answers", (asked,), metrics=("exact",))
    outcome = outcome_of(SIDES, (task, answers, general), results)
    assert outcome.adoption is not None
    assert outcome.adoption.decision == "adopt"
    assert [finding.task.name for finding in outcome.findings] == ["data", "prose"]
    found = outcome.findings[0]
    assert found.compared is not None
    assert (found.compared.before, found.compared.after, found.word) == (0.5, 0.95, "improved")


def test_a_file_of_pairs_is_asked_which_answer_is_likelier(tmp_path: Path, logged):
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"{n}の次は？", "chosen": f"{n + 1}です。", "rejected": "知りません。"} for n in range(3)]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    tasks, _ = find_tasks(Asked(data=str(path)))
    assert [task.kind for task in tasks] == ["pairs", "prose"]
    assert tasks[0].items[0].choices == ("1です。", "知りません。")
    assert tasks[0].items[0].messages == ({"role": "user", "content": "0の次は？"},)
    assert "not measured" not in logged()
    turns = [{"role": role, "content": "はい。"} for role in ("assistant", "user", "assistant")]
    more = {"prompt": "続けて", "chosen": turns, "rejected": [{"role": "assistant", "content": "いいえ。"}]}
    path.write_text(path.read_text(encoding="utf-8") + json.dumps(more) + "\n", encoding="utf-8")
    assert len(find_tasks(Asked(data=str(path)))[0][0].items) == 3
    assert "1 pairs are not measured" in logged()
    plain = tmp_path / "texts.txt"
    plain.write_text("ただの文章です。\n", encoding="utf-8")
    with pytest.raises(DataError, match="has no answer|答えがありません"):
        find_tasks(Asked(data=str(plain)))


def test_marked_answers_that_are_bad_are_not_expected(tokenizer: Any):
    good, bad = side(tokenizer, "首都は？", "東京です。"), side(tokenizer, "首都は？", "大阪です。")
    rows = [replace(good, mark=1), replace(bad, mark=-1)]
    (data, _), count = run_tasks(rows, tokenizer, build_model().config)
    assert (data.kind, count) == ("answers", 1)
    assert data.items[0].accepted == ("東京です。",)


def test_forgotten_prose_gets_advice_that_a_run_over_pairs_takes():
    items = [Item(f"data-{n}", "") for n in range(40)]
    task, results, general = pairs_task("data.eval", items), Results(None), prose()
    for name, right, bits in (("before", 20, 1.5), ("after", 38, 1.9)):
        for place, item in enumerate(items):
            score = int(place < right)
            scores = {"accuracy": score, "accuracy, whole answers": score}
            results.add([{"side": name, "task": "data", "item": item.name, "score": score, "scores": scores}])
        results.add({"side": name, "task": "prose", "item": item.name, "score": bits} for item in general.items)
    adoption = outcome_of(SIDES, (task, general), results).adoption
    assert adoption is not None
    assert adoption.decision == "reject"
    assert adoption.advice is not None
    assert "replay" not in adoption.advice.en
    assert "preference.beta" in adoption.advice.ja
