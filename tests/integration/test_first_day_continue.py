"""The first day, runs that live: going on from a run with new data, old rows among them, the best weights, and what a
run says of itself. Numbers in names are those of the trials that these defects were found in.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tests.support.commands import call
from tests.support.runs import losses, training, weights_digest

from ai_finetuning import (
    DataConfig,
    FullFinetuningTrainer,
    JapaneseModel,
    LoRAConfig,
    LoRAFinetuningTrainer,
    TrainingConfig,
)
from ai_finetuning.config.load import load_config
from ai_finetuning.engine.metrics import read_metrics
from ai_finetuning.errors import ConfigError
from ai_finetuning.execution.adapter_start import going_on_from

PROMPT = "あなたは親切な店員です。"


def write_rows(path: Path, first: int, count: int) -> Path:
    rows = [
        {"instruction": f"{n}の次の数は何ですか？", "output": f"{n + 1}です。"} for n in range(first, first + count)
    ]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def settings(output: Path | None, train: Path, **changes: Any) -> list[str]:
    values = {
        "data.train": train,
        "max_length": 160,
        "learning_rate": 5e-3,
        "batch_size": 2,
        "gradient_accumulation_steps": 2,
        "num_epochs": 2,
        "warmup_steps": 0,
        "fp16": "false",
        "progress": "false",
    }
    values |= changes | ({"output_dir": output} if output is not None else {})
    return [f"{key}={value}" for key, value in values.items()]


def scores(folder: Path) -> dict[int, float]:
    return {row["step"]: row["eval_loss"] for row in read_metrics(folder / "metrics.jsonl") if "eval_loss" in row}


def run_json(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "run.json").read_text(encoding="utf-8")))


def config_yaml(folder: Path) -> dict[str, Any]:
    return dict(yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")))


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("data")
    return {
        "old": write_rows(folder / "old.jsonl", 0, 20),
        "new": write_rows(folder / "new.jsonl", 100, 20),
        "eval": write_rows(folder / "eval.jsonl", 50, 6),
    }


@pytest.fixture(scope="module")
def first(tiny_model_dir: Path, data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A QLoRA run with its own rank, targets, template and system prompt."""
    folder = tmp_path_factory.mktemp("runs") / "faq"
    options = settings(folder, data["old"], **{"data.eval": data["eval"], "data.system_prompt": PROMPT})
    options += ["lora.r=4", "lora.lora_alpha=12", "lora.target_modules=q_proj,v_proj", "model.chat_template=chatml"]
    assert call("train", f"model={tiny_model_dir}", "method=qlora", *options) == 0
    return folder


# --- going on


def test_a14_from_goes_on_from_an_adapter_with_new_data(
    first: Path, data: dict[str, Path], tmp_path: Path, tiny_model_dir: Path, logged: Any
):
    before = everything(first)
    old_rows = settings(tmp_path / "more", data["new"], **{"data.eval": data["eval"]})
    assert call("train", "--from", str(first), *old_rows) == 0
    assert everything(first) == before
    stored, told = (
        json.loads((tmp_path / "more" / "adapter_config.json").read_text(encoding="utf-8")),
        run_json(tmp_path / "more"),
    )
    assert (stored["r"], stored["lora_alpha"], sorted(stored["target_modules"])) == (4, 12, ["q_proj", "v_proj"])
    assert stored["base_model_name_or_path"] == str(tiny_model_dir)
    assert told["base_bits"] == 4
    assert told["parent"]["folder"] == str(first)
    assert str(first.name) in (tmp_path / "more" / "README.md").read_text(encoding="utf-8")
    # It begins where the first one ended: the same weights, quantized base, template and system prompt.
    assert scores(tmp_path / "more")[0] == pytest.approx(list(scores(first).values())[-1], abs=1e-6)
    assert PROMPT in (tmp_path / "more" / "chat_template.jinja").read_text(encoding="utf-8")
    template = (first / "chat_template.jinja").read_text(encoding="utf-8")
    assert (tmp_path / "more" / "chat_template.jinja").read_text(encoding="utf-8") == template
    assert "a fresh optimizer" in logged()


def test_a14_a_new_run_gets_a_folder_beside_the_old_one(first: Path, data: dict[str, Path], logged: Any):
    assert call("train", "--from", str(first), *settings(None, data["new"]), "--dry-run") == 0
    text = logged()
    assert f"{first}-2" in text
    assert not Path(f"{first}-2").exists()


def test_a14_the_learning_rate_is_the_earlier_runs_unless_given(
    first: Path, data: dict[str, Path], tmp_path: Path, logged: Any
):
    options = [
        option
        for option in settings(tmp_path / "more", data["new"], max_steps=1)
        if not option.startswith("learning_rate=")
    ]
    assert call("train", "--from", str(first), *options) == 0
    assert config_yaml(tmp_path / "more")["training"]["learning_rate"] == 5e-3
    assert "the learning rate is the earlier run's, 0.005" in logged()
    assert "low for LoRA" not in logged()
    given = load_config(None, [f"data.train={data['new']}", "learning_rate=1e-4"])
    assert going_on_from(given, first).training.learning_rate == 1e-4
    pairs = [f"data.train={data['new']}", "objective=preference"]
    assert going_on_from(load_config(None, pairs), first).training.learning_rate == 2e-5  # not what answers took
    own = going_on_from(load_config(None, [*pairs, "learning_rate=1e-3"]), first)
    assert own.training.learning_rate == 1e-3
    full = load_config(None, [f"data.train={data['new']}", "method=full", f"model={first}"])
    with pytest.raises(ConfigError, match="is a LoRA adapter"):
        going_on_from(full, first)


def test_a14_an_adapter_as_model_is_gone_on_from(first: Path, data: dict[str, Path], tmp_path: Path, logged: Any):
    options = settings(tmp_path / "more", data["new"], max_steps=1)
    assert call("train", f"model={first}", *options) == 0
    assert run_json(tmp_path / "more")["parent"]["folder"] == str(first)
    assert config_yaml(tmp_path / "more")["lora"]["adapter"] == str(first)


def test_a14_what_load_lora_model_returns_trains_on(
    first: Path, data: dict[str, Path], tmp_path: Path, tiny_model_dir: Path
):
    loaded, _ = LoRAFinetuningTrainer.load_lora_model(str(tiny_model_dir), str(first), torch.device("cpu"))
    config = training(tmp_path / "more", num_epochs=1, warmup_steps=0)
    trainer = LoRAFinetuningTrainer(loaded, LoRAConfig(), config, data=DataConfig(max_length=160))
    before = trainer.evaluate(str(data["eval"]))["eval_loss"]  # of the adapter, not of its base
    assert before == pytest.approx(list(scores(first).values())[-1], abs=1e-3)
    trainer.train(str(data["new"]), str(data["eval"]))
    told = run_json(tmp_path / "more")
    assert (told["parent"]["folder"], told["base_bits"]) == (str(first), 4)
    assert scores(tmp_path / "more")[0] == pytest.approx(list(scores(first).values())[-1], abs=1e-6)
    # What train() returned goes on as well; weights that were changed since are not those of the folder.
    again = LoRAFinetuningTrainer(trainer.result.model, LoRAConfig(), training(tmp_path / "again", num_epochs=1))
    assert again.lora_config.adapter == str(tmp_path / "more")
    with torch.no_grad():
        next(weight for name, weight in loaded.named_parameters() if "lora_B" in name).add_(1.0)
    with pytest.raises(ConfigError, match="changed since they were loaded"):
        LoRAFinetuningTrainer(loaded, LoRAConfig(), config)


def test_a22_a_module_of_transformers_is_refused_with_what_to_pass(tmp_path: Path):
    from tests.support.models import build_model

    for trainer, more in ((LoRAFinetuningTrainer, (LoRAConfig(),)), (FullFinetuningTrainer, ())):
        with pytest.raises(ConfigError, match="pass JapaneseModel"):
            trainer(build_model(), *more, TrainingConfig(output_dir=str(tmp_path / "out")))


def test_a14_a_full_run_goes_on_as_a_model(tiny_model_dir: Path, data: dict[str, Path], tmp_path: Path, logged: Any):
    options = settings(tmp_path / "whole", data["old"], max_steps=2, learning_rate=1e-3)
    assert call("train", f"model={tiny_model_dir}", "method=full", *options) == 0
    before = everything(tmp_path / "whole")
    assert call("train", "--from", str(tmp_path / "whole"), *settings(None, data["new"], max_steps=1)) == 0
    told = run_json(tmp_path / "whole-2")
    assert told["parent"] == {"folder": str(tmp_path / "whole"), "kind": "model"}
    assert (tmp_path / "whole-2" / "model.safetensors").is_file()
    assert everything(tmp_path / "whole") == before
    # Typed again with --resume it is that run; without, one more.
    again = ["train", "--from", str(tmp_path / "whole"), *settings(None, data["new"], max_steps=1)]
    assert call(*again, "--resume") == 0
    assert "whole-2 is complete" in logged()
    assert call(*again, "--dry-run") == 0
    assert "whole-3" in logged()
    # The folder that training goes on from is never the one that it writes.
    own = settings(tmp_path / "whole", data["new"], max_steps=1)
    assert call("train", f"model={tmp_path / 'whole'}", "method=full", *own) == 78
    assert "lies in training.output_dir" in logged()


@pytest.mark.parametrize(
    ("start", "extra", "code", "word"),
    [
        ("NOWHERE", [], 66, "is not a folder"),
        ("EMPTY", [], 78, "has no config.json"),
        ("STOPPED", [], 78, "has saved nothing yet"),
        ("FIRST", ["method=full"], 78, "aift merge"),
        ("FIRST", ["lora.adapter=elsewhere"], 78, "give only one"),
        ("FIRST", ["lora.r=16"], 78, "remove lora.r"),
        ("FIRST", ["output_dir=FIRST"], 78, "Choose another output_dir"),
    ],
)
def test_a14_what_cannot_be_gone_on_from_says_what_to_type(
    start: str, extra: list[str], code: int, word: str, first: Path, data: dict[str, Path], tmp_path: Path, logged: Any
):
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "STOPPED").mkdir()
    (tmp_path / "STOPPED" / "run.json").write_text('{"status": "stopped"}', encoding="utf-8")
    folder = first if start == "FIRST" else tmp_path / start
    options = settings(tmp_path / "out", data["new"]) + [item.replace("FIRST", str(first)) for item in extra]
    assert call("train", "--from", str(folder), *options) == code
    assert word in logged()


# --- old rows among new ones


def test_replay_is_short_for_two_settings(data: dict[str, Path], tmp_path: Path):
    whole = load_config(None, ["data.replay={path: a.jsonl, share: 0.2}"])
    parts = load_config(None, ["data.replay.path=a.jsonl", "data.replay.share=0.2"])
    assert whole.data.replay == parts.data.replay
    with pytest.raises(ConfigError, match=r"data\.replay\.path"):
        load_config(None, ["data.replay.share=0.2"])
    with pytest.raises(ConfigError, match=r"data\.replay\.shares"):
        load_config(None, ["data.replay={path: a.jsonl, shares: 0.2}"])


def test_replay_in_the_plan_and_in_the_run(
    tiny_model_dir: Path, data: dict[str, Path], tmp_path: Path, logged: Any, monkeypatch: pytest.MonkeyPatch
):
    """Rows and tokens of each; a stopped run goes on to the same bits; packing; evaluation rows are new ones."""
    replay = ["--replay", "0.25", str(data["old"])]

    def options(name: str, *more: str) -> list[str]:
        return [
            f"model={tiny_model_dir}",
            *settings(tmp_path / name, data["new"], eval=0.2, save_steps=3),
            *more,
            *replay,
        ]

    assert call("train", *options("plan"), "--dry-run") == 0
    text = logged()
    assert "of 20 old rows an epoch" in text
    assert "label tokens, 2" in text.replace("\n", "")
    assert call("train", *options("whole")) == 0
    with monkeypatch.context() as patch:
        patch.setenv("AIFT_FAULT", "step:term@5")
        assert call("train", *options("stopped")) == 75
    assert call("train", *options("stopped"), "--resume") == 0
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    assert weights_digest(tmp_path / "stopped") == weights_digest(tmp_path / "whole")
    plan = run_json(tmp_path / "whole")["result"]["plan"]
    assert plan["eval_rows"] == 4  # a fifth of the 20 new rows
    assert plan["rows"] == 16
    assert plan["replay"]["share"] == pytest.approx(0.25, abs=0.05)
    learnt = sum(row["label_tokens"] for row in read_metrics(tmp_path / "whole" / "metrics.jsonl") if "loss" in row)
    largest_row = 16
    assert learnt == pytest.approx(2 * (plan["label_tokens"] + plan["replay"]["label_tokens"]), abs=largest_row)
    config = config_yaml(tmp_path / "whole")["data"]["replay"]
    assert config == {"path": str(data["old"]), "share": 0.25}
    assert call("train", *options("packed", "packing=true", "max_steps=4")) == 0


def test_replay_without_a_usable_row_is_refused(
    tiny_model_dir: Path, data: dict[str, Path], tmp_path: Path, logged: Any
):
    missing = ["--replay", "0.1", str(tmp_path / "nowhere.jsonl")]
    base = [f"model={tiny_model_dir}", *settings(tmp_path / "out", data["new"])]
    assert call("train", *base, *missing) == 66
    same = [f"data.eval={data['old']}", "--replay", "0.1", str(data["old"])]
    assert call("train", *base, *same) == 65
    assert "all 20 are evaluation rows" in logged()
    assert call("train", *base, "--replay", "1.5", str(data["old"])) == 78
    assert "data.replay.share is 1.5" in logged()


# --- the best weights


# A rate that rises to the end: the first steps help on every processor, and the last ones ruin.
RUIN = {"learning_rate": 0.9, "eval_steps": 1, "num_epochs": 3, "schedule.name": "constant", "warmup_steps": 14}


def test_a8_the_best_weights_are_kept_and_the_end_says_so(
    tiny_model_dir: Path, data: dict[str, Path], tmp_path: Path, logged: Any
):
    """A rate that ruins the model: the last weights stay the run's, the best ones lie beside the checkpoints."""
    from ai_finetuning.inference.session import open_model

    options = {**RUIN, "data.eval": data["eval"]}
    assert call("train", f"model={tiny_model_dir}", *settings(tmp_path / "out", data["old"], **options)) == 0
    found = scores(tmp_path / "out")
    best = min((step for step in found if step), key=found.__getitem__)
    folder = tmp_path / "out" / "checkpoints" / "best"
    text = logged()
    assert found[best] < min(found[0], found[max(found)]), "the rate has to help at first, and to ruin the model then"
    assert f"best: step {best}, {found[best]:.2f}; last: step {max(found)}, {found[max(found)]:.2f}" in text
    assert f"aift chat {folder}" in text
    assert run_json(tmp_path / "out")["best"] == {
        "step": best,
        "eval_loss": found[best],
        "last_eval_loss": found[max(found)],
        "folder": "checkpoints/best",
    }
    assert not list(folder.glob("optimizer*"))
    assert open_model(str(folder), device=torch.device("cpu")).has_adapter
    assert (folder / "chat_template.jinja").read_text(encoding="utf-8") == (
        tmp_path / "out" / "chat_template.jinja"
    ).read_text(encoding="utf-8")
    assert call("generate", str(folder), "1の次は？", "--greedy", "--max-new-tokens", "2") == 0
    # Without them the same bits; with load_best they are what the run returns, and what its card tells of.
    without = {**options, "checkpoint.keep_best": "false"}
    assert call("train", f"model={tiny_model_dir}", *settings(tmp_path / "without", data["old"], **without)) == 0
    assert not (tmp_path / "without" / "checkpoints" / "best").exists()
    assert weights_digest(tmp_path / "without") == weights_digest(tmp_path / "out")
    assert losses(tmp_path / "without") == losses(tmp_path / "out")
    assert "were not kept (checkpoint.keep_best=false)" in logged()
    returned = {**options, "checkpoint.load_best": "true"}
    assert call("train", f"model={tiny_model_dir}", *settings(tmp_path / "returned", data["old"], **returned)) == 0
    assert weights_digest(tmp_path / "returned") == weights_digest(folder) != weights_digest(tmp_path / "out")
    told = run_json(tmp_path / "returned")["result"]["held_out_after"]
    assert (told["step"], told["eval_loss"]) == (best, found[best])
    # A run goes on from them.
    more = settings(None, data["new"], max_steps=1)
    assert call("train", "--from", str(folder), *more) == 0
    assert run_json(tmp_path / "out-2")["parent"]["folder"] == str(folder)


def test_a8_the_best_weights_of_a_full_run_are_a_model(
    tiny_model_dir: Path, data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: Any
):
    options = {"learning_rate": 2e-3, "eval_steps": 2, "data.eval": data["eval"], "max_steps": 6}
    base = [f"model={tiny_model_dir}", "method=full"]
    assert call("train", *base, *settings(tmp_path / "out", data["old"], **options)) == 0
    best = tmp_path / "out" / "checkpoints" / "best"
    assert (best / "model.safetensors").is_file()
    kept = JapaneseModel(str(best), device=torch.device("cpu"))
    assert isinstance(kept.generate_japanese("1の次は？", do_sample=False, max_new_tokens=2), str)
    # A disk without room for them: the run goes on, the step alone is named.
    usage = shutil.disk_usage(tmp_path)
    plan = run_json(tmp_path / "out")["result"]["plan"]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=int(plan["disk_bytes"] * 0.9)))
    assert call("train", *base, *settings(tmp_path / "small", data["old"], **options)) == 0
    assert not (tmp_path / "small" / "checkpoints" / "best").exists()
    assert run_json(tmp_path / "small")["best"]["folder"] is None
    assert weights_digest(tmp_path / "small") == weights_digest(tmp_path / "out")


def test_a8_best_weights_that_cannot_be_written_cost_nothing(
    tiny_model_dir: Path, data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: Any
):
    options = {"eval_steps": 2, "data.eval": data["eval"], "max_steps": 4}
    monkeypatch.setenv("AIFT_FAULT", "best:full@4")
    assert call("train", f"model={tiny_model_dir}", *settings(tmp_path / "out", data["old"], **options)) == 0
    assert "the best weights, of step 4, could not be written" in logged()
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    assert run_json(tmp_path / "out")["best"]["folder"] is None
    assert not (tmp_path / "out" / "checkpoints" / "best").exists()  # those of step 2 are not the best ones


# --- what a run says of itself


def test_a_run_evaluates_about_ten_times(tiny_model_dir: Path, data: dict[str, Path], tmp_path: Path, logged: Any):
    options = settings(tmp_path / "out", data["old"], num_epochs=8, eval=str(data["eval"]))
    assert TrainingConfig().eval_steps == 100
    assert call("train", f"model={tiny_model_dir}", *options, "--dry-run") == 0
    assert "10, every 4 steps" in logged()
    assert call("train", f"model={tiny_model_dir}", *options) == 0
    assert list(scores(tmp_path / "out")) == list(range(0, 41, 4))
    text = (tmp_path / "out" / "config.yaml").read_text(encoding="utf-8")
    assert "# derived: training.eval_steps: 4" in text
    assert "eval_steps" not in yaml.safe_load(text)["training"]


@pytest.mark.parametrize("setting", ["checkpoint.load_best=true", "early_stopping_patience=2"])
def test_what_needs_evaluation_data_is_refused_without(
    setting: str, tiny_model_dir: Path, data: dict[str, Path], tmp_path: Path, logged: Any
):
    base = [f"model={tiny_model_dir}", *settings(tmp_path / "out", data["old"]), setting]
    assert call("train", *base) == 78
    assert "it needs evaluation data" in logged()
    assert call("train", *base, "data.eval=0.0") == 78
    assert not (tmp_path / "out").exists()
    runtime = {"early_stopping_patience": 2} if "patience" in setting else {}
    config = training(tmp_path / "out", runtime=runtime, checkpoint={} if runtime else {"load_best": True})
    trainer = LoRAFinetuningTrainer(JapaneseModel(str(tiny_model_dir)), LoRAConfig(r=2), config)
    with pytest.raises(ConfigError, match="it needs evaluation data"):
        trainer.train(str(data["old"]))
    assert trainer.model.model is None  # nothing was loaded for it


def test_few_steps_are_said_in_the_plan_and_at_the_end(
    tiny_model_dir: Path, data: dict[str, Path], tmp_path: Path, logged: Any
):
    options = settings(tmp_path / "out", data["old"])
    assert call("train", f"model={tiny_model_dir}", *options, "--dry-run") == 0
    assert "10 steps teach little" in logged().replace("\n", " ")
    assert call("train", f"model={tiny_model_dir}", *options) == 0
    text = logged()
    said = "Raise training.num_epochs to 10 or more, lower the rows of a step"
    assert text.count(said) >= 2
    assert text.rindex(said) > text.index("the LoRA adapter is in")
    assert call("train", f"model={tiny_model_dir}", *options, "max_steps=3") == 0
    assert "Raise training.schedule.max_steps to 50" in logged()
