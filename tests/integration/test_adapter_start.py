"""Training that goes on from an adapter: it begins at the adapter's loss, takes its settings, and resumes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from tests.support.commands import ROWS, call
from tests.support.models import build_model, save_tiny_model
from tests.support.runs import losses, weights_digest

from ai_finetuning.engine.metrics import read_metrics


def write(folder: Path, model: Path, **changes: Any) -> str:
    """A YAML of 12 steps with evaluation data."""
    folder.mkdir(exist_ok=True)
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS), encoding="utf-8")
    values = {
        "model": {"name": str(model), "dtype": "float32"},
        "train": str(rows),
        "eval": str(rows),
        "max_length": 64,
        "learning_rate": 5e-3,
        "batch_size": 2,
        "gradient_accumulation_steps": 2,
        "num_epochs": 2,
        "warmup_steps": 0,
        "eval_steps": 100,
        "save_steps": 4,
        "output_dir": str(folder / "out"),
        "fp16": False,
        "progress": False,
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(values | changes, allow_unicode=True), encoding="utf-8")
    return str(path)


def evaluations(folder: Path) -> list[float]:
    return [row["eval_loss"] for row in read_metrics(folder / "metrics.jsonl") if "eval_loss" in row]


@pytest.fixture(scope="module")
def adapter(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that our own run has trained, with settings that are not the defaults."""
    folder = tmp_path_factory.mktemp("first")
    lora = {"r": 4, "lora_alpha": 12, "lora_dropout": 0.1, "use_dora": True, "target_modules": ["q_proj", "v_proj"]}
    assert call("train", write(folder, tiny_model_dir, lora=lora)) == 0
    return folder / "out"


def adapter_settings(folder: Path) -> dict[str, Any]:
    stored = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    names = ("r", "lora_alpha", "lora_dropout", "use_dora", "use_rslora", "bias", "modules_to_save")
    return {name: stored[name] for name in names} | {"target_modules": sorted(stored["target_modules"])}


def test_it_begins_where_the_adapter_ended(adapter: Path, tiny_model_dir: Path, tmp_path: Path, logged: Any):
    run = write(tmp_path, tiny_model_dir, lora={"adapter": str(adapter)})
    assert call("train", run) == 0
    first, second = evaluations(adapter), evaluations(tmp_path / "out")
    assert second[0] == pytest.approx(first[-1], abs=1e-6)
    assert second[-1] < second[0] < first[0] - 0.01
    assert adapter_settings(tmp_path / "out") == adapter_settings(adapter)
    assert "was trained on" not in logged()
    stored = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text(encoding="utf-8"))["lora"]
    assert (stored["adapter"], stored["r"], stored["use_dora"]) == (str(adapter), 4, True)
    assert call("train", str(tmp_path / "out" / "config.yaml"), f"output_dir={tmp_path / 'again'}") == 0
    assert weights_digest(tmp_path / "again") == weights_digest(tmp_path / "out")


def test_its_own_dropout_may_be_given(adapter: Path, tiny_model_dir: Path, tmp_path: Path):
    run = write(tmp_path, tiny_model_dir, lora={"adapter": str(adapter), "lora_dropout": 0.0, "r": 4})
    assert call("train", run, "max_steps=1") == 0
    assert adapter_settings(tmp_path / "out") == adapter_settings(adapter) | {"lora_dropout": 0.0}


def test_a_stopped_run_resumes_to_the_same_bits(
    adapter: Path, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: Any
):
    whole = write(tmp_path / "whole", tiny_model_dir, adapter=str(adapter))
    stopped = write(tmp_path / "stopped", tiny_model_dir, adapter=str(adapter))
    assert call("train", whole) == 0
    with monkeypatch.context() as patch:
        patch.setenv("AIFT_FAULT", "step:term@7")
        assert call("train", stopped) == 75
    other = tmp_path / "other"
    shutil.copytree(tmp_path / "whole" / "out", other)
    assert call("train", stopped, "--resume", f"lora.adapter={other}") == 78  # it did not begin with that one
    assert "lora.adapter" in logged()
    assert call("train", stopped, "--resume") == 0
    assert losses(tmp_path / "stopped" / "out") == losses(tmp_path / "whole" / "out")
    assert weights_digest(tmp_path / "stopped" / "out") == weights_digest(tmp_path / "whole" / "out")


def test_an_adapter_of_peft_on_a_quantized_base(tiny_model_dir: Path, tmp_path: Path):
    torch.manual_seed(1)
    model = get_peft_model(
        build_model(), LoraConfig(r=2, lora_alpha=6, target_modules="all-linear", init_lora_weights=False)
    )
    model.save_pretrained(tmp_path / "theirs")
    run = write(tmp_path, tiny_model_dir, adapter=str(tmp_path / "theirs"), method="qlora", target_modules="all-linear")
    assert call("train", run, "max_steps=2") == 0
    settings = adapter_settings(tmp_path / "out")
    assert (settings["r"], settings["lora_alpha"], settings["lora_dropout"]) == (2, 6, 0.0)
    assert len(settings["target_modules"]) == 14


def test_settings_that_the_adapter_contradicts_are_refused_with_both_values(
    adapter: Path, tiny_model_dir: Path, tmp_path: Path, logged: Any
):
    lora = {"adapter": str(adapter), "r": 8, "use_dora": False, "target_modules": ["q_proj"], "lora_alpha": 12}
    assert call("train", write(tmp_path, tiny_model_dir, lora=lora)) == 78
    text = logged()
    assert f"lora.r is 8, and 4 in the adapter {adapter}" in text
    assert "lora.use_dora is False, and True" in text
    assert "lora.target_modules is ['q_proj'], and ['q_proj', 'v_proj']" in text
    assert "lora_alpha" not in text
    assert call("train", write(tmp_path, tiny_model_dir, adapter=str(adapter), target_modules="all-linear")) == 78
    assert "lora.target_modules is 'all-linear'" in logged()


@pytest.mark.parametrize(
    ("changes", "code", "word"),
    [
        ({"adapter": "nowhere"}, 66, "nowhere holds no LoRA adapter"),
        ({"adapter": "ADAPTER", "output_dir": "ADAPTER"}, 78, "are both"),
        ({"adapter": "ADAPTER", "method": "full"}, 78, "have no effect"),
        ({"adapter": "PICKLE"}, 78, "for safety"),
        ({"adapter": "OTHER_KIND"}, 78, "of the kind IA3"),
        ({"adapter": "CUT"}, 78, "is damaged"),
        ({"adapter": "NO_JSON"}, 78, "cannot be read"),
        ({"adapter": "WIDE"}, 78, "does not fit this model"),
    ],
)
def test_what_cannot_be_gone_on_from(
    changes: dict[str, str], code: int, word: str, adapter: Path, tiny_model_dir: Path, tmp_path: Path, logged: Any
):
    folders = {"ADAPTER": adapter}
    for name in ("PICKLE", "OTHER_KIND", "CUT", "NO_JSON"):
        folders[name] = shutil.copytree(adapter, tmp_path / name)
    (tmp_path / "PICKLE" / "adapter_model.safetensors").unlink()
    with (tmp_path / "CUT" / "adapter_model.safetensors").open("r+b") as file:
        file.truncate(2000)
    (tmp_path / "NO_JSON" / "adapter_config.json").write_text("{", encoding="utf-8")
    config = tmp_path / "OTHER_KIND" / "adapter_config.json"
    config.write_text(config.read_text(encoding="utf-8").replace('"LORA"', '"IA3"'), encoding="utf-8")
    get_peft_model(build_model(hidden_size=32), LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(
        tmp_path / "WIDE"
    )
    folders["WIDE"] = tmp_path / "WIDE"
    given = {key: str(folders.get(value, value)) for key, value in changes.items()}
    assert call("train", write(tmp_path, tiny_model_dir, **given)) == code
    assert word in logged()
    assert not (tmp_path / "out").exists()


def test_another_base_and_another_template_are_said(adapter: Path, tmp_path: Path, logged: Any):
    other = save_tiny_model(tmp_path / "other", seed=5)
    assert (
        call(
            "train",
            write(tmp_path, other, adapter=str(adapter), chat_template="alpaca_ja"),
            "max_steps=1",
            "max_length=256",
        )
        == 0
    )
    text = logged()
    assert f"and the base is {other}" in text
    assert "the chat template differs" in text


@pytest.mark.slow
def test_with_two_processes(adapter: Path, tiny_model_dir: Path, tmp_path: Path):
    run = write(tmp_path, tiny_model_dir, adapter=str(adapter), lora_dropout=0.0, strategy="ddp")
    assert call("train", run, "--cpu-processes", "2") == 0
    assert evaluations(tmp_path / "out")[0] == pytest.approx(evaluations(adapter)[-1], abs=1e-6)
    assert call("train", run, f"output_dir={tmp_path / 'one'}") == 0
    assert evaluations(tmp_path / "out")[-1] == pytest.approx(evaluations(tmp_path / "one")[-1], abs=1e-4)
