"""The report and the card of real runs: written while they train, sample answers that change nothing, code that runs."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tests.support.commands import call
from tests.support.models import build_model, build_tokenizer
from tests.support.pages import Page
from tests.support.runs import losses, training, weights_digest
from transformers import TrainerCallback

from ai_finetuning import DataConfig, FullFinetuningTrainer, JapaneseModel, LoRAConfig, LoRAFinetuningTrainer
from ai_finetuning.data.example import Example
from ai_finetuning.errors import PreemptedError
from ai_finetuning.evaluation import samples
from ai_finetuning.evaluation.samples import GENERAL_QUESTIONS, answers, choose, repeats
from ai_finetuning.execution import reporting

# Words that stand nowhere else, so that a search for them finds rows of the data only.
ROWS = [{"instruction": f"合言葉{n}は何ですか？", "output": f"ひみつの言葉{n}です。"} for n in range(16)]
EVALUATION = [{"instruction": f"検証の合言葉{n}は？", "output": f"検証のひみつ{n}。"} for n in range(8)]


def run(model_dir: Path, folder: Path, *, full: bool = False, callbacks: Any = None, **changes: Any) -> Any:
    """A short run with dropout and an evaluation; returns its trainer."""
    runtime = {"report_samples": 3} | changes.pop("runtime", {})
    resume, evaluate = changes.pop("resume", None), changes.pop("evaluate", EVALUATION)
    config = training(folder, runtime=runtime, **{"num_epochs": 2, "eval_steps": 4, "logging_steps": 1} | changes)
    data = DataConfig(max_length=64)
    if full:
        trainer: Any = FullFinetuningTrainer(JapaneseModel(str(model_dir)), config, data=data, callbacks=callbacks)
    else:
        lora = LoRAConfig(r=4, lora_alpha=8, lora_dropout=0.1)
        trainer = LoRAFinetuningTrainer(JapaneseModel(str(model_dir)), lora, config, data=data, callbacks=callbacks)
    trainer.train(ROWS, evaluate, resume_from_checkpoint=resume)
    return trainer


def page(folder: Path) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def finished(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "out"
    run(tiny_model_dir, folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def japanese_and_short() -> Iterator[None]:
    """The language of the texts below; answers of a few tokens, as models that know nothing do not end them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIFT_LANG", "ja")
        patch.setattr(samples, "NEW_TOKENS", 8)
        yield


def test_the_report_of_a_run_has_its_numbers_samples_and_verdict(finished: Path):
    shown, result = page(finished), json.loads((finished / "run.json").read_text(encoding="utf-8"))["result"]
    assert "完了: 8 ステップ" in shown.text
    assert len(shown.find("dl", class_="sample")) == 3
    assert "検証の合言葉" in shown.text
    assert "（まだありません）" not in shown.text
    assert result["verdict"]["kind"] in ("better", "unchanged", "worse", "overfitted")
    assert f"最良のステップ: {result['verdict']['best']['step']}" in shown.text
    assert shown.loads == []
    for text in ("学習対象トークン", "Python から渡したデータ", "torch"):
        assert text in shown.text
    assert result["verdict"]["kind"] == "better"
    assert "あまり学習が進まない" not in shown.text  # it did


def test_texts_of_rows_stand_in_the_report_only(finished: Path, tiny_model_dir: Path, tmp_path: Path):
    """And nowhere where the samples are off."""
    run(tiny_model_dir, tmp_path / "off", runtime={"report_samples": 0})
    for folder, allowed in ((finished, {"report.html"}), (tmp_path / "off", set())):
        holding = {
            path.name
            for path in folder.rglob("*")
            if path.is_file() and any(word.encode() in path.read_bytes() for word in ("合言葉", "ひみつ"))
        }
        assert holding == allowed
    assert "report_samples=0" in page(tmp_path / "off").text
    assert "回答の例" not in (tmp_path / "off" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "kind", ["lora", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("full", "checkpointed", "qlora"))]
)
def test_a_run_gives_the_same_bytes_with_and_without_samples(tiny_model_dir: Path, tmp_path: Path, kind: str):
    """Weights, losses and evaluations, although answers are made between building and training: LoRA with dropout, all
    weights, recomputed activations in the device's precision, a base in 4 bit.
    """
    changes: dict[str, Any] = {"num_epochs": 1}
    if kind == "checkpointed":
        changes |= {"gradient_checkpointing": True}
    found = []
    for count in (0, 3):
        folder = tmp_path / str(count)
        if kind == "qlora":
            lora = LoRAConfig(r=4, lora_dropout=0.1, use_qlora=True)
            config = training(folder, runtime={"report_samples": count, "precision": "auto"}, **changes)
            trainer = LoRAFinetuningTrainer(
                JapaneseModel(str(tiny_model_dir)), lora, config, data=DataConfig(max_length=64)
            )
            trainer.train(ROWS, EVALUATION)
        else:
            runtime = {"report_samples": count} | ({"precision": "auto"} if kind == "checkpointed" else {})
            run(tiny_model_dir, folder, full=kind == "full", runtime=runtime, **changes)
        found.append((weights_digest(folder), losses(folder)))
    assert found[0] == found[1]
    assert "検証の合言葉" in page(tmp_path / "3").text


class _Looks(TrainerCallback):
    """Reads the report at every step."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.seen = folder, []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen.append(page(self.folder).text)


def test_the_report_is_written_while_the_run_trains(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(reporting, "SECONDS", 0.0)
    looks = _Looks(tmp_path / "out")
    run(tiny_model_dir, tmp_path / "out", callbacks=[looks])
    steps = [next(line for line in text.splitlines() if "学習中: " in line) for text in looks.seen]
    assert [line.partition("学習中: ")[2] for line in steps] == [f"{number}/8 ステップ" for number in range(8)]
    assert all("（まだありません）" in text and "検証の合言葉" in text for text in looks.seen)
    assert "損失の曲線" in looks.seen[-1]


def test_pages_of_a_run_at_work_are_some_seconds_apart(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """By a clock that does not move, the page of the beginning stays until the end."""
    monkeypatch.setattr(reporting.RunReport.__init__, "__kwdefaults__", {"clock": lambda: 0.0})
    looks = _Looks(tmp_path / "out")
    run(tiny_model_dir, tmp_path / "out", callbacks=[looks])
    assert all("学習中: 0/8" in text for text in looks.seen)
    assert "完了: 8 ステップ" in page(tmp_path / "out").text


class _Stops(TrainerCallback):
    """What a scheduler does in the middle of a run."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 5:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("full", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_interrupted_run_has_a_report_and_its_continuation_the_whole_curve(
    tiny_model_dir: Path, tmp_path: Path, full: bool
):
    with pytest.raises(PreemptedError):
        run(tiny_model_dir, tmp_path / "out", full=full, callbacks=[_Stops()])
    stopped = page(tmp_path / "out").text
    assert "中断: 5/8 ステップ" in stopped
    assert "検証の合言葉" in stopped
    assert "--resume" not in stopped  # data from Python: no command starts this run
    run(tiny_model_dir, tmp_path / "out", full=full, resume="auto")
    run(tiny_model_dir, tmp_path / "whole", full=full)
    assert weights_digest(tmp_path / "out") == weights_digest(tmp_path / "whole")
    resumed, whole = page(tmp_path / "out"), page(tmp_path / "whole")
    assert "完了: 8 ステップ" in resumed.text
    for texts in (resumed, whole):  # the same answers before and after, the same curve
        texts.text = texts.text[texts.text.index("損失の曲線") : texts.text.index("時間とメモリー")]
    assert resumed.text == whole.text
    assert [values["points"] for values in resumed.find("polyline")] == [
        values["points"] for values in whole.find("polyline")
    ]


def test_a_run_that_fails_has_a_report(tiny_model_dir: Path, tmp_path: Path):
    class Fails(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        run(tiny_model_dir, tmp_path / "out", callbacks=[Fails()])
    assert "中断: 2/8 ステップ" in page(tmp_path / "out").text


def write_config(folder: Path, model: str, **changes: Any) -> Path:
    """A run file with rows in a file whose name has a blank, one of which cannot be used."""
    rows = [*ROWS, {"instruction": "答えのない質問", "output": ""}]
    data = folder / "社内 FAQ.jsonl"
    data.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    settings: dict[str, Any] = {
        "model": model,
        "method": "lora",
        "data": {"train": str(data), "eval": 0.25, "max_length": 64, "skip_bad_rows": True},
        "training": {
            "schedule": {"max_steps": 3},
            "learning_rate": 3e-3,
            "output_dir": str(folder / "out put"),
            "runtime": {"precision": "fp32"},
        },
    } | changes
    settings["training"] = {"evaluation": {"verdict": False}} | settings["training"]
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(settings, allow_unicode=True), encoding="utf-8")
    return path


def test_the_plan_the_end_and_the_report_of_a_command(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO", logger="ai_finetuning")
    config = write_config(tmp_path, str(tiny_model_dir))
    assert call("train", str(config), "--dry-run") == 0
    planned = capsys.readouterr().out
    assert "report.html には評価データ 3 行の文と回答が入ります" in planned
    assert call("train", str(config), "--dry-run", "training.runtime.report_samples=0") == 0
    assert "report.html に行の文は入りません" in capsys.readouterr().out
    assert call("train", str(config)) == 0  # the rows come out of the cache now
    last = [record.getMessage() for record in caplog.records][-2:]
    assert last[0].startswith("判定: ")
    assert last[1] == f"レポート: {tmp_path / 'out put' / 'report.html'}"
    shown = page(tmp_path / "out put").text
    assert "社内 FAQ.jsonl" in shown
    assert "学習データの 25%" in shown
    assert "除いた行" in shown
    assert ": 1\n" in shown[shown.index("除いた行") :]
    assert f"aift train '{tmp_path / 'out put' / 'config.yaml'}'" in shown
    card = (tmp_path / "out put" / "README.md").read_text(encoding="utf-8")
    assert str(tmp_path) not in card
    assert "base_model" not in card  # a folder is no hub id
    assert "除いた行: 1" in card


def code_of(card: str) -> str:
    """The Python of a card."""
    return card.split("```python\n")[1].split("```")[0]


@pytest.mark.parametrize(
    "method", ["lora", *(pytest.param(name, marks=pytest.mark.slow) for name in ("qlora", "full"))]
)
def test_the_code_of_a_card_runs(tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch):
    """With plain transformers and PEFT, on the embedded model; its answer is the trained model's own."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    training_section = {
        "schedule": {"max_steps": 2},
        "output_dir": str(tmp_path / "out"),
        "runtime": {"precision": "fp32", "report_samples": 1},
    }
    config = write_config(tmp_path, "embedded:kotoha-tiny", method=method, training=training_section)
    assert call("train", str(config)) == 0
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    code = code_of(card).replace("THIS_FOLDER", str(tmp_path / "out"))
    ast.parse(code)
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, "README.md", "exec"), names)  # noqa: S102
    assert names["output"].shape[1] > names["inputs"]["input_ids"].shape[1]
    assert names["model"].device.type == "cpu"
    if method == "lora":
        assert any("lora" in name for name, _ in names["model"].named_parameters())
    assert printed.getvalue().strip()


def test_a_card_shows_answers_to_general_questions(tmp_path: Path):
    runtime = {"precision": "fp32", "report_samples": 1}
    section = {"schedule": {"max_steps": 1}, "output_dir": str(tmp_path / "out"), "runtime": runtime}
    assert call("train", str(write_config(tmp_path, "embedded:kotoha-tiny", training=section))) == 0
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "## 回答の例" in card
    assert any(question in card for question in GENERAL_QUESTIONS)
    japanese, english = card.split("## Results")
    assert "## 結果" in japanese
    assert not any(line.isascii() and " the " in line for line in japanese.splitlines())
    assert "評価損失" not in english


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer()


def example(tokenizer: Any, text: str, first: int) -> Example:
    ids = np.asarray(tokenizer.encode(text, add_special_tokens=False), dtype=np.int32)
    labels = ids.copy()
    labels[:first] = -100
    return Example(ids, labels)


def test_an_answer_that_repeats_the_data_is_found(tokenizer: Any):
    """By its own tokens, a piece of them, or all of a short one; a usual phrase is none."""
    rows = [example(tokenizer, "<|user|>\n質問に答えてください。<|assistant|>\n電車は九時に出発します。", 3)]
    assert repeats(tokenizer, "電車は九時に出発します。", rows)
    assert repeats(tokenizer, "いいえ、電車は九時に出発しますよ", rows)
    assert not repeats(tokenizer, "りんごが三つあります。", rows)
    assert not repeats(tokenizer, "", rows)
    assert not repeats(tokenizer, "電車は九時に出発します。", [example(tokenizer, "電車は九時に出発します。", 99)])


def test_rows_are_chosen_by_what_they_hold(tokenizer: Any):
    """Not by their order; those that a model has no positions for are left out; a plain text is continued."""
    config = build_model().config
    texts = [f"<|user|>\n{text}\n<|assistant|>\nはい。" for text in ("今日は良い天気ですね。", "大阪は？", "電車は？")]
    rows = [
        example(tokenizer, text, len(tokenizer.encode(text.partition("はい")[0], add_special_tokens=False)))
        for text in texts
    ]
    long = example(tokenizer, "日本の首都は東京です。" * 200 + "はい。", 1200)
    first = choose([*rows, long], tokenizer, config, 2)
    assert first == choose([long, *reversed(rows)], tokenizer, config, 2)
    assert len(first) == 2
    asked = {question.text for question in choose([*rows, long], tokenizer, config, 5)}
    assert asked == {"今日は良い天気ですね。", "大阪は？", "電車は？"}
    assert {question.expected for question in first} == {"はい。"}
    kind = "<|system|>\n親切に。\n<|user|>\n大阪は？\n<|assistant|>\n"
    told = example(tokenizer, f"{kind}はい。", len(tokenizer.encode(kind, add_special_tokens=False)))
    assert choose([told], tokenizer, config, 1, "親切に。")[0].text == "大阪は？"
    assert "親切に。" in choose([told], tokenizer, config, 1)[0].text
    plain = choose([example(tokenizer, "日本の首都は東京です。今日は良い天気ですね。", 0)], tokenizer, config, 1)
    assert plain[0].text + plain[0].expected == "日本の首都は東京です。今日は良い天気ですね。"


def test_answers_stop_with_the_time_and_never_with_the_run(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    model = build_model().train()
    model.model.layers[0].eval()
    questions = choose([example(tokenizer, "<|user|>\n大阪は？\n<|assistant|>\nはい。", 6)], tokenizer, model.config, 1)
    before = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    assert answers(model, tokenizer, questions, seconds=0.0) == [None]
    assert isinstance(answers(model, tokenizer, questions)[0], str)

    def fails(*args: Any, **options: Any) -> str:
        torch.rand(1)
        raise RuntimeError("no kernel for this")

    monkeypatch.setattr(samples, "continue_tokens", fails)
    assert answers(model, tokenizer, questions) == [None]
    assert "no kernel for this" in caplog.text
    assert [module.training for module in model.modules()] == before
    assert torch.equal(torch.get_rng_state(), state)
