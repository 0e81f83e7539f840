"""Settings in advice are called as the form calls them."""

from __future__ import annotations

import json
from pathlib import Path

from ai_finetuning.apps.web.screens import results
from ai_finetuning.apps.web.setting_names import with_labels
from ai_finetuning.apps.web.words.settings import WORDS
from ai_finetuning.evaluation.adoption import Margins, decide, task_findings
from ai_finetuning.evaluation.results import Results
from ai_finetuning.evaluation.tasks import Item, Task
from ai_finetuning.runs.listing import list_runs


def test_names_of_the_form_stand_in_front_of_settings_names():
    assert with_labels("対処: learning_rate を下げる。", "ja") == "対処: 学習率（learning_rate）を下げる。"
    assert with_labels("Lower training.num_epochs.", "en") == "Lower Epochs (training.num_epochs)."
    label = WORDS["f_training.batch_size"][0]
    assert with_labels("（batch_size と", "ja") == f"（{label}（batch_size）と"


def test_words_that_are_no_settings_of_the_form_stay():
    for text in (
        "preference.beta を上げる",
        "data.replay: {path: embedded:prose, share: 0.5}",
        "the method and the objective; r is 16",
        "--max_length=3 xlearning_rate learning_rate_decay",
        "aift data",
    ):
        assert with_labels(text, "ja") == with_labels(text, "en") == text


def test_the_advice_of_a_rejected_run_is_shown_so(tmp_path: Path):
    task = Task("prose", "prose", "prose", tuple(Item(f"p{n}", "文章") for n in range(40)))
    worse = {"score": 9.0, "nats": 9.0, "characters": 1}
    better = worse | {"score": 4.0}
    told = Results(None)
    told.add(
        {"side": side, "task": "prose", "item": item.name, "work": item.name} | (better, worse)[side == "after"]
        for side in ("before", "after")
        for item in task.items
    )
    adoption = decide(task_findings(told, [task], Margins()), [])
    assert adoption is not None
    assert adoption.advice is not None
    run = tmp_path / "run"
    run.mkdir()
    advice = {"ja": adoption.advice.ja, "en": adoption.advice.en}
    verdict = {"result": "reject", "why": {"ja": "悪化", "en": "worse"}, "advice": advice}
    (run / "run.json").write_text(json.dumps({"status": "completed", "verdict": verdict}), encoding="utf-8")
    (run / "config.yaml").write_text("model:\n  name: m\n", encoding="utf-8")
    shown = results.result_of(list_runs(tmp_path)[0])["advice"]
    assert "学習率（learning_rate）" in shown["ja"]
    assert "エポック数（num_epochs）" in shown["ja"]
    assert "Learning rate (learning_rate)" in shown["en"]
