"""Run files of LLaMA-Factory, Axolotl and TRL as ours: the values that mean something else, what is refused, what is written."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from ai_finetuning.config.fields import fields_of
from ai_finetuning.config.foreign.convert import TOOLS, Conversion, convert, refusal
from ai_finetuning.config.foreign.draft import Verdict
from ai_finetuning.config.foreign.prompts import jinja_of
from ai_finetuning.config.foreign.write import list_of, yaml_of
from ai_finetuning.config.load import load_config
from ai_finetuning.config.run import RunConfig
from ai_finetuning.errors import ConfigError, InputNotFoundError

LLAMAFACTORY: dict[str, Any] = {
    "model_name_or_path": "org/model",
    "stage": "sft",
    "do_train": True,
    "finetuning_type": "lora",
    "dataset": "faq",
    "template": "llama3",
    "output_dir": "out",
}
AXOLOTL: dict[str, Any] = {
    "base_model": "org/model",
    "datasets": [{"path": "faq.jsonl", "type": "chat_template"}],
    "adapter": "lora",
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_target_linear": True,
    "learning_rate": 2e-4,
    "micro_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "output_dir": "out",
}
TRL: dict[str, Any] = {"model_name_or_path": "org/model", "dataset_name": "org/data", "use_peft": True}
INFO = {"faq": {"file_name": "faq.json"}}


def write(folder: Path, values: dict[str, Any], name: str = "theirs.yaml", **changes: Any) -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(values | changes, allow_unicode=True, sort_keys=False), encoding="utf-8")
    return path


@pytest.fixture
def llamafactory(tmp_path: Path):
    """Converts a LLaMA-Factory file with some keys changed, beside a dataset_info.json."""
    (tmp_path / "dataset_info.json").write_text(json.dumps(INFO), encoding="utf-8")
    return lambda gpus=1, **changes: convert(write(tmp_path, LLAMAFACTORY, **changes), gpus=gpus)


@pytest.fixture
def axolotl(tmp_path: Path):
    """Converts an Axolotl file with some keys changed."""
    return lambda gpus=1, **changes: convert(write(tmp_path, AXOLOTL, **changes), gpus=gpus)


@pytest.fixture
def trl(tmp_path: Path):
    """Converts a TRL file with some keys changed."""
    return lambda gpus=1, **changes: convert(write(tmp_path, TRL, **changes), gpus=gpus)


def verdict(conversion: Conversion, key: str) -> Verdict:
    return next(entry.verdict for entry in conversion.entries if entry.key == key)


def refused(conversion: Conversion) -> set[str]:
    assert conversion.config is None
    return {entry.key for entry in conversion.of(Verdict.REFUSED)}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"lora.r": 8, "lora.lora_alpha": 16, "lora.lora_dropout": 0.0, "lora.target_modules": "all-linear"}),
        ({"lora_rank": "64"}, {"lora.r": 64, "lora.lora_alpha": 128}),
        ({"lora_rank": 64, "lora_alpha": 16}, {"lora.r": 64, "lora.lora_alpha": 16}),
        ({"lora_target": "q_proj, v_proj"}, {"lora.target_modules": ["q_proj", "v_proj"]}),
        ({"quantization_bit": 4}, {"method": "qlora"}),
        ({"quantization_bit": 8}, {"method": "qlora", "lora.qlora_4bit": False}),
        ({"finetuning_type": "full"}, {"method": "full"}),
        ({"learning_rate": "3e-6"}, {"training.learning_rate": 3e-6}),
        ({}, {"training.learning_rate": 5e-5, "training.batch_size": 8, "data.max_length": 2048}),
        ({"warmup_steps": 0.1}, {"training.schedule.warmup_ratio": 0.1}),
        ({"warmup_ratio": 0.1, "warmup_steps": 20}, {"training.warmup_steps": 20}),
        ({}, {"training.warmup_steps": 0}),
        (
            {"lr_scheduler_type": "constant", "warmup_ratio": 0.1},
            {"training.schedule.name": "constant", "training.warmup_steps": 0},
        ),
        (
            {"lr_scheduler_type": "constant_with_warmup", "warmup_ratio": 0.1},
            {"training.schedule.name": "constant", "training.schedule.warmup_ratio": 0.1},
        ),
        (
            {
                "lr_scheduler_type": "cosine_with_min_lr",
                "lr_scheduler_kwargs": {"min_lr": "1e-6"},
                "learning_rate": 1e-5,
            },
            {"training.schedule.name": "cosine", "training.schedule.min_lr_ratio": pytest.approx(0.1)},
        ),
        ({"bf16": True}, {"training.runtime.precision": "bf16"}),
        ({"bf16": "auto"}, {"training.runtime.precision": "auto"}),
        ({"bf16": False, "fp16": "true"}, {"training.runtime.precision": "fp16"}),
        ({"neat_packing": True}, {"data.packing": True}),
        ({"train_on_prompt": True}, {"data.loss_on": "all"}),
        ({"val_size": 0.1, "eval_strategy": "steps", "eval_steps": 50}, {"data.eval": 0.1, "training.eval_steps": 50}),
        ({"val_size": 0.1, "eval_strategy": "epoch"}, {"training.evals_per_epoch": 1}),
        ({"save_strategy": "epoch", "save_steps": 500}, {"training.saves_per_epoch": 1}),
        ({"save_steps": 0.25, "num_train_epochs": 2}, {"training.saves_per_epoch": 2}),
        ({"save_total_limit": 1}, {"training.checkpoint.save_total_limit": 2}),
        ({"overwrite_output_dir": True}, {"training.checkpoint.restart": True}),
        ({"report_to": ["wandb", "swanlab"]}, {"training.runtime.report_to": ["wandb"]}),
        ({"disable_gradient_checkpointing": True}, {"training.gradient_checkpointing": False}),
        ({"adapter_name_or_path": "saves/a"}, {"lora.adapter": "saves/a"}),
        ({"max_steps": 100, "num_train_epochs": 1.5}, {"training.schedule.max_steps": 100}),
        ({"optim": "paged_adamw_8bit"}, {"training.optimizer.name": "adamw_8bit"}),
        ({"adam_beta2": 0.95}, {"training.optimizer.betas": [0.9, 0.95]}),
        ({"add_special_tokens": "<a>,<b>"}, {"model.extra_tokens": ["<a>", "<b>"]}),
        ({"loraplus_lr_ratio": 16.0}, {"training.optimizer.lora_plus_ratio": 16.0}),
        ({"additional_target": "embed_tokens,lm_head"}, {"lora.modules_to_save": ["embed_tokens", "lm_head"]}),
    ],
)
def test_values_of_llamafactory(llamafactory, changes, expected):
    conversion = llamafactory(**changes)
    assert conversion.config is not None
    assert {key: conversion.settings.get(key) for key in expected} == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"adapter": "qlora", "load_in_4bit": True}, {"method": "qlora"}),
        ({"load_in_8bit": True}, {"method": "qlora", "lora.qlora_4bit": False}),
        ({"peft": {"backend": "bnb", "weight_dtype": "nf4"}}, {"method": "qlora"}),
        ({"peft": {"backend": "torchao", "weight_dtype": "int8"}}, {"method": "qlora", "lora.qlora_4bit": False}),
        (
            {"unfrozen_parameters": [r"^model\.language_model\..*"], "adapter": None},
            {"method": "full"},
        ),
        ({"auto_resume_from_checkpoints": True}, {"training.checkpoint.resume_from_checkpoint": "auto"}),
        ({"adapter": None, "lora_r": None}, {"method": "full", "lora.r": None}),
        ({}, {"lora.lora_dropout": 0.0, "training.num_epochs": 1, "training.schedule.name": "cosine"}),
        ({}, {"training.schedule.warmup_ratio": 0.03, "training.saves_per_epoch": 1, "data.on_long": "drop"}),
        ({"max_steps": 1000}, {"training.warmup_steps": 30}),
        ({"batch_size": 8, "gradient_accumulation_steps": None}, {"training.gradient_accumulation_steps": 4}),
        ({"val_set_size": 0}, {"data.eval": None}),
        ({"val_set_size": 0.02}, {"data.eval": 0.02}),
        ({"val_set_size": 0.02, "eval_strategy": False}, {"data.eval": 0.02}),  # YAML 1.1 reads `no` as false
        ({"cosine_min_lr_ratio": 0.1}, {"training.schedule.min_lr_ratio": 0.1}),
        ({"lr_scheduler": "Cosine", "optimizer": "ADAMW_TORCH_FUSED"}, {"training.optimizer.name": "adamw"}),
        ({"train_on_inputs": True}, {"data.loss_on": "all"}),
        ({"excess_length_strategy": "truncate"}, {"data.on_long": "truncate"}),
        ({"gradient_checkpointing": "offload"}, {"training.gradient_checkpointing": True}),
        ({"eot_tokens": ["<|eot_id|>"]}, {"model.turn_end_tokens": None}),  # the template's own end is learnt anyway
        ({"eot_tokens": ["<a>", "<b>"]}, {"model.turn_end_tokens": ["<a>", "<b>"]}),
        (
            {"base_model": "tiiuae/falcon-7b", "special_tokens": {"eos_token": "<|endoftext|>"}},
            {"model.special_tokens": None},
        ),
        (
            {"base_model": "tiiuae/falcon3-7b", "special_tokens": {"eos_token": "<|endoftext|>"}},
            {"model.special_tokens": {"eos_token": "<|endoftext|>"}},
        ),
        (
            {"chat_template": "llama3", "special_tokens": {"eos_token": "<|eot_id|>", "pad_token": "<p>"}},
            {"model.special_tokens": None},
        ),
        ({"special_tokens": {"eos_token": "</s>"}}, {"model.special_tokens": {"eos_token": "</s>"}}),
        (
            {"special_tokens": {"bos_token": "<s>", "eos_token": "</s>"}, "tokenizer_type": "LlamaTokenizer"},
            {"model.special_tokens": None},
        ),
        (
            {"tokens": ["<x>"], "special_tokens": {"pad_token": "<p>", "eos_token": None}},
            {"model.extra_tokens": ["<x>"], "model.special_tokens": None},
        ),
        ({"lora_model_dir": "a"}, {"lora.adapter": "a", "lora.r": None}),
        ({"peft_use_rslora": True, "peft_use_dora": False}, {"lora.use_rslora": True, "lora.use_dora": None}),
        ({"wandb_project": "p"}, {"training.runtime.report_to": ["wandb"]}),
        ({"wandb_project": "p", "use_wandb": False}, {"training.runtime.report_to": None}),
        ({"chat_template": "qwen_25"}, {"model.chat_template": "qwen25_chatml"}),
        ({"chat_template": "tokenizer_default"}, {"model.chat_template": None}),
        ({"chat_template": "jinja", "chat_template_jinja": "{{ x }}"}, {"model.chat_template": "{{ x }}"}),
        (
            {"lora_target_linear": False, "lora_target_modules": r"model.layers.[\d]+.(mlp|self_attn).(up|q|v)_proj"},
            {"lora.target_modules": ["up_proj", "q_proj", "v_proj"]},
        ),
        ({"datasets": [{"path": "a.jsonl", "type": "alpaca"}]}, {"model.chat_template": jinja_of("alpaca")}),
        (
            {"datasets": [{"path": "a.jsonl", "type": "completion", "field": "body"}]},
            {"data.columns": {"text": "body"}, "data.on_long": "split", "model.chat_template": None},
        ),
        (
            {"datasets": [{"path": "json", "data_files": ["a.jsonl", "b.jsonl"], "type": "chat_template"}]},
            {"data.train": ["a.jsonl", "b.jsonl"]},
        ),
        (
            {"datasets": [{"path": "d/x", "type": "chat_template", "field_messages": "turns", "split": "train[:100]"}]},
            {"data.train": "d/x", "data.columns": {"messages": "turns"}, "data.max_samples": 100},
        ),
        ({"test_datasets": [{"path": "t.jsonl", "type": "chat_template"}]}, {"data.eval": "t.jsonl"}),
    ],
)
def test_values_of_axolotl(axolotl, changes, expected):
    conversion = axolotl(**changes)
    assert conversion.config is not None, refusal(conversion)
    assert {key: conversion.settings.get(key) for key in expected} == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"lora.r": 16, "lora.lora_alpha": 32, "lora.lora_dropout": 0.05, "data.max_length": 1024}),
        ({}, {"training.learning_rate": None, "training.batch_size": 8, "training.warmup_steps": 0}),  # 2e-5, as ours
        ({"use_peft": False, "lora_r": 8}, {"method": "full", "lora.r": None}),
        ({"load_in_4bit": True}, {"method": "qlora"}),
        ({"max_seq_length": 4096}, {"data.max_length": 4096}),
        ({"assistant_only_loss": True}, {"data.loss_on": "assistant"}),
        ({"completion_only_loss": False}, {"data.loss_on": "all"}),
        ({"packing": True}, {"data.packing": True}),
        ({"dataset_text_field": "content"}, {"data.columns": {"text": "content"}}),
        (
            {"datasets": [{"path": "a/b"}, {"path": "json", "data_files": "c.jsonl"}], "dataset_name": None},
            {"data.train": ["a/b", "c.jsonl"]},
        ),
        ({"test_split_size": 0.1}, {"data.eval": 0.1}),
        ({"eos_token": "<|im_end|>"}, {"model.special_tokens": {"eos_token": "<|im_end|>"}}),
        ({"fsdp": "full_shard auto_wrap"}, {"parallel.strategy": "fsdp"}),
        ({"deepspeed_config": {"zero_stage": 3, "offload_param_device": "cpu"}}, {"parallel.strategy": "fsdp"}),
        ({"mixed_precision": "bf16", "fsdp_version": 2}, {"training.runtime.precision": "bf16"}),
        ({"early_stopping_patience": 2.0}, {"training.runtime.early_stopping_patience": 2}),
    ],
)
def test_values_of_trl(trl, changes, expected):
    conversion = trl(**changes)
    assert conversion.config is not None, refusal(conversion)
    assert {key: conversion.settings.get(key) for key in expected} == expected


BETA, LOSS = "preference.beta", "preference.loss"
SFT, MARGIN = "preference.sft_weight", "preference.margin"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"stage": "dpo"}, {"objective": "preference", LOSS: "sigmoid", BETA: None, SFT: None}),
        ({"stage": "dpo", "pref_beta": 0.3, "pref_ftx": 1.0}, {BETA: 0.3, SFT: 1.0}),
        ({"stage": "dpo", "pref_loss": "ipo", "dpo_label_smoothing": 0}, {LOSS: "ipo"}),
        ({"stage": "dpo", "pref_loss": "simpo"}, {BETA: 0.1, MARGIN: 0.5}),  # their defaults are not ours
        ({"stage": "dpo", "pref_loss": "simpo", "simpo_gamma": 1.2, "pref_beta": 2}, {BETA: 2.0, MARGIN: 1.2}),
        ({"stage": "dpo", "pref_loss": "orpo"}, {LOSS: "orpo", "objective": "preference"}),
        ({"stage": "dpo", "dpo_label_smoothing": 0.1}, {"preference.label_smoothing": 0.1}),
        ({"stage": "dpo", "packing": True, "train_on_prompt": True}, {"data.packing": None, "data.loss_on": None}),
        (
            {"stage": "kto", "kto_rejected_weight": 1.3},
            {"objective": "kto", LOSS: "kto", "preference.undesirable_weight": 1.3},
        ),
        ({"stage": "sft", "pref_beta": 0.3}, {"objective": None, BETA: None}),
        # 0 is a number, and not our default.
        ({"stage": "dpo", "pref_loss": "simpo", "simpo_gamma": 0}, {LOSS: "simpo", MARGIN: 0.0}),
        ({"stage": "dpo", "ld_alpha": 0.0, "pref_ftx": 0.0}, {"preference.ld_alpha": 0.0, SFT: None}),
    ],
)
def test_preference_of_llamafactory(llamafactory, changes, expected):
    rows = {"dpo": {"ranking": True}, "kto": {"columns": {"kto_tag": "label"}}}.get(changes["stage"], {})
    conversion = llamafactory(dataset_dir={"faq": {"file_name": "faq.json"} | rows}, **changes)
    assert conversion.config is not None, refusal(conversion)
    assert {key: conversion.settings.get(key) for key in expected} == expected


def test_a_number_of_0_is_not_replaced_by_our_default(llamafactory, trl, axolotl):
    for converted in (
        lambda: llamafactory(stage="dpo", pref_beta=0, dataset_dir={"faq": {"file_name": "p.json", "ranking": True}}),
        lambda: trl(loss_type="apo_zero", beta=0.0),
        lambda: trl(loss_type="kto", undesirable_weight=0),
        lambda: axolotl(rl="ipo", trl={"beta": 0}),
    ):
        with pytest.raises(ConfigError, match="must be above 0"):
            converted()


def test_rows_and_stage_of_llamafactory_have_to_fit(llamafactory):
    pairs = {
        "file_name": "p.json",
        "ranking": True,
        "columns": {"prompt": "q", "chosen": "good", "rejected": "rejected"},
    }
    marked = {"file_name": "k.json", "formatting": "sharegpt", "columns": {"messages": "messages", "kto_tag": "ok"}}
    plain = {"file_name": "s.json"}
    told = llamafactory(stage="dpo", dataset_dir={"faq": pairs}).settings["data.columns"]
    assert told == {"instruction": "q", "chosen": "good"}
    assert llamafactory(stage="kto", dataset_dir={"faq": marked}).settings["data.columns"] == {"label": "ok"}
    for stage, rows in (("sft", pairs), ("sft", marked), ("dpo", plain), ("dpo", marked), ("kto", pairs)):
        assert refused(llamafactory(stage=stage, dataset_dir={"faq": rows})) == {"dataset"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rl": "dpo", "rl_beta": 0.2}, {"objective": "preference", LOSS: "sigmoid", BETA: 0.2}),
        ({"rl": "ipo", "trl": {"beta": 0.3}}, {LOSS: "ipo", BETA: 0.3}),
        ({"rl": "dpo", "rpo_alpha": 0.5, "dpo_norm_loss": True}, {LOSS: "sigmoid_norm", SFT: 0.5}),
        ({"rl": "orpo", "orpo_alpha": 0.4}, {LOSS: "orpo", BETA: 0.4, SFT: None}),
        ({"rl": "simpo"}, {LOSS: "simpo", BETA: 0.1, MARGIN: 0.5, SFT: 1.0}),  # CPO's term, which TRL adds unasked
        ({"rl": "simpo", "cpo_alpha": 0, "simpo_gamma": 1.0}, {MARGIN: 1.0, SFT: None}),
        ({"rl": "dpo", "sample_packing": True}, {"data.packing": None}),
    ],
)
def test_preference_of_axolotl(axolotl, changes, expected):
    conversion = axolotl(**changes)
    assert conversion.config is not None, refusal(conversion)
    assert {key: conversion.settings.get(key) for key in expected} == expected


@pytest.mark.parametrize(
    ("rl", "kind", "columns", "template"),
    [
        ("dpo", "chatml.intel", None, "<|im_start|>"),
        ("dpo", "llama3.icr", {"instruction": "input"}, "llama3"),
        ("dpo", "llama3.argilla", {"chosen": "chosen_response", "rejected": "rejected_response"}, "llama3"),
        ("orpo", "chat_template.argilla", None, None),
        ("kto", "chatml.argilla", None, "<|im_start|>"),
        ("dpo", {"field_prompt": "問", "field_chosen": "良"}, {"instruction": "問", "chosen": "良"}, None),
    ],
)
def test_rows_that_axolotl_compares(axolotl, rl, kind, columns, template):
    conversion = axolotl(rl=rl, datasets=[{"path": "p.jsonl", "type": kind}], chat_template="tokenizer_default")
    assert conversion.config is not None, refusal(conversion)
    assert conversion.settings.get("data.columns") == columns
    given = conversion.settings.get("model.chat_template")
    assert given is None if template is None else template in given


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"loss_type": "sigmoid"},
            {"objective": "preference", LOSS: "sigmoid", "training.learning_rate": 1e-6, "data.loss_on": None},
        ),
        ({"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.2]}, {LOSS: "sigmoid", SFT: 0.2}),
        ({"loss_type": "ipo", "beta": 0.05, "learning_rate": 1e-5}, {BETA: 0.05, "training.learning_rate": 1e-5}),
        ({"label_smoothing": 0.1, "beta": 0.1}, {LOSS: "sigmoid", "preference.label_smoothing": 0.1}),
        ({"rpo_alpha": 1.0}, {LOSS: "sigmoid", SFT: 1.0}),
        ({"loss_type": "simpo", "beta": 2.5}, {LOSS: "simpo", BETA: 2.5, MARGIN: 0.5, SFT: 1.0}),
        ({"simpo_gamma": 1.0, "cpo_alpha": 0.0}, {LOSS: "simpo", BETA: 0.1, MARGIN: 1.0, SFT: None}),
        ({"desirable_weight": 1.5, "beta": 0.2}, {"objective": "kto", BETA: 0.2, "preference.desirable_weight": 1.5}),
        ({"loss_type": "apo_zero_unpaired"}, {"objective": "kto", LOSS: "apo_zero_unpaired"}),
        ({"loss_type": "orpo", "beta": 0.2}, {LOSS: "orpo", BETA: 0.2}),
        ({"loss_type": "nll"}, {"objective": None}),
    ],
)
def test_preference_of_trl(trl, changes, expected):
    conversion = trl(**changes)
    assert conversion.config is not None, refusal(conversion)
    assert {key: conversion.settings.get(key) for key in expected} == expected


@pytest.mark.parametrize(
    ("changes", "key", "told"),
    [
        ({"label_smoothing": 0.1}, "label_smoothing", "TRL 1.16 ignores label_smoothing with sigmoid"),
        ({"loss_type": ["sigmoid", "sft"]}, "loss_type", "a mean of each pair's own"),
        ({"loss_type": "orpo"}, "loss_type", "covers the prompt as well"),
        ({"loss_type": "kto"}, "loss_type", "of one micro-batch, in the order of the file"),
        ({"loss_type": ["hinge", "sft"], "loss_weights": [2.0, 1.0]}, "loss_weights", "all divided by 2"),
        ({"loss_type": "sigmoid", "max_prompt_length": 512}, "max_prompt_length", "prompt and answer together"),
        ({"loss_type": "sigmoid", "disable_dropout": False}, "disable_dropout", "always 0"),
    ],
)
def test_where_trl_computes_something_else_is_marked(trl, changes, key, told):
    conversion = trl(**changes)
    entry = next(entry for entry in conversion.entries if entry.key == key)
    assert entry.differs
    assert entry.reason is not None
    assert told in entry.reason.en
    assert f": {key}: " in yaml_of(conversion)
    robust = trl(loss_type="robust", label_smoothing=0.1)
    assert not any(entry.differs for entry in robust.entries)


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({"beta": 0.1}, {"beta"}),  # of DPO, KTO, ORPO, CPO or GRPO: only the command line says which
        ({"loss_type": ["sigmoid", "bco_pair", "sft"]}, {"loss_type"}),
        ({"loss_type": "dapo", "beta": 0.0}, {"loss_type"}),
        ({"loss_type": ["orpo", "sft"]}, {"loss_type"}),
        ({"loss_type": ["sigmoid", "sft"], "loss_weights": 5}, {"loss_weights"}),
        ({"loss_type": ["sigmoid", "sft"], "loss_weights": ["a", 1]}, {"loss_weights"}),
        ({"loss_type": "sigmoid", "cpo_alpha": 1.0}, {"cpo_alpha"}),  # CPO, which has no reference
        ({"beta": 0.1, "cpo_alpha": 0.0}, {"cpo_alpha"}),
        ({"loss_type": "sigmoid", "f_divergence_type": "js_divergence"}, {"f_divergence_type"}),
        ({"loss_type": "sigmoid", "sync_ref_model": True}, {"sync_ref_model"}),
        ({"reward_model_path": "x", "num_generations": 4}, {"reward_model_path", "num_generations"}),
    ],
)
def test_trainers_of_trl_out_of_scope(trl, changes, keys):
    assert refused(trl(**changes)) == keys


def test_their_accumulation_counts_one_device(axolotl):
    """4 micro-batches on each of 8 devices are 32 over all of them; ranks that share a model see the same rows."""
    path = "training.gradient_accumulation_steps"
    assert axolotl().settings[path] == 4
    assert axolotl(gpus=8).settings[path] == 32
    assert axolotl(gpus=8, tensor_parallel_size=2).settings[path] == 16
    assert axolotl(gpus=8, tensor_parallel_size=2).settings["parallel.tensor_parallel_size"] == 2
    assert axolotl(gpus=8, context_parallel={"size": 8}).settings[path] == 4
    assert "--gpus 8" in yaml_of(axolotl(gpus=8))
    assert "--gpus" in list_of(axolotl())


def test_the_number_of_gpus_is_said_not_read(axolotl):
    """A launcher's number of workers in the file changes nothing, and is marked where --gpus says another."""
    for gpus, marked in ((1, True), (4, False)):
        entries = {entry.key: entry for entry in axolotl(gpus=gpus, use_ray=True, ray_num_workers=4).entries}
        assert entries["ray_num_workers"].differs is marked


def test_new_tokens_from_a_file_of_descriptions(tmp_path, llamafactory):
    (tmp_path / "tokens.yaml").write_text("'<a>': begins\n'<b>': ends\n", encoding="utf-8")
    settings = llamafactory(new_special_tokens_config="examples/tokens.yaml", add_tokens="<c>").settings
    assert settings["model.extra_tokens"] == ["<c>", "<a>", "<b>"]
    assert refused(llamafactory(new_special_tokens_config="nowhere.yaml")) == {"new_special_tokens_config"}


def test_deepspeed_json_beside_the_file(tmp_path, llamafactory):
    """The stage decides; bf16 and clipping are read where the run file leaves them open; `auto` says nothing."""
    zero = {"stage": 3, "offload_param": {"device": "cpu"}}
    config = {
        "zero_optimization": zero,
        "bf16": {"enabled": True},
        "gradient_clipping": 0.5,
        "train_batch_size": "auto",
    }
    (tmp_path / "ds_z3.json").write_text(json.dumps(config))
    conversion = llamafactory(deepspeed="examples/ds_z3.json")
    assert conversion.settings["parallel.strategy"] == "fsdp"
    assert conversion.settings["training.runtime.precision"] == "bf16"
    assert conversion.settings["training.max_grad_norm"] == 0.5
    assert "offload_param" in list_of(conversion)
    assert llamafactory(deepspeed="zero2_of_somewhere.json", gpus=4).settings["parallel.deepspeed_stage"] == 2
    assert "parallel.deepspeed_stage" not in llamafactory(deepspeed="zero2_of_somewhere.json").settings
    inline = llamafactory(deepspeed={"zero_optimization": {"stage": 2}}, gpus=2, bf16=False, fp16=True)
    assert inline.settings["training.runtime.precision"] == "fp16"
    assert refused(llamafactory(deepspeed="mine.json")) == {"deepspeed"}


def test_dataset_info_names_files_columns_and_tags(tmp_path):
    info = {
        "a": {"file_name": "a.jsonl", "columns": {"prompt": "問題", "response": "答え"}},
        "b": {"file_name": "b.jsonl", "columns": {"prompt": "問題", "response": "答え"}},
        "chat": {"hf_hub_url": "org/chat", "formatting": "sharegpt", "columns": {"messages": "turns"}},
        "odd": {"file_name": "o.jsonl", "formatting": "sharegpt", "tags": {"role_tag": "speaker"}},
        "led": {"file_name": "l.jsonl", "formatting": "sharegpt", "columns": {"messages": "turns", "system": "役"}},
        "full": {
            "file_name": "f.jsonl",
            "columns": {"prompt": "問", "response": "答", "history": "前", "tools": "道具"},
        },
        "pairs": {"file_name": "p.jsonl", "ranking": True},
        "pictures": {"file_name": "i.jsonl", "columns": {"images": "images"}},
    }
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")

    def of(names: str, **changes: Any) -> Conversion:
        return convert(write(tmp_path, LLAMAFACTORY, dataset=names, dataset_dir="data", **changes))

    two = of("a, b").settings
    assert two["data.train"] == [str(folder / "a.jsonl"), str(folder / "b.jsonl")]
    assert two["data.columns"] == {"instruction": "問題", "output": "答え"}
    assert of("chat").settings["data.train"] == "org/chat"
    assert of("chat").settings["data.columns"] == {"messages": "turns"}
    assert of("led").settings["data.columns"] == {"messages": "turns", "system": "役"}
    full = {"instruction": "問", "output": "答", "history": "前", "tools": "道具"}
    assert of("full").settings["data.columns"] == full
    assert of("a", stage="pt").settings["data.columns"] == {"text": "問題"}
    assert of("a", stage="pt").settings["data.on_long"] == "split"
    for name in ("odd", "pairs", "pictures"):
        assert refused(of(name)) == {"dataset"}
    unknown = of("nowhere")
    assert unknown.settings["data.train"] == "nowhere"
    assert any(entry.differs and entry.key == "dataset" for entry in unknown.entries)


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({"stage": "dpo", "dataset": "org/p", "pref_loss": "kto_pair"}, {"pref_loss"}),
        (
            {"stage": "dpo", "dataset": "org/p", "pref_loss": "orpo", "pref_ftx": 1.0, "ref_model": "x"},
            {"pref_ftx", "ref_model"},
        ),
        (
            {"stage": "rm", "use_galore": True, "freeze_language_model": True},
            {"stage", "use_galore", "freeze_language_model"},
        ),
        ({"finetuning_type": "freeze", "use_llama_pro": True}, {"finetuning_type", "use_llama_pro"}),
        ({"optim": "lion_8bit", "lr_scheduler_type": "polynomial"}, {"optim", "lr_scheduler_type"}),
        ({"quantization_bit": 3}, {"quantization_bit"}),
        ({"quantization_bit": 4, "quantization_method": "hqq"}, {"quantization_method"}),
        ({"use_something_new": True}, {"use_something_new"}),
        ({"learning_rate": "fast"}, {"learning_rate"}),
        ({"num_train_epochs": 1.5}, {"num_train_epochs"}),
        ({"do_train": False, "do_predict": True}, {"do_train", "do_predict"}),
        ({"model_name_or_path": "${oc.env:MODEL}"}, {"model_name_or_path"}),
        ({"val_size": 500}, {"val_size"}),
    ],
)
def test_everything_that_is_missing_is_named_at_once(llamafactory, changes, keys):
    conversion = llamafactory(**changes)
    assert refused(conversion) == keys
    error = refusal(conversion)
    assert error.exit_code == 78
    assert all(key in error.en and key in error.ja for key in keys)


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({"rl": "grpo", "optimizer": "adamw_torch_4bit"}, {"rl", "optimizer"}),
        ({"rl": "dpo", "datasets": [{"path": "x", "type": "zephyr.nectar"}]}, {"datasets"}),
        ({"plugins": ["axolotl.integrations.liger.LigerPlugin", "axolotl.integrations.kd.KDPlugin"]}, {"plugins"}),
        ({"datasets": [{"path": "x", "type": "chat_template", "roles_to_train": ["user"]}]}, {"datasets"}),
        ({"datasets": [{"path": "x", "type": "chat_template", "message_field_training": "learnt"}]}, {"datasets"}),
        ({"datasets": [{"path": "x", "type": "alpaca"}, {"path": "y", "type": "chat_template"}]}, {"datasets"}),
        ({"adapter": None, "unfrozen_parameters": ["^lm_head"]}, {"unfrozen_parameters"}),
        ({"peft": {"loftq_config": {"loftq_bits": 4}}}, {"peft"}),
        ({"adapter": None, "optimizer": "muon", "qat": {"weight_dtype": "int4"}}, {"qat"}),
        ({"learning_rate": None, "lora_alpha": None}, {"learning_rate", "lora_alpha"}),
        ({"lora_target_linear": None}, {"lora_target_modules"}),
        ({"processor_type": "AutoProcessor", "image_size": 512}, {"processor_type", "image_size"}),
    ],
)
def test_axolotl_runs_out_of_scope(axolotl, changes, keys):
    assert refused(axolotl(**changes)) == keys


def test_keys_of_turns_that_our_reader_obeys_are_taken(axolotl):
    block = {"path": "x", "type": "chat_template", "message_field_training": "training"}
    assert axolotl(datasets=[block]).settings["data.train"] == "x"


def test_what_changes_speed_only_is_dropped(axolotl):
    conversion = axolotl(
        plugins=["axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin"],
        liger_rope=True,
        tf32=True,
        lora_mlp_kernel=True,
        attn_implementation="flash_attention_2",
        torch_compile="auto",
        model_type="LlamaForCausalLM",
        trust_remote_code=True,
        dataset_prepared_path=None,
    )
    assert conversion.config is not None
    for key in ("plugins", "liger_rope", "tf32", "lora_mlp_kernel", "attn_implementation", "trust_remote_code"):
        assert verdict(conversion, key) is Verdict.DROPPED
    assert conversion.empty == ("dataset_prepared_path",)
    assert not conversion.config.model.trust_remote_code
    assert not any(entry.differs for entry in conversion.entries)


def test_what_is_not_quite_theirs_is_marked(axolotl):
    conversion = axolotl(dataset_exact_deduplication=True, curriculum_sampling=True, colour="red", use_cache=False)
    marked = {entry.key for entry in conversion.entries if entry.differs}
    assert marked == {"dataset_exact_deduplication", "curriculum_sampling", "colour"}
    assert list_of(conversion).count("(!)") == 3
    assert all(f": {key}: " in yaml_of(conversion) for key in marked)


def test_every_key_is_listed_once(axolotl):
    conversion = axolotl(wandb_project=None, warmup_ratio=0.1, evals_per_epoch=4, seed=1)
    listed = [entry.key for entry in conversion.entries] + list(conversion.empty)
    assert sorted(listed) == sorted([*AXOLOTL, "wandb_project", "warmup_ratio", "evals_per_epoch", "seed"])


def test_the_tables_name_settings_that_exist(llamafactory, axolotl):
    ours = {".".join(path) for path in fields_of(RunConfig)}
    for conversion in (llamafactory(), axolotl()):
        assert set(conversion.settings) <= ours
        assert {name for entry in conversion.entries for name in entry.ours} <= ours


def test_yaml_reads_back_as_it_was_converted(tmp_path, monkeypatch, axolotl):
    """Also with text that YAML would read as something else, and comments in the locale's language."""
    conversion = axolotl(
        output_dir="1e3",
        base_model="org/モデル",
        special_tokens={"eos_token": "#end"},
        default_system_message="a: b\n# c",
    )
    out = tmp_path / "run.yaml"
    for language in ("ja", "en"):
        monkeypatch.setenv("AIFT_LANG", language)
        out.write_text(yaml_of(conversion), encoding="utf-8")
        assert load_config(out) == conversion.config
    assert "ours counts all devices" in out.read_text(encoding="utf-8")


def test_a_file_name_cannot_leave_its_comment(tmp_path):
    path = write(tmp_path, AXOLOTL, name="a\nmethod: full\n.yaml")
    text = yaml_of(convert(path))
    assert "\nmethod: full" not in text
    assert text.count("\nmethod: lora") == 1


def test_keys_and_words_in_other_spellings(tmp_path):
    """Capital letters, hyphens, anchors with merge keys, numbers and truth values as text, enumerations."""
    path = tmp_path / "theirs.yml"
    path.write_text(
        "defaults: &d\n  micro-batch-size: '2'\n<<: *d\nBase_Model: org/model\ndatasets:\n- faq.jsonl\n"
        "adapter: QLoRA\nload_in_4bit: 'True'\nlora_r: 8\nlora_alpha: 16.0\nlora_target_linear: yes\n"
        "learning_rate: 2e-4\nsequence_len: 1_024\n",
        encoding="utf-8",
    )
    conversion = convert(path, "axolotl")
    assert refused(conversion) == {"datasets", "defaults"}  # a bare path has no type; an anchor's own key is none
    path.write_text(
        path.read_text()
        .replace("- faq.jsonl", "- {path: faq.jsonl, type: chat_template}")
        .replace("defaults: &d\n  micro-batch-size: '2'\n<<: *d\n", "micro-batch-size: '2'\n")
    )
    settings = convert(path).settings
    assert settings["method"] == "qlora"
    assert (settings["training.batch_size"], settings["data.max_length"]) == (2, 1024)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"model": {"name": "m"}, "training": {"learning_rate": 1e-4}}, "run file of ours"),
        ({"zero_optimization": {"stage": 3}}, "DeepSpeed"),
        ({"compute_environment": "LOCAL_MACHINE", "distributed_type": "FSDP"}, "Accelerate"),
        ({"model": "m", "peft_config": {"name": "lora"}, "train_dataset": "d.yaml"}, "v1"),
        ({"faq": {"file_name": "faq.json"}}, "dataset_info.json"),
        ({"colour": "red", "size": 3}, "colour, size"),
        ({"model_name_or_path": "m", "stage": "sft", "dataset_name": "d"}, "--from"),
    ],
)
def test_a_wrong_file_is_refused_with_what_it_is(tmp_path, values, told):
    with pytest.raises(ConfigError) as caught:
        convert(write(tmp_path, values))
    assert told in caught.value.en
    assert caught.value.exit_code == 78


def test_from_decides_between_tools(tmp_path):
    path = write(tmp_path, {"model_name_or_path": "m", "learning_rate": 1e-4, "stage": "sft", "dataset_name": "d"})
    assert convert(path, "trl").tool is TOOLS["trl"]
    with pytest.raises(ConfigError, match="unsloth"):
        convert(path, "unsloth")


def test_reading_is_safe_and_bounded(tmp_path):
    path = tmp_path / "theirs.yaml"
    with pytest.raises(InputNotFoundError):
        convert(path)
    path.write_text("base_model: !!python/object/apply:os.system ['echo x']\n")
    with pytest.raises(ConfigError, match="tags"):
        convert(path)
    path.write_text(
        "a: &a [x,x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\n"
        "c: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\n"
        "base_model: [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]\n"
    )
    with pytest.raises(ConfigError, match="too many values"):
        convert(path)
    path.write_text("x: '" + "y" * (1 << 20) + "'\n")
    with pytest.raises(ConfigError, match="1 MiB"):
        convert(path)
    path.write_text("a: [1\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        convert(path)
    path.write_text("- a\n- b\n")
    with pytest.raises(ConfigError, match="no keys"):
        convert(path)
    named = tmp_path / "theirs.json"
    named.write_text("{")
    with pytest.raises(ConfigError, match="JSON"):
        convert(named)
    named.write_text(json.dumps(AXOLOTL))
    assert convert(named).config is not None


def test_alpacas_prompt_is_theirs():
    """Stanford Alpaca's text, with and without input; EOS ends the answer, BOS starts where it is another token."""
    from jinja2 import Environment

    template = Environment().from_string(jinja_of("alpaca"))
    plain = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    assert template.render(messages=plain, bos_token="<s>", eos_token="</s>") == (
        "<s>Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nHi\n\n### Response:\nHello</s>"
    )
    with_input = [{"role": "user", "content": "Add\n\n1 2", "instruction": "Add", "input": "1 2"}]
    assert template.render(messages=with_input, bos_token="<e>", eos_token="<e>").endswith(
        "completes the request.\n\n### Instruction:\nAdd\n\n### Input:\n1 2\n\n### Response:\n"
    )


@pytest.mark.parametrize(
    "value", [[1, 2], {"a": {"b": 1}}, "word", -1, True, [None], [{"path": 5, "type": ["x"]}], "1e400"]
)
def test_values_of_any_shape_are_refused_or_read(tmp_path, value):
    """No value of any key ends in a traceback: it is converted, dropped or refused."""
    (tmp_path / "dataset_info.json").write_text(json.dumps(INFO | {"odd": {"file_name": "x", "columns": value}}))
    keys = ["datasets", "val_set_size", "lora_target_modules", "special_tokens", "plugins", "fsdp_config", "deepspeed"]
    inside = ["path", "split", "data_files", "message_property_mappings", "roles", "roles_to_train", "field_messages"]
    files = [(AXOLOTL, "axolotl", {key: value}) for key in keys]
    files += [
        (AXOLOTL, "axolotl", {"datasets": [{"path": "x", "type": "chat_template", key: value}]}) for key in inside
    ]
    files += [
        (LLAMAFACTORY, "llamafactory", {key: value}) for key in ("dataset", "dataset_dir", "template", "lora_target")
    ]
    files += [(LLAMAFACTORY, "llamafactory", {"dataset": "odd"})]
    files += [(TRL, "trl", {key: value}) for key in ("datasets", "dataset_text_field", "packing", "report_to")]
    for base, tool, changes in files:
        with contextlib.suppress(ConfigError):
            conversion = convert(write(tmp_path, base, **changes), tool)
            assert list_of(conversion)
            assert yaml_of(conversion)
