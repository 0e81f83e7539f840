"""A run is resolved once: each fact is looked up one time, nothing of the user's objects changes, a resumed run keeps
what it began with.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from tests.support.commands import call, write_run
from tests.support.models import save_tiny_model
from tests.support.runs import ROWS, training

from ai_finetuning import FullFinetuningTrainer, JapaneseModel, LoRAConfig, LoRAFinetuningTrainer
from ai_finetuning.config.data import DataConfig, ReplayConfig
from ai_finetuning.config.load import load_config
from ai_finetuning.config.model import ModelConfig
from ai_finetuning.config.run import RunConfig
from ai_finetuning.execution import base_facts, validate
from ai_finetuning.execution.execute import execute
from ai_finetuning.execution.request import TrainRequest, request_of
from ai_finetuning.execution.resolve import resolve
from ai_finetuning.models import hub, source
from ai_finetuning.planner import shape
from ai_finetuning.planner.speed import PILOT, Speed
from ai_finetuning.system.network import Answer

METHODS = {
    "full": ["method=full"],
    "lora": ["method=lora"],
    "qlora": ["method=qlora"],
    "auto": ["method=lora", "parallel.strategy=auto"],
}


@pytest.fixture
def lookups(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each fact was asked for, at every place that imports the function."""
    obtained: Counter[str] = Counter()

    def count(name: str, function: Any, *owners: Any) -> None:
        def counted(*args: Any, **kwargs: Any) -> Any:
            obtained[name] += 1
            return function(*args, **kwargs)

        for owner in owners:
            monkeypatch.setattr(owner, name, counted)

    count("locate", hub.locate, hub)
    count("head", hub.head, hub)
    count("read_config", source.read_config, source)
    count("meta_model", shape.meta_model, shape, base_facts)
    return obtained


@pytest.mark.parametrize("method", METHODS)
def test_each_fact_is_looked_up_once(method: str, tiny_model_dir: Path, tmp_path: Path, lookups: Counter[str]):
    run = write_run(tmp_path, tiny_model_dir, num_epochs=1)
    if method == "full":
        values = yaml.safe_load(run.read_text(encoding="utf-8"))
        del values["lora"]
        run.write_text(yaml.safe_dump(values), encoding="utf-8")
    assert call("train", str(run), *METHODS[method]) == 0
    assert lookups == {"locate": 1, "read_config": 1, "meta_model": 1}


def test_an_alias_and_the_hub_are_asked_once(
    tiny_model_dir: Path, tmp_path: Path, lookups: Counter[str], monkeypatch: pytest.MonkeyPatch, logged
):
    """A model that only a hub has: one question to the hub, one line that its name is another's; then its cached copy."""
    from ai_finetuning.models import catalog

    name = next(row.id for row in catalog.rows().values() if row.alias_of is not None)
    real = catalog.rows()[name].alias_of
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(hub, "head", _counting(lookups))
    monkeypatch.setattr(
        source, "read_config", lambda obtained: json.loads((tiny_model_dir / "config.json").read_text(encoding="utf-8"))
    )
    config = load_config(write_run(tmp_path, name), ["lora.r=2"])
    obtained = validate.find_base(config)
    model = request_of(config, source=obtained).model
    assert model.find() is obtained
    assert (obtained.name, obtained.local_only) == (real, False)
    assert lookups["head"] == lookups["locate"] == 1
    assert logged().count("is not a published model") == 1


def _counting(lookups: Counter[str]) -> Any:
    def head(url: str, limit_seconds: float = 5.0) -> Any:
        lookups["head"] += 1
        return Answer(status=200)

    return head


def outside(model: JapaneseModel) -> dict[str, Any]:
    """What a user can see of a model object, but for what it has loaded."""
    names = (
        "model_name",
        "device",
        "torch_dtype",
        "load_in_4bit",
        "load_in_8bit",
        "attention",
        "chat_template",
        "gradient_checkpointing",
    )
    return {name: getattr(model, name) for name in names}


@pytest.mark.parametrize(
    "lora", [None, LoRAConfig(r=2), LoRAConfig(r=2, use_qlora=True)], ids=["full", "lora", "qlora"]
)
def test_the_users_model_object_only_receives_the_trained_module(
    lora: LoRAConfig | None, tiny_model_dir: Path, tmp_path: Path
):
    model = JapaneseModel(str(tiny_model_dir))
    before = outside(model)
    settings = training(tmp_path / "out", num_epochs=1)
    if lora is None:
        trainer: Any = FullFinetuningTrainer(model, settings, use_accelerate=False)
    else:
        trainer = LoRAFinetuningTrainer(model, lora, settings)
    trained = trainer.train(ROWS)
    assert outside(model) == before
    assert model.model is trained
    assert not trained.training
    assert isinstance(model.generate_japanese("1の次の数は何ですか？", do_sample=False, max_new_tokens=4), str)


def test_a_run_that_is_refused_while_it_is_built_leaves_the_object_as_it_was(tiny_model_dir: Path, tmp_path: Path):
    from ai_finetuning import ToolkitError

    model = JapaneseModel(str(tiny_model_dir))
    before = outside(model)
    trainer = LoRAFinetuningTrainer(model, LoRAConfig(target_modules=["nowhere"]), training(tmp_path / "out"))
    with pytest.raises(ToolkitError, match="nowhere"):
        trainer.train(ROWS)
    assert outside(model) == before
    assert model.model is None


def test_the_plan_is_frozen_and_complete(tiny_model_dir: Path, tmp_path: Path):
    plan = resolve(request_of(load_config(write_run(tmp_path, tiny_model_dir))))
    with pytest.raises(AttributeError):
        plan.device = torch.device("cpu")  # type: ignore[misc]
    assert plan.source.path == str(tiny_model_dir)
    assert plan.summary.total_steps == 24
    assert plan.schedule.warmup == plan.derived.warmup_steps == 2
    assert plan.processes_to_start == 1
    assert plan.resume is None
    assert not (tmp_path / "out").exists()


# --- what a resumed run takes from its checkpoint


def derived_of(folder: Path) -> dict[str, Any]:
    derived: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))["derived"]
    return derived


def test_a_resumed_run_takes_what_was_derived_from_its_checkpoint_and_a_rerun_derives_anew(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    """Stopped on a machine that is short of memory, resumed on one that is not: checkpointing and warm-up stay."""
    from ai_finetuning.execution import place as module

    write_run(tmp_path, tiny_model_dir)
    plain = tmp_path / "plain.yaml"
    plain.write_text(
        json.dumps(
            {
                "model": str(tiny_model_dir),
                "data": {"train": str(tmp_path / "rows.jsonl"), "eval": 0.2, "max_length": 64},
                "training": {
                    "batch_size": 2,
                    "gradient_accumulation_steps": 2,
                    "num_epochs": 4,
                    "save_steps": 4,
                    "output_dir": str(tmp_path / "out"),
                    "runtime": {"progress": False},
                },
                "lora": {"r": 2},
            }
        ),
        encoding="utf-8",
    )
    with monkeypatch.context() as patch:
        patch.setenv("AIFT_FAULT", "step:term@6")
        patch.setattr(module, "free_memory_bytes", lambda device: 2 * 2**20)
        assert call("train", str(plain)) == 75
    first = derived_of(tmp_path / "out")
    assert first["gradient_checkpointing"] is True
    assert first["warmup_steps"] == 2
    assert len(first["target_modules"]) > 0
    assert first["split"] == "equal questions"
    assert first["attention"] == "sdpa"
    assert call("train", str(tmp_path / "out" / "config.yaml"), "--resume") == 0
    assert derived_of(tmp_path / "out") == first
    assert call("train", str(tmp_path / "out" / "config.yaml"), "training.schedule.max_steps=30") == 0
    again = derived_of(tmp_path / "out")
    assert again["gradient_checkpointing"] is False
    assert again["warmup_steps"] == 3


def test_config_yaml_holds_what_was_given_and_says_what_was_derived(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    """With paths relative to one folder, and run again from another."""
    work = tmp_path / "work"
    save_tiny_model(work / "model")
    (work / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    monkeypatch.chdir(work)
    given = ["model=model", "data.train=rows.jsonl", "training.num_epochs=1", "training.output_dir=out", "lora.r=2"]
    assert call("train", *given, "training.runtime.progress=false") == 0
    text = (work / "out" / "config.yaml").read_text(encoding="utf-8")
    stored = yaml.safe_load(text)
    assert stored["model"] == {"name": str(work / "model")}
    assert stored["data"] == {"train": str(work / "rows.jsonl")}
    assert stored["training"] == {
        "num_epochs": 1,
        "output_dir": str(work / "out"),
        "runtime": {"progress": False},
    }
    assert stored["lora"] == {"r": 2}
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert any("warmup_steps: 0" in line for line in comments)
    monkeypatch.chdir(tmp_path)
    assert call("train", str(work / "out" / "config.yaml"), "--dry-run") == 0
    assert call("train", str(work / "out" / "config.yaml"), f"training.output_dir={tmp_path / 'again'}") == 0
    assert (tmp_path / "again" / "adapter_model.safetensors").read_bytes() == (
        work / "out" / "adapter_model.safetensors"
    ).read_bytes()


# --- refused at once


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["train", "model=MODEL", "data.train=rows.jsnol"], 66, "rows.jsonl"),
        (["train", "model=nowhere/at/all", "data.train=rows.jsonl"], 66, "nowhere/at/all"),
        (["train", "model=MODEL", "data.train=rows.jsonl", "learning_rte=1"], 78, "learning_rate"),
        (["train", "model=MODEL", "data.train=rows.jsonl", "training.output_dir=taken"], 78, "adapter_config.json"),
        (["train", "model=MODEL", "data.train=rows.jsonl", "--resume", "nowhere"], 66, "nowhere"),
        (["train", "model=MODEL", "data.train=rows.jsonl", "parallel.tensor_parallel_size=3"], 78, "4 attention heads"),
        (["train", "model=MODEL", "data.train=rows.jsonl", "model.chat_template=none_such"], 78, "none_such"),
        (["generate", "MODEL", "質問", "--temperature", "-1"], 78, "temperature"),
        (["chat", "MODEL", "--max-new-tokens", "0"], 78, "max_new_tokens"),
    ],
    ids=["file", "model", "key", "folder", "checkpoint", "heads", "template", "generate", "chat"],
)
def test_what_the_request_alone_rules_out_is_refused_before_torch_is_imported(
    arguments: list[str], code: int, word: str, tiny_model_dir: Path, tmp_path: Path
):
    (tmp_path / "rows.jsonl").write_text('{"text": "東京"}\n', encoding="utf-8")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "adapter_config.json").write_text("{}", encoding="utf-8")
    program = (
        "import sys\nfrom ai_finetuning.apps.cli.main import run\ncode = run(sys.argv[1:])\n"
        "print('heavy:', sorted({'torch', 'transformers'} & set(sys.modules)), file=sys.stderr)\nsys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *(item.replace("MODEL", str(tiny_model_dir)) for item in arguments)],
        cwd=tmp_path,
        env=os.environ | {"AIFT_LANG": "en", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert word in done.stderr
    assert "heavy: []" in done.stderr


def test_a_resumed_run_keeps_the_text_that_its_template_had_when_it_began(tiny_model_dir: Path):
    """A key of model.chat_template stands for the text of then; another key is a choice of the user's."""
    from ai_finetuning.execution import resolve as module
    from ai_finetuning.japanese import templates

    former = "{{ 'the text of an earlier version' }}"
    config = RunConfig()
    asked = SimpleNamespace(config=config, model=JapaneseModel(str(tiny_model_dir), chat_template="calm2"))
    assert module._tokenizer(asked, {"chat_template": former}).chat_template == templates.TEMPLATES["calm2"].jinja
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(templates._FORMER, "calm2", (templates._digest(former),))
        assert module._tokenizer(asked, {"chat_template": former}).chat_template == former
        other = SimpleNamespace(config=config, model=JapaneseModel(str(tiny_model_dir), chat_template="llama3"))
        assert module._tokenizer(other, {"chat_template": former}).chat_template == templates.TEMPLATES["llama3"].jinja
    plain = SimpleNamespace(config=config, model=JapaneseModel(str(tiny_model_dir)))
    assert module._tokenizer(plain, {"chat_template": former}).chat_template == former


def test_the_time_of_a_run_counts_its_old_rows_and_its_evaluations(tiny_model_dir: Path, tmp_path: Path):
    """At a token a second: as many seconds as tokens went through the model."""
    old = tmp_path / "old.jsonl"
    old.write_text("".join(json.dumps({"text": f"{n}人の旅人が山を越えました。"}) + "\n" for n in range(30)), "utf-8")
    config = RunConfig(
        model=ModelConfig(str(tiny_model_dir)),
        data=DataConfig(max_length=64, replay=ReplayConfig(str(old), 0.5)),
        training=training(tmp_path / "out", eval_steps=3),
    )
    request = TrainRequest(JapaneseModel(str(tiny_model_dir)), config, ROWS, ROWS[:9])
    plan = resolve(request)
    history = execute(request).history
    evaluations = sum("eval_loss" in row for row in history)
    trained = max(row["tokens"] for row in history if "tokens" in row)
    evaluated = evaluations * sum(len(item.input_ids) for item in plan.data.eval_data)
    assert evaluations == 1 + plan.summary.evaluations > 3
    found = replace(plan.summary, speed=Speed(1.0, PILOT)).parts
    assert found is not None
    assert found.steps + found.evaluations == pytest.approx(trained + evaluated / 3, rel=0.03)
