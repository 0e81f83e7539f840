"""`aift import`: the command, the public run files of LLaMA-Factory and Axolotl, and plans of what they became.

The files lie in AIFT_SHARED/data/recipes, named llamafactory/PATH and axolotl/PATH with `__` for `/`.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.commands import ROWS, call

from ai_finetuning.config.fields import fields_of
from ai_finetuning.config.foreign.convert import Conversion, convert, read
from ai_finetuning.config.foreign.draft import Verdict
from ai_finetuning.config.foreign.write import yaml_of
from ai_finetuning.config.load import load_config
from ai_finetuning.config.run import RunConfig
from ai_finetuning.config.yaml_text import parse_yaml
from ai_finetuning.errors import ConfigError

REPOSITORY = Path(__file__).resolve().parents[2]
TABLE = REPOSITORY / "tests" / "fixtures" / "imports.yaml"
# Of each kind one: quantized, sharded, plain text, regular expression, prompt of its own, all weights.
SAMPLE = (
    "llamafactory/train_qlora__qwen3_lora_sft_otfq.yaml",
    "llamafactory/train_full__qwen3_full_sft.yaml",
    "axolotl/llama-3__lora-8b.yml",
    "axolotl/streaming__pretrain.yaml",
    "axolotl/gemma4-unified__12b-text-lora.yaml",
    "axolotl/llama-2__qlora-fsdp.yml",
    "axolotl/gemma3__gemma-3-4b-qlora.yml",
    "axolotl/phi__phi3-ft.yml",
    "axolotl/gpt-oss__gpt-oss-20b-fft-deepspeed-zero3.yaml",
    "axolotl/archived__tiny-llama__pretrain.yml",
)
# What rules a file out by the words of its keys, read without the tables: no text, neither answers nor preferences to
# learn, neither all weights nor an adapter, an optimizer of another kind, a loss or an initialization of its own.
OUT_KEYS = frozenset(
    [
        "processor_type",
        "image_max_pixels",
        "reward_model",
        "process_reward_model",
        "qat",
        "relora",
        "lisa_n_layers",
        "peft",
        "gptq",
        "diffusion",
        "llmcompressor",
        "use_onebitllms",
        "use_eaft",
        "reinit_weights",
        "use_galore",
        "use_apollo",
        "use_badam",
        "use_adam_mini",
        "use_dft_loss",
        "use_asft_loss",
        "use_eaft_loss",
        "pissa_init",
        "mixture_of_depths",
        "export_dir",
        "do_predict",
        "infer_backend",
    ]
)
OTHER_OPTIMIZERS = ("4bit", "fp8", "lion", "adafactor", "came", "sgd")


@pytest.fixture(scope="module")
def recipes(shared: Path) -> Path:
    folder = shared / "data" / "recipes"
    if not folder.is_dir():
        pytest.skip(f"public run files not found at {folder}; set AIFT_SHARED to the folder that has data/recipes")
    return folder


def run_files(recipes: Path) -> list[Path]:
    return sorted(path for path in recipes.glob("*/*") if path.suffix in (".yaml", ".yml"))


@cache
def knows_experts() -> bool:
    """Adapters on the tensors of experts are a setting of their own."""
    return ("lora", "target_parameters") in fields_of(RunConfig)


def waits(path: Path) -> bool:
    """Whether a file needs a setting that is not there yet."""
    return not knows_experts() and "lora_target_parameters:" in path.read_text(encoding="utf-8")


def is_in_scope(path: Path) -> bool:
    """Text; supervised, preference or continued pretraining; all weights, LoRA or QLoRA; an optimizer that we have."""
    values = {key: value for key, value in read(path).items() if value}
    if OUT_KEYS & values.keys() or values.get("stage", "sft") not in ("sft", "pt", "dpo", "kto"):
        return False
    if values.get("rl", "dpo") not in ("dpo", "ipo", "kto", "orpo", "simpo"):
        return False
    if values.get("finetuning_type", "lora") not in ("lora", "full"):
        return False
    if values.get("unfrozen_parameters") and not values.get("adapter"):
        return any("language_model" in name for name in values["unfrozen_parameters"])
    optimizer = str(values.get("optimizer", values.get("optim", "")))
    return not any(other in optimizer for other in OTHER_OPTIMIZERS)


def converted(path: Path) -> Conversion | None:
    try:
        return convert(path)
    except ConfigError:
        return None


def test_public_files_in_scope_are_imported_in_one_try(recipes):
    """At least 95 % of at least 100 files; what is written reads back as the settings that were checked."""
    inside = [path for path in run_files(recipes) if is_in_scope(path) and not waits(path)]
    assert len(inside) >= 100
    failed = []
    for path in inside:
        conversion = converted(path)
        if conversion is None or conversion.config is None:
            failed.append(path.name)
    assert len(failed) <= 0.05 * len(inside), failed


def test_public_files_out_of_scope_are_refused_with_every_reason(recipes, capsys):
    outside = [path for path in run_files(recipes) if not is_in_scope(path)]
    assert len(outside) >= 50
    for path in outside:
        conversion = convert(path)
        assert conversion.config is None, path.name
        switched_on = {key for key, value in read(path).items() if value and key in OUT_KEYS - {"infer_backend"}}
        assert switched_on <= {entry.key for entry in conversion.of(Verdict.REFUSED)}, path.name
    several = recipes / "axolotl" / "qwen2__prm.yaml"
    assert call("import", str(several)) == 78
    told = capsys.readouterr().err
    assert all(key in told for key in ("model_type", "process_reward_model", "datasets"))


def test_every_file_of_another_kind_is_refused_by_its_name(recipes):
    for path in recipes.glob("llamafactory/*.json"):
        with pytest.raises(ConfigError, match="DeepSpeed|dataset_info"):
            convert(path)


def test_values_of_forty_files(recipes):
    """Against values that were read off the files by hand (tests/fixtures/imports.yaml); null: not given."""
    table: dict[str, dict[str, Any]] = parse_yaml(TABLE.read_text(encoding="utf-8"), str(TABLE))
    assert len(table) >= 40
    for name, expected in table.items():
        if waits(recipes / name):
            continue
        settings = convert(recipes / name).settings
        assert {key: settings.get(key) for key in expected} == expected, name


def test_the_yaml_of_every_file_reads_back(recipes, tmp_path):
    out = tmp_path / "run.yaml"
    for path in run_files(recipes)[::7]:
        conversion = converted(path)
        if conversion is not None and conversion.config is not None:
            out.write_text(yaml_of(conversion), encoding="utf-8")
            assert load_config(out) == conversion.config, path.name


def test_the_page_lists_every_file_once(recipes):
    if not knows_experts():
        pytest.skip("lora.target_parameters is not there yet; the page says what holds with it")
    spec = importlib.util.spec_from_file_location("import_list", REPOSITORY / ".ci" / "import_list.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.listing(recipes) in module.PAGE.read_text(encoding="utf-8"), (
        f"python .ci/import_list.py {recipes} --write"
    )


# A local row by what a run learns.
LOCAL_ROWS: dict[str, Callable[[dict[str, str]], dict[str, Any]]] = {
    "sft": lambda row: row,
    "preference": lambda row: {"prompt": row["instruction"], "chosen": row["output"], "rejected": "不明です。"},
    "kto": lambda row: {"prompt": row["instruction"], "completion": row["output"], "label": "1" in row["output"]},
}
# What a run may name that the local model, or this machine, does not have.
LACKED = re.compile(r"which this model does not have|which is not in the vocabulary|is not installed")


def plan(path: Path, folder: Path, model: str) -> Any:
    """The plan of an imported file with a local model and local rows, as `aift train --dry-run` makes it."""
    from ai_finetuning.execution.sources import config_source
    from ai_finetuning.execution.validate import find_base, validate_config, validate_data
    from ai_finetuning.trainers.from_config import plan_training

    out = folder / "run.yaml"
    out.write_text(yaml_of(convert(path)), encoding="utf-8")
    objective = parse_yaml(out.read_text(encoding="utf-8"), out.name).get("objective", "sft")
    rows = folder / f"{objective}.jsonl"
    if not rows.exists():
        lines = [json.dumps(LOCAL_ROWS[objective](row), ensure_ascii=False) for row in ROWS * 100]
        rows.write_text("\n".join(lines) + "\n", encoding="utf-8")
    overrides = [f"model.name={model}", f"data.train={rows}", f"training.output_dir={folder / 'out'}"]
    config = load_config(out, overrides)
    validate_config(config)
    validate_data(config_source(config.data.train), config_source(config.data.eval))
    return plan_training(config, "cpu", find_base(config))


@pytest.mark.parametrize("name", SAMPLE)
def test_an_imported_run_can_be_planned(recipes, tmp_path, kotoha, name):
    made = plan(recipes / name, tmp_path, kotoha)
    assert made.summary.table()


@pytest.mark.slow
def test_all_imported_runs_can_be_planned(recipes, tmp_path, kotoha):
    """At least 95 % of those that name nothing (a layer, a token, a tracker) that the local model or this machine lacks."""
    inside = [path for path in run_files(recipes) if is_in_scope(path) and not waits(path)]
    failed, lacked = {}, set()
    for path in inside:
        try:
            plan(path, tmp_path, kotoha)
        except Exception as error:
            if LACKED.search(str(error)):
                lacked.add(path.name)
            else:
                failed[path.name] = str(error)
    assert len(lacked) <= 0.15 * len(inside), lacked
    assert len(failed) <= 0.05 * (len(inside) - len(lacked)), failed


# The 29 keys of LLaMA-Factory's train_lora/qwen3_lora_sft.yaml.
QWEN3_LORA_SFT: dict[str, Any] = {
    "bf16": True,
    "cutoff_len": 2048,
    "dataloader_num_workers": 4,
    "dataset": "identity,alpaca_en_demo",
    "ddp_timeout": 180000000,
    "do_train": True,
    "finetuning_type": "lora",
    "gradient_accumulation_steps": 8,
    "learning_rate": 1.0e-4,
    "logging_steps": 10,
    "lora_rank": 8,
    "lora_target": "all",
    "lr_scheduler_type": "cosine",
    "max_samples": 1000,
    "model_name_or_path": "Qwen/Qwen3-4B-Instruct-2507",
    "num_train_epochs": 3.0,
    "output_dir": "saves/qwen3-4b/lora/sft",
    "overwrite_output_dir": True,
    "per_device_train_batch_size": 1,
    "plot_loss": True,
    "preprocessing_num_workers": 16,
    "report_to": "none",
    "resume_from_checkpoint": None,
    "save_only_model": False,
    "save_steps": 500,
    "stage": "sft",
    "template": "qwen3_nothink",
    "trust_remote_code": True,
    "warmup_ratio": 0.1,
}


def test_command(tmp_path, capsys, monkeypatch):
    """29 keys in one try, each listed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    info = {name: {"file_name": f"{name}.json"} for name in ("identity", "alpaca_en_demo")}
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(info))
    (tmp_path / "theirs.yaml").write_text(yaml.safe_dump(QWEN3_LORA_SFT), encoding="utf-8")
    assert call("import", "theirs.yaml", "--out", "run.yaml") == 0
    listed = capsys.readouterr().out
    assert len(QWEN3_LORA_SFT) == 29
    assert all(f"  {key}: " in listed or f": {key}\n" in listed for key in QWEN3_LORA_SFT)
    assert "aift train run.yaml" in listed
    config = load_config(tmp_path / "run.yaml")
    assert config.method == "lora"
    assert config.data.train == ["data/identity.json", "data/alpaca_en_demo.json"]
    assert (config.lora.r, config.lora.lora_alpha, config.lora.lora_dropout) == (8, 16, 0.0)
    assert (config.training.batch_size, config.training.gradient_accumulation_steps) == (1, 8)
    assert config.training.schedule.warmup_ratio == 0.1
    assert (config.data.max_length, config.data.max_samples) == (2048, 1000)
    assert not config.model.trust_remote_code


def test_command_writes_over_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "theirs.yaml").write_text(yaml.safe_dump(QWEN3_LORA_SFT), encoding="utf-8")
    (tmp_path / "run.yaml").write_text("mine", encoding="utf-8")
    assert call("import", "theirs.yaml", "--out", "run.yaml") == 78
    assert "--force" in capsys.readouterr().err
    assert (tmp_path / "run.yaml").read_text() == "mine"
    assert call("import", "theirs.yaml", "--out", "run.yaml", "--force", "--gpus", "4") == 0
    assert load_config(tmp_path / "run.yaml").training.gradient_accumulation_steps == 32
    assert call("import", "run.yaml") == 78
    assert "run file of ours" in capsys.readouterr().err
    assert call("import", "missing.yaml") == 66
    assert call("import", "theirs.yaml", "--out", "no/such/folder/run.yaml") == 74


def test_command_prints_yaml_alone(tmp_path, capsys):
    """Without --out the standard output holds nothing but the YAML."""
    path = tmp_path / "theirs.yaml"
    path.write_text(yaml.safe_dump(QWEN3_LORA_SFT), encoding="utf-8")
    capsys.readouterr()
    assert call("import", str(path)) == 0
    shown = capsys.readouterr()
    assert parse_yaml(shown.out, "stdout")["method"] == "lora"
    assert "taken as they are" in shown.err
