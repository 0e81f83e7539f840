"""Callbacks, metrics, evaluate() and save_model() of the trainers in one process, as a script of transformers has
them.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.support.commands import environment
from tests.support.models import save_tiny_model
from tests.support.runs import ROWS, training, weights_digest
from transformers import AutoModelForCausalLM, EarlyStoppingCallback, PrinterCallback, TrainerCallback

from ai_finetuning import (
    AdvancedMultiGPUTrainer,
    DataConfig,
    FullFinetuningTrainer,
    JapaneseModel,
    LoRAConfig,
    LoRAFinetuningTrainer,
)
from ai_finetuning.config.parallel import ParallelConfig
from ai_finetuning.data.prepare import load_examples
from ai_finetuning.engine.metrics import read_metrics
from ai_finetuning.errors import ConfigError, PreemptedError
from ai_finetuning.execution.trainer_hooks import TrainerHooks, validate_hooks
from ai_finetuning.parallel.collectives.mesh import Sizes
from ai_finetuning.parallel.plan import ParallelPlan

EVALUATION = ROWS[:5]
DOCS = Path(__file__).resolve().parents[2] / "docs"
EVENTS = (
    "on_init_end",
    "on_train_begin",
    "on_epoch_begin",
    "on_step_begin",
    "on_step_end",
    "on_log",
    "on_evaluate",
    "on_save",
    "on_epoch_end",
    "on_train_end",
)


def trainer_of(model_dir: Path, folder: Path, *, data: dict[str, Any] | None = None, **given: Any):
    """A full fine-tuning of a tiny model; names of a trainer's arguments go to it, others to its settings."""
    names = ("callbacks", "compute_metrics", "preprocess_logits_for_metrics", "eval_dataset")
    hooks = {name: given.pop(name) for name in names if name in given}
    config = training(folder, **{"learning_rate": 1e-3, "logging_steps": 2} | given)
    model = JapaneseModel(str(model_dir))
    return FullFinetuningTrainer(
        model, config, ROWS, use_accelerate=False, data=DataConfig(max_length=64, **data or {}), **hooks
    )


class Recorder(TrainerCallback):
    """Notes every event with its step and what it was given; asks for something after given steps."""

    def __init__(self, save: int = 0, evaluate: int = 0, stop: int = 0) -> None:
        self.asks = {"should_save": save, "should_evaluate": evaluate, "should_training_stop": stop}
        self.events: list[tuple[str, int]] = []
        self.logs: list[dict[str, Any]] = []
        self.given: dict[str, Any] = {}

    def on_step_end(self, args, state, control, **kwargs):
        self.events.append(("on_step_end", state.global_step))
        self.state, self.args, self.given = state, args, kwargs
        for flag, step in self.asks.items():
            if state.global_step == step:
                setattr(control, flag, True)
        return control

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.events.append(("on_log", state.global_step))
        self.logs.append(logs)


def _note(event: str):
    def method(self, args, state, control, **kwargs):
        self.events.append((event, state.global_step))

    return method


for _event in EVENTS:
    if _event not in vars(Recorder):
        setattr(Recorder, _event, _note(_event))


@pytest.fixture(scope="module")
def watched(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory):
    """A run whose callback saves after step 3, evaluates after step 4 and stops after step 5."""
    folder = tmp_path_factory.mktemp("watched") / "out"
    recorder = Recorder(save=3, evaluate=4, stop=5)
    trainer = trainer_of(tiny_model_dir, folder, callbacks=[recorder], eval_dataset=EVALUATION, save_steps=100)
    trainer.train()
    return folder, recorder, trainer


def test_a_callback_saves_evaluates_and_stops(watched):
    folder, _, trainer = watched
    assert trainer.result.state.step == 5
    assert [path.name for path in (folder / "checkpoints").glob("checkpoint-*")] == ["checkpoint-3"]
    assert [row["step"] for row in trainer.result.history if "eval_loss" in row] == [0, 4]
    assert json.loads((folder / "run.json").read_text(encoding="utf-8"))["status"] == "completed"


def test_the_events_come_in_the_order_of_the_run(watched):
    _, recorder, _ = watched
    assert recorder.events[:4] == [("on_init_end", 0), ("on_train_begin", 0), ("on_log", 0), ("on_evaluate", 0)]
    assert [step for event, step in recorder.events if event == "on_step_begin"] == [0, 1, 2, 3, 4]
    assert [step for event, step in recorder.events if event == "on_step_end"] == [1, 2, 3, 4, 5]
    assert [step for event, step in recorder.events if event == "on_evaluate"] == [0, 4]
    assert len([step for event, step in recorder.events if event == "on_save"]) == 1
    assert recorder.events[-2:] == [("on_epoch_end", 5), ("on_train_end", 5)]


def test_a_callback_reads_state_arguments_and_the_run(watched):
    folder, recorder, trainer = watched
    state, args = recorder.state, recorder.args
    assert (state.max_steps, state.num_train_epochs, state.logging_steps) == (12, 2, 2)
    assert state.is_world_process_zero
    assert state.is_local_process_zero
    assert (args.output_dir, args.seed, args.per_device_train_batch_size) == (str(folder), 42, 2)
    assert json.loads(args.to_json_string())["eval_strategy"] == "steps"
    assert recorder.given["model"] is trainer.result.model
    assert recorder.given["processing_class"].pad_token == "<pad>"
    assert isinstance(recorder.given["optimizer"], torch.optim.Optimizer)
    assert state.best_metric == min(row["eval_loss"] for row in trainer.result.history if "eval_loss" in row)


def test_the_log_history_is_that_of_metrics_jsonl(watched):
    _, recorder, trainer = watched
    rows = {row["step"]: row for row in trainer.result.history if "loss" in row}
    steps = [item for item in recorder.state.log_history if "loss" in item]
    assert [item["step"] for item in steps] == [2, 4]
    assert [item["loss"] for item in steps] == [rows[2]["loss"], rows[4]["loss"]]
    assert [item["step"] for item in recorder.state.log_history if "eval_loss" in item] == [0, 4]


def test_a_resumed_run_knows_what_was_best(watched, tiny_model_dir: Path, tmp_path: Path):
    folder, before, _ = watched
    recorder = Recorder()
    trainer = trainer_of(tiny_model_dir, tmp_path / "out", callbacks=[recorder], eval_dataset=EVALUATION)
    trainer.train(resume_from_checkpoint=str(folder / "checkpoints" / "checkpoint-3"))
    assert recorder.events[:2] == [("on_init_end", 3), ("on_train_begin", 3)]
    assert [step for event, step in recorder.events if event == "on_evaluate"] == [12]
    first = next(item["eval_loss"] for item in before.state.log_history if "eval_loss" in item)
    assert recorder.state.best_metric == min(first, recorder.state.log_history[-1]["eval_loss"])


def test_the_history_of_a_run_that_goes_on_is_whole(tiny_model_dir: Path, tmp_path: Path):
    """Killed after step 4 as a signal would: what was logged before comes back from metrics.jsonl."""

    class Interrupts(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 4:
                signal.raise_signal(signal.SIGTERM)

    given = {"eval_dataset": EVALUATION, "eval_steps": 3}
    with pytest.raises(PreemptedError):
        trainer_of(tiny_model_dir, tmp_path / "out", callbacks=[Interrupts], **given).train()
    recorder = Recorder()
    trainer_of(tiny_model_dir, tmp_path / "out", callbacks=[recorder], **given).train(resume_from_checkpoint="auto")
    history = recorder.state.log_history
    assert [item["step"] for item in history if "loss" in item] == [2, 4, 6, 8, 10, 12]
    assert [item["step"] for item in history if "eval_loss" in item] == [0, 3, 6, 9, 12]


def test_early_stopping_of_transformers_stops(tiny_model_dir: Path, tmp_path: Path):
    """Unmodified: a rate that ruins the model, an evaluation after every step; the best weights come back."""
    trainer = trainer_of(
        tiny_model_dir,
        tmp_path / "out",
        learning_rate=0.5,
        warmup_steps=0,
        eval_steps=1,
        callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
        eval_dataset=EVALUATION,
        checkpoint={"load_best": True},
    )
    trainer.train()
    losses = [row["eval_loss"] for row in trainer.result.history if "eval_loss" in row]
    best = int(np.argmin(losses))
    assert trainer.result.state.step == best + 2 < 12
    assert trainer.result.state.best_step == best


def test_callbacks_change_no_bit(tiny_model_dir: Path, tmp_path: Path):
    digests = []
    for name, hooks in (("without", {}), ("with", {"callbacks": [Recorder()], "compute_metrics": lambda obtained: {}})):
        trainer = trainer_of(tiny_model_dir, tmp_path / name, eval_dataset=EVALUATION, eval_steps=3, **hooks)
        trainer.train()
        history = [(row.get("loss"), row.get("eval_loss")) for row in read_metrics(tmp_path / name / "metrics.jsonl")]
        digests.append((weights_digest(tmp_path / name), history))
    assert digests[0] == digests[1]


def accuracy(obtained: Any) -> dict[str, Any]:
    """Of next tokens, with transformers' shift."""
    predicted, expected = obtained.predictions[:, :-1], obtained.label_ids[:, 1:]
    live = expected != -100
    return {"accuracy": (predicted[live] == expected[live]).mean(), "labels": live.sum(), "rows": len(expected)}


def plain_accuracy(model: Any, tokenizer: Any) -> tuple[float, int]:
    """The same with transformers alone, row by row."""
    right = labels = 0
    examples, _, _ = load_examples(EVALUATION, tokenizer, DataConfig(max_length=64, cache=False))
    for item in examples:
        with torch.no_grad():
            ids = model(input_ids=torch.from_numpy(item.input_ids)[None]).logits[0].argmax(-1)
        expected = torch.from_numpy(item.labels)[1:]
        right += int((ids[:-1] == expected)[expected != -100].sum())
        labels += int((expected != -100).sum())
    return right / labels, labels


@pytest.mark.parametrize("kernels", ["auto", "plain"])
@pytest.mark.parametrize("packing", [False, True])
def test_compute_metrics_gets_what_transformers_would_predict(
    tiny_model_dir: Path, tmp_path: Path, kernels: str, packing: bool
):
    trainer = trainer_of(
        tiny_model_dir,
        tmp_path / "out",
        data={"packing": packing},
        compute_metrics=accuracy,
        eval_dataset=EVALUATION,
        learning_rate=1e-2,
        runtime={"kernels": kernels},
    )
    trainer.train()
    rows = [row for row in trainer.result.history if "eval_loss" in row]
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    for row, model in ((rows[0], base), (rows[-1], trainer.result.model)):
        expected, labels = plain_accuracy(model, trainer.model.ensure_tokenizer())
        assert row["eval_accuracy"] == pytest.approx(expected)
        assert (row["eval_labels"], row["eval_rows"]) == (labels, len(EVALUATION)) == (row["eval_tokens"], 5)
    assert rows[-1]["eval_accuracy"] > rows[0]["eval_accuracy"]


def test_preprocess_decides_what_is_kept(tiny_model_dir: Path, tmp_path: Path):
    """Losses made of the logits are those of the evaluation; a tuple stays one, with one row for each."""

    def losses_and_width(logits: torch.Tensor, labels: torch.Tensor):
        shifted = torch.nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:], reduction="sum")
        return shifted[None], torch.tensor([logits.shape[-1]]), logits.argmax(-1)

    def total(obtained: Any) -> dict[str, float]:
        losses, widths, ids = obtained.predictions
        assert widths.tolist() == [400] * len(EVALUATION)
        assert ids.shape == obtained.label_ids.shape
        return {"sum": losses.sum()}

    trainer = trainer_of(
        tiny_model_dir,
        tmp_path / "out",
        compute_metrics=total,
        preprocess_logits_for_metrics=losses_and_width,
        eval_dataset=EVALUATION,
    )
    row = trainer.evaluate()
    assert row["eval_sum"] / row["eval_tokens"] == pytest.approx(row["eval_loss"], abs=1e-5)


def test_evaluate_before_and_after_training(tiny_model_dir: Path, tmp_path: Path):
    trainer = trainer_of(tiny_model_dir, tmp_path / "out", compute_metrics=accuracy)
    with pytest.raises(ConfigError, match="no evaluation data"):
        trainer.evaluate()
    before = trainer.evaluate(EVALUATION)
    assert trainer.model.model is None  # train() begins as without it
    trainer.train(None, EVALUATION)
    after, rows = trainer.evaluate(), [row for row in trainer.result.history if "eval_loss" in row]
    assert before["eval_loss"] == pytest.approx(rows[0]["eval_loss"], abs=1e-6)
    assert after == pytest.approx({name: rows[-1][name] for name in after}, abs=1e-6)
    assert set(after) >= {"eval_loss", "eval_perplexity", "eval_bits_per_character", "eval_accuracy"}
    assert trainer.evaluate(ROWS[5:8])["eval_rows"] == 3
    assert not trainer.result.model.training


def test_save_model_writes_what_loads_again(tiny_model_dir: Path, tmp_path: Path):
    config = training(tmp_path / "out", num_epochs=1)
    trainer = LoRAFinetuningTrainer(
        JapaneseModel(str(tiny_model_dir), torch_dtype=torch.float32), LoRAConfig(r=4), config, ROWS
    )
    with pytest.raises(ConfigError, match="call train"):
        trainer.save_model(str(tmp_path / "early"))
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    names = {path.name for path in (tmp_path / "saved").iterdir()}
    assert names >= {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "generation_config.json"}
    model, tokenizer = LoRAFinetuningTrainer.load_lora_model(str(tiny_model_dir), str(tmp_path / "saved"))
    assert tokenizer.chat_template
    for name in ("adapter_model.safetensors", "generation_config.json"):
        assert (tmp_path / "saved" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    trainer.save_model()  # the run's own folder once more
    assert json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))["status"] == "completed"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match="is not empty"):
        trainer.save_model(str(tmp_path / "mine"))
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_save_model_of_a_full_model(watched, tmp_path: Path):
    folder, _, trainer = watched
    trainer.save_model(str(tmp_path / "saved"))
    assert weights_digest(tmp_path / "saved") == weights_digest(folder)
    assert JapaneseModel(str(tmp_path / "saved")).load_model().config.model_type == "llama"


def test_callbacks_are_added_and_removed(tiny_model_dir: Path, tmp_path: Path):
    first, second = Recorder(), Recorder(stop=1)
    trainer = trainer_of(tiny_model_dir, tmp_path / "out", callbacks=[first, PrinterCallback])
    trainer.add_callback(second)
    assert isinstance(trainer.pop_callback(PrinterCallback), PrinterCallback)
    assert trainer.pop_callback(PrinterCallback) is None
    trainer.remove_callback(first)
    trainer.train()
    assert (first.events, trainer.result.state.step) == ([], 1)


def test_an_evaluation_without_data_is_said(tiny_model_dir: Path, tmp_path: Path, logged):
    trainer_of(tiny_model_dir, tmp_path / "out", callbacks=[Recorder(evaluate=1, stop=2)]).train()
    assert "there is no evaluation data, so nothing is evaluated" in logged()


class EndsEpochs(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_epoch_stop = True


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"callbacks": ["wandb"]}, "callbacks has 'wandb'"),
        ({"compute_metrics": "accuracy"}, "compute_metrics is 'accuracy'"),
        ({"preprocess_logits_for_metrics": len}, "give compute_metrics too"),
        ({"callbacks": [EarlyStoppingCallback()]}, "no evaluation data"),
        ({"callbacks": [EndsEpochs]}, "use should_training_stop"),
        ({"compute_metrics": lambda obtained: 1.0, "eval_dataset": EVALUATION}, "compute_metrics returned float"),
        ({"compute_metrics": lambda obtained: {"loss": 1.0}, "eval_dataset": EVALUATION}, "returned eval_loss"),
        (
            {
                "compute_metrics": accuracy,
                "preprocess_logits_for_metrics": lambda logits, labels: logits.sum(),
                "eval_dataset": EVALUATION,
            },
            "first dimension is 1",
        ),
    ],
)
def test_what_is_refused(tiny_model_dir: Path, tmp_path: Path, given: dict[str, Any], text: str):
    with pytest.raises(ConfigError, match=text) as error:
        trainer_of(tiny_model_dir, tmp_path / "out", **given).train()
    assert error.value.ja != error.value.en


@pytest.mark.parametrize("hooks", [{"callbacks": [Recorder()]}, {"compute_metrics": accuracy}])
def test_hooks_need_the_processes_of_a_launcher(tiny_model_dir: Path, tmp_path: Path, hooks: dict[str, Any]):
    """train() would start processes, which have no functions of this script."""
    config = training(tmp_path / "out", parallel=ParallelConfig(processes=2))
    model = JapaneseModel(str(tiny_model_dir), device=torch.device("cpu"))
    trainer = AdvancedMultiGPUTrainer(model, config, ROWS, EVALUATION, **hooks)
    with pytest.raises(ConfigError, match=r"torchrun --nproc-per-node=2 YOUR_SCRIPT\.py") as error:
        trainer.train()
    assert "torchrun --nproc-per-node=2 YOUR_SCRIPT.py" in error.value.ja
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "plan", [ParallelPlan("pipeline", Sizes(pp=2)), ParallelPlan("ddp", Sizes(dp=2), zero_stage=2)]
)
def test_strategies_without_logits_are_refused(plan: ParallelPlan):
    with pytest.raises(ConfigError, match="gives no logits"):
        validate_hooks(TrainerHooks(compute_metrics=accuracy), plan, 1, EVALUATION)
    validate_hooks(TrainerHooks(callbacks=(Recorder(),)), plan, 1, EVALUATION)


def test_the_example_of_the_pages_runs(tmp_path: Path):
    pages = [(DOCS / name).read_text(encoding="utf-8") for name in ("callbacks.md", "callbacks.ja.md")]
    english, japanese = (re.findall(r"^```python\n(.*?)^```", page, flags=re.M | re.S) for page in pages)
    assert english == japanese
    save_tiny_model(tmp_path / "my-model")
    for name, rows in (("train.jsonl", ROWS), ("eval.jsonl", EVALUATION)):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (tmp_path / name).write_text(text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", english[0]], cwd=tmp_path, capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 0, done.stderr
    assert 0 <= float(done.stdout.strip().splitlines()[-1]) <= 1
    assert (tmp_path / "outputs" / "faq-copy" / "config.json").is_file()
